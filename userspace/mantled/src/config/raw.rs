//! What was typed: the keys of the file, as serde reads them and as the JSON Schema shows them.
//!
//! Nothing here is checked beyond its type; the doc comments are the schema's descriptions. Keys
//! that the schema skips are known but not available yet.

use schemars::JsonSchema;
use serde::Deserialize;

use super::enroll::{Inbound, Mode, OnDown};
use super::field::{Field, Later, OneOrMore, Strings, Table, Tables, Word};
use super::limits::{Period, SESSIONS_MAX};
use super::record::OnFailure;
use super::route::{Protocol, TlsMode};
use super::trust::MinVersion;

/// The keys that are known but not available yet.
pub(super) const LATER: &[&str] = &["level", "recipients"];

/// The configuration of mantled.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(title = "mantled.toml", deny_unknown_fields)]
pub(super) struct RawConfig {
    /// What happens to the connections of enrolled groups while the daemon is down; without it,
    /// groups in enforce mode are closed and those in observe mode open.
    pub(super) on_daemon_down: Field<Word<OnDown>>,
    pub(super) listen: Field<Table<RawListen>>,
    pub(super) enroll: Field<Tables<RawEnroll>>,
    pub(super) route: Field<Tables<RawRoute>>,
    pub(super) tls: Field<Table<RawTls>>,
    pub(super) ca: Field<Table<RawCa>>,
    pub(super) bypass: Field<Tables<RawBypass>>,
    pub(super) dns: Field<Table<RawDns>>,
    pub(super) record: Field<Table<RawRecord>>,
    pub(super) limits: Field<Table<RawLimits>>,
    /// Where the daemon keeps what commands have enrolled.
    pub(super) state_dir: Field<String>,
    pub(super) admin: Field<Table<RawAdmin>>,
    pub(super) policy: Field<Table<RawPolicy>>,
}

/// Policies written in Cedar; without this table nothing is refused by policy.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Policy", deny_unknown_fields)]
pub(super) struct RawPolicy {
    /// The directory of `*.cedar`, all of which count.
    pub(super) dir: Field<String>,
}

/// Where redirected connections arrive.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Listen", deny_unknown_fields)]
pub(super) struct RawListen {
    /// The TCP port on the loopback address; 0 lets the kernel pick one.
    #[schemars(range(min = 0, max = 65535))]
    pub(super) port: Field<i64>,
}

/// A group of processes whose connections are redirected; exactly one of `unit` and `cgroup`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Enroll", deny_unknown_fields, extend("required" = ["mode"]))]
pub(super) struct RawEnroll {
    /// A systemd unit: `shipper.service`.
    pub(super) unit: Field<String>,
    /// A path below the cgroup2 root: `/system.slice/x.service`.
    pub(super) cgroup: Field<String>,
    /// Whether plaintext is refused, or let out and recorded where a server offers no TLS.
    pub(super) mode: Field<Word<Mode>>,
    /// Whether servers inside the group may answer peers; refused in enforce mode by default.
    pub(super) inbound: Field<Word<Inbound>>,
    /// Overrides the global `on_daemon_down` for this group.
    pub(super) on_daemon_down: Field<Word<OnDown>>,
}

/// How connections to some destination are made safe; the first that matches decides. At least
/// one of `host`, `cidr` and `port`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Route", deny_unknown_fields)]
pub(super) struct RawRoute {
    /// The name that the agent asked for; `*` stands for any part of one label.
    pub(super) host: Field<String>,
    /// An address or a network.
    pub(super) cidr: Field<String>,
    /// The port that the agent connects to.
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Field<i64>,
    /// The protocol that is spoken there; without it, it is detected.
    pub(super) protocol: Field<Word<Protocol>>,
    /// How to get to TLS.
    pub(super) tls: Field<Word<TlsMode>>,
    /// The DNS name or IP address that the certificate must prove.
    pub(super) server_name: Field<String>,
    /// The port to dial in place of the one that the agent connects to.
    #[schemars(range(min = 1, max = 65535))]
    pub(super) upstream_port: Field<i64>,
    /// Replaces the roots of `[tls]`.
    pub(super) roots: Field<OneOrMore>,
    /// A PEM file; replaces that of `[tls]`. Needs `client_key`.
    pub(super) client_certificate: Field<String>,
    /// A PEM file; replaces that of `[tls]`. Needs `client_certificate`.
    pub(super) client_key: Field<String>,
    /// Replaces the lowest TLS version of `[tls]`.
    pub(super) min_version: Field<Word<MinVersion>>,
    /// Replaces the pins of `[tls]`; an empty list: none.
    pub(super) pins: Field<Strings>,
    /// Replaces the revocation lists of `[tls]`; an empty list: none.
    pub(super) crls: Field<Strings>,
}

/// What verified TLS means where no route says otherwise.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Tls", deny_unknown_fields)]
pub(super) struct RawTls {
    /// `"system"`, or a list of PEM files in which `"system"` may stand.
    pub(super) roots: Field<OneOrMore>,
    /// The lowest TLS version.
    pub(super) min_version: Field<Word<MinVersion>>,
    /// The PEM file of the certificate shown to servers that ask. Needs `client_key`.
    pub(super) client_certificate: Field<String>,
    /// The PEM file of its private key. Needs `client_certificate`.
    pub(super) client_key: Field<String>,
    /// `"sha256/BASE64"`: hashes of public keys (SubjectPublicKeyInfo, RFC 7469 §2.4). With pins,
    /// the certificate must verify and a key of its chain, the root's included, must be one of
    /// them. A server that is known by its address alone may have a certificate for another name
    /// if its own key is pinned. A pin never replaces the chain: a self-signed certificate has to
    /// be among the `roots`.
    pub(super) pins: Field<Strings>,
    /// PEM files of revocation lists. With them, every certificate of a chain but its root must be
    /// covered by a list that has not expired: one whose status is unknown is refused.
    pub(super) crls: Field<Strings>,
}

/// The authority of this host, by which routes with `tls = "terminate"` end the TLS of agents.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Ca", deny_unknown_fields)]
pub(super) struct RawCa {
    /// The directory of `ca.pem` and `ca-key.pem`, which `mantled ca init` makes.
    pub(super) dir: Field<String>,
}

/// Destinations that enrolled groups reach past the proxy.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Bypass", deny_unknown_fields, extend("required" = ["cidr", "reason"]))]
pub(super) struct RawBypass {
    /// An address or a network.
    pub(super) cidr: Field<String>,
    /// One port; without it, every port and every protocol.
    #[schemars(range(min = 1, max = 65535))]
    pub(super) port: Field<i64>,
    /// Why; shown by `mantled status` and in reports.
    #[schemars(length(min = 1))]
    pub(super) reason: Field<String>,
}

/// Whom enrolled groups may ask for names.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Dns", deny_unknown_fields)]
pub(super) struct RawDns {
    /// Addresses; without them, the nameservers of /etc/resolv.conf as read at start.
    pub(super) resolvers: Field<Strings>,
}

/// Where session records go.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Record", deny_unknown_fields)]
pub(super) struct RawRecord {
    /// The directory of `sessions.jsonl`; without it, records go to standard output.
    pub(super) dir: Field<String>,
    /// What happens to new connections when a record cannot be written.
    pub(super) on_failure: Field<Word<OnFailure>>,
    #[schemars(skip)]
    pub(super) level: Field<Later>,
    #[schemars(skip)]
    pub(super) recipients: Field<Later>,
}

/// How the daemon is asked and told.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Admin", deny_unknown_fields)]
pub(super) struct RawAdmin {
    /// The socket of `mantled enroll`, `withdraw` and `status`.
    pub(super) socket: Field<String>,
    /// Where Prometheus finds the metrics, by plain HTTP: an address with a port. Without it,
    /// nowhere.
    pub(super) metrics: Field<String>,
}

/// How long, and how many.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "Limits", deny_unknown_fields)]
pub(super) struct RawLimits {
    /// Waiting for the first bytes that tell the protocol.
    pub(super) detect: Field<Period>,
    /// The dialogue before a handshake.
    pub(super) starttls: Field<Period>,
    /// The TLS handshake.
    pub(super) handshake: Field<Period>,
    /// The TCP connection to the server.
    pub(super) dial: Field<Period>,
    /// How long running sessions may go on when the daemon stops.
    pub(super) drain: Field<Period>,
    /// Concurrent sessions.
    #[schemars(range(min = 1, max = SESSIONS_MAX))]
    pub(super) sessions: Field<i64>,
}

//! What is kept of a session.

use serde::Serialize;

/// How a session was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The agent's bytes were carried, or there were none.
    Allowed,
    /// They were not; `error.type` and `mantled.reason` say why.
    Refused,
    /// The server could not be reached, so there was nothing to judge.
    Failed,
    /// The daemon ended before the session did.
    Aborted,
}

impl Verdict {
    /// As records have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

/// What the agent's bytes were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// TLS that the proxy made and verified.
    Verified,
    /// Clear text: observe mode, or an exception that the operator wrote.
    Exposed,
    /// The agent's own encryption, which the proxy cannot verify.
    Native,
    /// A resolver, in clear, as DNS is.
    Resolver,
}

impl Path {
    /// As records have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Exposed => "exposed",
            Self::Native => "native",
            Self::Resolver => "resolver",
        }
    }
}

/// The process that made the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id, in the initial namespace.
    #[serde(rename = "process.pid")]
    pub pid: u32,
    /// Base name of the executable; the task's name where that could not be read.
    #[serde(rename = "process.executable.name")]
    pub name: String,
    /// The executable, read when the connection was accepted: evidence, not proof.
    #[serde(
        rename = "process.executable.path",
        skip_serializing_if = "Option::is_none"
    )]
    pub executable: Option<String>,
    /// User id.
    #[serde(rename = "process.user.id")]
    pub uid: u32,
    /// Group id.
    #[serde(rename = "mantled.process.group.id")]
    pub gid: u32,
    /// Control group, below the hierarchy's root.
    #[serde(
        rename = "process.linux.cgroup",
        skip_serializing_if = "Option::is_none"
    )]
    pub cgroup: Option<String>,
    /// systemd unit.
    #[serde(
        rename = "mantled.systemd.unit",
        skip_serializing_if = "Option::is_none"
    )]
    pub unit: Option<String>,
    /// Container id.
    #[serde(rename = "container.id", skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Kubernetes' pod.
    #[serde(rename = "k8s.pod.uid", skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// "kernel": nobody could look at the process itself, so the executable is not known.
    #[serde(
        rename = "mantled.process.known_by",
        skip_serializing_if = "Option::is_none"
    )]
    pub known_by: Option<&'static str>,
}

/// A server's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// Distinguished name of the subject.
    #[serde(rename = "tls.server.subject")]
    pub subject: String,
    /// Distinguished name of the issuer.
    #[serde(rename = "tls.server.issuer")]
    pub issuer: String,
    /// End of validity, RFC 3339.
    #[serde(rename = "tls.server.not_after")]
    pub not_after: String,
    /// SHA-256 of the certificate, hexadecimal.
    #[serde(rename = "tls.server.hash.sha256")]
    pub sha256: String,
}

/// What is known of the TLS on the way out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TlsFacts {
    /// Protocol version, "1.3".
    #[serde(
        rename = "tls.protocol.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub version: Option<String>,
    /// Cipher suite, IANA's name.
    #[serde(rename = "tls.cipher", skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    /// Key exchange group.
    #[serde(rename = "tls.curve", skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Application protocol that was agreed on (ALPN).
    #[serde(rename = "tls.next_protocol", skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// A session was resumed; the certificate was verified when it began.
    #[serde(rename = "tls.resumed", skip_serializing_if = "Option::is_none")]
    pub resumed: Option<bool>,
    /// The name that the certificate had to prove.
    #[serde(
        rename = "mantled.tls.verified_name",
        skip_serializing_if = "Option::is_none"
    )]
    pub verified_name: Option<String>,
    /// The pin that the server's chain led over, where there are pins. Without a verified name,
    /// this pin of the server's own key has proven it.
    #[serde(rename = "mantled.tls.pin", skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// The name that the server of an agent with TLS of its own has proven, not to that agent but
    /// in a handshake of the proxy's own, now or a few minutes before.
    #[serde(
        rename = "mantled.tls.server_checked",
        skip_serializing_if = "Option::is_none"
    )]
    pub server_checked: Option<String>,
    /// The agent's own TLS was ended by the proxy, with a certificate of the host's authority.
    #[serde(
        rename = "mantled.tls.terminated",
        skip_serializing_if = "Option::is_none"
    )]
    pub terminated: Option<bool>,
    /// The server's certificate, where the proxy saw it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// Server name that an agent with TLS of its own asked for (SNI).
    #[serde(
        rename = "tls.client.server_name",
        skip_serializing_if = "Option::is_none"
    )]
    pub client_server_name: Option<String>,
    /// Versions that it offered.
    #[serde(
        rename = "mantled.tls.client.versions",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub client_versions: Vec<String>,
    /// Application protocols that it offered.
    #[serde(
        rename = "tls.client.supported_protocols",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub client_alpn: Vec<String>,
}

/// One line of the session log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionRecord {
    /// When the agent connected, RFC 3339, UTC.
    pub timestamp: String,
    /// Always `mantled.session`.
    #[serde(rename = "event.name")]
    pub event: &'static str,
    /// UUID, version 7.
    #[serde(rename = "session.id")]
    pub id: String,
    /// How the session was judged.
    #[serde(rename = "mantled.verdict")]
    pub verdict: Verdict,
    /// What the agent's bytes were written to; missing where nothing was.
    #[serde(rename = "mantled.path", skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// Bounded set of causes, for counting.
    #[serde(rename = "error.type", skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
    /// The cause in a sentence.
    #[serde(rename = "mantled.reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In observe mode: the cause for which enforce mode would have refused.
    #[serde(
        rename = "mantled.enforce.error",
        skip_serializing_if = "Option::is_none"
    )]
    pub would_refuse: Option<&'static str>,
    /// The policies that decided, by their ids.
    #[serde(rename = "mantled.policy.ids", skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// The name by which policies knew the server.
    #[serde(
        rename = "mantled.policy.host",
        skip_serializing_if = "Option::is_none"
    )]
    pub policy_host: Option<String>,
    /// Commands that policies were asked about.
    #[serde(rename = "mantled.commands", skip_serializing_if = "Option::is_none")]
    pub commands: Option<u64>,
    /// How many of them were refused, or would have been in enforce mode.
    #[serde(
        rename = "mantled.commands.refused",
        skip_serializing_if = "Option::is_none"
    )]
    pub commands_refused: Option<u64>,
    /// The first of those, each without its values, and why.
    #[serde(
        rename = "mantled.commands.refusals",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub refusals: Vec<String>,
    /// How many values were masked in what the server answered; absent where nothing was to be.
    #[serde(rename = "mantled.masked", skip_serializing_if = "Option::is_none")]
    pub masked: Option<u64>,
    /// Mode of the group at connect().
    #[serde(rename = "mantled.mode", skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// Always `tcp`.
    #[serde(rename = "network.transport")]
    pub transport: &'static str,
    /// `ipv4` or `ipv6`.
    #[serde(rename = "network.type", skip_serializing_if = "Option::is_none")]
    pub network: Option<&'static str>,
    /// The protocol that was recognised.
    #[serde(
        rename = "network.protocol.name",
        skip_serializing_if = "Option::is_none"
    )]
    pub protocol: Option<&'static str>,
    /// Where the agent wanted to go: the name that it asked for where that is known, else the
    /// address.
    #[serde(rename = "server.address", skip_serializing_if = "Option::is_none")]
    pub server_address: Option<String>,
    /// The address that it connected to, where `server_address` is a name.
    #[serde(
        rename = "network.peer.address",
        skip_serializing_if = "Option::is_none"
    )]
    pub peer_address: Option<String>,
    /// Where the name that the certificate must prove comes from: `route`, `dns`, `hosts`, `http`,
    /// or `address` where none is known.
    #[serde(
        rename = "mantled.name.source",
        skip_serializing_if = "Option::is_none"
    )]
    pub name_source: Option<&'static str>,
    /// The answer that gave the name is older than its TTL.
    #[serde(
        rename = "mantled.name.stale",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub name_stale: bool,
    /// Its port.
    #[serde(rename = "server.port", skip_serializing_if = "Option::is_none")]
    pub server_port: Option<u16>,
    /// The port that the proxy dialled, where it is another one.
    #[serde(rename = "network.peer.port", skip_serializing_if = "Option::is_none")]
    pub upstream_port: Option<u16>,
    /// The agent's side of its connection.
    #[serde(rename = "client.address", skip_serializing_if = "Option::is_none")]
    pub client_address: Option<String>,
    /// Its port.
    #[serde(rename = "client.port", skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// The process; missing where the connection was not redirected by the kernel.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// TLS.
    #[serde(flatten)]
    pub tls: TlsFacts,
    /// User that a client of PostgreSQL or MySQL named.
    #[serde(rename = "db.user", skip_serializing_if = "Option::is_none")]
    pub db_user: Option<String>,
    /// Database that it named.
    #[serde(rename = "db.namespace", skip_serializing_if = "Option::is_none")]
    pub db_namespace: Option<String>,
    /// An SSH server's banner.
    #[serde(
        rename = "mantled.ssh.server.banner",
        skip_serializing_if = "Option::is_none"
    )]
    pub ssh_server: Option<String>,
    /// Bytes from the agent that were carried.
    #[serde(rename = "mantled.bytes.sent")]
    pub sent: u64,
    /// Bytes to the agent.
    #[serde(rename = "mantled.bytes.received")]
    pub received: u64,
    /// From connect() to the end, in milliseconds.
    #[serde(rename = "mantled.duration_ms")]
    pub duration_ms: u64,
    /// Route of the configuration that applied, counted from 1.
    #[serde(rename = "mantled.route", skip_serializing_if = "Option::is_none")]
    pub route: Option<usize>,
}

impl SessionRecord {
    /// An empty record: allowed, nothing known.
    pub fn new(id: String, timestamp: String) -> Self {
        Self {
            timestamp,
            event: "mantled.session",
            id,
            verdict: Verdict::Allowed,
            path: None,
            error: None,
            reason: None,
            would_refuse: None,
            policies: Vec::new(),
            policy_host: None,
            commands: None,
            commands_refused: None,
            masked: None,
            refusals: Vec::new(),
            mode: None,
            transport: "tcp",
            network: None,
            protocol: None,
            server_address: None,
            peer_address: None,
            name_source: None,
            name_stale: false,
            server_port: None,
            upstream_port: None,
            client_address: None,
            client_port: None,
            process: None,
            tls: TlsFacts::default(),
            db_user: None,
            db_namespace: None,
            ssh_server: None,
            sent: 0,
            received: 0,
            duration_ms: 0,
            route: None,
        }
    }

    /// The line, newline included.
    pub fn to_line(&self) -> String {
        // Strings, numbers and lists of strings always have a JSON form.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_of_flat_attributes() {
        let mut record = SessionRecord::new("id".into(), "2026-01-01T00:00:00Z".into());
        record.reason = Some("two\nlines".into());
        record.process = Some(Process {
            pid: 7,
            name: "psql".into(),
            ..Process::default()
        });
        let line = record.to_line();
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["process.pid"], 7);
        assert_eq!(value["mantled.verdict"], "allowed");
        assert!(
            value
                .as_object()
                .unwrap()
                .values()
                .all(|value| !value.is_object())
        );
        assert!(value.get("tls.cipher").is_none());
    }
}

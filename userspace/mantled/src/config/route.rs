//! `[[route]]`: how connections to some destination are made safe.

use std::net::IpAddr;

use ipnet::IpNet;
use rustls::pki_types::ServerName;

use super::error::quoted;
use super::field::{At, Field, Span, Tables, Words};
use super::raw::RawRoute;
use super::reader::Reader;
use super::trust::{RawTrust, Trust};

/// One route. It matches on a name, an address, a port, or several of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    host: Option<HostPattern>,
    cidr: Option<IpNet>,
    port: Option<u16>,
    protocol: Option<Protocol>,
    tls: TlsMode,
    server_name: Option<ServerName<'static>>,
    upstream_port: Option<u16>,
    trust: Option<Trust>,
}

impl Route {
    /// Whether it is for connections to this address, which the agent knows by these names; an
    /// IPv4-mapped address counts as IPv4. Where there are several names, all must match.
    pub fn matches<N: AsRef<str>>(&self, names: &[N], address: IpAddr, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
            && self.host.as_ref().is_none_or(|host| {
                !names.is_empty() && names.iter().all(|name| host.matches(name.as_ref()))
            })
            && self
                .cidr
                .is_none_or(|cidr| cidr.contains(&address.to_canonical()))
    }

    /// The names; `None`: all, also none.
    pub fn host(&self) -> Option<&HostPattern> {
        self.host.as_ref()
    }

    /// The destinations; `None`: all.
    pub fn cidr(&self) -> Option<IpNet> {
        self.cidr
    }

    /// The port that the agent connects to; `None`: all.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// What is spoken there; `None`: to be detected.
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// How to get to TLS.
    pub fn tls(&self) -> TlsMode {
        self.tls
    }

    /// What the certificate must prove; `None`: what the agent asked for.
    pub fn server_name(&self) -> Option<&ServerName<'static>> {
        self.server_name.as_ref()
    }

    /// The port to dial; `None`: that which the agent connects to.
    pub fn upstream_port(&self) -> Option<u16> {
        self.upstream_port
    }

    /// What replaces the file's `[tls]`, already merged with it; `None`: nothing does.
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }
}

/// A name in which `*` stands for any part of one label: `*.example.com` is every name directly
/// below, `db-*.example.com` some of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(String);

impl HostPattern {
    /// Whether a name in lower case matches.
    pub fn matches(&self, name: &str) -> bool {
        let mut labels = name.split('.');
        self.0
            .split('.')
            .all(|pattern| labels.next().is_some_and(|label| glob(pattern, label)))
            && labels.next().is_none()
    }
}

/// Matches one label; `*` stands for any bytes.
fn glob(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => label.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| glob(after, rest)))
        }),
    }
}

/// What an operator says is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// PostgreSQL
    Postgresql,
    /// HTTP/1
    Http,
    /// HTTP/2, with prior knowledge
    Http2,
    /// Redis
    Redis,
    /// SMTP
    Smtp,
    /// LMTP
    Lmtp,
    /// IMAP
    Imap,
    /// POP3
    Pop3,
    /// NNTP
    Nntp,
    /// ManageSieve
    Managesieve,
    /// FTP
    Ftp,
    /// MySQL and MariaDB
    Mysql,
    /// NATS
    Nats,
    /// LDAP
    Ldap,
    /// XMPP
    Xmpp,
    /// TDS: Microsoft SQL Server
    Tds,
    /// syslog
    Syslog,
    /// MQTT
    Mqtt,
    /// AMQP
    Amqp,
    /// memcached
    Memcached,
    /// Fluentd's forward protocol
    Fluentd,
    /// Lumberjack: Beats and Logstash
    Lumberjack,
    /// SSH
    Ssh,
    /// Bytes that nobody looks at
    Opaque,
}

impl Words for Protocol {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("postgresql", Self::Postgresql),
        ("http", Self::Http),
        ("http2", Self::Http2),
        ("redis", Self::Redis),
        ("smtp", Self::Smtp),
        ("lmtp", Self::Lmtp),
        ("imap", Self::Imap),
        ("pop3", Self::Pop3),
        ("nntp", Self::Nntp),
        ("managesieve", Self::Managesieve),
        ("ftp", Self::Ftp),
        ("mysql", Self::Mysql),
        ("nats", Self::Nats),
        ("ldap", Self::Ldap),
        ("xmpp", Self::Xmpp),
        ("tds", Self::Tds),
        ("syslog", Self::Syslog),
        ("mqtt", Self::Mqtt),
        ("amqp", Self::Amqp),
        ("memcached", Self::Memcached),
        ("fluentd", Self::Fluentd),
        ("lumberjack", Self::Lumberjack),
        ("ssh", Self::Ssh),
        ("opaque", Self::Opaque),
    ];
}

impl Protocol {
    /// The name, in files and in records.
    pub fn name(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(_, protocol)| *protocol == self)
            .map_or("opaque", |(name, _)| name)
    }
}

/// How to get from the agent's plaintext to TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// As the protocol does it.
    #[default]
    Auto,
    /// A handshake at once.
    Implicit,
    /// The protocol's own request, then a handshake.
    Starttls,
    /// The agent speaks TLS, or SSH, itself.
    Passthrough,
    /// The agent's own TLS is ended here, by a certificate of the host's authority.
    Terminate,
    /// Plaintext is let out: an exception to the first promise.
    Exempt,
}

impl Words for TlsMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("implicit", Self::Implicit),
        ("starttls", Self::Starttls),
        ("passthrough", Self::Passthrough),
        ("terminate", Self::Terminate),
        ("exempt", Self::Exempt),
    ];
}

/// All routes, in order; `base` is the file's `[tls]`.
pub(super) fn resolve(
    reader: &mut Reader,
    tables: Field<Tables<RawRoute>>,
    base: &Trust,
) -> Vec<Route> {
    reader
        .tables("route", tables)
        .into_iter()
        .map(|raw| route(reader, raw, base))
        .collect()
}

fn route(reader: &mut Reader, At { value: raw, span }: At<RawRoute>, base: &Trust) -> Route {
    if [raw.cidr.span(), raw.port.span(), raw.host.span()]
        .iter()
        .all(Option::is_none)
    {
        let hint = "write `host = \"*.example.com\"`, `cidr = \"192.0.2.0/24\"`, `port = 5432`, or several";
        reader.missing(
            &span,
            "`[[route]]` matches no destination in particular",
            hint,
        );
    }

    let tls_span = raw.tls.span();
    let verifying = [
        ("server_name", raw.server_name.span()),
        ("roots", raw.roots.span()),
        ("client_certificate", raw.client_certificate.span()),
        ("min_version", raw.min_version.span()),
        ("pins", raw.pins.span()),
        ("crls", raw.crls.span()),
    ];
    let route = Route {
        host: host(reader, raw.host),
        cidr: reader.cidr("cidr", raw.cidr).map(|at| at.value),
        port: reader.port("port", raw.port),
        protocol: reader.word("protocol", raw.protocol),
        tls: reader.word("tls", raw.tls).unwrap_or_default(),
        server_name: server_name(reader, raw.server_name),
        upstream_port: reader.port("upstream_port", raw.upstream_port),
        trust: RawTrust {
            roots: raw.roots,
            min_version: raw.min_version,
            client_certificate: raw.client_certificate,
            client_key: raw.client_key,
            pins: raw.pins,
            crls: raw.crls,
        }
        .resolve(reader, base),
    };
    if let Some(span) = tls_span {
        contradictions(reader, &span, &route, &verifying);
    }
    route
}

/// Tells of keys that say the opposite of `tls`.
fn contradictions(
    reader: &mut Reader,
    tls: &Span,
    route: &Route,
    verifying: &[(&str, Option<Span>)],
) {
    match (route.tls, route.protocol) {
        (TlsMode::Exempt, _) => {
            for (key, span) in verifying {
                if let Some(span) = span {
                    let message = format!("`{key}` verifies nothing where `tls = \"exempt\"`");
                    reader.error(span, &message, "remove it, or write `tls = \"auto\"`");
                }
            }
        }
        (
            TlsMode::Starttls,
            Some(
                Protocol::Http
                | Protocol::Http2
                | Protocol::Redis
                | Protocol::Mqtt
                | Protocol::Amqp
                | Protocol::Memcached
                | Protocol::Fluentd
                | Protocol::Lumberjack,
            ),
        ) => {
            let message = "this protocol has no STARTTLS";
            reader.error(tls, message, "write `tls = \"implicit\"`");
        }
        _ => {}
    }
}

fn host(reader: &mut Reader, field: Field<String>) -> Option<HostPattern> {
    let At { value, span } = reader.get("host", field)?;
    let pattern = value.trim_end_matches('.').to_ascii_lowercase();
    // Each `*` stands for something that a label may hold.
    let example = pattern.replace('*', "x");
    // Backtracking over more would take long.
    let stars = |label: &str| label.matches('*').count() <= 2;
    if matches!(ServerName::try_from(example), Ok(ServerName::DnsName(_)))
        && pattern.split('.').all(stars)
    {
        return Some(HostPattern(pattern));
    }
    let message = format!("`host` is {}, which is no pattern of names", quoted(&value));
    let hint = if value.parse::<IpAddr>().is_ok() || value.contains('/') {
        "write an address or a network as `cidr`"
    } else {
        "write a DNS name, in which `*` stands for any part of one label: `*.example.com`"
    };
    reader.error(&span, &message, hint);
    None
}

fn server_name(reader: &mut Reader, field: Field<String>) -> Option<ServerName<'static>> {
    let At { value, span } = reader.get("server_name", field)?;
    if let Ok(name) = ServerName::try_from(value.clone()) {
        return Some(name);
    }
    let host = value
        .split_once("://")
        .map_or(value.as_str(), |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    let hint = if value.contains('*') {
        "write one full name: a certificate for `*.example.com` proves `db.example.com`".to_owned()
    } else if host != value && ServerName::try_from(host).is_ok() {
        format!("write the name only: `server_name = \"{host}\"`")
    } else {
        "write a DNS name such as `db.example.com`, or an IP address".to_owned()
    };
    let message = format!(
        "`server_name` is {}, which is no DNS name or address",
        quoted(&value)
    );
    reader.error(&span, &message, &hint);
    None
}

//! What a good file means; what a bad one is told is in `mistakes`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod mistakes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

/// Files of a world that holds nothing else, below `/etc/mantled`.
struct Made {
    files: HashMap<PathBuf, Vec<u8>>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Made {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["agent.example.com".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let files = [
            ("ca.pem", certificate.pem()),
            ("client.pem", certificate.pem()),
            ("client-key.pem", key.serialize_pem()),
            ("other-key.pem", other.serialize_pem()),
            ("empty.pem", String::new()),
            ("cut.pem", certificate.pem().split_at(200).0.to_owned()),
            ("damaged.pem", pem("CERTIFICATE", "MIIB")),
            ("damaged-key.pem", pem("PRIVATE KEY", "MIIB")),
            ("crl.pem", revocations(&key)),
            ("damaged-crl.pem", pem("X509 CRL", "MIIB")),
            ("encrypted-key.pem", pem("ENCRYPTED PRIVATE KEY", "MIIB")),
        ];
        let place = |(name, text): (&str, String)| {
            (Path::new("/etc/mantled").join(name), text.into_bytes())
        };
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        Self {
            files: files.into_iter().map(place).collect(),
            certificate: certificate.der().clone(),
            key,
        }
    }

    fn parse(&self, text: &str) -> Result<Config, ConfigErrors> {
        Config::parse_with(text, Path::new("/etc/mantled/mantled.toml"), self)
    }
}

/// A revocation list, of nothing.
fn revocations(key: &rcgen::KeyPair) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2026, 2, 1),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let issuer = rcgen::Issuer::from_params(&params, key);
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

fn pem(label: &str, body: &str) -> String {
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

impl Files for Made {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files
            .get(path)
            .cloned()
            .ok_or(io::ErrorKind::NotFound.into())
    }
}

fn parse(text: &str) -> Config {
    Made::new()
        .parse(text)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn everything_that_can_be_written() {
    let made = Made::new();
    let text = r#"
on_daemon_down = "open"

[listen]
port = 15001

[[enroll]]
unit = "shipper.service"
mode = "enforce"

[[enroll]]
cgroup = "/sys/fs/cgroup/user.slice//a.scope/"
mode = "enforce"
inbound = "allow"
on_daemon_down = "closed"

[[enroll]]
cgroup = "/lxc/7"
mode = "observe"

[[route]]
cidr = "192.0.2.0/24"
port = 5432
protocol = "postgresql"
tls = "starttls"
server_name = "db.example.com"
upstream_port = 5433
roots = ["ca.pem"]
min_version = "1.3"

[[route]]
cidr = "::ffff:198.51.100.7"
server_name = "2001:db8::1"
client_certificate = "client.pem"
client_key = "/etc/mantled/client-key.pem"
pins = []

[[route]]
port = 22
tls = "passthrough"

[tls]
roots = ["system", "ca.pem"]
min_version = "1.2"
pins = ["sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="]
crls = ["crl.pem"]

[ca]
dir = "ca"

[[bypass]]
cidr = "10.0.0.0/8"
port = 123
reason = " NTP, agreed in CHG-123 "

[dns]
resolvers = ["192.0.2.53", "::ffff:192.0.2.53", "2001:db8::53"]

[record]
dir = "sessions"
on_failure = "continue"

[limits]
detect = "500ms"
drain = "2m"
sessions = 7
"#;
    let config = made.parse(text).unwrap_or_else(|errors| panic!("{errors}"));

    assert_eq!(config.listen_port(), 15001);
    assert_eq!(config.on_daemon_down(), Some(OnDown::Open));

    let groups: Vec<_> = config
        .enrollments()
        .iter()
        .map(|e| {
            (
                e.target().to_string(),
                e.mode(),
                e.inbound(),
                e.on_daemon_down(),
            )
        })
        .collect();
    let expected = [
        (
            "shipper.service",
            Mode::Enforce,
            Inbound::Refuse,
            OnDown::Open,
        ),
        (
            "/user.slice/a.scope",
            Mode::Enforce,
            Inbound::Allow,
            OnDown::Closed,
        ),
        ("/lxc/7", Mode::Observe, Inbound::Allow, OnDown::Open),
    ];
    assert_eq!(groups, expected.map(|(t, m, i, d)| (t.to_owned(), m, i, d)));
    let Target::Cgroup(path) = config.enrollments()[2].target() else {
        panic!("a path")
    };
    assert_eq!(path.under(Path::new("/mnt")), Path::new("/mnt/lxc/7"));

    let [database, identified, ssh] = config.routes() else {
        panic!("three routes")
    };
    assert_eq!(database.protocol(), Some(Protocol::Postgresql));
    assert_eq!(database.tls(), TlsMode::Starttls);
    assert_eq!(
        database.server_name(),
        Some(&ServerName::try_from("db.example.com").unwrap())
    );
    assert_eq!(database.upstream_port(), Some(5433));
    let trust = config.trust_for(Some(database));
    assert!(!trust.roots.system());
    assert_eq!(trust.roots.extra(), std::slice::from_ref(&made.certificate));
    assert_eq!(
        (trust.min_version, &trust.client),
        (MinVersion::Tls13, &None)
    );

    let trust = identified.trust().unwrap();
    assert!(trust.roots.system(), "inherited from [tls]");
    assert_eq!(trust.roots.extra().len(), 1, "inherited from [tls]");
    let client = trust.client.as_ref().unwrap();
    assert_eq!(client.chain(), std::slice::from_ref(&made.certificate));
    assert_eq!(**client.key(), made.key);
    assert_eq!(trust.pins, [], "not inherited");
    assert_eq!(trust.crls.as_slice().len(), 1, "inherited from [tls]");

    // The digest of nothing at all.
    let [pin] = config.trust().pins[..] else {
        panic!("one pin")
    };
    assert!(pin.0.starts_with(&[0xe3, 0xb0, 0xc4, 0x42]) && pin.0.ends_with(&[0xb8, 0x55]));
    assert!(text.contains(&format!("\"{pin}\"")), "as it was written");
    assert_eq!(config.ca().dir, Path::new("/etc/mantled/ca"));

    assert_eq!(ssh.trust(), None);
    assert_eq!(config.trust_for(Some(ssh)), config.trust());

    let [bypass] = config.bypasses() else {
        panic!("one bypass")
    };
    assert_eq!(bypass.cidr().to_string(), "10.0.0.0/8");
    assert_eq!(
        (bypass.port(), bypass.reason()),
        (Some(123), "NTP, agreed in CHG-123")
    );

    let resolvers = vec![address("192.0.2.53"), address("2001:db8::53")];
    assert_eq!(config.dns().resolvers, Some(resolvers));
    assert_eq!(
        config.record().file(),
        Some("/etc/mantled/sessions/sessions.jsonl".into())
    );
    assert_eq!(config.record().on_failure, OnFailure::Continue);
    assert_eq!(config.limits().detect, Duration::from_millis(500));
    assert_eq!(config.limits().drain, Duration::from_secs(120));
    assert_eq!(config.limits().dial, Duration::from_secs(10), "untouched");
    assert_eq!(config.limits().sessions, 7);
}

#[test]
fn the_first_route_that_matches_decides() {
    let config = parse(
        "[[route]]\ncidr = '192.0.2.7'\n[[route]]\ncidr = '192.0.2.0/24'\nport = 80\n\
         [[route]]\nport = 80\n[[route]]\ncidr = '2001:db8::/32'\n",
    );
    let found = |text, port| {
        config
            .route_for::<&str>(&[], address(text), port)
            .map(|(index, _)| index)
    };
    assert_eq!(found("192.0.2.7", 80), Some(0));
    assert_eq!(found("192.0.2.8", 80), Some(1));
    assert_eq!(found("192.0.2.8", 81), None);
    assert_eq!(
        found("::ffff:192.0.2.7", 9),
        Some(0),
        "an IPv4-mapped address is IPv4"
    );
    assert_eq!(found("2001:db8::1", 80), Some(2));
    assert_eq!(found("2001:db8::1", 81), Some(3));
}

#[test]
fn routes_know_names() {
    let config = parse(
        "[[route]]\nhost = 'DB-*.example.com'\n[[route]]\nhost = '*.example.com'\n\
         [[route]]\nport = 80\n",
    );
    let found = |names: &[&str]| {
        config
            .route_for(names, address("192.0.2.7"), 80)
            .map(|(index, _)| index)
    };
    assert_eq!(found(&["db-1.example.com"]), Some(0));
    assert_eq!(found(&["web.example.com"]), Some(1));
    assert_eq!(found(&["a.web.example.com"]), Some(2));
    assert_eq!(found(&["example.com"]), Some(2));
    assert_eq!(found(&[]), Some(2));
    assert_eq!(found(&["db-1.example.com", "web.example.com"]), Some(1));
    assert_eq!(found(&["db-1.example.com", "elsewhere.example"]), Some(2));
}

#[test]
fn the_mode_chooses_what_nobody_chose() {
    let config = parse(
        "[[enroll]]\nunit = 'a.service'\nmode = 'enforce'\n\
         [[enroll]]\nunit = 'b.service'\nmode = 'observe'\n",
    );
    let chosen: Vec<_> = config
        .enrollments()
        .iter()
        .map(|e| (e.inbound(), e.on_daemon_down()))
        .collect();
    let expected = [
        (Inbound::Refuse, OnDown::Closed),
        (Inbound::Allow, OnDown::Open),
    ];
    assert_eq!(chosen, expected);
    assert_eq!(config.on_daemon_down_for(Mode::Enforce), OnDown::Closed);
    assert_eq!(config.on_daemon_down_for(Mode::Observe), OnDown::Open);
}

#[test]
fn a_bypass_for_every_port_makes_room_for_the_others() {
    let ports = |cidr: &str, ports: std::ops::Range<u16>| -> String {
        let entry = |port| format!("[[bypass]]\ncidr = '{cidr}'\nport = {port}\nreason = 'x'\n");
        ports.map(entry).collect()
    };
    parse(&ports("10.0.0.0/8", 1..17));
    // The same port twice is one port; another network has its own.
    parse(
        &(ports("10.0.0.0/8", 1..17) + &ports("10.1.0.0/16", 1..17) + &ports("11.0.0.0/8", 1..9)),
    );
    let all = "[[bypass]]\ncidr = '10.0.0.0/8'\nreason = 'x'\n";
    parse(&(ports("10.0.0.0/8", 1..20) + all));
}

#[test]
fn nameservers_of_the_host() {
    let text = "# nameserver 192.0.2.1\nsearch nameserver\nnameserver 192.0.2.53 # ours\n\
                nameserver\tfe80::1%eth0\nnameserver 192.0.2.53\nnameserver none\n";
    let expected = vec![address("192.0.2.53"), address("fe80::1")];
    assert_eq!(
        Dns::from_resolv_conf(text).resolvers,
        Some(expected.clone())
    );
    assert_eq!(Dns::default().resolvers_or(text), expected);
    let listed = Dns {
        resolvers: Some(vec![]),
    };
    assert!(
        listed.resolvers_or(text).is_empty(),
        "an empty list is a choice"
    );
}

const SHIPPED: &str = include_str!("../../../../systemd/mantled.toml");

#[test]
fn the_shipped_file_is_the_defaults() {
    assert_eq!(Config::builtin(), parse(""));
    assert_eq!(Config::builtin(), parse(SHIPPED));

    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(default) if !default.starts_with([' ', '|']) => default.to_owned() + "\n",
        _ => line.to_owned() + "\n",
    };
    let defaults: String = SHIPPED.lines().map(uncommented).collect();
    assert!(defaults.contains("\nsessions = 20000\n"));
    assert_eq!(Config::builtin(), parse(&defaults));
}

#[test]
fn the_shipped_examples_are_valid() {
    let mut made = Made::new();
    let certificate = made.files[Path::new("/etc/mantled/ca.pem")].clone();
    made.files
        .insert("/etc/mantled/site-ca.pem".into(), certificate);
    let list = made.files[Path::new("/etc/mantled/crl.pem")].clone();
    made.files.insert("/etc/mantled/site.crl".into(), list);
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(prose) if prose.is_empty() || prose.starts_with(' ') => String::from("\n"),
        Some(line) => {
            line.trim_start_matches("| ")
                .trim_start_matches('|')
                .to_owned()
                + "\n"
        }
        None => line.to_owned() + "\n",
    };
    let examples: String = SHIPPED.lines().map(uncommented).collect();
    let config = made
        .parse(&examples)
        .unwrap_or_else(|errors| panic!("{errors}\n{examples}"));
    assert_eq!((config.enrollments().len(), config.routes().len()), (2, 2));
    assert!(config.trust().client.is_some());
}

#[test]
fn a_key_is_never_printed() {
    let made = Made::new();
    let text = "[tls]\nclient_certificate = 'client.pem'\nclient_key = 'client-key.pem'\n";
    let printed = format!("{:?}", made.parse(text).unwrap());
    assert!(printed.contains("ClientIdentity { chain: 1 certificates, key: \"hidden\" }"));
    let secret = made
        .key
        .secret_der()
        .iter()
        .map(u8::to_string)
        .collect::<Vec<_>>();
    assert!(!printed.contains(&secret[..8].join(", ")));
}

/// An editor that follows the schema offers the keys and words that the parser takes, no others.
#[test]
fn the_schema_knows_the_same_keys() {
    let schema = json_schema();
    let keys = |pointer: &str| -> Vec<String> {
        let object = schema.pointer(pointer).and_then(|value| value.as_object());
        let object = object.unwrap_or_else(|| panic!("{pointer}"));
        let mut keys: Vec<String> = object.keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    let top = keys("/properties");
    assert_eq!(
        top.join(" "),
        "admin bypass ca dns enroll limits listen on_daemon_down policy record route state_dir tls",
        "what is not available yet is not offered"
    );
    assert_eq!(
        keys("/$defs/Route/properties").join(" "),
        "cidr client_certificate client_key crls host min_version pins port protocol roots server_name \
         tls upstream_port"
    );
    assert_eq!(
        schema["$defs"]["Enroll"]["properties"]["mode"]["enum"][1],
        "observe"
    );
    assert_eq!(schema["$defs"]["Route"]["additionalProperties"], false);
}

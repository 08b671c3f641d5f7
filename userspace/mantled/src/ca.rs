//! The authority of this host: it vouches, to agents on this host alone, for the servers that the
//! proxy has verified in their place.
//!
//! It is a certificate and its key in a directory that only its owner can read. Whoever gets the
//! key can impersonate any server (within the authority's name constraints, if it has some) to the
//! programs that trust it; so the key never leaves the directory, leaves live for a week in memory,
//! and the daemon itself never accepts a server by this authority.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData as _,
    SanType, SerialNumber,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::{default_provider, sign::any_supported_type},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::ServerSessionMemoryCache,
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;
use webpki::EndEntityCert;

/// The certificate, followed by those that lead to its root where it is not one itself.
const CERTIFICATE: &str = "ca.pem";

/// Its private key.
const KEY: &str = "ca-key.pem";

/// How long a new authority lives: replacing it means work on every host and program that trusts
/// it.
const LIFE: Duration = Duration::days(5 * 365);

/// How long a leaf lives. Nothing revokes it, so not long; agents keep connections for days.
const LEAF_LIFE: Duration = Duration::days(7);

/// How long a leaf is used for new connections.
const LEAF_USE: std::time::Duration = std::time::Duration::from_secs(3 * 24 * 3600);

/// Clocks of containers and of hosts that have just started may be behind.
const SKEW: Duration = Duration::hours(1);

/// Leaves that are kept; beyond that, the one that was not used for longest goes.
const LEAVES: usize = 1024;

/// Sessions of agents with TLS 1.2 that can be resumed.
const RESUMABLE: usize = 1024;

/// What the files of an authority hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    chain: Vec<CertificateDer<'static>>,
    /// None where it was not asked for.
    key: Option<String>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("chain", &self.chain.len())
            .field("key", &"hidden")
            .finish()
    }
}

impl Files {
    /// Reads the certificate.
    ///
    /// # Errors
    /// In a sentence; where there is none, it says how to make one.
    pub fn read_certificate(directory: &Path) -> Result<Self, String> {
        let path = directory.join(CERTIFICATE);
        let bytes = read(&path)?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if chain.is_empty() {
            return Err(format!("{} holds no certificate", path.display()));
        }
        Ok(Self { chain, key: None })
    }

    /// Reads certificate and key.
    ///
    /// # Errors
    /// As [`Self::read_certificate`]; or others than its owner can read the key.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let certificate = Self::read_certificate(directory)?;
        let path = directory.join(KEY);
        let bytes = read(&path)?;
        let mode = fs::metadata(&path).map(|data| data.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o077 != 0) {
            return Err(format!(
                "others than its owner may read {}; `chmod 600` it, or make a new authority with \
                 `mantled ca init --force` if somebody has",
                path.display()
            ));
        }
        Ok(Self {
            key: Some(String::from_utf8_lossy(&bytes).into_owned()),
            ..certificate
        })
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }

    /// The files' paths.
    pub fn paths(directory: &Path) -> [PathBuf; 2] {
        [directory.join(CERTIFICATE), directory.join(KEY)]
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{} is missing; make an authority with `mantled ca init`, and let agents trust it \
             with `mantled ca install`",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    })
}

/// An authority that signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    not_after: OffsetDateTime,
    /// One key for all leaves; nobody else has it.
    leaf_key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    sessions: Arc<ServerSessionMemoryCache>,
    leaves: Mutex<HashMap<Request, Leaf>>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

/// What a leaf is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Request {
    names: Vec<ServerName<'static>>,
    /// The one application protocol that is agreed to.
    alpn: Option<Vec<u8>>,
}

struct Leaf {
    config: Arc<ServerConfig>,
    made: Instant,
    used: Instant,
}

impl Authority {
    /// Of what was read.
    ///
    /// # Errors
    /// The files are no authority that can sign, in a sentence.
    pub fn new(files: &Files) -> Result<Self, String> {
        let (Some(certificate), Some(key)) = (files.certificate(), &files.key) else {
            return Err("the authority has no key".to_owned());
        };
        let key = KeyPair::from_pem(key).map_err(|error| format!("{KEY}: {error}"))?;
        let not_after = check(certificate, &key)?;
        let failed = |error: rcgen::Error| format!("the authority: {error}");
        let leaf_key = KeyPair::generate().map_err(failed)?;
        let der = PrivateKeyDer::try_from(leaf_key.serialize_der())
            .map_err(|error| format!("the key of leaves: {error}"))?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(certificate, key).map_err(failed)?,
            chain: files.chain.clone(),
            not_after,
            leaf_key,
            signing_key: any_supported_type(&der)
                .map_err(|error| format!("the key of leaves: {error}"))?,
            sessions: ServerSessionMemoryCache::new(RESUMABLE),
            leaves: Mutex::default(),
        })
    }

    /// TLS in the place of a server with these names, that agrees to `alpn`.
    ///
    /// # Errors
    /// A name that no certificate can hold, in a sentence.
    pub fn server_config(
        &self,
        names: Vec<ServerName<'static>>,
        alpn: Option<&[u8]>,
    ) -> Result<Arc<ServerConfig>, String> {
        let request = Request {
            names,
            alpn: alpn.map(<[u8]>::to_vec),
        };
        let now = Instant::now();
        if let Some(leaf) = self.leaves().get_mut(&request)
            && leaf.made.elapsed() < LEAF_USE
        {
            leaf.used = now;
            return Ok(Arc::clone(&leaf.config));
        }
        let config = Arc::new(self.make(&request)?);
        let mut leaves = self.leaves();
        if leaves.len() >= LEAVES
            && let Some(oldest) = leaves.iter().min_by_key(|(_, leaf)| leaf.used)
        {
            let oldest = oldest.0.clone();
            leaves.remove(&oldest);
        }
        leaves.insert(
            request,
            Leaf {
                config: Arc::clone(&config),
                made: now,
                used: now,
            },
        );
        Ok(config)
    }

    fn leaves(&self) -> MutexGuard<'_, HashMap<Request, Leaf>> {
        // Nothing panics while it holds the lock; a map is whole after every call in any case.
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, request: &Request) -> Result<ServerConfig, String> {
        let failed = |error: &dyn fmt::Display| format!("a certificate for the agent: {error}");
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.not_before = now - SKEW;
        params.not_after = (now + LEAF_LIFE).min(self.not_after);
        params.serial_number = Some(serial()?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = request
            .names
            .iter()
            .map(subject)
            .collect::<Result<_, _>>()
            .map_err(|error| failed(&error))?;
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::OrganizationName, "mantled");
        let leaf = params
            .signed_by(&self.leaf_key, &self.issuer)
            .map_err(|error| failed(&error))?;
        let chain = std::iter::once(leaf.der())
            .chain(&self.chain)
            .cloned()
            .collect();
        let certified = CertifiedKey::new(chain, Arc::clone(&self.signing_key));
        let mut config = ServerConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = request.alpn.iter().cloned().collect();
        config.session_storage = Arc::clone(&self.sessions) as _;
        // An agent that only writes leaves with tickets unread, for which its kernel resets the
        // connection, and with it what it wrote last.
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Is it an authority, of this key, and for how long?
fn check(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<OffsetDateTime, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("{CERTIFICATE}: {error}"))?;
    if !parsed.is_ca() {
        return Err(format!(
            "the first certificate of {CERTIFICATE} is none of an authority"
        ));
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if not_after <= OffsetDateTime::now_utc() {
        return Err(format!(
            "the authority of {CERTIFICATE} has expired; `mantled ca init --force` makes another"
        ));
    }
    let own = EndEntityCert::try_from(certificate)
        .map_err(|error| format!("{CERTIFICATE}: {error}"))?
        .subject_public_key_info();
    if own.as_ref() != key.subject_public_key_info() {
        return Err(format!(
            "{KEY} is not the key of the first certificate of {CERTIFICATE}"
        ));
    }
    Ok(not_after)
}

fn subject(name: &ServerName<'_>) -> Result<SanType, rcgen::Error> {
    match name {
        ServerName::IpAddress(address) => Ok(SanType::IpAddress(IpAddr::from(*address))),
        name => Ok(SanType::DnsName(name.to_str().as_ref().try_into()?)),
    }
}

/// A number that no other certificate of this authority has: programs refuse to see one twice.
fn serial() -> Result<SerialNumber, String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers".to_owned())?;
    // Positive, and not shorter for zeros in front.
    let [first, ..] = &mut bytes;
    *first = *first & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Makes an authority: ECDSA on P-256, which every TLS client knows, and no authorities below it.
///
/// It vouches for any name unless `permitted` lists domains (with all below them) and networks:
/// then for those alone, and its certificate says so. That makes its key worth less to a thief; a
/// program that cannot read such constraints refuses the certificate, since they are critical.
///
/// # Errors
/// In a sentence: there is one already and `replace` is not set, or files cannot be written.
pub fn init(directory: &Path, permitted: &[String], replace: bool) -> Result<(), String> {
    let [certificate_file, key_file] = Files::paths(directory);
    let failed =
        |path: &Path, error: &dyn fmt::Display| format!("writing {}: {error}", path.display());
    for file in [&certificate_file, &key_file] {
        if !replace && file.exists() {
            return Err(format!(
                "{} is there already, and agents may trust it; `--force` replaces it",
                file.display()
            ));
        }
    }
    let key = KeyPair::generate().map_err(|error| failed(&key_file, &error))?;
    let certificate = params(permitted)?
        .self_signed(&key)
        .map_err(|error| failed(&certificate_file, &error))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
        .map_err(|error| failed(directory, &error))?;
    write(&key_file, &key.serialize_pem()).map_err(|error| failed(&key_file, &error))?;
    write(&certificate_file, &certificate.pem()).map_err(|error| failed(&certificate_file, &error))
}

fn params(permitted: &[String]) -> Result<CertificateParams, String> {
    let now = OffsetDateTime::now_utc();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut params = CertificateParams::default();
    params.not_before = now - SKEW;
    params.not_after = now + LIFE;
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::OrganizationName, "mantled");
    params.distinguished_name.push(
        DnType::CommonName,
        format!("mantled authority of {}", host.trim()),
    );
    params.name_constraints = constraints(permitted)?;
    Ok(params)
}

/// A constraint binds names of its own kind only, so a kind that is not listed is excluded.
fn constraints(permitted: &[String]) -> Result<Option<NameConstraints>, String> {
    let (mut domains, mut networks) = (Vec::new(), Vec::new());
    for text in permitted {
        let network = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match network {
            Ok(network) => networks.push(subnet(&network)),
            Err(_) => {
                let name = text.trim_start_matches("*.").trim_start_matches('.');
                match ServerName::try_from(name) {
                    Ok(ServerName::DnsName(_)) => {
                        domains.push(GeneralSubtree::DnsName(name.to_owned()));
                    }
                    _ => return Err(format!("{text:?} is no domain and no network")),
                }
            }
        }
    }
    if permitted.is_empty() {
        return Ok(None);
    }
    let mut excluded = Vec::new();
    if domains.is_empty() {
        excluded.push(GeneralSubtree::DnsName(String::new()));
    }
    if networks.is_empty() {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix(
            [0; 4], 0,
        )));
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(
            [0; 16], 0,
        )));
    }
    Ok(Some(NameConstraints {
        permitted_subtrees: [domains, networks].concat(),
        excluded_subtrees: excluded,
    }))
}

fn subnet(network: &IpNet) -> GeneralSubtree {
    GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(
        network.network(),
        network.prefix_len(),
    ))
}

/// Puts a whole file in its place, readable for its owner.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // Of an attempt that was cut short.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(permitted: &[&str]) -> (tempfile::TempDir, Authority) {
        let directory = tempfile::tempdir().unwrap();
        let permitted: Vec<_> = permitted.iter().map(|name| (*name).to_owned()).collect();
        init(directory.path(), &permitted, false).unwrap();
        let authority = Authority::new(&Files::read(directory.path()).unwrap()).unwrap();
        (directory, authority)
    }

    fn name(text: &str) -> ServerName<'static> {
        ServerName::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn files_are_for_their_owner_and_are_not_replaced() {
        let (directory, _) = made(&[]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(directory.path()), 0o700);
        let before = Files::read(directory.path()).unwrap();
        for file in Files::paths(directory.path()) {
            assert_eq!(mode(&file), 0o600);
        }
        let refused = init(directory.path(), &[], false).unwrap_err();
        assert!(refused.contains("--force"), "{refused}");
        assert_eq!(Files::read(directory.path()).unwrap(), before);
        init(directory.path(), &[], true).unwrap();
        assert_ne!(Files::read(directory.path()).unwrap(), before);

        let [_, key] = Files::paths(directory.path());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = Files::read(directory.path()).unwrap_err();
        assert!(refused.contains("chmod 600"), "{refused}");
        fs::remove_file(key).unwrap();
        let refused = Files::read(directory.path()).unwrap_err();
        assert!(refused.contains("mantled ca init"), "{refused}");
    }

    #[test]
    fn what_cannot_sign_is_no_authority() {
        let (first, _) = made(&[]);
        let (second, _) = made(&[]);
        let [certificate, _] = Files::paths(first.path());
        fs::copy(&certificate, second.path().join(CERTIFICATE)).unwrap();
        let refused = Authority::new(&Files::read(second.path()).unwrap()).unwrap_err();
        assert!(refused.contains("is not the key"), "{refused}");
    }

    #[test]
    fn a_leaf_is_kept_for_its_names_and_protocol() {
        let (_directory, authority) = made(&[]);
        let config = |text: &str, alpn: Option<&[u8]>| {
            authority.server_config(vec![name(text)], alpn).unwrap()
        };
        let first = config("a.example", None);
        assert!(Arc::ptr_eq(&first, &config("a.example", None)));
        assert!(!Arc::ptr_eq(&first, &config("a.example", Some(b"h2"))));
        assert!(!Arc::ptr_eq(&first, &config("b.example", None)));
        assert_eq!(config("a.example", Some(b"h2")).alpn_protocols, [b"h2"]);
        for n in 0..LEAVES {
            config(&format!("n{n}.example"), None);
        }
        assert_eq!(authority.leaves().len(), LEAVES);
        assert!(!Arc::ptr_eq(&first, &config("a.example", None)), "it went");
    }

    /// As an agent that trusts the authority would judge.
    fn verifies(authority: &Authority, text: &str) -> Result<(), String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.chain[0].clone()).unwrap();
        let config = authority.server_config(vec![name(text)], None)?;
        let client = rustls::ClientConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name(text)).unwrap();
        let mut server = rustls::ServerConnection::new(config).unwrap();
        while client.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server
                .process_new_packets()
                .map_err(|error| error.to_string())?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client
                .process_new_packets()
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    #[test]
    fn constraints_bind_names_and_addresses() {
        let (_directory, any) = made(&[]);
        let (_directory, domain) = made(&["*.site.example"]);
        let (_directory, network) = made(&["10.0.0.0/8", "2001:db8::/32"]);
        let (_directory, both) = made(&["site.example", "10.1.2.3"]);
        for (text, by) in [
            ("db.site.example", [true, true, false, true]),
            ("other.example", [true, false, false, false]),
            ("10.1.2.3", [true, false, true, true]),
            ("10.1.2.4", [true, false, true, false]),
            ("2001:db8::1", [true, false, true, false]),
            ("192.0.2.1", [true, false, false, false]),
        ] {
            let judged = [&any, &domain, &network, &both].map(|a| verifies(a, text));
            assert_eq!(
                judged.each_ref().map(Result::is_ok),
                by,
                "{text}: {judged:?}"
            );
        }
        assert!(constraints(&["a b".to_owned()]).is_err());
    }
}

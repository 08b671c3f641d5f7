//! `[tls]`, and what a route overrides of it: which certificates are believed and shown.
//!
//! Files are read and parsed here, so that a [`Trust`] never holds one that cannot be used.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use webpki::BorrowedCertRevocationList;

use super::error::quoted;
use super::field::{At, Field, OneOrMore, Strings, Word, Words};
use super::reader::Reader;

/// What a server must prove, and how mantled proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Who may sign a server's certificate.
    pub roots: Roots,
    /// The lowest TLS version.
    pub min_version: MinVersion,
    /// The certificate shown to servers that ask for one.
    pub client: Option<ClientIdentity>,
    /// Keys of which one must be in the chain; empty: any will do.
    pub pins: Vec<Pin>,
    /// What was revoked; empty: nobody asks.
    pub crls: Crls,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            roots: Roots {
                system: true,
                extra: Vec::new(),
            },
            min_version: MinVersion::Tls12,
            client: None,
            pins: Vec::new(),
            crls: Crls::default(),
        }
    }
}

/// Who may sign a server's certificate; there is at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Roots {
    system: bool,
    extra: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// Whether those that the host trusts are among them.
    pub fn system(&self) -> bool {
        self.system
    }

    /// Those of the files named; each is accepted by [`RootCertStore::add`].
    pub fn extra(&self) -> &[CertificateDer<'static>] {
        &self.extra
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let extra = format_args!("{} certificates", self.extra.len());
        f.debug_struct("Roots")
            .field("system", &self.system)
            .field("extra", &extra)
            .finish()
    }
}

/// The lowest TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MinVersion {
    /// TLS 1.2
    Tls12,
    /// TLS 1.3
    Tls13,
}

impl Words for MinVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", Self::Tls12), ("1.3", Self::Tls13)];
}

/// A certificate and the private key that belongs to it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl ClientIdentity {
    /// The certificate, and those that lead to its root; not empty.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    pub fn key(&self) -> &Arc<PrivateKeyDer<'static>> {
        &self.key
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let chain = format_args!("{} certificates", self.chain.len());
        f.debug_struct("ClientIdentity")
            .field("chain", &chain)
            .field("key", &"hidden")
            .finish()
    }
}

/// The SHA-256 of a public key's SubjectPublicKeyInfo (RFC 7469 §2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// Reads `sha256/BASE64`, in the one spelling that RFC 4648 §3.5 calls canonical.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256/")?.strip_suffix('=')?;
        let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
        for digit in digits.bytes() {
            let value = BASE64.iter().position(|known| *known == digit)? as u32;
            bits = bits << 6 | value;
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
                bits &= (1 << count) - 1;
            }
        }
        (bits == 0).then_some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("sha256/")?;
        for three in self.0.chunks(3) {
            let byte = |index: usize| three.get(index).copied().unwrap_or_default();
            let bits = u32::from_be_bytes([0, byte(0), byte(1), byte(2)]);
            for digit in 0..4 {
                let value = (bits >> (18 - 6 * digit)) as usize & 63;
                let shown = digit <= three.len();
                let letter = BASE64.get(value).filter(|_| shown).unwrap_or(&b'=');
                write!(f, "{}", char::from(*letter))?;
            }
        }
        Ok(())
    }
}

/// The alphabet of RFC 4648 §4.
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Certificate revocation lists, each of which parses.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Crls(Vec<CertificateRevocationListDer<'static>>);

impl Crls {
    /// The lists.
    pub fn as_slice(&self) -> &[CertificateRevocationListDer<'static>] {
        &self.0
    }
}

impl fmt::Debug for Crls {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Crls({})", self.0.len())
    }
}

/// The keys that `[tls]` and `[[route]]` share.
#[derive(Default)]
pub(super) struct RawTrust {
    pub(super) roots: Field<OneOrMore>,
    pub(super) min_version: Field<Word<MinVersion>>,
    pub(super) client_certificate: Field<String>,
    pub(super) client_key: Field<String>,
    pub(super) pins: Field<Strings>,
    pub(super) crls: Field<Strings>,
}

impl RawTrust {
    /// Resolves over `base`; `None` if nothing is overridden.
    pub(super) fn resolve(self, reader: &mut Reader, base: &Trust) -> Option<Trust> {
        let roots = roots(reader, self.roots);
        let min_version = reader.word("min_version", self.min_version);
        let client = client(reader, self.client_certificate, self.client_key);
        let pins = pins(reader, self.pins);
        let crls = crls(reader, self.crls);
        if roots.is_none()
            && min_version.is_none()
            && client.is_none()
            && pins.is_none()
            && crls.is_none()
        {
            return None;
        }
        Some(Trust {
            roots: roots.unwrap_or_else(|| base.roots.clone()),
            min_version: min_version.unwrap_or(base.min_version),
            client: client.or_else(|| base.client.clone()),
            pins: pins.unwrap_or_else(|| base.pins.clone()),
            crls: crls.unwrap_or_else(|| base.crls.clone()),
        })
    }
}

fn roots(reader: &mut Reader, field: Field<OneOrMore>) -> Option<Roots> {
    let At { value, span } = reader.get("roots", field)?;
    let mut roots = Roots {
        system: false,
        extra: Vec::new(),
    };
    match value {
        OneOrMore::One(word) if word == "system" => roots.system = true,
        OneOrMore::One(file) => {
            let message = "`roots` must be \"system\" or a list of PEM files";
            let hint = format!("write `roots = [{file:?}]`");
            reader.error(&span, message, &hint);
        }
        OneOrMore::More(list) if list.is_empty() => {
            let message = "`roots` is empty: no server could be verified";
            let hint = "write `roots = \"system\"`, or name a PEM file";
            reader.error(&span, message, hint);
        }
        OneOrMore::More(list) => {
            for field in list {
                let Some(at) = reader.element::<OneOrMore, _>("roots", field) else {
                    continue;
                };
                if at.value == "system" {
                    roots.system = true;
                } else if let Some(path) = reader.join("roots", at) {
                    roots
                        .extra
                        .extend(certificates(reader, "roots", &path).unwrap_or_default());
                }
            }
        }
    }
    Some(roots)
}

/// The certificates of a PEM file; `None` if a mistake was noted.
fn certificates(
    reader: &mut Reader,
    key: &str,
    path: &At<PathBuf>,
) -> Option<Vec<CertificateDer<'static>>> {
    let bytes = reader.read(key, path)?;
    let file = path.value.display();
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let (message, hint) = match parsed {
        Ok(found) if found.is_empty() => (
            format!("`{key}` names {file}, which holds no certificate"),
            "it must be PEM; convert DER with `openssl x509 -inform der -in FILE`",
        ),
        Ok(found) if found.iter().all(is_x509) => return Some(found),
        Ok(_) => (
            format!("`{key}` names {file}, which holds a damaged certificate"),
            "look at it with `openssl x509 -noout -text -in FILE`",
        ),
        Err(_) => (
            format!("`{key}` names {file}, whose PEM is damaged"),
            "fetch the file again; it may be cut short",
        ),
    };
    reader.error(&path.span, &message, hint);
    None
}

/// Whether rustls will take it.
fn is_x509(certificate: &CertificateDer<'static>) -> bool {
    RootCertStore::empty().add(certificate.clone()).is_ok()
}

fn pins(reader: &mut Reader, field: Field<Strings>) -> Option<Vec<Pin>> {
    let list = reader.get("pins", field)?;
    let mut pins = Vec::new();
    for field in list.value {
        let Some(At { value, span }) = reader.element::<Strings, _>("pins", field) else {
            continue;
        };
        match Pin::parse(&value) {
            Some(pin) => pins.push(pin),
            None => {
                let message = format!("`pins` has {}, which is no pin", quoted(&value));
                let hint = "write \"sha256/...\" with the 44 letters of `openssl x509 -noout -pubkey \
                            -in FILE | openssl pkey -pubin -outform der | openssl dgst -sha256 \
                            -binary | base64`";
                reader.error(&span, &message, hint);
            }
        }
    }
    Some(pins)
}

fn crls(reader: &mut Reader, field: Field<Strings>) -> Option<Crls> {
    let list = reader.get("crls", field)?;
    let mut crls = Crls::default();
    for field in list.value {
        let path = reader
            .element::<Strings, _>("crls", field)
            .and_then(|at| reader.join("crls", at));
        if let Some(path) = path {
            crls.0
                .extend(revocations(reader, &path).unwrap_or_default());
        }
    }
    Some(crls)
}

/// The revocation lists of a PEM file; `None` if a mistake was noted.
fn revocations(
    reader: &mut Reader,
    path: &At<PathBuf>,
) -> Option<Vec<CertificateRevocationListDer<'static>>> {
    let bytes = reader.read("crls", path)?;
    let file = path.value.display();
    let parsed: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    // Delta lists and those of indirect issuers are among what cannot be used.
    let is_usable = |crl: &CertificateRevocationListDer| {
        BorrowedCertRevocationList::from_der(crl)
            .and_then(|crl| crl.to_owned())
            .is_ok()
    };
    let (message, hint) = match parsed {
        Ok(found) if found.is_empty() => (
            format!("`crls` names {file}, which holds no revocation list"),
            "it must be PEM; convert DER with `openssl crl -inform der -in FILE`",
        ),
        Ok(found) if found.iter().all(is_usable) => return Some(found),
        Ok(_) => (
            format!("`crls` names {file}, which holds a revocation list that cannot be used"),
            "look at it with `openssl crl -noout -text -in FILE`; delta lists cannot be used",
        ),
        Err(_) => (
            format!("`crls` names {file}, whose PEM is damaged"),
            "fetch the file again; it may be cut short",
        ),
    };
    reader.error(&path.span, &message, hint);
    None
}

fn client(
    reader: &mut Reader,
    certificate: Field<String>,
    key: Field<String>,
) -> Option<ClientIdentity> {
    let lone = match (certificate.span(), key.span()) {
        (Some(span), None) => Some((span, "client_certificate", "client_key")),
        (None, Some(span)) => Some((span, "client_key", "client_certificate")),
        _ => None,
    };
    if let Some((span, given, missing)) = lone {
        let message = format!("`{given}` without `{missing}`");
        let hint = format!("write `{missing} = \"/etc/mantled/...pem\"` too, or neither");
        reader.missing(&span, &message, &hint);
    }
    let path = reader.path("client_certificate", certificate);
    let chain = path.and_then(|path| certificates(reader, "client_certificate", &path));
    let key = private_key(reader, key);
    let (chain, key) = (chain?, key?);

    // An unusable key was noted already, so there is nothing to compare.
    let signer = any_supported_type(&key.value).ok()?;
    if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) =
        CertifiedKey::new(chain.clone(), signer).keys_match()
    {
        let message = "`client_key` does not belong to the first of `client_certificate`";
        let hint = "name the key that the certificate was made for, and put that certificate first";
        reader.error(&key.span, message, hint);
        return None;
    }
    Some(ClientIdentity {
        chain,
        key: Arc::new(key.value),
    })
}

fn private_key(reader: &mut Reader, field: Field<String>) -> Option<At<PrivateKeyDer<'static>>> {
    let path = reader.path("client_key", field)?;
    let bytes = reader.read("client_key", &path)?;
    let file = path.value.display();
    let key = PrivateKeyDer::from_pem_slice(&bytes);
    let encrypted = bytes.windows(9).any(|word| word == b"ENCRYPTED");
    let (message, hint) = match key {
        Ok(key) if any_supported_type(&key).is_ok() => {
            return Some(At {
                value: key,
                span: path.span,
            });
        }
        Ok(_) => (
            format!("`client_key` names {file}, whose private key cannot be used"),
            "it must be an undamaged RSA, ECDSA (P-256, P-384, P-521) or Ed25519 key",
        ),
        Err(_) if encrypted => (
            format!("`client_key` names {file}, whose private key is encrypted"),
            "take the passphrase off with `openssl pkey -in FILE -out NEW`, readable for mantled only",
        ),
        Err(_) => (
            format!("`client_key` names {file}, which holds no private key"),
            "it must be PEM: `-----BEGIN PRIVATE KEY-----`",
        ),
    };
    reader.error(&path.span, &message, hint);
    None
}

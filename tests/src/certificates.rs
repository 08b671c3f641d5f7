//! Certificates for the lab's servers.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use time::{Duration, OffsetDateTime};

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A server's certificate and key, in PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// As rcgen.
    pub fn new(name: &str) -> Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?,
        })
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for these names and addresses, valid for a month.
    ///
    /// # Errors
    /// As rcgen.
    pub fn leaf(&self, names: &[&str]) -> Result<Leaf> {
        let now = OffsetDateTime::now_utc();
        self.leaf_valid(names, now - Duration::days(1), now + Duration::days(30))
    }

    /// One that expired yesterday.
    ///
    /// # Errors
    /// As rcgen.
    pub fn expired_leaf(&self, names: &[&str]) -> Result<Leaf> {
        let now = OffsetDateTime::now_utc();
        self.leaf_valid(names, now - Duration::days(30), now - Duration::days(1))
    }

    fn leaf_valid(&self, names: &[&str], from: OffsetDateTime, to: OffsetDateTime) -> Result<Leaf> {
        let mut parameters = parameters(names)?;
        parameters.not_before = from;
        parameters.not_after = to;
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Leaf {
    /// One that nobody signed but itself.
    ///
    /// # Errors
    /// As rcgen.
    pub fn self_signed(names: &[&str]) -> Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = parameters(names)?.self_signed(&key)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn parameters(names: &[&str]) -> Result<CertificateParams> {
    let mut parameters = CertificateParams::default();
    parameters
        .distinguished_name
        .push(DnType::CommonName, *names.first().unwrap_or(&"server"));
    for name in names {
        parameters.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into()?),
        });
    }
    Ok(parameters)
}

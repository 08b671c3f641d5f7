//! Certificates for the lab's servers.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
};
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

    /// One that expires so soon.
    ///
    /// # Errors
    /// As rcgen.
    pub fn leaf_expiring_in(&self, names: &[&str], remaining: Duration) -> Result<Leaf> {
        let now = OffsetDateTime::now_utc();
        self.leaf_valid(names, now - Duration::days(1), now + remaining)
    }

    /// A certificate of this serial number, so that it can be revoked.
    ///
    /// # Errors
    /// As rcgen.
    pub fn leaf_with_serial(&self, names: &[&str], serial: u64) -> Result<Leaf> {
        let mut parameters = parameters(names)?;
        parameters.serial_number = Some(serial.into());
        self.sign(&parameters)
    }

    /// A list that revokes these serial numbers, in PEM; it is in force for so long from now on,
    /// or until so long ago.
    ///
    /// # Errors
    /// As rcgen.
    pub fn revocations(&self, serials: &[u64], remaining: Duration) -> Result<String> {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: now - Duration::days(1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - Duration::days(2),
            next_update: now + remaining,
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }

    fn leaf_valid(&self, names: &[&str], from: OffsetDateTime, to: OffsetDateTime) -> Result<Leaf> {
        let mut parameters = parameters(names)?;
        parameters.not_before = from;
        parameters.not_after = to;
        self.sign(&parameters)
    }

    fn sign(&self, parameters: &CertificateParams) -> Result<Leaf> {
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

//! What a server's certificate must prove: chain, name, revocation, pins.
//!
//! rustls' own verifier judges chain, name and revocation. Pins are judged here, on a path that
//! was verified: certificates that a server merely sends along count for nothing, since anybody
//! can send a pinned certificate whose key is somebody else's (RFC 7469 §2.6).

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
    spki_for_anchor,
};

use crate::config::{Pin, Trust};

/// Judges certificates by one trust.
///
/// Where `crls` are given, every certificate of the path but its root must be covered by one that
/// has not expired: unknown means no.
#[derive(Debug)]
pub(super) struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    crls: Vec<CertRevocationList<'static>>,
    pins: Vec<Pin>,
}

/// Why a certificate that verifies is refused all the same.
#[derive(Debug)]
pub(super) struct NotPinned;

impl fmt::Display for NotPinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no key of its chain is pinned")
    }
}

impl std::error::Error for NotPinned {}

impl Verifier {
    pub(super) fn new(
        trust: &Trust,
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let lists = trust.crls.as_slice();
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .with_crls(lists.iter().cloned())
                .enforce_revocation_expiration()
                .build()
                .map_err(|error| format!("root certificates and revocation lists: {error}"))?;
        let crls = lists
            .iter()
            .map(|list| OwnedCertRevocationList::from_der(list).map(CertRevocationList::Owned))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("a revocation list: {error}"))?;
        Ok(Self {
            webpki,
            roots,
            provider,
            crls,
            pins: trust.pins.clone(),
        })
    }

    /// The pin that a verified path from this certificate leads over. The search goes on over all
    /// paths until one has a pinned key.
    pub(super) fn pin_of_path(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<Pin> {
        if self.pins.is_empty() {
            return None;
        }
        let crls: Vec<_> = self.crls.iter().collect();
        // An error: there are no lists.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let certificate = EndEntityCert::try_from(end_entity).ok()?;
        let is_pinned = |path: &VerifiedPath<'_>| match self.pin_on(path) {
            Some(_) => Ok(()),
            // Any error makes the search go on.
            None => Err(webpki::Error::UnknownIssuer),
        };
        let path = certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &self.roots.roots,
                intermediates,
                now,
                KeyUsage::server_auth(),
                revocation,
                Some(&is_pinned),
            )
            .ok()?;
        self.pin_on(&path)
    }

    fn pin_on(&self, path: &VerifiedPath<'_>) -> Option<Pin> {
        let keys = std::iter::once(path.end_entity().subject_public_key_info())
            .chain(
                path.intermediate_certificates()
                    .map(|certificate| certificate.subject_public_key_info()),
            )
            .chain(std::iter::once(spki_for_anchor(path.anchor())));
        keys.map(|key| pin(&key))
            .find(|pin| self.pins.contains(pin))
    }

    /// The pin of the server's own key, where it is one of the pins.
    pub(super) fn own_pin(&self, end_entity: &CertificateDer<'_>) -> Option<Pin> {
        let certificate = EndEntityCert::try_from(end_entity).ok()?;
        Some(pin(&certificate.subject_public_key_info())).filter(|pin| self.pins.contains(pin))
    }
}

/// Does the certificate itself prove the name?
pub(super) fn proves(end_entity: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    EndEntityCert::try_from(end_entity)
        .is_ok_and(|certificate| certificate.verify_is_valid_for_subject_name(name).is_ok())
}

fn pin(key: &SubjectPublicKeyInfoDer<'_>) -> Pin {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
    let mut bytes = [0; 32];
    for (byte, digested) in bytes.iter_mut().zip(digest.as_ref()) {
        *byte = *digested;
    }
    Pin(bytes)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged =
            self.webpki
                .verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        match judged {
            // The name is judged last, so all else is proven.
            Err(error) if is_about_the_name(&error) && is_address(name) => self
                .own_pin(end_entity)
                .map(|_| ServerCertVerified::assertion())
                .ok_or(error),
            Ok(_)
                if !self.pins.is_empty()
                    && self.pin_of_path(end_entity, intermediates, now).is_none() =>
            {
                Err(CertificateError::Other(OtherError(Arc::new(NotPinned))).into())
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

fn is_about_the_name(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

fn is_address(name: &ServerName<'_>) -> bool {
    matches!(name, ServerName::IpAddress(_))
}

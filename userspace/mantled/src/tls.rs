//! TLS towards servers: trust, handshakes and what they prove.

mod live;
mod material;
mod sessions;
mod verifier;
mod witness;

use std::{io, sync::Arc};

use mantled_record::{Certificate, TlsFacts};
use rustls::{
    CertificateError, ClientConfig, Error as TlsError, HandshakeKind, ProtocolVersion,
    RootCertStore, SupportedProtocolVersion,
    client::{Resumption, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    version::{TLS12, TLS13},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    ca::{self, Authority},
    config::{Config, MinVersion, Trust},
    error::{Cause, Failure},
    proxy::transport::Transport,
};
use material::Material;
use sessions::Sessions;
use verifier::{NotPinned, Verifier, proves};
use witness::Witness;

pub use live::LiveConnectors;

/// Application protocols that are offered (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// None: the protocol has no identifier, or is not known.
    None,
    /// `http/1.1`.
    Http1,
    /// `h2`, which the server must then choose.
    Http2,
    /// `postgresql`.
    Postgresql,
    /// `tds/8.0`.
    Tds8,
}

impl Alpn {
    const ALL: [Self; 5] = [
        Self::None,
        Self::Http1,
        Self::Http2,
        Self::Postgresql,
        Self::Tds8,
    ];

    fn identifier(self) -> Option<&'static [u8]> {
        match self {
            Self::None => None,
            Self::Http1 => Some(b"http/1.1"),
            Self::Http2 => Some(b"h2"),
            Self::Postgresql => Some(b"postgresql"),
            Self::Tds8 => Some(b"tds/8.0"),
        }
    }
}

/// What is offered to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// What belongs to the protocol that the agent speaks.
    One(Alpn),
    /// What the agent itself has offered.
    Agents(Vec<Vec<u8>>),
    /// Nothing, and the handshake goes inside the packets of TDS 7.x, which has TLS 1.2 at most
    /// (MS-TDS §2.2.6.5).
    InTdsPackets,
}

impl From<Alpn> for Offer {
    fn from(alpn: Alpn) -> Self {
        Self::One(alpn)
    }
}

/// Connects with one trust. Configurations and resumable sessions of different trusts never mix:
/// a session that another trust accepted proves nothing.
#[derive(Clone)]
pub struct Connector {
    /// One for each of [`Alpn::ALL`], in that order.
    configs: [Arc<ClientConfig>; Alpn::ALL.len()],
    /// The same trust with TLS 1.2 alone, where that may be.
    tls12: Option<Arc<ClientConfig>>,
    verifier: Arc<Verifier>,
    /// For [`Offer::InTdsPackets`]; None where TLS 1.2 is not enough.
    in_packets: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

/// The connectors of a configuration: its default, and one for each route with a trust of its own.
#[derive(Debug)]
pub struct Connectors {
    default: Connector,
    routes: Vec<Option<Connector>>,
    /// Where a route ends the TLS of agents.
    authority: Option<Authority>,
    /// What they were built from.
    material: Material,
}

impl Connectors {
    /// Builds them all, so that a later connection cannot fail for a reason that was there at the
    /// start.
    ///
    /// # Errors
    /// No system roots, or certificates that cannot be used, in a sentence.
    pub fn new(config: &Config) -> Result<Self, String> {
        Self::build(Material::new(config)?)
    }

    fn build(material: Material) -> Result<Self, String> {
        let connector = |trust| Connector::new(trust, &material);
        let routes = material
            .routes
            .iter()
            .map(|trust| trust.as_ref().map(connector).transpose())
            .collect::<Result<_, _>>()?;
        Ok(Self {
            default: connector(&material.default)?,
            routes,
            authority: material
                .terminates
                .then_some(material.authority.as_ref())
                .flatten()
                .map(Authority::new)
                .transpose()?,
            material,
        })
    }

    /// The authority of this host, where a route needs it.
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// The connector of a route, by its index in the configuration.
    pub fn of_route(&self, route: Option<usize>) -> &Connector {
        route
            .and_then(|index| self.routes.get(index))
            .and_then(Option::as_ref)
            .unwrap_or(&self.default)
    }
}

impl Connector {
    fn new(trust: &Trust, material: &Material) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        if trust.roots.system() {
            roots.add_parsable_certificates(material.system.iter().cloned());
        }
        for certificate in trust.roots.extra() {
            roots
                .add(certificate.clone())
                .map_err(|error| format!("a root certificate: {error}"))?;
        }
        // What the host's programs trust for their connections to the proxy proves no server.
        if let Some(own) = material.authority.as_ref().and_then(ca::Files::certificate) {
            let own = rustls_anchor(own);
            roots.roots.retain(|anchor| Some(anchor) != own.as_ref());
        }
        if roots.is_empty() {
            return Err(
                "no root certificates are installed, so no server can be verified; \
                        install them (apt-get install ca-certificates) or set [tls] roots"
                    .to_owned(),
            );
        }
        let verifier = Arc::new(Verifier::new(trust, roots.into(), Arc::clone(&provider))?);
        let of_versions = |versions: &[&'static SupportedProtocolVersion]| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)
                .map_err(|error| format!("TLS versions: {error}"))?
                // "Dangerous" is a verifier that is not rustls' own; this one only adds to it, see
                // its module.
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&verifier) as _);
            let mut config = match &trust.client {
                Some(client) => builder
                    .with_client_auth_cert(client.chain().to_vec(), client.key().clone_key())
                    .map_err(|error| format!("the client certificate: {error}"))?,
                None => builder.with_no_client_auth(),
            };
            config.resumption = Resumption::store(Arc::new(Sessions::default()));
            Ok::<_, String>(config)
        };
        let (config, tls12) = match trust.min_version {
            MinVersion::Tls12 => (
                of_versions(&[&TLS13, &TLS12])?,
                Some(Arc::new(of_versions(&[&TLS12])?)),
            ),
            MinVersion::Tls13 => (of_versions(&[&TLS13])?, None),
        };
        // A resumed handshake ends with the client's words, of which rustls does not say when they
        // are out: the end of the packets would be a guess.
        let in_packets = tls12.as_deref().map(|config: &ClientConfig| {
            let mut config = config.clone();
            config.resumption = Resumption::disabled();
            Arc::new(config)
        });
        let configs = Alpn::ALL.map(|alpn| {
            let mut config = config.clone();
            config.alpn_protocols = alpn.identifier().map(<[u8]>::to_vec).into_iter().collect();
            Arc::new(config)
        });
        Ok(Self {
            configs,
            tls12,
            in_packets,
            verifier,
        })
    }

    /// The same trust, with TLS sessions that are shared with nobody else: for connections that
    /// have to resume one another's session. TLS 1.2 alone, if that may be, since its sessions
    /// can be resumed any number of times. None where the trust asks for TLS 1.3.
    pub fn apart_with_tls12(&self) -> Option<Self> {
        self.tls12.as_deref().map(|config| self.apart_of(config))
    }

    /// The same with every version that may be. A ticket of TLS 1.3 is used once, so it depends
    /// on the server's giving new ones whether the next connection can resume.
    pub fn apart(&self) -> Self {
        let [plain, ..] = &self.configs;
        self.apart_of(plain)
    }

    fn apart_of(&self, config: &ClientConfig) -> Self {
        let mut config = config.clone();
        config.resumption = Resumption::in_memory_sessions(1);
        let config = Arc::new(config);
        Self {
            configs: Alpn::ALL.map(|_| Arc::clone(&config)),
            tls12: None,
            in_packets: None,
            verifier: Arc::clone(&self.verifier),
        }
    }

    /// Makes TLS of a connection and verifies that the server is `name`.
    ///
    /// # Errors
    /// A [`Failure`] that tells a bad certificate from a server without TLS.
    pub async fn connect(
        &self,
        stream: TcpStream,
        name: &ServerName<'static>,
        offer: Offer,
    ) -> Result<TlsStream<Transport>, Failure> {
        let must_be_http2 = offer == Offer::One(Alpn::Http2);
        let transport = match offer {
            Offer::InTdsPackets => Transport::in_packets(stream),
            _ => Transport::bare(stream),
        };
        let stream = handshake(self.config(offer)?, transport, name)
            .await
            .map_err(|error| handshake_failure(&error, name))?;
        self.judge_resumed(&stream, name)?;
        if must_be_http2 && stream.get_ref().1.alpn_protocol() != Alpn::Http2.identifier() {
            return Err(Failure::new(
                Cause::TlsFailed,
                "the agent speaks HTTP/2, which the server does not offer over TLS (ALPN h2)",
            ));
        }
        Ok(stream)
    }

    /// The same for a data connection, which a server closes before any handshake when it does
    /// not want the transfer.
    ///
    /// # Errors
    /// As [`Self::connect`]; [`Cause::UpstreamClosed`].
    pub async fn connect_data(
        &self,
        stream: TcpStream,
        name: &ServerName<'static>,
    ) -> Result<TlsStream<Transport>, Failure> {
        let config = self.config(Offer::One(Alpn::None))?;
        let stream = handshake(config, Transport::bare(stream), name)
            .await
            .map_err(|error| match tls_error(&error) {
                Some(_) => handshake_failure(&error, name),
                None => Failure::new(
                    Cause::UpstreamClosed,
                    format!(
                        "the server closed the data connection before its TLS handshake ({})",
                        error.kind()
                    ),
                ),
            })?;
        self.judge_resumed(&stream, name)?;
        Ok(stream)
    }

    fn config(&self, offer: Offer) -> Result<Arc<ClientConfig>, Failure> {
        let [none, http1, http2, postgresql, tds8] = &self.configs;
        let config = match offer {
            Offer::One(Alpn::None) => none,
            Offer::One(Alpn::Http1) => http1,
            Offer::One(Alpn::Http2) => http2,
            Offer::One(Alpn::Postgresql) => postgresql,
            Offer::One(Alpn::Tds8) => tds8,
            Offer::Agents(alpn) => {
                let mut config = ClientConfig::clone(none);
                config.alpn_protocols = alpn;
                return Ok(Arc::new(config));
            }
            Offer::InTdsPackets => self.in_packets.as_ref().ok_or_else(|| {
                Failure::new(
                    Cause::TlsFailed,
                    "TDS 7.x has TLS 1.2 at most, and min_version is 1.3; where the server speaks \
                     TDS 8, a route with tls = \"implicit\" leads to it",
                )
            })?,
        };
        Ok(Arc::clone(config))
    }

    /// Makes a handshake for its proof alone, with nothing resumed, and says goodbye.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn check(
        &self,
        stream: TcpStream,
        name: &ServerName<'static>,
        alpn: Vec<Vec<u8>>,
    ) -> Result<TlsFacts, Failure> {
        let [config, ..] = &self.configs;
        let witness = Arc::new(Witness::new(Arc::clone(&self.verifier)));
        let mut config = ClientConfig::clone(config);
        config.alpn_protocols = alpn;
        config.resumption = Resumption::disabled();
        // It asks this connector's verifier.
        config
            .dangerous()
            .set_certificate_verifier(Arc::clone(&witness) as _);
        let made = TlsConnector::from(Arc::new(config))
            .connect(name.clone(), stream)
            .await;
        let chain = match (made, witness.proven()) {
            (Ok(mut stream), Some(chain)) => {
                // Whatever becomes of the goodbye, the proof stands.
                let _ = stream.shutdown().await;
                chain
            }
            (Err(_), Some(chain)) => chain,
            (Err(error), None) => return Err(handshake_failure(&error, name)),
            (Ok(_), None) => {
                return Err(Failure::new(
                    Cause::Internal,
                    "a handshake ended without a certificate",
                ));
            }
        };
        Ok(self.proof(&chain, name))
    }

    /// The handshake of a resumed session shows no certificate. The one that was shown when it
    /// began may have expired since, or its revocation list may have.
    fn judge_resumed(
        &self,
        stream: &TlsStream<Transport>,
        name: &ServerName<'_>,
    ) -> Result<(), Failure> {
        let (_, session) = stream.get_ref();
        if session.handshake_kind() != Some(HandshakeKind::Resumed) {
            return Ok(());
        }
        let chain = session.peer_certificates().and_then(<[_]>::split_first);
        let judged = match chain {
            Some((own, others)) => {
                self.verifier
                    .verify_server_cert(own, others, name, &[], UnixTime::now())
            }
            None => Err(TlsError::NoCertificatesPresented),
        };
        judged.map(drop).map_err(|error| refusal(&error, name))
    }

    /// What a finished handshake has shown.
    pub fn facts(&self, stream: &TlsStream<Transport>, name: &ServerName<'_>) -> TlsFacts {
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        TlsFacts {
            version: session.protocol_version().map(|version| match version {
                ProtocolVersion::TLSv1_2 => "1.2".to_owned(),
                ProtocolVersion::TLSv1_3 => "1.3".to_owned(),
                other => format!("{other:?}"),
            }),
            cipher: session
                .negotiated_cipher_suite()
                // rustls names suites of TLS 1.3 apart from IANA's "TLS_".
                .map(|suite| format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)),
            group: session
                .negotiated_key_exchange_group()
                .map(|group| format!("{:?}", group.name())),
            alpn: session
                .alpn_protocol()
                .map(|alpn| String::from_utf8_lossy(alpn).into_owned()),
            resumed: session
                .handshake_kind()
                .map(|kind| kind == HandshakeKind::Resumed),
            ..self.proof(chain, name)
        }
    }

    /// What a chain that was verified proves.
    fn proof(&self, chain: &[CertificateDer<'_>], name: &ServerName<'_>) -> TlsFacts {
        let Some((own, others)) = chain.split_first() else {
            return TlsFacts::default();
        };
        let proven = proves(own, name);
        let pin = if proven {
            self.verifier.pin_of_path(own, others, UnixTime::now())
        } else {
            self.verifier.own_pin(own)
        };
        TlsFacts {
            verified_name: proven.then(|| show_name(name)),
            pin: pin.map(|pin| pin.to_string()),
            certificate: certificate(own),
            ..TlsFacts::default()
        }
    }
}

async fn handshake(
    config: Arc<ClientConfig>,
    transport: Transport,
    name: &ServerName<'static>,
) -> io::Result<TlsStream<Transport>> {
    let mut stream = TlsConnector::from(config)
        .connect(name.clone(), transport)
        .await?;
    stream.get_mut().0.leave_packets()?;
    Ok(stream)
}

/// What TLS itself says of a handshake's error; None where the connection has failed.
fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// Sorts the error of a handshake.
fn handshake_failure(error: &io::Error, name: &ServerName<'_>) -> Failure {
    match tls_error(error) {
        Some(error) => refusal(error, name),
        None => Failure::new(
            Cause::TlsNotOffered,
            format!(
                "the server closed the connection instead of speaking TLS ({})",
                error.kind()
            ),
        ),
    }
}

fn refusal(error: &TlsError, name: &ServerName<'_>) -> Failure {
    let shown = show_name(name);
    match error {
        TlsError::InvalidCertificate(error) => {
            let cause = match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Cause::CertificateExpired,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    Cause::CertificateUntrusted
                }
                CertificateError::Revoked => Cause::CertificateRevoked,
                CertificateError::UnknownRevocationStatus
                | CertificateError::ExpiredRevocationList
                | CertificateError::ExpiredRevocationListContext { .. } => Cause::RevocationUnknown,
                CertificateError::Other(other) if other.0.is::<NotPinned>() => {
                    Cause::CertificatePin
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Cause::CertificateName,
                // A self-signed certificate that calls itself an authority.
                CertificateError::Other(_) if error.to_string().contains("CaUsedAsEndEntity") => {
                    Cause::CertificateUntrusted
                }
                _ => Cause::CertificateInvalid,
            };
            let text = match cause {
                Cause::CertificatePin => format!(
                    "the server's certificate proves {shown}, but no key of its chain is pinned"
                ),
                Cause::CertificateRevoked => {
                    format!("the certificate by which the server would prove {shown} is revoked")
                }
                Cause::RevocationUnknown => format!(
                    "whether the server's certificate for {shown} is revoked cannot be told by \
                     [tls] crls: {error}"
                ),
                _ => format!("the server's certificate does not prove {shown}: {error}"),
            };
            Failure::new(cause, text)
        }
        TlsError::InvalidCertRevocationList(error) => Failure::new(
            Cause::RevocationUnknown,
            format!("a revocation list for the server {shown} cannot be used: {error:?}"),
        ),
        // An alert would be TLS; these are somebody's other words, or the ClientHello echoed.
        TlsError::InvalidMessage(_)
        | TlsError::PeerMisbehaved(_)
        | TlsError::InappropriateMessage { .. }
        | TlsError::InappropriateHandshakeMessage { .. } => Failure::new(
            Cause::TlsNotOffered,
            format!("the server does not speak TLS: {error}"),
        ),
        other => Failure::new(Cause::TlsFailed, format!("no TLS with {shown}: {other}")),
    }
}

/// A name as it is written.
pub fn show_name(name: &ServerName<'_>) -> String {
    name.to_str().into_owned()
}

/// A certificate as a root.
fn rustls_anchor(certificate: &CertificateDer<'_>) -> Option<TrustAnchor<'static>> {
    webpki::anchor_from_trusted_cert(certificate)
        .ok()
        .map(|anchor| anchor.to_owned())
}

/// What a certificate says; None where it is none.
pub fn certificate(der: &CertificateDer<'_>) -> Option<Certificate> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    Some(Certificate {
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        not_after: crate::time::rfc3339(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(not_after),
        ),
        sha256: digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    })
}

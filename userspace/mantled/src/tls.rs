//! TLS towards servers: trust, handshakes and what they prove.

use std::{io, sync::Arc};

use mantled_record::{Certificate, TlsFacts};
use rustls::{
    CertificateError, ClientConfig, Error as TlsError, HandshakeKind, ProtocolVersion,
    RootCertStore, SupportedProtocolVersion,
    client::{Resumption, WebPkiServerVerifier},
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    config::{Config, MinVersion, Trust},
    error::{Cause, Failure},
    proxy::transport::Transport,
};

/// Sessions that are kept for resumption, for each trust: one a server is enough for most hosts.
const RESUMABLE: usize = 1024;

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

/// How the handshake is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// By TCP itself.
    Bare(Alpn),
    /// Inside the packets of TDS 7.x, which has TLS 1.2 at most (MS-TDS §2.2.6.5).
    InTdsPackets,
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

/// Connects with one trust. Configurations and resumable sessions of different trusts never mix:
/// a session that another trust accepted proves nothing.
#[derive(Clone)]
pub struct Connector {
    /// One for each of [`Alpn::ALL`], in that order.
    configs: [Arc<ClientConfig>; Alpn::ALL.len()],
    /// For [`Handshake::InTdsPackets`]; None where TLS 1.2 is not enough.
    in_packets: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

/// The connectors of a configuration: its default, and one for each route with a trust of its own.
#[derive(Clone, Debug)]
pub struct Connectors {
    default: Connector,
    routes: Vec<Option<Connector>>,
}

impl Connectors {
    /// Builds them all, so that a later connection cannot fail for a reason that was there at the
    /// start.
    ///
    /// # Errors
    /// No system roots, or certificates that cannot be used, in a sentence.
    pub fn new(config: &Config) -> Result<Self, String> {
        let routes = config
            .routes()
            .iter()
            .map(|route| route.trust().map(Connector::new).transpose())
            .collect::<Result<_, _>>()?;
        Ok(Self {
            default: Connector::new(config.trust())?,
            routes,
        })
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
    fn new(trust: &Trust) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        if trust.roots.system() {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
        for certificate in trust.roots.extra() {
            roots
                .add(certificate.clone())
                .map_err(|error| format!("a root certificate: {error}"))?;
        }
        if roots.is_empty() {
            return Err(
                "no root certificates are installed, so no server can be verified; \
                        install them (apt-get install ca-certificates) or set [tls] roots"
                    .to_owned(),
            );
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .build()
                .map_err(|error| format!("root certificates: {error}"))?;
        let versions: &[&SupportedProtocolVersion] = match trust.min_version {
            MinVersion::Tls12 => &[&TLS13, &TLS12],
            MinVersion::Tls13 => &[&TLS13],
        };
        let config = |versions: &[&'static SupportedProtocolVersion]| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)
                .map_err(|error| format!("TLS versions: {error}"))?
                .with_webpki_verifier(Arc::clone(&verifier));
            match &trust.client {
                Some(client) => builder
                    .with_client_auth_cert(client.chain().to_vec(), client.key().clone_key())
                    .map_err(|error| format!("the client certificate: {error}")),
                None => Ok(builder.with_no_client_auth()),
            }
        };
        let in_packets = match trust.min_version {
            MinVersion::Tls13 => None,
            MinVersion::Tls12 => {
                let mut config = config(&[&TLS12])?;
                // A resumed handshake ends with the client's words, of which rustls does not say
                // when they are out: the end of the packets would be a guess.
                config.resumption = Resumption::disabled();
                Some(Arc::new(config))
            }
        };
        let mut config = config(versions)?;
        config.resumption = Resumption::in_memory_sessions(RESUMABLE);
        let configs = Alpn::ALL.map(|alpn| {
            let mut config = config.clone();
            config.alpn_protocols = alpn.identifier().map(<[u8]>::to_vec).into_iter().collect();
            Arc::new(config)
        });
        Ok(Self {
            configs,
            in_packets,
        })
    }

    /// Makes TLS of a connection and verifies that the server is `name`.
    ///
    /// # Errors
    /// A [`Failure`] that tells a bad certificate from a server without TLS.
    pub async fn connect(
        &self,
        stream: TcpStream,
        name: &ServerName<'static>,
        handshake: Handshake,
    ) -> Result<TlsStream<Transport>, Failure> {
        let [none, http1, http2, postgresql, tds8] = &self.configs;
        let (config, alpn, transport) = match handshake {
            Handshake::Bare(alpn) => {
                let config = match alpn {
                    Alpn::None => none,
                    Alpn::Http1 => http1,
                    Alpn::Http2 => http2,
                    Alpn::Postgresql => postgresql,
                    Alpn::Tds8 => tds8,
                };
                (config, alpn, Transport::bare(stream))
            }
            Handshake::InTdsPackets => {
                let config = self.in_packets.as_ref().ok_or_else(|| {
                    Failure::new(
                        Cause::TlsFailed,
                        "TDS 7.x has TLS 1.2 at most, and min_version is 1.3; where the server \
                         speaks TDS 8, a route with tls = \"implicit\" leads to it",
                    )
                })?;
                (config, Alpn::None, Transport::in_packets(stream))
            }
        };
        let mut stream = TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), transport)
            .await
            .map_err(|error| handshake_failure(&error, name))?;
        stream
            .get_mut()
            .0
            .leave_packets()
            .map_err(|error| handshake_failure(&error, name))?;
        if alpn == Alpn::Http2 && stream.get_ref().1.alpn_protocol() != alpn.identifier() {
            return Err(Failure::new(
                Cause::TlsFailed,
                "the agent speaks HTTP/2, which the server does not offer over TLS (ALPN h2)",
            ));
        }
        Ok(stream)
    }
}

/// Sorts the error of a handshake.
fn handshake_failure(error: &io::Error, name: &ServerName<'_>) -> Failure {
    let shown = show_name(name);
    let Some(tls) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>())
    else {
        return Failure::new(
            Cause::TlsNotOffered,
            format!(
                "the server closed the connection instead of speaking TLS ({})",
                error.kind()
            ),
        );
    };
    match tls {
        TlsError::InvalidCertificate(error) => {
            let cause = match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Cause::CertificateExpired,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    Cause::CertificateUntrusted
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Cause::CertificateName,
                // A self-signed certificate that calls itself an authority.
                CertificateError::Other(_) if error.to_string().contains("CaUsedAsEndEntity") => {
                    Cause::CertificateUntrusted
                }
                _ => Cause::CertificateInvalid,
            };
            Failure::new(
                cause,
                format!("the server's certificate does not prove {shown}: {error}"),
            )
        }
        // An alert would be TLS; these are somebody's other words, or the ClientHello echoed.
        TlsError::InvalidMessage(_)
        | TlsError::PeerMisbehaved(_)
        | TlsError::InappropriateMessage { .. }
        | TlsError::InappropriateHandshakeMessage { .. } => Failure::new(
            Cause::TlsNotOffered,
            format!("the server does not speak TLS: {tls}"),
        ),
        other => Failure::new(Cause::TlsFailed, format!("no TLS with {shown}: {other}")),
    }
}

/// A name as it is written.
pub fn show_name(name: &ServerName<'_>) -> String {
    name.to_str().into_owned()
}

/// What a finished handshake has shown.
pub fn facts(stream: &TlsStream<Transport>, name: &ServerName<'_>) -> TlsFacts {
    let (_, session) = stream.get_ref();
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
        verified_name: Some(show_name(name)),
        certificate: session
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(certificate),
        ..TlsFacts::default()
    }
}

fn certificate(der: &CertificateDer<'_>) -> Option<Certificate> {
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

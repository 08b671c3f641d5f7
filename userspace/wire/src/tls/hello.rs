//! ClientHello and ServerHello (RFC 8446 §4.1): what was offered and what was chosen.

use crate::{Progress, reader::Reader};

use super::{
    Malformed, ProtocolVersion, is_grease,
    record::{First, first_message},
};

pub(super) const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Extension types (RFC 8446 §4.2).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// The random that makes a ServerHello a HelloRetryRequest (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// What a client offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name indication (RFC 6066 §3), in lower case; None where it is missing or no host
    /// name.
    pub server_name: Option<String>,
    /// Offered versions, without GREASE.
    pub versions: Vec<ProtocolVersion>,
    /// Offered application protocols (RFC 7301), without GREASE.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientHello {
    /// Reads the first message of a client's stream.
    ///
    /// # Errors
    /// [`Malformed`] where the stream cannot become a ClientHello.
    pub fn parse(stream: &[u8]) -> Result<Progress<Self>, Malformed> {
        match first_message(stream)? {
            Progress::Done(First::Message(CLIENT_HELLO, body)) => Self::from_body(&body)
                .map(Progress::Done)
                .ok_or(Malformed::Field),
            Progress::Done(_) => Err(Malformed::NotHandshake),
            Progress::NeedMore => Ok(Progress::NeedMore),
        }
    }

    fn from_body(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        let legacy_version = body.u16()?;
        body.take(32)?; // random
        body.vector8()?; // legacy_session_id
        body.vector16()?; // cipher_suites
        body.vector8()?; // legacy_compression_methods
        let mut hello = Self {
            versions: vec![ProtocolVersion(legacy_version)],
            ..Self::default()
        };
        // A hello without extensions is valid in TLS 1.2 (RFC 5246 §7.4.1.2).
        if body.is_empty() {
            return Some(hello);
        }
        let mut extensions = body.vector16()?;
        while !extensions.is_empty() {
            let kind = extensions.u16()?;
            let mut data = extensions.vector16()?;
            match kind {
                SERVER_NAME => hello.server_name = server_name(data)?,
                ALPN => {
                    let mut protocols = data.vector16()?;
                    while !protocols.is_empty() {
                        let protocol = protocols.vector8()?.0;
                        let grease =
                            matches!(*protocol, [a, b] if is_grease(u16::from_be_bytes([a, b])));
                        if !grease {
                            hello.alpn.push(protocol.to_vec());
                        }
                    }
                }
                SUPPORTED_VERSIONS => {
                    let mut versions = data.vector8()?;
                    hello.versions.clear();
                    while !versions.is_empty() {
                        let version = versions.u16()?;
                        if !is_grease(version) {
                            hello.versions.push(ProtocolVersion(version));
                        }
                    }
                }
                _ => {}
            }
        }
        Some(hello)
    }
}

/// The outer None: malformed; the inner: no name in it that is a host name.
fn server_name(mut data: Reader<'_>) -> Option<Option<String>> {
    const HOST_NAME: u8 = 0;
    let mut names = data.vector16()?;
    while !names.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?.0;
        if kind == HOST_NAME {
            let valid = !name.is_empty()
                && name.len() <= 253
                && name
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte));
            return Some(valid.then(|| String::from_utf8_lossy(name).to_ascii_lowercase()));
        }
    }
    Some(None)
}

/// What a server answers first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFirst {
    /// It goes on.
    Hello(ServerHello),
    /// It refuses: level and description (RFC 8446 §6).
    Alert(u8, u8),
}

/// What a server chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// The version.
    pub version: ProtocolVersion,
    /// The cipher suite.
    pub cipher_suite: u16,
    /// It is a HelloRetryRequest: the choice stands, the handshake starts over.
    pub retry: bool,
}

impl ServerFirst {
    /// Reads the first message of a server's stream.
    ///
    /// # Errors
    /// [`Malformed`] where the stream cannot become one.
    pub fn parse(stream: &[u8]) -> Result<Progress<Self>, Malformed> {
        match first_message(stream)? {
            Progress::Done(First::Message(SERVER_HELLO, body)) => ServerHello::from_body(&body)
                .map(|hello| Progress::Done(Self::Hello(hello)))
                .ok_or(Malformed::Field),
            Progress::Done(First::Alert(level, description)) => {
                Ok(Progress::Done(Self::Alert(level, description)))
            }
            Progress::Done(_) => Err(Malformed::NotHandshake),
            Progress::NeedMore => Ok(Progress::NeedMore),
        }
    }
}

impl ServerHello {
    fn from_body(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        let mut version = body.u16()?;
        let retry = body.take(32)? == RETRY;
        body.vector8()?; // legacy_session_id_echo
        let cipher_suite = body.u16()?;
        body.u8()?; // legacy_compression_method
        if !body.is_empty() {
            let mut extensions = body.vector16()?;
            while !extensions.is_empty() {
                let kind = extensions.u16()?;
                let mut data = extensions.vector16()?;
                if kind == SUPPORTED_VERSIONS {
                    version = data.u16()?;
                }
            }
        }
        Some(Self {
            version: ProtocolVersion(version),
            cipher_suite,
            retry,
        })
    }
}

/// IANA's name of a cipher suite, for those that servers of today choose.
pub fn cipher_suite_name(suite: u16) -> Option<&'static str> {
    Some(match suite {
        0x1301 => "TLS_AES_128_GCM_SHA256",
        0x1302 => "TLS_AES_256_GCM_SHA384",
        0x1303 => "TLS_CHACHA20_POLY1305_SHA256",
        0xc02b => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        0xc02c => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        0xc02f => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        0xc030 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        0xcca8 => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        0xcca9 => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        _ => return None,
    })
}

//! ClientHello and ServerHello (RFC 8446 §4.1): what was offered and what was chosen.

use crate::{Progress, reader::Reader};

use super::{
    Alert, Malformed, ProtocolVersion, is_grease,
    record::{First, first_message},
};

pub(super) const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Extension types (RFC 8446 §4.2).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// Most extensions of a hello, and most protocols in ALPN. Clients send a few dozen; 64 KiB of the
/// shortest would take some MiB when they are taken apart.
const MAX_ITEMS: usize = 128;

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
    /// Reads the first message of a client's stream, over as many records as it takes. Pass the
    /// stream from its first byte; what follows the message is not looked at. Allocates no more
    /// than twice [`MAX_HANDSHAKE`](super::MAX_HANDSHAKE) and 64 KiB.
    ///
    /// # Errors
    /// [`Malformed`] where the stream cannot become a ClientHello, or where two readers could
    /// understand it differently: an extension or a name given twice.
    pub fn parse(stream: &[u8]) -> Result<Progress<Self>, Malformed> {
        match first_message(stream)? {
            Progress::Done(First::Message(CLIENT_HELLO, body)) => Self::from_body(&body)
                .map(Progress::Done)
                .ok_or(Malformed::Field),
            Progress::Done(_) => Err(Malformed::NotHandshake),
            Progress::NeedMore => Ok(Progress::NeedMore),
        }
    }

    /// The highest version that is offered, of those up to TLS 1.3 that exist; drafts and others
    /// do not count.
    pub fn highest_version(&self) -> Option<ProtocolVersion> {
        let existing = |version: &ProtocolVersion| (0x0300..=0x0304).contains(&version.0);
        self.versions.iter().copied().filter(existing).max()
    }

    fn from_body(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        let legacy_version = body.u16()?;
        body.take(32)?; // random
        body.vector8()?; // legacy_session_id
        body.vector16()?; // cipher_suites
        body.vector8()?; // legacy_compression_methods
        // GREASE has no place there (RFC 8701 §3.1), so it is not an offer.
        if is_grease(legacy_version) {
            return None;
        }
        let mut hello = Self {
            versions: vec![ProtocolVersion(legacy_version)],
            ..Self::default()
        };
        // A hello without extensions is valid in TLS 1.2 (RFC 5246 §7.4.1.2).
        if body.is_empty() {
            return Some(hello);
        }
        for (kind, data) in extensions(body)? {
            match kind {
                SERVER_NAME => hello.server_name = server_name(data)?,
                ALPN => hello.alpn = protocols(data)?,
                SUPPORTED_VERSIONS => hello.versions = versions(data)?,
                _ => {}
            }
        }
        Some(hello)
    }
}

/// The extensions, which end their message (RFC 8446 §4.2). None where one comes twice: the
/// server could believe the other.
fn extensions(mut body: Reader<'_>) -> Option<Vec<(u16, Reader<'_>)>> {
    let mut list = body.vector16()?;
    let mut extensions = Vec::new();
    while !list.is_empty() {
        extensions.push((list.u16()?, list.vector16()?));
        if extensions.len() > MAX_ITEMS {
            return None;
        }
    }
    let mut kinds: Vec<u16> = extensions.iter().map(|(kind, _)| *kind).collect();
    kinds.sort_unstable();
    let twice = kinds
        .windows(2)
        .any(|pair| matches!(pair, [a, b] if a == b));
    (body.is_empty() && !twice).then_some(extensions)
}

/// `supported_versions` of a client (RFC 8446 §4.2.1).
fn versions(mut data: Reader<'_>) -> Option<Vec<ProtocolVersion>> {
    let mut list = data.vector8()?;
    let mut versions = Vec::new();
    while !list.is_empty() {
        let version = list.u16()?;
        if !is_grease(version) {
            versions.push(ProtocolVersion(version));
        }
    }
    data.is_empty().then_some(versions)
}

/// `application_layer_protocol_negotiation` (RFC 7301 §3.1), whose names are not empty.
fn protocols(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = data.vector16()?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let name = list.vector8()?.0;
        match *name {
            [] => return None,
            [a, b] if is_grease(u16::from_be_bytes([a, b])) => {}
            _ if protocols.len() == MAX_ITEMS => return None,
            _ => protocols.push(name.to_vec()),
        }
    }
    data.is_empty().then_some(protocols)
}

/// `server_name` (RFC 6066 §3). The outer None: malformed, or more than one host name; the
/// inner: what is there is no host name.
fn server_name(mut data: Reader<'_>) -> Option<Option<String>> {
    const HOST_NAME: u8 = 0;
    let mut list = data.vector16()?;
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let name = list.vector16()?.0;
        if kind == HOST_NAME && found.replace(name).is_some() {
            return None;
        }
    }
    let name = found
        .filter(|name| is_host_name(name))
        .map(|name| String::from_utf8_lossy(name).to_ascii_lowercase());
    data.is_empty().then_some(name)
}

/// A DNS name without its final dot, which is no IPv4 address (RFC 6066 §3, RFC 1123 §2.1).
/// Underscores are no part of host names, but of names that clients ask for.
fn is_host_name(name: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && !label.starts_with(b"-")
            && !label.ends_with(b"-")
            && label
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    };
    let is_number = |label: &[u8]| label.iter().all(u8::is_ascii_digit);
    let mut labels = name.split(|byte| *byte == b'.');
    name.len() <= 253 && labels.clone().all(is_label) && !labels.next_back().is_some_and(is_number)
}

/// What a server answers first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFirst {
    /// It goes on.
    Hello(ServerHello),
    /// It refuses, or warns (RFC 8446 §6).
    Alert(Alert),
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
            Progress::Done(First::Alert(alert)) => Ok(Progress::Done(Self::Alert(alert))),
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
            for (kind, mut data) in extensions(body)? {
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

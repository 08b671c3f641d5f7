//! TLS as an onlooker sees it (RFC 8446, RFC 5246): whether a peer speaks it, what its first
//! messages offer and choose, and whether a stream keeps to the record framing.
//!
//! mantled's own TLS is rustls'. This module is for connections that the agent encrypts itself.

mod alert;
mod cipher_suite;
mod hello;
mod record;

pub use alert::{ACCESS_DENIED, Alert, PROTOCOL_VERSION, alert_name, fatal_alert};
pub use cipher_suite::cipher_suite_name;
pub use hello::{ClientHello, ServerFirst, ServerHello};
pub use record::{FramingError, RecordGuard};

use crate::{Look, begins};

/// Longest handshake message that is looked at, in bytes. A ClientHello with post-quantum key
/// shares takes about 2 KiB.
pub const MAX_HANDSHAKE: usize = 64 * 1024;

/// A protocol version as it is on the wire (RFC 8446 §4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(pub u16);

impl ProtocolVersion {
    /// The version as OpenTelemetry's `tls.protocol.version` writes it.
    pub fn name(self) -> String {
        match self.0 {
            0x0300 => "SSL 3.0".to_owned(),
            0x0301 => "1.0".to_owned(),
            0x0302 => "1.1".to_owned(),
            0x0303 => "1.2".to_owned(),
            0x0304 => "1.3".to_owned(),
            other => format!("0x{other:04x}"),
        }
    }
}

/// A handshake that ended before it began, or bytes that are no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a handshake record.
    #[error("no TLS handshake record")]
    NotHandshake,
    /// Longer than [`MAX_HANDSHAKE`].
    #[error("TLS handshake message too long")]
    TooLong,
    /// A length field points outside of its message, or a field has no valid value.
    #[error("malformed TLS hello")]
    Field,
}

/// Does a stream begin like a ClientHello (RFC 8446 §4.1.2, §5.1)? Six bytes decide: a handshake
/// record of some 3.x version, of a plausible length, with a message of type 1. What
/// [`ClientHello::parse`] reads looks like one; what looks like one can still be malformed.
pub fn looks_like_client_hello(stream: &[u8]) -> Look {
    match begins(stream, &[0x16, 0x03]) {
        Look::Yes => match *stream {
            [_, _, minor, ..] if minor > 4 => Look::No,
            [_, _, _, high, low, ..]
                if !(1..=record::MAX_CIPHERTEXT).contains(&u16::from_be_bytes([high, low])) =>
            {
                Look::No
            }
            [_, _, _, _, _, kind, ..] => {
                if kind == hello::CLIENT_HELLO {
                    Look::Yes
                } else {
                    Look::No
                }
            }
            _ => Look::NeedMore,
        },
        undecided => undecided,
    }
}

/// Is it a GREASE value (RFC 8701), which clients send to keep peers tolerant?
fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

#[cfg(test)]
mod tests;

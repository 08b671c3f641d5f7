//! The record layer (RFC 8446 §5, RFC 5246 §6.2).

use crate::Progress;

use super::{MAX_HANDSHAKE, Malformed};

const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Longest fragment: 2^14 bytes and what TLS 1.2 allows for protection (RFC 5246 §6.2.3).
pub(super) const MAX_CIPHERTEXT: u16 = (1 << 14) + 2048;

/// Bytes of a record's header.
const HEADER: usize = 5;

/// Why a stream is not TLS, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A content type that does not exist, or one that cannot come first.
    #[error("record of type {0} out of place")]
    ContentType(u8),
    /// Not version 3.1 to 3.3, which every TLS writes here.
    #[error("record of version {0:#06x}")]
    Version(u16),
    /// Too long, or empty where that is not allowed.
    #[error("record of {0} bytes")]
    Length(u16),
}

/// Checks that one direction of a stream is made of TLS records, from its first byte to its
/// last. Whoever starts with a handshake and goes on with something else is found.
///
/// Invariant: `header_length < 5`, and `remaining > 0` only between a header and its fragment's
/// end, when `header_length == 0`.
#[derive(Clone, Debug)]
pub struct RecordGuard {
    header: [u8; HEADER],
    header_length: usize,
    remaining: u16,
    first: bool,
}

impl Default for RecordGuard {
    fn default() -> Self {
        Self {
            header: [0; HEADER],
            header_length: 0,
            remaining: 0,
            first: true,
        }
    }
}

impl RecordGuard {
    /// Checks the next bytes of the stream. After an error the stream must not be carried on.
    ///
    /// # Errors
    /// [`FramingError`] for the first record that is none.
    pub fn check(&mut self, mut chunk: &[u8]) -> Result<(), FramingError> {
        loop {
            let skipped = chunk.len().min(self.remaining.into());
            self.remaining -= skipped as u16;
            chunk = chunk.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = chunk.split_first() else {
                return Ok(());
            };
            chunk = rest;
            if let Some(slot) = self.header.get_mut(self.header_length) {
                *slot = *byte;
                self.header_length += 1;
            }
            if self.header_length == HEADER {
                self.header_length = 0;
                self.remaining = check_header(self.header, self.first)?;
                self.first = false;
            }
        }
    }
}

/// Checks a header and returns the length of its fragment.
fn check_header(header: [u8; HEADER], first: bool) -> Result<u16, FramingError> {
    let [kind, major, minor, high, low] = header;
    let allowed = match kind {
        HANDSHAKE | ALERT => true,
        CHANGE_CIPHER_SPEC | APPLICATION_DATA => !first,
        _ => false,
    };
    if !allowed {
        return Err(FramingError::ContentType(kind));
    }
    if major != 3 || !(1..=3).contains(&minor) {
        return Err(FramingError::Version(u16::from_be_bytes([major, minor])));
    }
    let length = u16::from_be_bytes([high, low]);
    // Empty fragments are allowed for application data only (RFC 8446 §5.1).
    if length > MAX_CIPHERTEXT || (length == 0 && kind != APPLICATION_DATA) {
        return Err(FramingError::Length(length));
    }
    Ok(length)
}

/// What comes first on a side of a stream.
pub(super) enum First {
    /// The body of the first handshake message, and its type.
    Message(u8, Vec<u8>),
    /// An alert: level and description.
    Alert(u8, u8),
}

/// Joins the fragments of the first handshake message. At most [`MAX_HANDSHAKE`] bytes are kept.
pub(super) fn first_message(stream: &[u8]) -> Result<Progress<First>, Malformed> {
    let mut rest = stream;
    let mut message = Vec::new();
    while let Some((header, fragment)) = rest.split_first_chunk::<HEADER>() {
        let length = check_header(*header, true).map_err(|_| Malformed::NotHandshake)?;
        let [kind, ..] = *header;
        let fragment = fragment
            .get(..fragment.len().min(length.into()))
            .unwrap_or_default();
        if kind == ALERT {
            return match *fragment {
                [level, description, ..] if message.is_empty() => {
                    Ok(Progress::Done(First::Alert(level, description)))
                }
                [] | [_] if message.is_empty() => Ok(Progress::NeedMore),
                _ => Err(Malformed::NotHandshake),
            };
        }
        message.extend_from_slice(fragment);
        // A handshake message: type, 24 bits of length, body (RFC 8446 §4).
        if let [kind, a, b, c, body @ ..] = message.as_slice() {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX_HANDSHAKE {
                return Err(Malformed::TooLong);
            }
            if let Some(body) = body.get(..length) {
                return Ok(Progress::Done(First::Message(*kind, body.to_vec())));
            }
        }
        match rest.get(HEADER + usize::from(length)..) {
            Some(next) => rest = next,
            None => break,
        }
    }
    // A header that is not whole yet can be wrong already.
    match rest {
        [kind, ..] if !matches!(*kind, HANDSHAKE | ALERT) => Err(Malformed::NotHandshake),
        [_, major, ..] if *major != 3 => Err(Malformed::NotHandshake),
        _ => Ok(Progress::NeedMore),
    }
}

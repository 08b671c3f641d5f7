//! The record layer (RFC 8446 §5, RFC 5246 §6.2).

use crate::Progress;

use super::{Alert, MAX_HANDSHAKE, Malformed};

const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Longest fragment: 2^14 bytes and what TLS 1.2 allows for protection (RFC 5246 §6.2.3).
pub(super) const MAX_CIPHERTEXT: u16 = (1 << 14) + 2048;

/// Bytes of a record's header.
const HEADER: usize = 5;

/// Bytes of a handshake message's header (RFC 8446 §4).
const MESSAGE_HEADER: usize = 4;

/// Why a stream is not TLS, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A content type that does not exist, or one that cannot come first.
    #[error("record of type {0} out of place")]
    ContentType(u8),
    /// Not version 3.1 to 3.3, which every TLS writes here. The low byte is 0 where the high one
    /// was wrong before the low one came.
    #[error("record of version {0:#06x}")]
    Version(u16),
    /// Too long, or empty where that is not allowed.
    #[error("record of {0} bytes")]
    Length(u16),
}

/// Checks that one direction of a stream is made of TLS records, from its first byte to its
/// last. Whoever starts with a handshake and goes on with something else is found.
///
/// A header is judged byte by byte: whatever follows a record, not even a few bytes of it pass
/// because they came in a chunk of their own. Fragments are skipped, never copied.
///
/// Invariant: `header_length < 5`, and `remaining > 0` only between a header and its fragment's
/// end, when `header_length == 0`. `remaining <= MAX_CIPHERTEXT`.
#[derive(Clone, Debug)]
pub struct RecordGuard {
    header: [u8; HEADER],
    header_length: usize,
    remaining: u16,
    first: bool,
    failed: Option<FramingError>,
}

impl Default for RecordGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordGuard {
    /// A guard for a stream of which nothing was seen yet.
    pub const fn new() -> Self {
        Self {
            header: [0; HEADER],
            header_length: 0,
            remaining: 0,
            first: true,
            failed: None,
        }
    }

    /// Checks the next bytes of the stream. After an error nothing of the chunk may be carried,
    /// and every later chunk gets the same error.
    ///
    /// # Errors
    /// [`FramingError`] for the first record that is none.
    pub fn check(&mut self, chunk: &[u8]) -> Result<(), FramingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.walk(chunk);
        self.failed = result.err();
        result
    }

    fn walk(&mut self, mut chunk: &[u8]) -> Result<(), FramingError> {
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
            let header = self.header.get(..self.header_length).unwrap_or_default();
            if let Some(length) = check_header(header, self.first)? {
                self.header_length = 0;
                self.remaining = length;
                self.first = false;
            }
        }
    }
}

/// Checks what has come of a header; the length of its fragment once it is whole.
fn check_header(header: &[u8], first: bool) -> Result<Option<u16>, FramingError> {
    let Some((&kind, rest)) = header.split_first() else {
        return Ok(None);
    };
    match kind {
        HANDSHAKE | ALERT => {}
        CHANGE_CIPHER_SPEC | APPLICATION_DATA if !first => {}
        _ => return Err(FramingError::ContentType(kind)),
    }
    match *rest {
        [3] | [] => return Ok(None),
        [3, 1..=3, ..] => {}
        [major] => return Err(FramingError::Version(u16::from_be_bytes([major, 0]))),
        [major, minor, ..] => {
            return Err(FramingError::Version(u16::from_be_bytes([major, minor])));
        }
    }
    let &[_, _, high, low, ..] = rest else {
        return Ok(None);
    };
    let length = u16::from_be_bytes([high, low]);
    // Empty fragments are allowed for application data only (RFC 8446 §5.1).
    if length > MAX_CIPHERTEXT || (length == 0 && kind != APPLICATION_DATA) {
        return Err(FramingError::Length(length));
    }
    Ok(Some(length))
}

/// What comes first on a side of a stream.
pub(super) enum First {
    /// The body of the first handshake message, and its type.
    Message(u8, Vec<u8>),
    /// The first record is an alert.
    Alert(Alert),
}

/// Joins the fragments of the first handshake message. At most [`MAX_HANDSHAKE`] bytes, its
/// header and the rest of one record are kept.
pub(super) fn first_message(stream: &[u8]) -> Result<Progress<First>, Malformed> {
    let mut rest = stream;
    let mut message = Vec::new();
    loop {
        // A header that is not whole yet can be wrong already.
        let header = rest.get(..HEADER).unwrap_or(rest);
        let length = check_header(header, true).map_err(|_| Malformed::NotHandshake)?;
        let (Some(length), Some((kind, _)), Some(after)) =
            (length, header.split_first(), rest.get(HEADER..))
        else {
            return Ok(Progress::NeedMore);
        };
        let fragment = after.get(..length.into()).unwrap_or(after);
        if *kind == ALERT {
            // Not within a message, nor in pieces, nor several in one record (RFC 8446 §5.1).
            if !message.is_empty() || length != 2 {
                return Err(Malformed::NotHandshake);
            }
            return Ok(match *fragment {
                [level, description] => Progress::Done(First::Alert(Alert { level, description })),
                _ => Progress::NeedMore,
            });
        }
        message.extend_from_slice(fragment);
        if let Some(length) = message_length(&message)? {
            let kind = message.first().copied().unwrap_or_default();
            message.drain(..MESSAGE_HEADER);
            message.truncate(length);
            return Ok(Progress::Done(First::Message(kind, message)));
        }
        match after.get(length.into()..) {
            Some(next) => rest = next,
            None => return Ok(Progress::NeedMore),
        }
    }
}

/// The length of the body of a handshake message (type, 24 bits of length, body; RFC 8446 §4)
/// that has come as a whole.
fn message_length(message: &[u8]) -> Result<Option<usize>, Malformed> {
    let [_, a, b, c, body @ ..] = message else {
        return Ok(None);
    };
    let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if length > MAX_HANDSHAKE {
        return Err(Malformed::TooLong);
    }
    Ok((body.len() >= length).then_some(length))
}

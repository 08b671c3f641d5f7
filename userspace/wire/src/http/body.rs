//! Where a message's body ends (RFC 9112 §6, §7.1).
//!
//! Nothing of a body is held or changed; it is only counted.

use super::head::{Field, Fields, Section, fault, is_token, trimmed};
use crate::RewriteError;

/// Most bytes of extensions on one chunk's line. Nobody uses them.
const MAX_EXTENSION: u16 = 4096;

/// What a head says about the length of its body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    /// Content-Length.
    pub(super) length: Option<u64>,
    /// Transfer-Encoding, which ends with chunked.
    pub(super) chunked: bool,
}

impl Framing {
    /// Takes account of a field. Values that two readers could take for two lengths are errors
    /// (RFC 9112 §6.3).
    pub(super) fn note(&mut self, field: &Field<'_>) -> Result<(), RewriteError> {
        if field.is("content-length") {
            let length = decimal(field.value);
            if length.is_none() {
                return fault("a Content-Length that is no number");
            }
            if self.length.is_some() && self.length != length {
                return fault("two lengths");
            }
            self.length = length;
        } else if field.is("transfer-encoding") {
            if self.chunked {
                return fault("Transfer-Encoding twice");
            }
            if !ends_with_chunked(field.value) {
                return fault("a Transfer-Encoding that does not end with chunked");
            }
            self.chunked = true;
        }
        if self.chunked && self.length.is_some() {
            return fault("both Transfer-Encoding and Content-Length");
        }
        Ok(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None; // the standard library would take a sign
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A list of codings (RFC 9110 §10.1.4) of which the last is chunked, and no other is.
fn ends_with_chunked(value: &[u8]) -> bool {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let mut codings = value.rsplit(|byte| *byte == b',').map(trimmed);
    codings.next().is_some_and(is_chunked)
        && codings.all(|coding| is_token(coding) && !is_chunked(coding))
}

/// A body, or what is still to come of it.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// So many bytes, at least one.
    Length(u64),
    /// Chunks, up to the last one.
    Chunks(Chunk),
    /// The lines after the last chunk.
    Trailers(Section),
    /// Everything until the stream ends.
    UntilEnd,
    /// Nothing more.
    Ended,
}

/// Where in a chunk the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In its size.
    Size { digits: u8, size: u64 },
    /// In its extensions, of which so many bytes have come.
    Extension { size: u64, length: u16 },
    /// Before the LF of its first line.
    LineFeed { size: u64 },
    /// In its data, of which so many bytes are still to come; at least one.
    Data { left: u64 },
    /// Before the CR LF behind the data.
    DataReturn,
    /// Before the LF behind the data.
    DataLineFeed,
}

impl Chunk {
    const BEGIN: Self = Self::Size { digits: 0, size: 0 };
}

impl Body {
    /// The body that follows the empty line. Where the head does not tell its length, it is
    /// `otherwise`.
    pub(super) fn new(framing: Framing, otherwise: Self) -> Self {
        match framing.length {
            _ if framing.chunked => Self::Chunks(Chunk::BEGIN),
            Some(0) => Self::Ended,
            Some(length) => Self::Length(length),
            None => otherwise,
        }
    }

    /// How many bytes from the front of `input` belong to it and can be carried without waiting
    /// for more.
    pub(super) fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        let mut rest = input;
        while !rest.is_empty() {
            match self {
                Self::Length(left) => {
                    *left -= skip(&mut rest, *left);
                    if *left == 0 {
                        *self = Self::Ended;
                    }
                }
                Self::Chunks(Chunk::Data { left }) => {
                    *left -= skip(&mut rest, *left);
                    if *left == 0 {
                        *self = Self::Chunks(Chunk::DataReturn);
                    }
                }
                Self::Chunks(chunk) => {
                    let Some((byte, after)) = rest.split_first() else {
                        break;
                    };
                    rest = after;
                    *self = match chunk.after(*byte)? {
                        Some(next) => Self::Chunks(next),
                        None => Self::Trailers(Section::default()),
                    };
                }
                Self::UntilEnd => rest = &[],
                Self::Trailers(_) | Self::Ended => break,
            }
        }
        Ok(input.len() - rest.len())
    }

    /// Takes what belongs to it off the front of `input`, and appends it to `out` as it is.
    pub(super) fn carry(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), RewriteError> {
        let length = self.pass(input)?;
        let (passed, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
        out.extend_from_slice(passed);
        *input = rest;
        if let Self::Trailers(section) = self
            && let Some(trailers) = section.take(input)?
        {
            check_trailers(&trailers)?;
            out.extend_from_slice(&trailers);
            *self = Self::Ended;
        }
        Ok(())
    }
}

impl Chunk {
    /// Where one byte of what is not data leads to; None: behind the last chunk.
    fn after(self, byte: u8) -> Result<Option<Self>, RewriteError> {
        Ok(Some(match (self, byte) {
            (Self::Size { digits: 16, .. }, byte) if byte.is_ascii_hexdigit() => {
                return fault("a chunk's size of more than 16 digits");
            }
            (Self::Size { digits, size }, byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Self::Size {
                    digits: digits + 1,
                    size: size << 4 | u64::from(digit),
                }
            }
            (Self::Size { digits: 1.., size }, b'\r') => Self::LineFeed { size },
            (Self::Size { digits: 1.., size }, b';') => Self::Extension { size, length: 1 },
            (Self::Extension { size, .. }, b'\r') => Self::LineFeed { size },
            (Self::Extension { length, .. }, _) if length >= MAX_EXTENSION => {
                return fault("chunk extensions without end");
            }
            (Self::Extension { size, length }, b'\t' | b' '..=b'~' | 0x80..) => Self::Extension {
                size,
                length: length + 1,
            },
            (Self::LineFeed { size: 0 }, b'\n') => return Ok(None),
            (Self::LineFeed { size }, b'\n') => Self::Data { left: size },
            (Self::DataReturn, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => Self::BEGIN,
            _ => return fault("a malformed chunk"),
        }))
    }
}

/// Takes at most `length` bytes off the front of `input`, and says how many there were.
fn skip(input: &mut &[u8], length: u64) -> u64 {
    let taken = usize::try_from(length).map_or(input.len(), |length| length.min(input.len()));
    *input = input.get(taken..).unwrap_or_default();
    taken as u64
}

/// Trailers are carried as they are, but for those that would frame or route the message if a
/// recipient merged them into its header section (RFC 9110 §6.5.1).
fn check_trailers(section: &[u8]) -> Result<(), RewriteError> {
    for field in Fields(section) {
        let field = field?;
        if ["transfer-encoding", "content-length", "host"]
            .iter()
            .any(|name| field.is(name))
        {
            return fault("framing in a trailer");
        }
    }
    Ok(())
}

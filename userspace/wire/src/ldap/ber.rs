//! The Basic Encoding Rules (ITU-T X.690) as far as LDAP has them (RFC 4511 §5.1): tags of one byte
//! and definite lengths.

/// An element that LDAP does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What stands before an element's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) tag: u8,
    /// Where the content begins.
    pub(super) begins: usize,
    /// How long it is; below 2^32.
    pub(super) length: usize,
}

impl Header {
    /// The same header, further on in the stream.
    pub(super) fn at(self, offset: usize) -> Self {
        Self {
            begins: self.begins.saturating_add(offset),
            ..self
        }
    }

    /// Where the content ends.
    pub(super) fn ends(self) -> usize {
        self.begins.saturating_add(self.length)
    }
}

/// Reads the header that the bytes begin with; None while it is not complete.
pub(super) fn header(stream: &[u8]) -> Result<Option<Header>, Malformed> {
    let (tag, first) = match stream {
        // Tags of more than one byte.
        [tag, ..] if tag & 0x1f == 0x1f => return Err(Malformed),
        [tag, first, ..] => (*tag, *first),
        _ => return Ok(None),
    };
    let digits = match first {
        0..=0x7f => {
            return Ok(Some(Header {
                tag,
                begins: 2,
                length: first.into(),
            }));
        }
        0x81..=0x84 => usize::from(first - 0x80),
        // The indefinite form, and lengths that no message has.
        _ => return Err(Malformed),
    };
    Ok(stream.get(2..2 + digits).map(|length| Header {
        tag,
        begins: 2 + digits,
        length: length
            .iter()
            .fold(0, |length, digit| length << 8 | usize::from(*digit)),
    }))
}

/// Appends an element.
pub(super) fn push(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    let length = content.len();
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            out.push(0x84);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(content);
}

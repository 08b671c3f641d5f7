//! Fluentd's forward protocol, versions 0 and 1 ("Forward Protocol Specification", section
//! "Transport"; MessagePack specification): how a client begins.
//!
//! TLS is spoken from the first byte, and acknowledgements pass through. Where the server wants a
//! shared key it speaks first, inside TLS (`HELO`): the client is silent until then, and nothing
//! can be recognised. A client that is refused is reset, since all that a server can say is an
//! acknowledgement.

use crate::{Look, reader::Reader};

/// Longest tag that is believed to be one. Tags are names with a few dots.
const MAX_TAG: usize = 255;

/// Does a client's stream begin with an event: an array of two to four values, of which the first
/// is a tag and the second a time (mode Message), an array (Forward) or a string of entries
/// (PackedForward)? At most `MAX_TAG` and seven bytes decide.
pub fn looks_like_event(stream: &[u8]) -> Look {
    event(&mut Reader(stream)).unwrap_or(Look::NeedMore)
}

/// None: more bytes are needed.
fn event(reader: &mut Reader<'_>) -> Option<Look> {
    let values = reader.u8()?;
    if !matches!(values, 0x92..=0x94) {
        return Some(Look::No);
    }
    let length = match reader.u8()? {
        short @ 0xa0..=0xbf => usize::from(short & 0x1f),
        0xd9 => reader.u8()?.into(),
        0xda => reader.u16()?.into(),
        _ => return Some(Look::No),
    };
    let begun = reader.0.get(..length).unwrap_or(reader.0);
    if !(1..=MAX_TAG).contains(&length) || begun.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f))
    {
        return Some(Look::No);
    }
    reader.take(length)?;
    let is_event = match reader.u8()? {
        // Arrays; strings and bytes.
        0x90..=0x9f | 0xdc | 0xdd => true,
        0xa0..=0xbf | 0xd9..=0xdb | 0xc4..=0xc6 => true,
        // Times: numbers, and the extension type 0 of eight bytes, in either of its forms.
        0x00..=0x7f | 0xca..=0xcf | 0xd0..=0xd3 => values > 0x92,
        0xd7 => values > 0x92 && reader.u8()? == 0,
        0xc7 => values > 0x92 && reader.u8()? == 8 && reader.u8()? == 0,
        _ => false,
    };
    Some(if is_event { Look::Yes } else { Look::No })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        for (stream, expected) in [
            // fluent-logger, fluent-bit, fluentd.
            (&b"\x93\xa5app.x\xce\x65\0\0\0\x81\xa1a\x01"[..], Look::Yes),
            (b"\x93\xa5app.x\xd7\0\x65\0\0\0\0\0\0\0", Look::Yes),
            (b"\x94\xa1t\xc7\x08\0", Look::Yes),
            (b"\x92\xa1t\x91", Look::Yes),
            (b"\x92\xa1t\xdd\0\0\0\x01", Look::Yes),
            (b"\x93\xa1t\xc6\0\0\x01\0", Look::Yes),
            (
                b"\x93\xd9\x20abcdefghijklmnopqrstuvwxyz.12345\xdb",
                Look::Yes,
            ),
            (b"\x93\xa5app", Look::NeedMore),
            (b"\x93\xa1t\xd7", Look::NeedMore),
            (b"\x93", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"\x92\xa1t\x01", Look::No),
            (b"\x93\xa0", Look::No),
            (b"\x93\xa5a b", Look::No),
            (b"\x93\xda\x01\0", Look::No),
            (b"\x93\xa1t\xd7\x01", Look::No),
            (b"\x93\xa1t\xc0", Look::No),
            // MessagePack-RPC: type, identifier, method, parameters.
            (b"\x94\0\x01\xa3get\x90", Look::No),
            (b"\x95\xa1t", Look::No),
        ] {
            assert_eq!(
                looks_like_event(stream),
                expected,
                "{}",
                stream.escape_ascii()
            );
        }
    }
}

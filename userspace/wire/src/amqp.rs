//! AMQP 0-9-1 (section 4.2.2 of its specification), 0-10, and 1.0 (OASIS, part 2, section 2.2;
//! with SASL, part 5, section 5.3): how a client begins.
//!
//! TLS is spoken from the first byte, so nothing else is touched. There are no words for a
//! refusal: all that a server can say to a protocol header is another header, which means that the
//! version does not suit. A client that is refused is reset instead, which does not mislead.

use crate::{Look, begins};

/// Protocol headers. The one of 1.0 that asks for TLS inside the connection (protocol id 2) is not
/// among them: that TLS would be the client's own.
const HEADERS: [&[u8; 8]; 6] = [
    b"AMQP\0\0\x09\x01",
    b"AMQP\x01\x01\0\x09",
    b"AMQP\x01\x01\x08\0",
    b"AMQP\x01\x01\0\x0a",
    b"AMQP\0\x01\0\0",
    b"AMQP\x03\x01\0\0",
];

/// Does a client's stream begin with a protocol header? Its eight bytes decide.
pub fn looks_like_header(stream: &[u8]) -> Look {
    let looks = HEADERS.map(|header| begins(stream, header));
    [Look::Yes, Look::NeedMore]
        .into_iter()
        .find(|look| looks.contains(look))
        .unwrap_or(Look::No)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_apart() {
        for (stream, expected) in [
            (&b"AMQP\0\0\x09\x01"[..], Look::Yes),
            (b"AMQP\x03\x01\0\0more", Look::Yes),
            (b"AMQP\0", Look::NeedMore),
            (b"A", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"AMQP\x02\x01\0\0", Look::No),
            (b"AMQP\0\0\x09\x02", Look::No),
            (b"AMQ ", Look::No),
        ] {
            assert_eq!(
                looks_like_header(stream),
                expected,
                "{}",
                stream.escape_ascii()
            );
        }
    }
}

//! Lumberjack 1 and 2, the protocol of Beats and Logstash (PROTOCOL.md of logstash-forwarder and of
//! logstash-input-beats): how a writer begins.
//!
//! TLS is spoken from the first byte, and acknowledgements pass through: the agent keeps what the
//! server has not acknowledged. Those are all that a reader can say, so a refused agent is reset.

use crate::{Look, reader::Reader};

/// Does a client's stream begin with a window frame: version, `W`, and how many events may be
/// unacknowledged? Nobody takes sixteen million of them, so that words of a text are none. Six
/// bytes decide.
pub fn looks_like_window(stream: &[u8]) -> Look {
    let mut reader = Reader(stream);
    let version = reader.u8();
    let kind = reader.u8();
    let high = reader.u8();
    if version.is_some_and(|version| !matches!(version, b'1' | b'2'))
        || kind.is_some_and(|kind| kind != b'W')
        || high.is_some_and(|high| high != 0)
    {
        return Look::No;
    }
    match reader.take(3) {
        None => Look::NeedMore,
        Some([0, 0, 0]) => Look::No,
        Some(_) => Look::Yes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_told_apart() {
        for (stream, expected) in [
            (&b"2W\0\0\x08\x002C"[..], Look::Yes),
            (b"1W\0\0\0\x01", Look::Yes),
            (b"1W\0\0\0", Look::NeedMore),
            (b"2", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"1W\0\0\0\0", Look::No),
            (b"1Way ticket", Look::No),
            (b"2J\0\0\0\x01", Look::No),
            (b"3W", Look::No),
            (b"12 <34>1 ", Look::No),
        ] {
            assert_eq!(
                looks_like_window(stream),
                expected,
                "{}",
                stream.escape_ascii()
            );
        }
    }
}

//! Redis (RESP, the Redis serialization protocol specification): how a command begins, and a
//! refusal in its own words.

use crate::Look;

/// Does a client's stream begin with a command, an array of bulk strings? Inline commands
/// ("PING\r\n") are plain words, which prove nothing.
pub fn looks_like_command(stream: &[u8]) -> Look {
    let Some((b'*', rest)) = stream.split_first() else {
        return if stream.is_empty() {
            Look::NeedMore
        } else {
            Look::No
        };
    };
    // The count: 1 to 1,048,576 (Redis' limit), so at most seven digits.
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 7 || rest.first() == Some(&b'0') {
        return Look::No;
    }
    match rest.get(digits..).unwrap_or_default() {
        [] => Look::NeedMore,
        _ if digits == 0 => Look::No,
        after => crate::begins(after, b"\r\n$"),
    }
}

/// An error reply with the reason.
pub fn refusal(reason: &str) -> Vec<u8> {
    let reason: String = reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("-ERR mantled refused this connection: {reason}\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_apart() {
        for (stream, expected) in [
            (&b"*1\r\n$4\r\nPING\r\n"[..], Look::Yes),
            (b"*12\r\n$", Look::Yes),
            (b"*12\r", Look::NeedMore),
            (b"*", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"*\r\n", Look::No),
            (b"*0\r\n", Look::No),
            (b"*12345678", Look::No),
            (b"*1\r\n:1", Look::No),
            (b"PING\r\n", Look::No),
        ] {
            assert_eq!(
                looks_like_command(stream),
                expected,
                "{}",
                String::from_utf8_lossy(stream)
            );
        }
    }

    #[test]
    fn the_refusal_is_one_line() {
        let reply = refusal("a\r\n+OK");
        assert_eq!(reply.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}

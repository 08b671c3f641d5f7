//! Redis (RESP, the Redis serialization protocol specification): how a command begins, and a
//! refusal in its own words; and the commands of a session, where they are to be judged.

mod commands;
mod session;

pub use commands::{Effect, Understood, understand};
pub use session::{FromAgent, FromServer, inspect};

use crate::{Look, begins};

/// Most digits of a count or a length: Redis takes commands of up to 1,048,576 strings, of up to
/// 512 MiB each.
const MAX_DIGITS: usize = 9;

/// Does a client's stream begin with a command, an array of bulk strings: `*<n>\r\n$<n>\r\n`?
/// Inline commands ("PING\r\n") are plain words, which prove nothing. At most 24 bytes decide.
pub fn looks_like_command(stream: &[u8]) -> Look {
    match after_number(stream, b'*').and_then(|rest| after_number(rest, b'$')) {
        Ok(_) => Look::Yes,
        Err(undecided) => undecided,
    }
}

/// What follows a type byte, a number above zero, and CR LF; or why there is no such thing.
fn after_number(stream: &[u8], kind: u8) -> Result<&[u8], Look> {
    let rest = match stream.split_first() {
        None => return Err(Look::NeedMore),
        Some((first, rest)) if *first == kind => rest,
        Some(_) => return Err(Look::No),
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > MAX_DIGITS || rest.first() == Some(&b'0') {
        return Err(Look::No);
    }
    match rest.get(digits..).unwrap_or_default() {
        [] => Err(Look::NeedMore),
        after if digits > 0 => match begins(after, b"\r\n") {
            Look::Yes => Ok(after.get(2..).unwrap_or_default()),
            undecided => Err(undecided),
        },
        _ => Err(Look::No),
    }
}

/// An error reply with the reason, in which nothing can end the line.
pub fn refusal(reason: &str) -> Vec<u8> {
    let reason: String = reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("-ERR mantled refused this connection: {reason}\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn more_bytes_never_change_a_decision(stream in "[*]?[0-9]{0,10}(\r\n)?[$]?[0-9]{0,10}(\r\n)?.{0,9}", cut in 0_usize..40) {
            let stream = stream.as_bytes();
            let beginning = &stream[..cut.min(stream.len())];
            match looks_like_command(beginning) {
                Look::NeedMore => prop_assert!(beginning.len() < 24),
                decided => prop_assert_eq!(decided, looks_like_command(stream)),
            }
        }
    }

    #[test]
    fn commands_are_told_apart() {
        for (stream, expected) in [
            (&b"*1\r\n$4\r\nPING\r\n"[..], Look::Yes),
            (b"*12\r\n$", Look::NeedMore),
            (b"*12\r\n$3\r\n", Look::Yes),
            (b"*12\r\n$0", Look::No),
            (b"*12\r", Look::NeedMore),
            (b"*", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"*\r\n", Look::No),
            (b"*0\r\n", Look::No),
            (b"*1234567890", Look::No),
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

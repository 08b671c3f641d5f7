//! memcached, the text protocol (protocol.txt of memcached) and the binary one
//! (protocol_binary.txt): how a client begins, and a refusal in its own words.
//!
//! TLS is spoken from the first byte, so nothing else is touched.

use crate::{Look, reader::Reader};

/// Longest key.
const MAX_KEY: usize = 250;

/// Longest first line that is waited for: a few keys.
const MAX_LINE: usize = 1024;

/// Commands, in the lower case that the server insists on.
///
/// `stats` and `quit` alone are not among them: other protocols have the same lines. A `get` of one
/// key could be an inline command of Redis as well, which hardly any program writes.
const COMMANDS: [&str; 20] = [
    "set",
    "add",
    "replace",
    "append",
    "prepend",
    "cas",
    "get",
    "gets",
    "gat",
    "gats",
    "delete",
    "incr",
    "decr",
    "touch",
    "mg",
    "ms",
    "md",
    "ma",
    "version",
    "flush_all",
];

/// Magic of a binary request, and of its response.
const REQUEST: u8 = 0x80;
const RESPONSE: u8 = 0x81;
/// Opcodes of the specification end here.
const MAX_OPCODE: u8 = 0x3c;
/// The longest extras are those of increment.
const MAX_EXTRAS: u8 = 20;
/// The largest item that a server can be configured for.
const MAX_BODY: u32 = 1 << 30;
/// Status "internal error".
const INTERNAL_ERROR: [u8; 2] = [0, 0x84];

/// Does a client's stream begin with a command? At most `MAX_LINE` bytes and its CR LF decide.
pub fn looks_like_command(stream: &[u8]) -> Look {
    match stream.first() {
        None => Look::NeedMore,
        Some(&REQUEST) => binary(stream),
        Some(_) => text(stream),
    }
}

fn binary(stream: &[u8]) -> Look {
    let header = || {
        let mut reader = Reader(stream);
        reader.u8()?;
        let opcode = reader.u8()?;
        let key = reader.u16()?;
        let extras = reader.u8()?;
        let data_type = reader.u8()?;
        let _vbucket = reader.u16()?;
        let body = reader.u32()?;
        let plausible = opcode <= MAX_OPCODE
            && usize::from(key) <= MAX_KEY
            && extras <= MAX_EXTRAS
            && data_type == 0
            && (u32::from(key) + u32::from(extras)..=MAX_BODY).contains(&body);
        Some(if plausible { Look::Yes } else { Look::No })
    };
    header().unwrap_or(Look::NeedMore)
}

fn text(stream: &[u8]) -> Look {
    let end = stream
        .iter()
        .position(|byte| matches!(byte, 0..b' ' | 0x7f));
    let line = stream
        .get(..end.unwrap_or(stream.len()))
        .unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let command = words.next().unwrap_or_default();
    let is_whole = command.len() < stream.len();
    let known = COMMANDS.iter().any(|known| match is_whole {
        true => known.as_bytes() == command,
        false => known.as_bytes().starts_with(command),
    });
    if !known || line.len() > MAX_LINE {
        return Look::No;
    }
    match stream.get(line.len()..).unwrap_or_default() {
        [] => Look::NeedMore,
        [b'\r'] => Look::NeedMore,
        [b'\r', b'\n', ..] => {
            let arguments: Vec<&[u8]> = words.collect();
            if fit(command, &arguments) {
                Look::Yes
            } else {
                Look::No
            }
        }
        _ => Look::No,
    }
}

/// Are these the arguments of the command?
fn fit(command: &[u8], arguments: &[&[u8]]) -> bool {
    let arguments = match arguments {
        [rest @ .., b"noreply"] => rest,
        all => all,
    };
    match (command, arguments) {
        (b"set" | b"add" | b"replace" | b"append" | b"prepend", [key, numbers @ ..]) => {
            is_key(key) && numbers.len() == 3 && are_numbers(numbers)
        }
        (b"cas", [key, numbers @ ..]) => is_key(key) && numbers.len() == 4 && are_numbers(numbers),
        (b"get" | b"gets", keys @ [_, ..]) => keys.iter().all(|key| is_key(key)),
        (b"gat" | b"gats", [time, keys @ ..]) => {
            are_numbers(&[time]) && !keys.is_empty() && keys.iter().all(|key| is_key(key))
        }
        (b"incr" | b"decr" | b"touch", [key, number]) => is_key(key) && are_numbers(&[number]),
        (b"delete", [key]) => is_key(key),
        (b"mg" | b"md" | b"ma", [key, flags @ ..]) => is_key(key) && are_flags(flags),
        (b"ms", [key, length, flags @ ..]) => {
            is_key(key) && are_numbers(&[length]) && are_flags(flags)
        }
        (b"version", []) => true,
        (b"flush_all", numbers) => numbers.len() < 2 && are_numbers(numbers),
        _ => false,
    }
}

fn is_key(word: &[u8]) -> bool {
    (1..=MAX_KEY).contains(&word.len())
}

fn are_numbers(words: &[&[u8]]) -> bool {
    words.iter().all(|word| {
        let digits = word.strip_prefix(b"-").unwrap_or(word);
        (1..=20).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
    })
}

/// Letters, with what belongs to each behind it.
fn are_flags(words: &[&[u8]]) -> bool {
    words
        .iter()
        .all(|word| word.first().is_some_and(u8::is_ascii_alphabetic))
}

/// The error that answers the command with which `stream` begins, with a reason that cannot end
/// it.
pub fn refusal(stream: &[u8], reason: &str) -> Vec<u8> {
    let reason: String = format!("mantled refused this connection: {reason}")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(1000)
        .collect();
    let (&[REQUEST, opcode, ..], Some(opaque)) = (stream, stream.get(12..16)) else {
        return format!("SERVER_ERROR {reason}\r\n").into_bytes();
    };
    let mut response = vec![RESPONSE, opcode, 0, 0, 0, 0];
    response.extend(INTERNAL_ERROR);
    response.extend((reason.len() as u32).to_be_bytes());
    response.extend(opaque);
    response.extend([0; 8]);
    response.extend(reason.bytes());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_apart() {
        for (stream, expected) in [
            (&b"set key 0 0 5\r\nvalue\r\n"[..], Look::Yes),
            (b"set key 0 -1 5 noreply\r\n", Look::Yes),
            (b"cas k 0 0 1 18446744073709551615\r\n", Look::Yes),
            (b"get a\r\n", Look::Yes),
            (b"gets a b c\r\n", Look::Yes),
            (b"gat 10 a\r\n", Look::Yes),
            (b"incr a 5\r\n", Look::Yes),
            (b"delete a noreply\r\n", Look::Yes),
            (b"mg a v t\r\n", Look::Yes),
            (b"ms a 5 T10\r\n", Look::Yes),
            (b"version\r\n", Look::Yes),
            (b"flush_all\r\n", Look::Yes),
            (b"flush_all 10 noreply\r\n", Look::Yes),
            (b"s", Look::NeedMore),
            (b"get", Look::NeedMore),
            (b"get ", Look::NeedMore),
            (b"get a\r", Look::NeedMore),
            (b"version", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"get\r\n", Look::No),
            (b"get \r\n", Look::No),
            (b"get a\n", Look::No),
            (b"get a\rb", Look::No),
            (b"get a\tb", Look::No),
            (b"getx", Look::No),
            (b"GET a\r\n", Look::No),
            (b"GET / HTTP/1.1\r\n", Look::No),
            // Inline commands of Redis.
            (b"set key value\r\n", Look::No),
            (b"set key value ex 5\r\n", Look::No),
            (b"SET key:1 1\r\n", Look::No),
            (b"incr a\r\n", Look::No),
            (b"quit\r\n", Look::No),
            (b"stats\r\n", Look::No),
            (b"use tube\r\n", Look::No),
            (b"put 0 0 60 5\r\n", Look::No),
            (b"\x80\0\0\x03\0\0\0\0\0\0\0\x03", Look::Yes),
            (b"\x80\x01\0\x03\x08\0\0\0\0\0\0\x10\0\0\0\0", Look::Yes),
            (b"\x80\x01\0\x03\x08", Look::NeedMore),
            (b"\x80\x01\0\x03\x08\0\0\0\0\0\0\x05", Look::No),
            (b"\x80\x01\0\x03\x08\x01\0\0\0\0\0\x10", Look::No),
            // A ClientHello in the record of SSL 2.
            (b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10\0", Look::No),
            (b"\x81\0\0\0\0\0\0\0\0\0\0\0", Look::No),
        ] {
            assert_eq!(
                looks_like_command(stream),
                expected,
                "{}",
                stream.escape_ascii()
            );
        }
        let keys = |length| format!("get {}\r\n", "k".repeat(length));
        assert_eq!(looks_like_command(keys(250).as_bytes()), Look::Yes);
        assert_eq!(looks_like_command(keys(251).as_bytes()), Look::No);
        let many = format!("get {}", "k ".repeat(1000)).into_bytes();
        assert_eq!(looks_like_command(&many[..MAX_LINE]), Look::NeedMore);
        assert_eq!(looks_like_command(&many[..MAX_LINE + 1]), Look::No);
    }

    #[test]
    fn the_refusal_is_one_line_or_one_response() {
        let reply = refusal(b"get a\r\n", "a\r\nSTORED");
        assert_eq!(
            reply,
            b"SERVER_ERROR mantled refused this connection: a  STORED\r\n"
        );
        let get = b"\x80\x0c\0\x03\0\0\0\0\0\0\0\x03\x01\x02\x03\x04";
        let response = refusal(get, "why");
        assert_eq!(response[..8], *b"\x81\x0c\0\0\0\0\0\x84");
        assert_eq!(response[12..16], *b"\x01\x02\x03\x04");
        let length = u32::from_be_bytes(response[8..12].try_into().unwrap());
        assert_eq!(response.len(), 24 + length as usize);
    }
}

//! MQTT 3.1, 3.1.1 and 5 (OASIS; sections "CONNECT" and "CONNACK"): how a session begins, and a
//! refusal in its own words.
//!
//! TLS is spoken from the first byte, so nothing else is touched.

use crate::{Look, begins, reader::Reader};

/// CONNECT, with the flags that it must have.
const CONNECT: u8 = 0x10;
/// CONNACK.
const CONNACK: u8 = 0x20;

/// Return code 3 of versions 3: the server is not available.
const UNAVAILABLE_3: u8 = 3;
/// The same in version 5.
const UNAVAILABLE_5: u8 = 0x88;
/// The property "Reason String" of version 5.
const REASON_STRING: u8 = 0x1f;

/// Most bytes of a reason that a client is told: whole packets of less than 256 bytes are taken
/// by clients that bound them (property "Maximum Packet Size").
const MAX_REASON: usize = 200;

/// What begins the variable header: the length and the name of the protocol. What follows is its
/// level.
const NAMES: [(&[u8], &[u8]); 2] = [(b"\0\x04MQTT", &[4, 5]), (b"\0\x06MQIsdp", &[3])];

/// Brokers that connect to others as a bridge set this bit of the level.
const BRIDGE: u8 = 0x80;

/// Does a client's stream begin with CONNECT? At most 14 bytes decide.
pub fn looks_like_connect(stream: &[u8]) -> Look {
    match level(stream) {
        Ok(_) => Look::Yes,
        Err(undecided) => undecided,
    }
}

/// The protocol level of a CONNECT; or why there is none.
fn level(stream: &[u8]) -> Result<u8, Look> {
    let mut reader = Reader(stream);
    if reader.u8().ok_or(Look::NeedMore)? != CONNECT {
        return Err(Look::No);
    }
    let length = remaining_length(&mut reader)?;
    let mut look = Look::No;
    for (name, levels) in NAMES {
        // Level, flags, keep alive, and the length of the client's identifier at least.
        if length < name.len() + 6 {
            continue;
        }
        match begins(reader.0, name) {
            Look::No => {}
            Look::NeedMore => look = Look::NeedMore,
            Look::Yes => {
                let level = reader.0.get(name.len()).ok_or(Look::NeedMore)? & !BRIDGE;
                return levels.contains(&level).then_some(level).ok_or(Look::No);
            }
        }
    }
    Err(look)
}

/// A variable byte integer of at most four bytes.
fn remaining_length(reader: &mut Reader<'_>) -> Result<usize, Look> {
    let mut length = 0;
    for place in 0..4 {
        let byte = reader.u8().ok_or(Look::NeedMore)?;
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(Look::No)
}

/// The CONNACK that refuses the CONNECT with which `stream` begins; empty if it begins with none.
/// Only version 5 has room for the reason.
pub fn refusal(stream: &[u8], reason: &str) -> Vec<u8> {
    match level(stream) {
        Ok(5) => {
            let mut text = format!("mantled refused this connection: {reason}")
                .replace(|letter: char| letter.is_control(), " ");
            text.truncate(text.floor_char_boundary(MAX_REASON));
            let length = text.len() as u8; // at most MAX_REASON
            let mut packet = vec![CONNACK];
            push_length(&mut packet, length + 3 + 2 + length_size(length + 3));
            packet.extend([0, UNAVAILABLE_5]);
            push_length(&mut packet, length + 3);
            packet.extend([REASON_STRING, 0, length]);
            packet.extend_from_slice(text.as_bytes());
            packet
        }
        Ok(_) => vec![CONNACK, 2, 0, UNAVAILABLE_3],
        Err(_) => Vec::new(),
    }
}

/// How many bytes a length takes.
fn length_size(length: u8) -> u8 {
    if length < 0x80 { 1 } else { 2 }
}

fn push_length(packet: &mut Vec<u8>, length: u8) {
    match length {
        ..0x80 => packet.push(length),
        _ => packet.extend([length, 1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connects_are_told_apart() {
        for (stream, expected) in [
            // mosquitto_pub -V mqttv311, mqttv5, mqttv31, and a bridge.
            (
                &b"\x10\x16\0\x04MQTT\x04\x02\0\x3c\0\x0aidentifier"[..],
                Look::Yes,
            ),
            (
                b"\x10\x10\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\x14\0\0",
                Look::Yes,
            ),
            (b"\x10\x0e\0\x06MQIsdp\x03\x02\0\x3c\0\0", Look::Yes),
            (b"\x10\x0c\0\x04MQTT\x84\x02\0\x3c\0\0", Look::Yes),
            (b"\x10\xff\xff\xff\x7f\0\x04MQTT\x04", Look::Yes),
            (b"\x10\x8c\0\0\x04MQTT\x04", Look::Yes),
            (b"\x10\x0c\0\x04MQTT", Look::NeedMore),
            (b"\x10\x0c\0", Look::NeedMore),
            (b"\x10\xff", Look::NeedMore),
            (b"\x10", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"\x10\xff\xff\xff\xff", Look::No),
            (b"\x10\x0b\0", Look::No),
            (b"\x10\x0c\0\x04MQTT\x06", Look::No),
            (b"\x10\x0c\0\x06", Look::No),
            (b"\x10\x20\0\x06MQIsdp\x04", Look::No),
            (b"\x10\x20\0\x04HTTP", Look::No),
            (b"\x11\x0c", Look::No),
            (b"\x20\x02\0\0", Look::No),
        ] {
            assert_eq!(
                looks_like_connect(stream),
                expected,
                "{}",
                stream.escape_ascii()
            );
        }
    }

    #[test]
    fn refusals_are_of_the_clients_version() {
        let old = b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0";
        assert_eq!(refusal(old, "why"), b"\x20\x02\0\x03");
        assert_eq!(refusal(b"\x10\x0c\0", "why"), b"");
        let new = b"\x10\x0d\0\x04MQTT\x05\x02\0\x3c\0\0\0";
        assert_eq!(
            refusal(new, "w\0y"),
            b"\x20\x2a\0\x88\x27\x1f\0\x24mantled refused this connection: w y"
        );
        for length in [80, 88, 89, 90, 91, 92, 93, 94, 95, 1000] {
            let packet = refusal(new, &"\u{e9}".repeat(length));
            let mut reader = Reader(&packet[1..]);
            let remaining = remaining_length(&mut reader).unwrap();
            assert_eq!(remaining, reader.0.len());
            reader.take(2).unwrap();
            let properties = remaining_length(&mut reader).unwrap();
            assert_eq!(properties, reader.0.len());
            assert_eq!(reader.u8(), Some(REASON_STRING));
            let text = reader.u16().unwrap();
            assert_eq!(usize::from(text), reader.0.len());
            assert!(packet.len() < 256 && std::str::from_utf8(reader.0).is_ok());
        }
    }
}

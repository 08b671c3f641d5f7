//! No two codecs take the same stream for theirs, a decision on its beginning stands, and what a
//! refused client is told is framed whatever the reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, amqp, fluentd,
    http::{Begins, begins_with},
    lumberjack, memcached, mqtt, postgres, redis, tls,
};

/// Bytes that decide, at most.
const BOUNDS: [(fn(&[u8]) -> Look, usize); 9] = [
    (http, 24),
    (tls::looks_like_client_hello, 64),
    (postgres::looks_like_startup, 8),
    (redis::looks_like_command, 24),
    (mqtt::looks_like_connect, 14),
    (amqp::looks_like_header, 8),
    (memcached::looks_like_command, 1026),
    (fluentd::looks_like_event, 262),
    (lumberjack::looks_like_window, 6),
];

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let beginning = &stream[..stream.len().min(cut.into())];
    let mut taken = 0;
    for (look, bound) in BOUNDS {
        match look(beginning) {
            Look::NeedMore => assert!(beginning.len() < bound),
            decided => assert_eq!(decided, look(stream)),
        }
        taken += usize::from(look(stream) == Look::Yes);
    }
    assert!(taken <= 1);

    let reason = String::from_utf8_lossy(stream);
    let packet = mqtt::refusal(stream, &reason);
    assert_eq!(
        packet.is_empty(),
        mqtt::looks_like_connect(stream) != Look::Yes
    );
    match packet.as_slice() {
        [0x20, length @ 0..0x80, rest @ ..] => assert_eq!(usize::from(*length), rest.len()),
        [0x20, low, 1, rest @ ..] => assert_eq!(usize::from(*low), rest.len()),
        other => assert!(other.is_empty()),
    }
    let reply = memcached::refusal(stream, &reason);
    if reply[0] == 0x81 {
        let length = u32::from_be_bytes(reply[8..12].try_into().unwrap());
        assert_eq!(reply.len(), 24 + length as usize);
    } else {
        let line = reply.strip_suffix(b"\r\n").unwrap();
        assert!(!line.contains(&b'\r') && !line.contains(&b'\n'));
    }
});

fn http(stream: &[u8]) -> Look {
    match begins_with(stream) {
        Begins::Http1 | Begins::Http2 => Look::Yes,
        Begins::No => Look::No,
        Begins::NeedMore => Look::NeedMore,
    }
}

//! However the stream is split, the same messages come; each is counted right, and not longer than
//! one may be; nothing but line feeds and counts is left out; what is framed is framed already; and
//! 13 bytes decide whether it is syslog.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look,
    syslog::{Framer, MAX_MESSAGE, looks_like_message},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    let messages = frames(&[stream]);
    assert_eq!(frames(&[first, second]), messages);
    let mut carried = 0;
    for message in &messages {
        let space = message.iter().position(|byte| *byte == b' ').unwrap();
        let count: usize = std::str::from_utf8(&message[..space])
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=MAX_MESSAGE).contains(&count));
        assert_eq!(message.len(), space + 1 + count);
        carried += count;
    }
    assert!(carried <= stream.len());
    assert_eq!(frames(&[&messages.concat()]), messages);
    match looks_like_message(first) {
        Look::NeedMore => assert!(first.len() < 13),
        decided => assert_eq!(decided, looks_like_message(stream)),
    }
});

fn frames(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut framer = Framer::default();
    let mut messages = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        while let Some(message) = framer.next(&mut input) {
            messages.push(message);
        }
        assert!(input.is_empty());
    }
    messages.extend(framer.finish());
    messages
}

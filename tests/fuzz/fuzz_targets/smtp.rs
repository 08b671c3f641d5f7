//! The agent sees the same however a server's stream is split, and the filter's output passes the
//! filter unchanged; nothing behind the server's readiness for a message is changed. A dialogue
//! takes no more than it was given. A refusal is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Rewrite,
    smtp::{EhloFilter, StartTls, looks_like_greeting, looks_like_lmtp_greeting, refusal},
    starttls::{Dialogue, Step},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    let seen = filter(&[stream]);
    assert_eq!(filter(&[first, second]), seen);
    if let Some(seen) = seen {
        assert!(seen.len() <= stream.len());
        assert_eq!(filter(&[&seen]), Some(seen));
    }
    let ready = [b"354 go\r\n", stream].concat();
    assert_eq!(filter(&[&ready]), Some(ready));
    for look in [looks_like_greeting, looks_like_lmtp_greeting] {
        match look(first) {
            Look::NeedMore => {}
            decided => assert_eq!(decided, look(stream)),
        }
    }
    for dialogue in [StartTls::smtp(), StartTls::lmtp()] {
        lead(dialogue, stream);
    }
    let reply = refusal(&String::from_utf8_lossy(stream));
    assert!(reply.len() < 512 && reply.iter().all(u8::is_ascii));
    assert_eq!(reply.iter().filter(|byte| **byte == b'\n').count(), 1);
});

fn filter(pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let mut filter = EhloFilter::default();
    let mut out = Vec::new();
    for piece in pieces {
        filter.rewrite(piece, &mut out).ok()?;
    }
    filter.finish(&mut out);
    Some(out)
}

fn lead(mut dialogue: impl Dialogue, mut heard: &[u8]) {
    while let Ok(Step::Say { consumed, .. }) = dialogue.step(heard) {
        assert!(consumed > 0 && consumed <= heard.len());
        heard = &heard[consumed..];
    }
    if let Ok(Step::Handshake { consumed }) = dialogue.step(heard) {
        assert!(consumed <= heard.len());
    }
    dialogue.welcome();
}

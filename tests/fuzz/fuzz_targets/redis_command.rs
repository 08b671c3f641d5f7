//! 24 bytes decide, the decision stands, and a refusal is one line whatever its reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look,
    redis::{looks_like_command, refusal},
};

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, stream) = input;
    let beginning = &stream[..stream.len().min(cut.into())];
    match looks_like_command(beginning) {
        Look::NeedMore => assert!(beginning.len() < 24),
        decided => assert_eq!(decided, looks_like_command(stream)),
    }
    let reply = refusal(&String::from_utf8_lossy(stream));
    let line = reply.strip_suffix(b"\r\n").unwrap();
    assert!(!line.contains(&b'\r') && !line.contains(&b'\n'));
});

//! The dialogue decides the same from a greeting and from what begins with it; the agent is told
//! no more than the server said; a refusal is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look,
    nats::{Upgrade, looks_like_info, refusal},
    starttls::{Dialogue as _, Step},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let beginning = &stream[..stream.len().min(cut.into())];
    match looks_like_info(beginning) {
        Look::NeedMore => assert!(beginning.len() < 6),
        decided => assert_eq!(decided, looks_like_info(stream)),
    }
    let mut dialogue = Upgrade::default();
    let step = dialogue.step(beginning);
    if let Ok(Step::Handshake { consumed }) = step {
        assert_eq!(Upgrade::default().step(stream), step);
        let told = dialogue.welcome().to_agent;
        assert!(consumed <= beginning.len() && told.len() <= consumed);
        assert_eq!(told.iter().filter(|byte| **byte == b'\n').count(), 1);
        // Nothing is left that tells a client to speak TLS.
        let mut again = Upgrade::default();
        assert!(!matches!(again.step(&told), Ok(Step::Handshake { .. })));
    }
    let line = refusal(&String::from_utf8_lossy(stream));
    let line = line.strip_suffix(b"'\r\n").unwrap();
    assert!(!line.contains(&b'\r') && !line.contains(&b'\n'));
});

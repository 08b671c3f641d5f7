//! The decision stands; a greeting is read the same from its beginning; the agent sees it with
//! CLIENT_SSL cleared and nothing else changed; an error in its place and a refusal are each one
//! packet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Progress,
    mysql::{FirstWords, Packet, looks_like_greeting, refusal},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let beginning = &stream[..stream.len().min(cut.into())];
    match looks_like_greeting(beginning) {
        Look::NeedMore => assert!(beginning.len() <= 5 + 255),
        decided => assert_eq!(decided, looks_like_greeting(stream)),
    }
    let whole = FirstWords::parse(stream);
    match FirstWords::parse(beginning) {
        Ok(Progress::NeedMore) => {}
        decided => assert_eq!(decided, whole),
    }
    match whole {
        Ok(Progress::Done((FirstWords::Greeting(greeting), length))) => {
            assert_eq!(greeting.packet(), stream[..length]);
            let seen = greeting.without_tls();
            let changed = seen.iter().zip(stream).filter(|(a, b)| a != b);
            assert!(changed.count() <= 1 && seen.len() == length);
            let Ok(Progress::Done((FirstWords::Greeting(seen), _))) = FirstWords::parse(&seen)
            else {
                panic!("what the agent sees is no greeting");
            };
            assert!(!seen.offers_tls());
        }
        Ok(Progress::Done((FirstWords::Error(error), _))) => one_packet(&error.for_agent()),
        _ => {}
    }
    let reason = String::from_utf8_lossy(stream);
    one_packet(&refusal(0, &reason));
    one_packet(&refusal(2, &reason));
});

fn one_packet(words: &[u8]) {
    let Ok(Progress::Done(packet)) = Packet::parse(words) else {
        panic!("no packet");
    };
    assert_eq!(packet.length(), words.len());
}

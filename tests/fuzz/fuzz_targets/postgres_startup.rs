//! A decision on the beginning of a stream stands; what is read looks like it, and is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Progress,
    postgres::{MAX_STARTUP, looks_like_startup, parse_startup},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let whole = parse_startup(stream);
    let beginning = &stream[..stream.len().min(cut.into())];
    match parse_startup(beginning) {
        Ok(Progress::NeedMore) => {}
        decided => assert_eq!(decided, whole),
    }
    match looks_like_startup(beginning) {
        Look::NeedMore => assert!(beginning.len() < 8),
        decided => assert_eq!(decided, looks_like_startup(stream)),
    }
    match whole {
        Ok(Progress::Done((_, consumed))) => {
            assert!((8..=MAX_STARTUP).contains(&consumed) && consumed <= stream.len());
            assert_eq!(looks_like_startup(stream), Look::Yes);
        }
        Ok(Progress::NeedMore) => assert!(stream.len() < MAX_STARTUP),
        Err(_) => {}
    }
});

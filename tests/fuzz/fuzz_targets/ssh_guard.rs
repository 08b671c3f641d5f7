//! However the stream is split, it is judged alike; what the guard shows is one printable line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::ssh::{Guard, NotSsh};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    assert_eq!(check(&[stream]), check(&[first, second]));
});

fn check(pieces: &[&[u8]]) -> (Result<(), NotSsh>, Option<String>) {
    let mut guard = Guard::default();
    let mut result = Ok(());
    for piece in pieces {
        result = result.and_then(|()| guard.check(piece));
    }
    let banner = guard.banner().map(str::to_owned);
    assert!(
        banner
            .as_ref()
            .is_none_or(|banner| !banner.contains(char::is_control))
    );
    (result, banner)
}

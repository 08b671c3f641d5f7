//! The client sees the same however the stream is split; nothing is lost; no mechanism with
//! channel binding is offered; and the filter's output passes the filter unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Next,
    postgres::{AuthenticationError, AuthenticationFilter},
};

type Outcome = (Result<Next, AuthenticationError>, Vec<u8>);

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    let (result, seen) = filter(&[stream]);
    assert_eq!(filter(&[first, second]), (result, seen.clone()));
    if result.is_ok() {
        // All but what is held of an unfinished message, less what was taken out of the offer.
        assert!(seen.len() <= stream.len());
        assert_eq!(filter(&[&seen]).1, seen);
    }
});

fn filter(pieces: &[&[u8]]) -> Outcome {
    let mut filter = AuthenticationFilter::default();
    let mut out = Vec::new();
    let mut result = Ok(Next::Continue);
    for piece in pieces {
        result = filter.filter(piece, &mut out);
    }
    (result, out)
}

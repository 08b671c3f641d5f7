//! The agent sees the same however the stream is split; nothing is added; and what it sees passes
//! the rewrite unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{Rewrite as _, RewriteError, nats::InfoRewrite};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    let whole = rewrite(&[stream]);
    assert_eq!(rewrite(&[first, second]), whole);
    if let Ok(seen) = whole {
        assert!(seen.len() <= stream.len());
        assert_eq!(rewrite(&[&seen]), Ok(seen.clone()));
    }
});

fn rewrite(pieces: &[&[u8]]) -> Result<Vec<u8>, RewriteError> {
    let mut rewrite = InfoRewrite::default();
    let mut out = Vec::new();
    for piece in pieces {
        rewrite.rewrite(piece, &mut out)?;
    }
    rewrite.finish(&mut out);
    Ok(out)
}

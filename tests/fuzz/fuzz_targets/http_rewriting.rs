//! Both directions see the same however their streams are split; nothing of the promises of https
//! is left; and what was changed is framed as it was, so that it passes again unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Next, Rewrite, RewriteError,
    http::{Expected, Ports, rewriting},
};

const PORTS: Ports = Ports {
    agent: 8000,
    server: 443,
};

type Outcome = Result<Vec<u8>, RewriteError>;

fuzz_target!(|input: (u16, u16, bool, &[u8])| {
    let (cut, size, is_known, streams) = input;
    let (requests, responses) = streams.split_at(streams.len().min(cut.into()));
    let whole = session(is_known, requests, responses, usize::MAX);
    let pieces = session(is_known, requests, responses, usize::from(size) + 1);
    let (Ok(asked), Ok(seen)) = &whole else {
        assert_eq!(pieces.0.is_err(), whole.0.is_err());
        assert_eq!(pieces.1.is_err(), whole.1.is_err());
        return;
    };
    assert_eq!(pieces, whole);
    // Each translated URL grows by a scheme's letter or by a port.
    assert!(asked.len() <= requests.len() + requests.len() / 4);
    assert!(seen.len() <= responses.len() + responses.len());
    assert_eq!(session(is_known, asked, seen, usize::MAX), whole);
});

/// What server and agent see, the requests first.
fn session(is_known: bool, requests: &[u8], responses: &[u8], size: usize) -> (Outcome, Outcome) {
    let expected = if is_known {
        Expected::Http
    } else {
        Expected::Anything
    };
    let (mut asking, mut answering) = rewriting(expected, PORTS);
    let asked = carry(&mut asking, requests, size);
    (asked, carry(&mut answering, responses, size))
}

/// Carries as the relay does.
fn carry(rewrite: &mut dyn Rewrite, stream: &[u8], size: usize) -> Outcome {
    let mut out = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(size));
        rest = after;
        let passed = rewrite.pass(piece)?;
        out.extend_from_slice(&piece[..passed]);
        if passed < piece.len() && rewrite.rewrite(&piece[passed..], &mut out)? == Next::Done {
            out.extend_from_slice(rest);
            break;
        }
    }
    Ok(out)
}

//! Both directions of a judged session are the same however they are split; what is carried to the
//! server is a valid stream of requests without those that are refused; and the agent gets the server's
//! answers and its own refusals in one valid stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Next, Rewrite, RewriteError,
    command::{Command, Judge, Verdict},
    http::{Ports, inspect},
};

/// Refuses every request whose target has this letter.
#[derive(Debug)]
struct Refuses(Option<char>);

impl Judge for Refuses {
    fn judge(&mut self, command: &Command<'_>) -> Verdict {
        match (command, self.0) {
            (Command::Request { target, .. }, Some(letter)) if target.contains(letter) => {
                Verdict::Refuse("because".to_owned())
            }
            _ => Verdict::Carry,
        }
    }
}

type Outcome = Result<Vec<u8>, RewriteError>;

const PORTS: Ports = Ports {
    agent: 8000,
    server: 443,
};

fuzz_target!(|input: (u16, u16, u8, &[u8])| {
    let (cut, size, letter, streams) = input;
    let (asked, answered) = streams.split_at(streams.len().min(cut.into()));
    let letter = char::from(letter);
    let whole = session(Some(letter), asked, answered, usize::MAX);
    let pieces = session(Some(letter), asked, answered, usize::from(size) + 1);
    assert_eq!(pieces.0.is_err(), whole.0.is_err());
    let (Ok(carried), Ok(seen)) = whole else {
        return;
    };
    assert_eq!(pieces.0.unwrap(), carried);
    assert_eq!(pieces.1.unwrap(), seen);
    // What the server gets is judged in the same way again, and nothing of it is refused.
    let again = session(Some(letter), &carried, &[], usize::MAX);
    assert_eq!(again.0.unwrap(), carried);
    assert!(again.1.unwrap().is_empty());
});

/// What server and agent see.
fn session(refuse: Option<char>, asked: &[u8], answered: &[u8], size: usize) -> (Outcome, Outcome) {
    let (mut requests, mut responses) = inspect(Some(PORTS), Box::new(Refuses(refuse)));
    let carried = carry(&mut requests, asked, size);
    (carried, carry(&mut responses, answered, size))
}

/// Carries as the relay does, and has the last word.
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
            return Ok(out);
        }
    }
    rewrite.speak(&mut out);
    Ok(out)
}

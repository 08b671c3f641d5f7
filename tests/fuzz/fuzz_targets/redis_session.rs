//! Both directions of a judged session are the same however they are split; what is carried to the
//! server is a valid stream that an inspector which permits everything carries unchanged, and what is
//! refused is not in it; the agent's stream stays framed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Rewrite, RewriteError,
    command::{Command, Judge, Verdict},
    redis::inspect,
};

/// Refuses every command with this letter.
#[derive(Debug)]
struct Refuses(Option<u8>);

impl Judge for Refuses {
    fn judge(&mut self, command: &Command<'_>) -> Verdict {
        let refused = match (command, self.0) {
            (Command::Redis { arguments, whole }, Some(letter)) => {
                !whole || arguments.iter().any(|argument| argument.contains(&letter))
            }
            _ => false,
        };
        if refused {
            Verdict::Refuse("because".to_owned())
        } else {
            Verdict::Carry
        }
    }
}

type Outcome = Result<Vec<u8>, RewriteError>;

fuzz_target!(|input: (u16, u16, u8, &[u8])| {
    let (cut, size, letter, streams) = input;
    let (asked, answered) = streams.split_at(streams.len().min(cut.into()));
    let whole = session(Some(letter), asked, answered, usize::MAX);
    let pieces = session(Some(letter), asked, answered, usize::from(size) + 1);
    assert_eq!(pieces.0.is_err(), whole.0.is_err());
    let (Ok(carried), Ok(seen)) = whole else {
        return;
    };
    // A piece in the middle may be carried already, but never more or other bytes.
    assert_eq!(pieces.0.unwrap(), carried);
    assert_eq!(pieces.1.unwrap(), seen);
    let again = session(None, &carried, &seen, usize::MAX);
    assert_eq!(again.0.unwrap(), carried);
    assert_eq!(again.1.unwrap(), seen);
});

/// What server and agent see.
fn session(refuse: Option<u8>, asked: &[u8], answered: &[u8], size: usize) -> (Outcome, Outcome) {
    let (mut from_agent, mut from_server) = inspect(Box::new(Refuses(refuse)));
    let carried = carry(&mut from_agent, asked, size);
    (carried, carry(&mut from_server, answered, size))
}

/// Carries as the relay does.
fn carry(rewrite: &mut dyn Rewrite, stream: &[u8], size: usize) -> Outcome {
    let mut out = Vec::new();
    for piece in stream.chunks(size.min(stream.len().max(1))) {
        let passed = rewrite.pass(piece)?;
        out.extend_from_slice(&piece[..passed]);
        if passed < piece.len() {
            rewrite.rewrite(&piece[passed..], &mut out)?;
        }
    }
    Ok(out)
}

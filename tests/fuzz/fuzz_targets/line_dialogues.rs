//! The dialogues of mail and news: where they come to TLS the same was said and taken, and the agent
//! sees the same, however the server's words were split. (A server that answers before it is asked
//! is refused, so when its words come does matter to whether they come to TLS.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Next, Rewrite, RewriteError, imap, managesieve, nntp, pop3, smtp,
    starttls::{Dialogue, DialogueError, Step},
};

fn dialogue(which: u8) -> Box<dyn Dialogue> {
    match which % 6 {
        0 => Box::new(smtp::StartTls::smtp()),
        1 => Box::new(smtp::StartTls::lmtp()),
        2 => Box::new(imap::StartTls::default()),
        3 => Box::new(pop3::Stls::default()),
        4 => Box::new(nntp::StartTls::default()),
        _ => Box::new(managesieve::StartTls::default()),
    }
}

/// What was said to the server, and how the dialogue ended; None while it needs more.
type Led = (Vec<Vec<u8>>, Option<Result<usize, DialogueError>>);

fn lead(dialogue: &mut dyn Dialogue, server: &[u8], size: usize) -> Led {
    let (mut heard, mut said) = (Vec::new(), Vec::new());
    let mut pieces = server.chunks(size);
    // The end of what was taken, counted from the first byte.
    let mut taken = 0;
    loop {
        match dialogue.step(&heard) {
            Err(error) => return (said, Some(Err(error))),
            Ok(Step::NeedMore) => match pieces.next() {
                Some(piece) => heard.extend_from_slice(piece),
                None => return (said, None),
            },
            Ok(Step::Say { consumed, words }) => {
                assert!(consumed <= heard.len());
                assert!(consumed > 0 || !words.bytes().is_empty(), "it goes on");
                heard.drain(..consumed);
                taken += consumed;
                said.push(words.bytes().to_vec());
            }
            Ok(Step::Handshake { consumed }) => {
                assert!(consumed <= heard.len());
                return (said, Some(Ok(taken + consumed)));
            }
        }
    }
}

fn rewrite(
    rewrite: Option<Box<dyn Rewrite>>,
    stream: &[u8],
    size: usize,
) -> Result<Vec<u8>, RewriteError> {
    let Some(mut rewrite) = rewrite else {
        return Ok(stream.to_vec());
    };
    let mut out = Vec::new();
    let mut next = Next::Continue;
    for piece in stream.chunks(size) {
        match next {
            Next::Continue => {
                let passed = rewrite.pass(piece)?;
                out.extend_from_slice(&piece[..passed]);
                if passed < piece.len() {
                    next = rewrite.rewrite(&piece[passed..], &mut out)?;
                }
            }
            Next::Done => out.extend_from_slice(piece),
        }
    }
    if next == Next::Continue {
        rewrite.finish(&mut out);
    }
    Ok(out)
}

fuzz_target!(|input: (u8, &[u8], &[u8])| {
    let (which, server, inside) = input;
    let (mut whole, mut split) = (dialogue(which), dialogue(which));
    let led = lead(&mut *whole, server, usize::MAX);
    let other = lead(&mut *split, server, 1);
    if !matches!((&led.1, &other.1), (Some(Ok(_)), Some(Ok(_)))) {
        return;
    }
    assert_eq!(led, other);
    let (whole, split) = (whole.welcome(), split.welcome());
    assert_eq!(whole.to_agent, split.to_agent);
    let seen = rewrite(whole.from_server, inside, usize::MAX);
    assert_eq!(seen, rewrite(split.from_server, inside, 1));
});

//! The agent sees the same however both streams are split, its commands are carried unchanged, and
//! so is every answer to a command that may be followed by a message. A dialogue takes no more than
//! it was given. A refusal is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Rewrite,
    pop3::{Stls, filters, looks_like_greeting, refusal},
    starttls::{Dialogue, Step},
};

fuzz_target!(|input: (u8, u16, &[u8], &[u8])| {
    let (cut, other_cut, commands, answers) = input;
    let (some, more) = commands.split_at(commands.len().min(cut.into()));
    let (first, second) = answers.split_at(answers.len().min(other_cut.into()));
    let seen = conversation(&[(commands, answers)]);
    assert_eq!(
        conversation(&[(some, b""), (more, first), (b"", second)]),
        seen
    );
    assert!(seen.is_none_or(|seen| seen.len() <= answers.len()));
    let retrieved = conversation(&[(b"RETR 1\r\n", b""), (commands, answers)]);
    assert!(retrieved.is_none_or(|seen| seen == answers));
    match looks_like_greeting(first) {
        Look::NeedMore => assert!(first.len() < 8),
        decided => assert_eq!(decided, looks_like_greeting(answers)),
    }
    lead(Stls::default(), answers);
    let reply = refusal(&String::from_utf8_lossy(answers));
    assert!(reply.len() < 512 && reply.iter().all(u8::is_ascii));
    assert_eq!(reply.iter().filter(|byte| **byte == b'\n').count(), 1);
});

fn conversation(turns: &[(&[u8], &[u8])]) -> Option<Vec<u8>> {
    let (watch, mut filter) = filters();
    let mut watch = Some(watch);
    let mut out = Vec::new();
    for (commands, answers) in turns {
        let mut carried = Vec::new();
        if let Some(watching) = &mut watch {
            let next = watching.rewrite(commands, &mut carried).ok()?;
            assert_eq!(carried, *commands);
            if next == mantled_wire::Next::Done {
                watch = None;
            }
        }
        filter.rewrite(answers, &mut out).ok()?;
    }
    filter.finish(&mut out);
    Some(out)
}

fn lead(mut dialogue: impl Dialogue, mut heard: &[u8]) {
    while let Ok(Step::Say { consumed, .. }) = dialogue.step(heard) {
        assert!(consumed > 0 && consumed <= heard.len());
        heard = &heard[consumed..];
    }
    if let Ok(Step::Handshake { consumed }) = dialogue.step(heard) {
        assert!(consumed <= heard.len());
    }
    dialogue.welcome();
}

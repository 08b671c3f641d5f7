//! A decision on the beginning of a stream stands; the dialogue is the same however the server's
//! words are split; and a refusal is one message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Progress, ldap,
    starttls::{Dialogue as _, DialogueError, Step},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    match ldap::looks_like_request(first) {
        Look::NeedMore => assert!(first.len() < 18),
        decided => assert_eq!(decided, ldap::looks_like_request(stream)),
    }
    match ldap::parse_request(first) {
        Ok(Progress::NeedMore) => assert!(first.len() < 16 * 1024),
        decided => assert_eq!(decided, ldap::parse_request(stream)),
    }
    match (converse(&[stream]), converse(&[first, second])) {
        // What was injected later is met by the handshake.
        (Ok(Some(left)), Ok(Some(fewer))) => assert!(fewer <= left && left <= stream.len()),
        (whole, split) => assert_eq!(whole, split),
    }
    // Whatever the agent said first, what it is told is no success.
    let refused = ldap::refusal(stream, &String::from_utf8_lossy(second));
    assert!(converse(&[&refused]).is_err());
});

/// How many bytes are left behind the go-ahead.
fn converse(pieces: &[&[u8]]) -> Result<Option<usize>, DialogueError> {
    let mut dialogue = ldap::StartTls::default();
    let mut heard = Vec::new();
    assert!(matches!(dialogue.step(&heard), Ok(Step::Say { .. })));
    for piece in pieces {
        heard.extend_from_slice(piece);
        match dialogue.step(&heard)? {
            Step::NeedMore => {}
            Step::Handshake { consumed } => return Ok(Some(heard.len() - consumed)),
            Step::Say { .. } => panic!("it speaks twice"),
        }
    }
    Ok(None)
}

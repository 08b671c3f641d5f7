//! A decision on the beginning of a stream stands; the dialogue and what the agent is told are the
//! same however the server's words are split; a handshake is unwrapped the same in reads of any
//! size, and what is wrapped comes out as it was; a refusal is whole packets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Progress, Rewrite as _,
    starttls::{Dialogue as _, DialogueError, Step},
    tds::{self, PreloginFilter, Unwrapper, Wanted},
};

/// What FreeTDS says first.
const AGENT: &[u8] = b"\x12\x01\x00\x3a\0\0\0\0\0\x00\x1a\x00\x06\x01\x00\x20\x00\x01\x02\x00\x21\
    \x00\x0c\x03\x00\x2d\x00\x04\x04\x00\x31\x00\x01\xff\x09\0\0\0\0\0\x00MSSQLServer\0\x4b\x3d\0\0\0";

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    match tds::looks_like_prelogin(first) {
        Look::NeedMore => assert!(first.len() < 13),
        decided => assert_eq!(decided, tds::looks_like_prelogin(stream)),
    }
    match tds::parse_prelogin(first) {
        Ok(Progress::NeedMore) => assert!(first.len() < 4096),
        decided => assert_eq!(decided, tds::parse_prelogin(stream)),
    }
    match (converse(&[stream]), converse(&[first, second])) {
        // What was injected later is met by the handshake.
        (Ok(Some((left, told))), Ok(Some((fewer, same)))) => {
            assert!(fewer <= left && left < stream.len());
            assert_eq!(told, same);
            assert!(told.len() <= 4096);
            // The agent is told of no encryption.
            assert!(matches!(
                converse(&[&told]),
                Err(DialogueError::NotOffered(_))
            ));
        }
        (whole, split) => assert_eq!(whole, split),
    }
    assert_eq!(filter(&[stream]), filter(&[first, second]));

    let most = usize::from(cut % 31) + 1;
    assert_eq!(
        unwrap(stream, most).is_some(),
        unwrap(stream, 5000).is_some()
    );
    assert_eq!(
        unwrap(&tds::wrap_handshake(stream), most),
        Some(stream.to_vec())
    );

    let mut refused = &tds::refusal(first, &String::from_utf8_lossy(second))[..];
    while !refused.is_empty() {
        assert_eq!(refused[..2], [4, 1]);
        let length = usize::from(u16::from_be_bytes([refused[2], refused[3]]));
        assert!(length <= 4096);
        refused = &refused[length..];
    }
});

/// How many bytes are left behind the go-ahead, and what the agent is told.
fn converse(pieces: &[&[u8]]) -> Result<Option<(usize, Vec<u8>)>, DialogueError> {
    let Ok(Progress::Done((agent, _))) = tds::parse_prelogin(AGENT) else {
        panic!("the agent's own words");
    };
    let mut dialogue = tds::StartTls::new(agent);
    let mut heard = Vec::new();
    assert!(matches!(dialogue.step(&heard), Ok(Step::Say { .. })));
    for piece in pieces {
        heard.extend_from_slice(piece);
        match dialogue.step(&heard)? {
            Step::NeedMore => {}
            Step::Handshake { consumed } => {
                return Ok(Some((heard.len() - consumed, dialogue.welcome().to_agent)));
            }
            Step::Say { .. } => panic!("it speaks twice"),
        }
    }
    Ok(None)
}

fn filter(pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let (mut filter, mut out) = (PreloginFilter::default(), Vec::new());
    let mut next = mantled_wire::Next::Continue;
    for piece in pieces {
        if next == mantled_wire::Next::Done {
            out.extend_from_slice(piece);
        } else {
            next = filter.rewrite(piece, &mut out).ok()?;
        }
    }
    filter.finish(&mut out);
    Some(out)
}

fn unwrap(mut stream: &[u8], most: usize) -> Option<Vec<u8>> {
    let (mut unwrapper, mut out) = (Unwrapper::default(), Vec::new());
    while !stream.is_empty() {
        let (Wanted::Header(wanted) | Wanted::Data(wanted)) = unwrapper.wanted();
        assert!(wanted > 0);
        let (read, rest) = stream.split_at(wanted.min(most).min(stream.len()));
        stream = rest;
        match unwrapper.wanted() {
            Wanted::Header(_) => unwrapper.header(read).ok()?,
            Wanted::Data(_) => {
                unwrapper.took(read.len());
                out.extend_from_slice(read);
            }
        }
    }
    Some(out)
}

//! A decision on the beginning of a stream stands; the dialogue and the features that the agent
//! sees are the same however the stream is split; and a refusal is no go-ahead.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Next, Progress, Rewrite as _, RewriteError,
    starttls::{Dialogue as _, DialogueError, Step},
    xmpp::{self, FeaturesFilter, Header},
};

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, stream) = input;
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    match xmpp::looks_like_stream(first) {
        Look::NeedMore => assert!(first.len() < 153),
        decided => assert_eq!(decided, xmpp::looks_like_stream(stream)),
    }
    match xmpp::parse_header(first) {
        Ok(Progress::NeedMore) => assert!(first.len() < 8 * 1024),
        decided => assert_eq!(decided, xmpp::parse_header(stream)),
    }
    match (converse(&[stream]), converse(&[first, second])) {
        // What was injected later is met by the handshake.
        (Ok(Some(left)), Ok(Some(fewer))) => assert!(fewer <= left && left <= stream.len()),
        (whole, split) => assert_eq!(whole, split),
    }
    match (filter(&[stream]), filter(&[first, second])) {
        (Ok(whole), Ok(split)) => {
            assert_eq!(whole, split);
            assert!(whole.0.len() <= stream.len());
            assert_eq!(filter(&[&whole.0]).map(|(seen, _)| seen), Ok(whole.0));
        }
        (whole, split) => assert!(whole.is_err() && split.is_err()),
    }
    let refused = xmpp::refusal(&String::from_utf8_lossy(second));
    assert!(converse(&[&refused]).is_err());
});

/// How many bytes are left behind the go-ahead.
fn converse(pieces: &[&[u8]]) -> Result<Option<usize>, DialogueError> {
    let mut dialogue = xmpp::StartTls::new(header());
    let mut heard = Vec::new();
    for piece in [&[&b""[..]], pieces].concat() {
        heard.extend_from_slice(piece);
        loop {
            match dialogue.step(&heard)? {
                Step::NeedMore => break,
                Step::Say { consumed, .. } => drop(heard.drain(..consumed)),
                Step::Handshake { consumed } => return Ok(Some(heard.len() - consumed)),
            }
        }
    }
    Ok(None)
}

fn header() -> Header {
    match xmpp::parse_header(b"<stream:stream to='site.example' xmlns='jabber:client'>") {
        Ok(Progress::Done(header)) => header,
        other => panic!("{other:?}"),
    }
}

fn filter(pieces: &[&[u8]]) -> Result<(Vec<u8>, Next), RewriteError> {
    let (mut filter, mut out) = (FeaturesFilter::default(), Vec::new());
    let mut next = Next::Continue;
    for piece in pieces {
        if next == Next::Done {
            out.extend_from_slice(piece);
        } else {
            next = filter.rewrite(piece, &mut out)?;
        }
    }
    filter.finish(&mut out);
    Ok((out, next))
}

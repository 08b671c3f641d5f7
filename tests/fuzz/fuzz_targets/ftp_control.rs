//! However the streams of a control connection are split, each side hears the same and the same
//! data connections are announced; an agent in secured mode never hears of AUTH's go-ahead, nor
//! the server of the agent's own wish for TLS; and the whole reply of a dialogue stays the same.
#![no_main]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Look, Next, Progress, Rewrite, RewriteError,
    ftp::{DataChannels, Reply, Role, filters, looks_like_greeting, refusal},
};

#[derive(Clone, Debug, Default)]
struct Noted(Arc<Mutex<Vec<SocketAddr>>>);

impl DataChannels for Noted {
    fn passive(&mut self, port: u16) {
        assert_ne!(port, 0);
        self.0.lock().unwrap().push(([0, 0, 0, 0], port).into());
    }

    fn active(&mut self, listener: SocketAddr) -> Option<SocketAddr> {
        self.0.lock().unwrap().push(listener);
        (listener.port() > 1023).then_some(listener)
    }
}

type Heard = (
    Result<Next, RewriteError>,
    Vec<u8>,
    Result<Next, RewriteError>,
    Vec<u8>,
    Vec<SocketAddr>,
);

fuzz_target!(|input: (bool, u16, &[u8])| {
    let (secured, cut, stream) = input;
    let role = if secured {
        Role::Secured
    } else {
        Role::Watched
    };
    let (first, second) = stream.split_at(stream.len().min(cut.into()));
    let heard = hear(role, &[stream]);
    assert_eq!(hear(role, &[first, second]), heard);
    let (_, commands, _, replies, _) = heard;
    if secured {
        for line in commands.split(|byte| *byte == b'\n') {
            assert!(!line.trim_ascii().to_ascii_uppercase().starts_with(b"AUTH "));
        }
        assert!(!replies.starts_with(b"234 "));
    }
    match Reply::parse(first) {
        Ok(Progress::NeedMore) => {}
        decided => assert_eq!(decided, Reply::parse(stream)),
    }
    if looks_like_greeting(stream, secured) == Look::Yes {
        assert!(stream.first().is_some_and(u8::is_ascii_digit));
    }
    let reply = refusal(&String::from_utf8_lossy(stream));
    assert!(
        matches!(Reply::parse(&reply), Ok(Progress::Done(Reply { code: 421, length })) if length == reply.len())
    );
});

fn hear(role: Role, pieces: &[&[u8]]) -> Heard {
    let noted = Noted::default();
    let (mut commands, mut replies) = filters(noted.clone(), role);
    // One after the other, for each may end the other's work.
    let (result, from_agent) = feed(&mut commands, pieces);
    let (back, from_server) = feed(&mut replies, pieces);
    let told = noted.0.lock().unwrap().clone();
    (result, from_agent, back, from_server, told)
}

fn feed(filter: &mut dyn Rewrite, pieces: &[&[u8]]) -> (Result<Next, RewriteError>, Vec<u8>) {
    let mut out = Vec::new();
    let mut result = Ok(Next::Continue);
    for piece in pieces {
        match result {
            Ok(Next::Continue) => result = filter.rewrite(piece, &mut out),
            Ok(Next::Done) => out.extend_from_slice(piece),
            Err(_) => break,
        }
    }
    if result == Ok(Next::Continue) {
        filter.finish(&mut out);
    }
    (result, out)
}

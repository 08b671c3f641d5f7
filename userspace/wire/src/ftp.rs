//! FTP (RFC 959, with the extensions of RFC 2428) and its way to TLS (RFC 4217).
//!
//! The proxy says `AUTH TLS` in clear, and `PBSZ 0` and `PROT P` inside TLS, so that data
//! connections are protected as well ([`AuthTls`], [`PROTECT`]). What the agent and the server say
//! after that passes two filters ([`Commands`], [`Replies`]):
//!
//! - The agent is to see a server that knows nothing of RFC 4217. FEAT (RFC 2389) loses those
//!   features; commands by which an agent would ask for TLS of its own, or by which it would end
//!   the proxy's, are replaced by one that no server knows, so that the refusal comes in its turn.
//! - Data connections are announced to the proxy: the port of a passive one (227, 229) before the
//!   agent reads it, and the agent's own listener for an active one (PORT, EPRT), in whose place
//!   the server is told one of the proxy's.

mod address;
mod filter;
#[cfg(test)]
mod tests;

pub use address::{parse_eprt, parse_port};
pub use filter::{Commands, DataChannels, Replies, Role, filters};

use crate::{
    Look, Progress,
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome},
};

/// What is said inside TLS before anything else, and the code of the reply that each must get:
/// no buffer for protection, and private data connections (RFC 4217 §9).
pub const PROTECT: [(&[u8], u16); 2] = [(b"PBSZ 0\r\n", 200), (b"PROT P\r\n", 200)];

/// What is no reply of an FTP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reply begins with three digits and a space or a hyphen")]
pub struct NoReply;

/// A whole reply at the beginning of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Its code.
    pub code: u16,
    /// Its bytes, with all its lines (RFC 959 §4.2).
    pub length: usize,
}

impl Reply {
    /// Reads a reply; nothing is allocated.
    ///
    /// # Errors
    /// [`NoReply`].
    pub fn parse(stream: &[u8]) -> Result<Progress<Self>, NoReply> {
        let head = match stream.split_first_chunk::<4>() {
            Some((head, _)) => *head,
            None if stream.iter().all(u8::is_ascii_digit) => return Ok(Progress::NeedMore),
            None => return Err(NoReply),
        };
        let (code, mark) = (code(&head).ok_or(NoReply)?, head[3]);
        let last = match mark {
            b'-' => [head[0], head[1], head[2], b' '],
            b' ' | b'\r' | b'\n' => head,
            _ => return Err(NoReply),
        };
        let mut length = 0;
        for line in stream.split_inclusive(|byte| *byte == b'\n') {
            length += line.len();
            if line.starts_with(&last) && line.ends_with(b"\n") {
                return Ok(Progress::Done(Self { code, length }));
            }
        }
        Ok(Progress::NeedMore)
    }
}

/// The code that a line begins with.
fn code(line: &[u8]) -> Option<u16> {
    let (digits, _) = line.split_first_chunk::<3>()?;
    digits.iter().try_fold(0, |code, digit| {
        digit
            .is_ascii_digit()
            .then(|| code * 10 + u16::from(digit - b'0'))
    })
}

/// Is this a greeting of an FTP server? Mail servers greet with the same code: a greeting that
/// speaks of neither counts where the port is FTP's own (`tie`).
pub fn looks_like_greeting(greeting: &[u8], tie: bool) -> Look {
    match Reply::parse(greeting) {
        Err(NoReply) => return Look::No,
        Ok(Progress::Done(Reply { code, .. })) if !matches!(code, 120 | 220 | 421) => {
            return Look::No;
        }
        _ => {}
    }
    let words = greeting.to_ascii_uppercase();
    let says = |word: &[u8]| words.windows(word.len()).any(|window| window == word);
    if says(b"SMTP") || says(b"LMTP") {
        Look::No
    } else if !words.contains(&b'\n') {
        Look::NeedMore
    } else if says(b"FTP") || tie {
        Look::Yes
    } else if matches!(Reply::parse(greeting), Ok(Progress::NeedMore)) {
        Look::NeedMore
    } else {
        Look::No
    }
}

/// A whole reply with the reason, in which nothing can end the line: "service not available,
/// closing control connection".
pub fn refusal(reason: &str) -> Vec<u8> {
    let reason: String = reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("421 mantled refused this connection: {reason}\r\n").into_bytes()
}

/// The dialogue up to the handshake: greeting, `AUTH TLS`, 234 (RFC 4217 §4).
#[derive(Debug, Default)]
pub struct AuthTls {
    /// The server's greeting, which it does not repeat inside TLS; empty until it has come.
    greeting: Vec<u8>,
}

impl Dialogue for AuthTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        let Reply { code, length } = match Reply::parse(heard) {
            Ok(Progress::Done(reply)) => reply,
            Ok(Progress::NeedMore) => return Ok(Step::NeedMore),
            Err(NoReply) => return Err(DialogueError::Protocol("it sends no FTP reply")),
        };
        let reply = heard.get(..length).unwrap_or_default();
        match (self.greeting.is_empty(), code) {
            // "Service ready in nnn minutes": the greeting comes later.
            (true, 120) => Ok(Step::Say {
                consumed: length,
                words: Preamble::constant(b""),
            }),
            (true, 220) => {
                self.greeting = reply.to_vec();
                Ok(Step::Say {
                    consumed: length,
                    words: Preamble::constant(b"AUTH TLS\r\n"),
                })
            }
            (false, 234) => Ok(Step::Handshake { consumed: length }),
            (_, 400..=599) => Err(DialogueError::declined(reply)),
            (true, _) => Err(DialogueError::Protocol("its greeting is none of FTP's")),
            (false, _) => Err(DialogueError::Protocol(
                "its answer to AUTH TLS is none of RFC 4217's",
            )),
        }
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            to_agent: std::mem::take(&mut self.greeting),
            ..Welcome::default()
        }
    }
}

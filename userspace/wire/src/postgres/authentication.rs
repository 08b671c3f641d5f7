//! The server's first messages, until it has said how the client is to authenticate.
//!
//! A server that speaks TLS offers SCRAM-SHA-256-PLUS, which binds the authentication to its TLS
//! channel. The agent has no such channel: libpq gives up when it sees the offer on a connection
//! without TLS. The mechanism is taken out of the offer; the others authenticate as well, inside
//! the TLS that mantled has verified.

use crate::{Next, Rewrite, RewriteError};

/// Longest authentication message, in bytes. Lists of mechanisms have a few dozen.
const MAX_AUTHENTICATION: usize = 64 * 1024;

/// Type byte and length.
const HEADER: usize = 5;

/// AuthenticationSASL.
const SASL: [u8; 4] = 10_u32.to_be_bytes();

/// Messages that cannot be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// Without channel binding nothing is left of the offer.
    #[error("the server offers only mechanisms with channel binding (-PLUS)")]
    OnlyChannelBinding,
    /// A length that no server sends.
    #[error("authentication message of {0} bytes")]
    Length(u32),
    /// A list of mechanisms that is none.
    #[error("malformed list of authentication mechanisms")]
    Mechanisms,
}

/// Filters the server's stream from its first byte. A message that need not be changed passes as
/// soon as that is known.
#[derive(Clone, Debug, Default)]
pub struct AuthenticationFilter(State);

/// Where in the stream the filter is.
#[derive(Clone, Debug)]
enum State {
    /// In a message that is not judged yet. Invariant: `held` is the beginning of one message
    /// and never longer than `HEADER + MAX_AUTHENTICATION`.
    Judging { held: Vec<u8> },
    /// In a message that passes; so many bytes of it are still to come.
    Passing(usize),
    /// Behind the last message that is judged.
    Done,
    /// The connection must end.
    Failed(AuthenticationError),
}

impl Default for State {
    fn default() -> Self {
        Self::Judging { held: Vec::new() }
    }
}

/// What is to become of a message, from what has come of it.
enum Judgement {
    /// It cannot be told before so many bytes have come.
    NeedMore(usize),
    /// It passes, and its body has so many bytes; the next one is judged.
    Pass(usize),
    /// It and everything after it passes.
    PassAll,
    /// It is a whole AuthenticationSASL.
    Rewrite,
}

impl AuthenticationFilter {
    /// Takes the next bytes and appends to `out` what the client may see. After [`Next::Done`]
    /// all of `input` is in `out` and the filter has done its work: what is given to it later
    /// passes unchanged.
    ///
    /// # Errors
    /// [`AuthenticationError`]: the connection must end; every later call gets the same.
    pub fn filter(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Next, AuthenticationError> {
        loop {
            match &mut self.0 {
                State::Judging { held } => match judge(held) {
                    Ok(Judgement::NeedMore(_)) if input.is_empty() => return Ok(Next::Continue),
                    Ok(Judgement::NeedMore(length)) => {
                        let missing = length.saturating_sub(held.len()).min(input.len());
                        let (taken, rest) = input.split_at_checked(missing).unwrap_or((input, &[]));
                        held.extend_from_slice(taken);
                        input = rest;
                    }
                    Ok(Judgement::Pass(body)) => {
                        out.append(held);
                        self.0 = State::Passing(body);
                    }
                    Ok(Judgement::PassAll) => {
                        out.append(held);
                        self.0 = State::Done;
                    }
                    Ok(Judgement::Rewrite) => {
                        self.0 = match without_channel_binding(held, out) {
                            Ok(()) => State::Done,
                            Err(error) => State::Failed(error),
                        };
                    }
                    Err(error) => self.0 = State::Failed(error),
                },
                State::Passing(0) => self.0 = State::default(),
                State::Passing(_) if input.is_empty() => return Ok(Next::Continue),
                State::Passing(left) => {
                    let (passed, rest) = input.split_at_checked(*left).unwrap_or((input, &[]));
                    out.extend_from_slice(passed);
                    *left -= passed.len();
                    input = rest;
                }
                State::Done => {
                    out.extend_from_slice(input);
                    return Ok(Next::Done);
                }
                State::Failed(error) => return Err(*error),
            }
        }
    }
}

impl Rewrite for AuthenticationFilter {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.filter(input, out)
            .map_err(|error| RewriteError::ChannelBinding(error.to_string()))
    }
}

fn judge(message: &[u8]) -> Result<Judgement, AuthenticationError> {
    let Some(kind) = message.first() else {
        return Ok(Judgement::NeedMore(1));
    };
    // NoticeResponse and NegotiateProtocolVersion come before authentication.
    if !matches!(kind, b'R' | b'N' | b'v') {
        return Ok(Judgement::PassAll);
    }
    let Some(([_, a, b, c, d], start)) = message.split_first_chunk::<HEADER>() else {
        return Ok(Judgement::NeedMore(HEADER));
    };
    let length = u32::from_be_bytes([*a, *b, *c, *d]);
    let body = length
        .checked_sub(4)
        .ok_or(AuthenticationError::Length(length))? as usize;
    if *kind != b'R' {
        return Ok(Judgement::Pass(body));
    }
    if !(SASL.len()..=MAX_AUTHENTICATION).contains(&body) {
        return Err(AuthenticationError::Length(length));
    }
    Ok(if start.len() < SASL.len() {
        Judgement::NeedMore(HEADER + SASL.len())
    } else if !start.starts_with(&SASL) {
        Judgement::PassAll
    } else if start.len() < body {
        Judgement::NeedMore(HEADER + body)
    } else {
        Judgement::Rewrite
    })
}

/// Appends an AuthenticationSASL without the mechanisms that end in -PLUS.
fn without_channel_binding(message: &[u8], out: &mut Vec<u8>) -> Result<(), AuthenticationError> {
    // Names, each ended by NUL, and one more NUL. An empty name would end the list early for
    // some clients, and not for others.
    let names = message
        .get(HEADER + SASL.len()..)
        .and_then(|list| list.strip_suffix(&[0, 0]))
        .filter(|names| names.split(|byte| *byte == 0).all(|name| !name.is_empty()))
        .ok_or(AuthenticationError::Mechanisms)?;
    let kept: Vec<&[u8]> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.ends_with(b"-PLUS"))
        .collect();
    if kept.is_empty() {
        return Err(AuthenticationError::OnlyChannelBinding);
    }
    let length = 4 + SASL.len() + kept.iter().map(|name| name.len() + 1).sum::<usize>() + 1;
    out.push(b'R');
    out.extend_from_slice(&(length as u32).to_be_bytes());
    out.extend_from_slice(&SASL);
    for name in kept {
        out.extend_from_slice(name);
        out.push(0);
    }
    out.push(0);
    Ok(())
}

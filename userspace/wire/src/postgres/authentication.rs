//! The server's first messages, until it has said how the client is to authenticate.
//!
//! A server that speaks TLS offers SCRAM-SHA-256-PLUS, which binds the authentication to its TLS
//! channel. The agent has no such channel: libpq gives up when it sees the offer on a connection
//! without TLS. The mechanism is taken out of the offer; the others authenticate as well, inside
//! the TLS that mantled has verified.

/// Longest authentication message, in bytes. Lists of mechanisms have a few dozen.
const MAX_AUTHENTICATION: usize = 64 * 1024;

/// Type byte and length.
const HEADER: usize = 5;

/// AuthenticationSASL.
const SASL: [u8; 4] = 10_u32.to_be_bytes();

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Filter what comes next as well.
    Continue,
    /// Carry everything else as it is.
    Done,
}

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

/// Filters the server's stream from its first byte.
///
/// Invariant: `held` is the beginning of one message and never longer than
/// `HEADER + MAX_AUTHENTICATION`; `passing > 0` only when `held` is empty.
#[derive(Clone, Debug, Default)]
pub struct AuthenticationFilter {
    held: Vec<u8>,
    passing: usize,
}

impl AuthenticationFilter {
    /// Takes the next bytes and appends to `out` what the client may see. After [`Step::Done`]
    /// all of `input` is in `out` and the filter has done its work.
    ///
    /// # Errors
    /// [`AuthenticationError`]: the connection must end.
    pub fn filter(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step, AuthenticationError> {
        loop {
            let (passed, rest) = input.split_at_checked(self.passing).unwrap_or((input, &[]));
            out.extend_from_slice(passed);
            self.passing -= passed.len();
            input = rest;
            if input.is_empty() {
                return Ok(Step::Continue);
            }
            // Hold the header, then as much of the message as is needed to judge it.
            input = self.hold(input, HEADER);
            let Some(([kind, a, b, c, d], _)) = self.held.split_first_chunk::<HEADER>() else {
                return Ok(Step::Continue);
            };
            let kind = *kind;
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            let body = length
                .checked_sub(4)
                .ok_or(AuthenticationError::Length(length))? as usize;
            match kind {
                b'R' => {
                    if body > MAX_AUTHENTICATION {
                        return Err(AuthenticationError::Length(length));
                    }
                    input = self.hold(input, HEADER + body);
                    if self.held.len() < HEADER + body {
                        return Ok(Step::Continue);
                    }
                    without_channel_binding(&self.held, out)?;
                    self.held.clear();
                    out.extend_from_slice(input);
                    return Ok(Step::Done);
                }
                // NoticeResponse and NegotiateProtocolVersion come before authentication.
                b'N' | b'v' => {
                    out.append(&mut self.held);
                    self.passing = body;
                }
                _ => {
                    out.append(&mut self.held);
                    out.extend_from_slice(input);
                    return Ok(Step::Done);
                }
            }
        }
    }

    /// Moves bytes from `input` to `held` until that has `length`; returns the rest.
    fn hold<'a>(&mut self, input: &'a [u8], length: usize) -> &'a [u8] {
        let missing = length.saturating_sub(self.held.len());
        let (taken, rest) = input.split_at_checked(missing).unwrap_or((input, &[]));
        self.held.extend_from_slice(taken);
        rest
    }
}

/// Appends an authentication message, without the mechanisms that end in -PLUS.
fn without_channel_binding(message: &[u8], out: &mut Vec<u8>) -> Result<(), AuthenticationError> {
    let body = message.get(HEADER..).unwrap_or_default();
    let Some(list) = body.strip_prefix(&SASL) else {
        out.extend_from_slice(message);
        return Ok(());
    };
    // Names, each ended by NUL, and one more NUL.
    let names = list
        .strip_suffix(&[0, 0])
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

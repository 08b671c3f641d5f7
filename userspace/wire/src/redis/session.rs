//! A session's commands, each put to a judge (RESP, the Redis serialization protocol specification;
//! inline commands as `sdssplitargs` reads them, of those without quotes).
//!
//! A refused command is replaced by one of a name that no server knows, which says in its error what
//! it is called. So a transaction (MULTI) fails as it does for every command that is wrong, and answers
//! keep their order. That error becomes `-NOPERM`, as Redis' own access control lists have it.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Next, Rewrite, RewriteError,
    command::{Command, Judge, Verdict},
};

/// Most bytes of a command's arguments that are read before it is judged. Of a longer one nobody tells
/// which keys it has.
const MAX_COMMAND: usize = 256 * 1024;

/// Most arguments, as Redis has it.
const MAX_ARGUMENTS: u64 = 1024 * 1024;

/// Longest argument, in bytes: 512 MiB, as Redis has it by default.
const MAX_ARGUMENT: u64 = 512 * 1024 * 1024;

/// Longest line, in bytes: that of an inline command.
const MAX_LINE: usize = 64 * 1024;

/// How the name of a command begins that no server knows.
const REFUSED: &str = "mantled.refused.";

/// Most reasons that are remembered until their errors come back.
const REASONS: usize = 1024;

/// The two directions of a session.
///
/// The first holds at most a command of 256 KiB, the second a line of 64 KiB.
pub fn inspect(judge: Box<dyn Judge>) -> (FromAgent, FromServer) {
    let reasons = Arc::new(Mutex::new(Reasons::default()));
    (
        FromAgent {
            judge,
            reasons: Arc::clone(&reasons),
            held: Vec::new(),
            needed: 0,
            rest: None,
        },
        FromServer {
            reasons,
            held: Vec::new(),
            bulk: 0,
        },
    )
}

/// Why commands were refused, by the number in the name that stands for them.
#[derive(Debug, Default)]
struct Reasons {
    next: u64,
    known: VecDeque<(u64, String)>,
}

fn lock(reasons: &Mutex<Reasons>) -> MutexGuard<'_, Reasons> {
    reasons.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fault<T>(what: &str) -> Result<T, RewriteError> {
    Err(RewriteError::Protocol(format!("Redis: {what}")))
}

// ---- From the agent

/// Judges what the agent sends.
#[derive(Debug)]
pub struct FromAgent {
    judge: Box<dyn Judge>,
    reasons: Arc<Mutex<Reasons>>,
    /// The beginning of a command that is not judged.
    held: Vec<u8>,
    /// It cannot be read before there are so many bytes of it.
    needed: usize,
    /// What is still to come of one that is.
    rest: Option<Rest>,
}

/// What is still to come of a command whose beginning is judged.
#[derive(Clone, Copy, Debug)]
struct Rest {
    /// Bytes of an argument, CR LF included.
    bytes: u64,
    arguments: u64,
    carried: bool,
}

/// A command of which enough has come.
struct Come<'a> {
    arguments: Vec<Cow<'a, [u8]>>,
    /// Bytes of it that have come.
    length: usize,
    /// Arguments, and bytes of the last one, that have not.
    missing: (u64, u64),
}

/// The line that begins here, without its end, and its length with it; None: it has not come.
fn line(stream: &[u8]) -> Result<Option<(&[u8], usize)>, RewriteError> {
    match stream.iter().take(MAX_LINE).position(|byte| *byte == b'\n') {
        None if stream.len() >= MAX_LINE => fault("a line without end"),
        None => Ok(None),
        Some(end) => Ok(stream.get(..end).map(|line| (line, end + 1))),
    }
}

/// A number of at most `most` in a line of the type `kind`, whose end is CR LF.
fn number(line: &[u8], kind: u8, most: u64) -> Result<u64, RewriteError> {
    let digits = line
        .split_first()
        .filter(|(first, _)| **first == kind)
        .and_then(|(_, rest)| rest.strip_suffix(b"\r"));
    let number = match digits {
        Some(digits @ [b'1'..=b'9', ..]) | Some(digits @ [b'0'])
            if digits.iter().all(u8::is_ascii_digit) =>
        {
            std::str::from_utf8(digits)
                .ok()
                .and_then(|text| text.parse().ok())
        }
        _ => None,
    };
    match number {
        Some(number) if number <= most => Ok(number),
        _ => fault("a length that is none"),
    }
}

/// What has come of a command.
enum Coming<'a> {
    Enough(Come<'a>),
    /// It cannot be read before there are so many bytes.
    NeedMore(usize),
}

/// Reads the command that begins here, as far as it has come.
fn command(stream: &[u8]) -> Result<Coming<'_>, RewriteError> {
    let Some((first, mut at)) = line(stream)? else {
        return Ok(Coming::NeedMore(stream.len() + 1));
    };
    if first.first() != Some(&b'*') {
        return inline(first, at).map(Coming::Enough);
    }
    let count = number(first, b'*', MAX_ARGUMENTS)?;
    let mut arguments = Vec::new();
    for left in (0..count).rev() {
        let rest = stream.get(at..).unwrap_or_default();
        if at > MAX_COMMAND {
            return Ok(Coming::Enough(Come {
                arguments,
                length: at,
                missing: (left + 1, 0),
            }));
        }
        let Some((header, begin)) = line(rest)? else {
            return Ok(Coming::NeedMore(stream.len() + 1));
        };
        let length = number(header, b'$', MAX_ARGUMENT)?;
        let body = rest.get(begin..).unwrap_or_default();
        let whole = usize::try_from(length + 2).unwrap_or(usize::MAX);
        if let Some(argument) = body.get(..whole) {
            let Some(argument) = argument.strip_suffix(b"\r\n") else {
                return fault("an argument that is longer than it says");
            };
            arguments.push(Cow::Borrowed(argument));
            at += begin + whole;
        } else if at + begin + body.len() > MAX_COMMAND {
            return Ok(Coming::Enough(Come {
                arguments,
                length: at + begin + body.len(),
                missing: (left, (whole - body.len()) as u64),
            }));
        } else {
            let needed = (at + begin).saturating_add(whole).min(MAX_COMMAND + 1);
            return Ok(Coming::NeedMore(needed));
        }
    }
    Ok(Coming::Enough(Come {
        arguments,
        length: at,
        missing: (0, 0),
    }))
}

fn inline(line: &[u8], length: usize) -> Result<Come<'_>, RewriteError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line
        .iter()
        .any(|byte| matches!(byte, b'"' | b'\'' | b'\\' | 0..=8 | 10..=31))
    {
        return fault("an inline command with quotes or control characters");
    }
    let words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    Ok(Come {
        arguments: words
            .filter(|word| !word.is_empty())
            .map(Cow::Borrowed)
            .collect(),
        length,
        missing: (0, 0),
    })
}

impl FromAgent {
    fn carry(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        loop {
            if let Some(rest) = &mut self.rest {
                if rest.bytes == 0 && rest.arguments == 0 {
                    self.rest = None;
                    continue;
                }
                if rest.bytes == 0 {
                    // The next argument's length, a line.
                    let end = input.iter().position(|byte| *byte == b'\n');
                    let taken = end.map_or(input.len(), |end| end + 1);
                    let (header, after) = input.split_at_checked(taken).unwrap_or((input, &[]));
                    self.held.extend_from_slice(header);
                    input = after;
                    let Some((header, _)) = line(&self.held)? else {
                        return Ok(Next::Continue);
                    };
                    rest.bytes = number(header, b'$', MAX_ARGUMENT)? + 2;
                    rest.arguments -= 1;
                    if rest.carried {
                        out.append(&mut self.held);
                    }
                    self.held.clear();
                }
                if input.is_empty() {
                    return Ok(Next::Continue);
                }
                let length = usize::try_from(rest.bytes).unwrap_or(usize::MAX);
                let (taken, after) = input.split_at_checked(length).unwrap_or((input, &[]));
                rest.bytes -= taken.len() as u64;
                if rest.carried {
                    out.extend_from_slice(taken);
                }
                input = after;
                continue;
            }
            self.held.extend_from_slice(input);
            let mut at = 0;
            if self.held.len() < self.needed {
                return Ok(Next::Continue);
            }
            loop {
                let come = match command(self.held.get(at..).unwrap_or_default())? {
                    Coming::Enough(come) => come,
                    Coming::NeedMore(needed) => {
                        self.needed = needed;
                        break;
                    }
                };
                self.needed = 0;
                let whole = self.held.get(at..at + come.length).unwrap_or_default();
                let carried = match verdict(&mut *self.judge, &come) {
                    Verdict::Carry => {
                        out.extend_from_slice(whole);
                        true
                    }
                    Verdict::Refuse(reason) => {
                        let name = refuse(&self.reasons, reason);
                        let other = format!("*1\r\n${}\r\n{name}\r\n", name.len());
                        out.extend_from_slice(other.as_bytes());
                        false
                    }
                };
                at += come.length;
                let (arguments, bytes) = come.missing;
                if (arguments, bytes) != (0, 0) {
                    self.rest = Some(Rest {
                        bytes,
                        arguments,
                        carried,
                    });
                    break;
                }
            }
            self.held.drain(..at.min(self.held.len()));
            if self.rest.is_some() {
                let left = std::mem::take(&mut self.held);
                return self.carry(&left, out);
            }
            return Ok(Next::Continue);
        }
    }
}

fn verdict(judge: &mut dyn Judge, come: &Come<'_>) -> Verdict {
    let whole = come.missing == (0, 0);
    // An empty line, `*0`: nothing.
    if come.arguments.is_empty() && whole {
        return Verdict::Carry;
    }
    judge.judge(&Command::Redis {
        arguments: &come.arguments,
        whole,
    })
}

/// Remembers why, and says what stands for the command.
fn refuse(reasons: &Mutex<Reasons>, reason: String) -> String {
    let mut reasons = lock(reasons);
    let number = reasons.next;
    reasons.next += 1;
    if reasons.known.len() >= REASONS {
        reasons.known.pop_front();
    }
    reasons.known.push_back((number, reason));
    format!("{REFUSED}{number}")
}

impl Rewrite for FromAgent {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.carry(input, out)
    }
}

// ---- From the server

/// Replaces the errors that stand for a refusal.
#[derive(Debug)]
pub struct FromServer {
    reasons: Arc<Mutex<Reasons>>,
    /// The beginning of a line.
    held: Vec<u8>,
    /// Bytes of a bulk string that are still to come, CR LF included.
    bulk: u64,
}

impl FromServer {
    fn carry(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        loop {
            if input.is_empty() {
                return Ok(Next::Continue);
            }
            if self.bulk > 0 {
                let length = usize::try_from(self.bulk).unwrap_or(usize::MAX);
                let (taken, after) = input.split_at_checked(length).unwrap_or((input, &[]));
                self.bulk -= taken.len() as u64;
                out.extend_from_slice(taken);
                input = after;
                continue;
            }
            let end = input.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(input.len(), |end| end + 1);
            let (part, after) = input.split_at_checked(taken).unwrap_or((input, &[]));
            input = after;
            self.held.extend_from_slice(part);
            if end.is_none() {
                // A simple string may be of any length; only an error is looked into.
                if self.held.len() >= MAX_LINE {
                    return fault("a line without end");
                }
                return Ok(Next::Continue);
            }
            match self.held.first() {
                Some(b'$' | b'!' | b'=') => {
                    // -1 is null.
                    let line = self.held.get(1..).unwrap_or_default();
                    let digits = line.strip_suffix(b"\r\n").unwrap_or_default();
                    let length = std::str::from_utf8(digits).ok();
                    self.bulk = match length.and_then(|length| length.parse::<i64>().ok()) {
                        Some(-1) => 0,
                        Some(length @ 0..) => length.unsigned_abs() + 2,
                        _ => return fault("a length that is none"),
                    };
                }
                Some(b'-') => {
                    if let Some(reason) = self.reason() {
                        out.extend_from_slice(noperm(&reason).as_bytes());
                        self.held.clear();
                        continue;
                    }
                }
                _ => {}
            }
            out.append(&mut self.held);
        }
    }

    /// Why what this error stands for was refused; None: it is the server's own.
    fn reason(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.held);
        let (_, number) = text.split_once(REFUSED)?;
        let end = number
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(number.len());
        let number: u64 = number.get(..end)?.parse().ok()?;
        let reasons = lock(&self.reasons);
        let mut known = reasons.known.iter();
        known
            .find(|(known, _)| *known == number)
            .map(|(_, reason)| reason.clone())
    }
}

/// The error that the agent sees; nothing in it can end the line.
fn noperm(reason: &str) -> String {
    let reason: String = reason
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    format!("-NOPERM refused by mantled: {reason}\r\n")
}

impl Rewrite for FromServer {
    fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        let length = usize::try_from(self.bulk)
            .unwrap_or(usize::MAX)
            .min(input.len());
        self.bulk -= length as u64;
        Ok(length)
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.carry(input, out)
    }
}

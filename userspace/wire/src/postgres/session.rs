//! A session's commands (section "Message Flow"), each put to a judge.
//!
//! What is judged: every Query, and every Parse, when its text is whole; every Bind, by the statement
//! that it names; every FunctionCall. Everything else passes.
//!
//! A refused message is replaced by one of the same type that the server can only answer with an error:
//! a text that is nothing but a quoted name, a statement and a function that are not there. So the
//! transaction fails as it does for every error, what follows in the same pipeline is skipped until
//! Sync, and the ReadyForQuery that comes says the truth. To replace that error's words, the answers
//! that the server owes are counted: [`Owed`].

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Severity, error_response, header};
use crate::{
    Next, Progress, Rewrite, RewriteError,
    command::{Command, Judge, Verdict},
    reader::Reader,
};

/// Longest Query or Parse that is read, in bytes. What is longer cannot be told.
const MAX_STATEMENT: usize = 256 * 1024;

/// Longest pair of names in a Bind. Servers cut names off at 63 bytes.
const MAX_NAMES: usize = 4 * 1024;

/// Longest message of the server's that is looked into.
const MAX_ANSWER: usize = 64 * 1024;

/// Most answers that the server may owe.
const MAX_OWED: usize = 128 * 1024;

/// Type byte and length.
const HEADER: usize = 5;

/// What stands in the place of a refused text, or names a statement that is not there.
const REFUSED: &[u8] = b"refused by mantled";

/// The two directions of a session, from its start-up packet on.
///
/// The first holds at most a message of 256 KiB, the second one of 64 KiB; together they remember at
/// most 128 Ki answers that are owed.
pub fn inspect(judge: Box<dyn Judge>) -> (FromAgent, FromServer) {
    let shared = Arc::new(Mutex::new(Shared::default()));
    (
        FromAgent {
            shared: Arc::clone(&shared),
            judge,
            state: State::Startup(Vec::new()),
        },
        FromServer {
            shared,
            state: State::Head(Vec::new()),
        },
    )
}

/// What both directions know.
#[derive(Debug, Default)]
struct Shared {
    /// What the server has been asked and has not answered, oldest first.
    owed: VecDeque<Owed>,
    /// An error has been answered, and the server skips everything until Sync.
    skipping: bool,
    /// `standard_conforming_strings`, as the server has said it last.
    standard_strings: Option<bool>,
}

/// An answer that the server owes. What has been refused carries the words for the agent.
#[derive(Debug)]
enum Owed {
    /// To the start-up packet: everything until ReadyForQuery.
    Startup,
    /// To Query and FunctionCall: everything until ReadyForQuery.
    Query(Option<Box<str>>),
    /// To a message of the extended protocol: one message that ends it.
    Part(Part, Option<Box<str>>),
    /// To Sync: ReadyForQuery.
    Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Parse,
    Bind,
    Close,
    Describe,
    Execute,
}

impl Shared {
    fn owe(&mut self, owed: Owed) -> Result<(), RewriteError> {
        if self.owed.len() >= MAX_OWED {
            return fault("too many messages without an answer");
        }
        match owed {
            Owed::Sync => self.skipping = false,
            // The server will not even look at it.
            _ if self.skipping => return Ok(()),
            _ => {}
        }
        self.owed.push_back(owed);
        Ok(())
    }

    /// The server has answered with a message of this type.
    fn answered(&mut self, kind: u8) {
        let done = match (self.owed.front(), kind) {
            (Some(Owed::Part(part, _)), kind) => matches!(
                (part, kind),
                (Part::Parse, b'1')
                    | (Part::Bind, b'2')
                    | (Part::Close, b'3')
                    | (Part::Describe, b'T' | b'n')
                    | (Part::Execute, b'C' | b'I' | b's')
            ),
            (Some(Owed::Startup | Owed::Query(_) | Owed::Sync), b'Z') => true,
            _ => false,
        };
        if done {
            self.owed.pop_front();
        }
    }

    /// The server has answered with an error: what the agent is told in its place, if that is ours.
    fn failed(&mut self) -> Option<Box<str>> {
        match self.owed.front_mut() {
            Some(Owed::Query(refused)) => refused.take(),
            Some(Owed::Part(_, refused)) => {
                let refused = refused.take();
                while matches!(self.owed.front(), Some(Owed::Part(..) | Owed::Query(_))) {
                    self.owed.pop_front();
                }
                self.skipping = self.owed.is_empty();
                refused
            }
            _ => None,
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fault<T>(what: &str) -> Result<T, RewriteError> {
    Err(RewriteError::Protocol(format!("PostgreSQL: {what}")))
}

/// Where in its stream a direction is.
#[derive(Debug)]
enum State {
    /// In the start-up packet, of which this has come.
    Startup(Vec<u8>),
    /// In a message of which nothing is decided; this has come.
    Head(Vec<u8>),
    /// So many bytes are still to be carried.
    Pass(usize),
    /// So many bytes are still to be left out.
    Leave(usize),
    /// Of another protocol, or failed.
    Failed(RewriteError),
}

impl State {
    /// How much of `input` is carried as it is: what is left of a message, and those behind it that
    /// are CopyData or of one other type that needs no look.
    fn pass(&mut self, input: &[u8], other: u8) -> Result<usize, RewriteError> {
        let mut rest = input;
        loop {
            match self {
                Self::Pass(0) => *self = Self::Head(Vec::new()),
                Self::Pass(_) if rest.is_empty() => return Ok(input.len()),
                Self::Pass(left) => {
                    take(left, &mut rest);
                }
                Self::Head(held) if held.is_empty() => match message(rest) {
                    Ok(Some((kind, body))) if kind == b'd' || kind == other => {
                        *self = Self::Pass(HEADER + body);
                    }
                    // What is wrong with it is told when it is read.
                    _ => return Ok(input.len() - rest.len()),
                },
                _ => return Ok(input.len() - rest.len()),
            }
        }
    }
}

/// Type and length of the body of the message that begins here.
fn message(stream: &[u8]) -> Result<Option<(u8, usize)>, RewriteError> {
    let Some(([kind, a, b, c, d], _)) = stream.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    match u32::from_be_bytes([*a, *b, *c, *d]) {
        length @ 4..=0x7fff_ffff => Ok(Some((*kind, length as usize - 4))),
        length => fault(&format!("a message of {length} bytes")),
    }
}

/// Takes from `input` until `held` has `length` bytes. False: there are not enough.
fn fill(held: &mut Vec<u8>, length: usize, input: &mut &[u8]) -> bool {
    let missing = length.saturating_sub(held.len());
    let (taken, rest) = input.split_at_checked(missing).unwrap_or((input, &[]));
    held.extend_from_slice(taken);
    *input = rest;
    held.len() >= length
}

/// Takes at most `left` bytes off the front of `input`.
fn take<'a>(left: &mut usize, input: &mut &'a [u8]) -> &'a [u8] {
    let (taken, rest) = input.split_at_checked(*left).unwrap_or((input, &[]));
    *left -= taken.len();
    *input = rest;
    taken
}

// ---- From the agent

/// Judges what the agent sends.
#[derive(Debug)]
pub struct FromAgent {
    shared: Arc<Mutex<Shared>>,
    judge: Box<dyn Judge>,
    state: State,
}

/// What has been decided about a message of which a part has come.
enum Decision {
    /// It cannot be told before so many bytes have come.
    NeedMore(usize),
    /// It is carried.
    Carry,
    /// This is carried in its place.
    Replace(Vec<u8>),
}

impl FromAgent {
    fn carry(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        loop {
            match &mut self.state {
                State::Startup(held) => {
                    let length = match header(held) {
                        Ok(Progress::NeedMore) => 8,
                        Ok(Progress::Done((length, _))) => length,
                        Err(error) => return fault(&error.to_string()),
                    };
                    if held.len() < length {
                        if !fill(held, length, &mut input) {
                            return Ok(Next::Continue);
                        }
                        continue;
                    }
                    out.append(held);
                    lock(&self.shared).owe(Owed::Startup)?;
                    self.state = State::Head(Vec::new());
                }
                State::Head(held) => {
                    if !fill(held, HEADER, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let mut needed = HEADER;
                    let decision = loop {
                        if !fill(held, needed, &mut input) {
                            return Ok(Next::Continue);
                        }
                        match decide(held, &self.shared, &mut *self.judge)? {
                            Decision::NeedMore(more) => needed = more,
                            decision => break decision,
                        }
                    };
                    let Some((_, body)) = message(held)? else {
                        return Ok(Next::Continue);
                    };
                    let left = (HEADER + body).saturating_sub(held.len());
                    self.state = match decision {
                        Decision::Replace(other) => {
                            out.extend_from_slice(&other);
                            State::Leave(left)
                        }
                        _ => {
                            out.append(held);
                            State::Pass(left)
                        }
                    };
                }
                State::Pass(0) | State::Leave(0) => self.state = State::Head(Vec::new()),
                State::Pass(_) | State::Leave(_) if input.is_empty() => return Ok(Next::Continue),
                State::Pass(left) => out.extend_from_slice(take(left, &mut input)),
                State::Leave(left) => {
                    take(left, &mut input);
                }
                State::Failed(error) => return Err(error.clone()),
            }
        }
    }
}

impl Rewrite for FromAgent {
    fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        self.state.pass(input, b'd')
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let result = self.carry(input, out);
        result.inspect_err(|error| self.state = State::Failed(error.clone()))
    }
}

/// Decides about a message, of which at least the header has come.
fn decide(
    held: &[u8],
    shared: &Mutex<Shared>,
    judge: &mut dyn Judge,
) -> Result<Decision, RewriteError> {
    let Some((kind, body)) = message(held)? else {
        return Ok(Decision::NeedMore(HEADER));
    };
    let come = held.get(HEADER..).unwrap_or_default();
    let mut shared = lock(shared);
    let part = match kind {
        b'Q' | b'P' => {
            let is_long = body > MAX_STATEMENT;
            if !is_long && come.len() < body {
                return Ok(Decision::NeedMore(HEADER + body));
            }
            let come = come.get(..body.min(come.len())).unwrap_or_default();
            return statement(kind, (!is_long).then_some(come), &mut shared, judge);
        }
        b'B' => {
            let beginning = body.min(MAX_NAMES);
            if come.len() < beginning {
                return Ok(Decision::NeedMore(HEADER + beginning));
            }
            let mut reader = Reader(come);
            let Some((portal, name)) = reader.cstring().zip(reader.cstring()) else {
                return fault("a Bind without names");
            };
            let verdict = judge.judge(&Command::Prepared { name });
            let other = || {
                let names = [portal, &[0], REFUSED, &[0; 7]];
                framed(b'B', &names.concat())
            };
            return decided(
                verdict,
                |refused| Owed::Part(Part::Bind, refused),
                other,
                &mut shared,
            );
        }
        b'F' => {
            let verdict = judge.judge(&Command::Unknown);
            // Function 0, no formats, no arguments, its result as text.
            let other = || framed(b'F', &[0; 10]);
            return decided(verdict, Owed::Query, other, &mut shared);
        }
        b'C' => {
            if come.len() < body && body <= MAX_NAMES {
                return Ok(Decision::NeedMore(HEADER + body));
            }
            if let Some((b'S', name)) = come.split_first()
                && let Some(name) = Reader(name).cstring()
            {
                judge.judge(&Command::Closed { name });
            }
            Part::Close
        }
        b'D' => Part::Describe,
        b'E' => Part::Execute,
        b'S' => {
            shared.owe(Owed::Sync)?;
            return Ok(Decision::Carry);
        }
        // CopyData, CopyDone, CopyFail, Flush, passwords, Terminate.
        b'd' | b'c' | b'f' | b'H' | b'p' | b'X' => return Ok(Decision::Carry),
        kind => return fault(&format!("a message of unknown type {kind:#04x}")),
    };
    shared.owe(Owed::Part(part, None))?;
    Ok(Decision::Carry)
}

/// Decides about a Query or a Parse, whose body is None where it is too long.
fn statement(
    kind: u8,
    body: Option<&[u8]>,
    shared: &mut Shared,
    judge: &mut dyn Judge,
) -> Result<Decision, RewriteError> {
    let mut reader = Reader(body.unwrap_or_default());
    let name = match (kind, body) {
        (b'P', Some(_)) => match reader.cstring() {
            Some(name) => Some(name),
            None => return fault("a Parse without a name"),
        },
        _ => None,
    };
    let text = match body {
        None => None,
        Some(_) => match reader.cstring() {
            // What stands behind a Query's text, one server might read and another not.
            Some(text) if kind == b'P' || reader.is_empty() => Some(text),
            _ => return fault("a statement that does not end"),
        },
    };
    // What the server has been asked may change how it reads strings, and has not come back yet.
    let plain_strings = shared.owed.is_empty().then_some(shared.standard_strings);
    let verdict = match name {
        // It would be taken for the one that is not there.
        Some(REFUSED) => Verdict::Refuse("the name of the statement is reserved".to_owned()),
        _ => judge.judge(&Command::Statement {
            text,
            plain_strings: plain_strings.flatten(),
            name,
        }),
    };
    let words = [b"\"", REFUSED, b"\"\0"].concat();
    match kind {
        b'Q' => decided(verdict, Owed::Query, || framed(b'Q', &words), shared),
        _ => {
            let owed = |refused| Owed::Part(Part::Parse, refused);
            // Of no name: one that the agent gives is not taken.
            let other = || framed(b'P', &[&[0][..], &words, &[0, 0]].concat());
            decided(verdict, owed, other, shared)
        }
    }
}

/// What follows from a verdict.
fn decided(
    verdict: Verdict,
    owed: impl FnOnce(Option<Box<str>>) -> Owed,
    other: impl FnOnce() -> Vec<u8>,
    shared: &mut Shared,
) -> Result<Decision, RewriteError> {
    match verdict {
        Verdict::Carry => {
            shared.owe(owed(None))?;
            Ok(Decision::Carry)
        }
        Verdict::Refuse(words) => {
            shared.owe(owed(Some(words.into())))?;
            Ok(Decision::Replace(other()))
        }
    }
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind][..], &length, body].concat()
}

// ---- From the server

/// Follows what the server answers, and replaces the errors that stand for a refusal.
#[derive(Debug)]
pub struct FromServer {
    shared: Arc<Mutex<Shared>>,
    state: State,
}

impl FromServer {
    fn carry(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let mut shared = lock(&self.shared);
        loop {
            match &mut self.state {
                State::Startup(held) | State::Head(held) => {
                    if !fill(held, HEADER, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let Some((kind, body)) = message(held)? else {
                        return Ok(Next::Continue);
                    };
                    let is_looked_into = matches!(kind, b'S' | b'E');
                    if is_looked_into && body > MAX_ANSWER {
                        return fault("an error or a parameter without end");
                    }
                    let length = if is_looked_into {
                        HEADER + body
                    } else {
                        HEADER
                    };
                    if !fill(held, length, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let left = (HEADER + body).saturating_sub(held.len());
                    let come = held.get(HEADER..).unwrap_or_default();
                    match kind {
                        b'S' => shared.parameter(come),
                        b'E' => {
                            if let Some(words) = shared.failed() {
                                let hint = "`mantled policy explain` tells more about the session";
                                *held = error_response(
                                    Severity::Error,
                                    "42501",
                                    &format!("refused by mantled: {words}"),
                                    None,
                                    Some(hint),
                                );
                            }
                        }
                        kind => shared.answered(kind),
                    }
                    out.append(held);
                    self.state = State::Pass(left);
                }
                State::Pass(0) | State::Leave(0) => self.state = State::Head(Vec::new()),
                State::Pass(_) | State::Leave(_) if input.is_empty() => return Ok(Next::Continue),
                State::Pass(left) | State::Leave(left) => {
                    out.extend_from_slice(take(left, &mut input));
                }
                State::Failed(error) => return Err(error.clone()),
            }
        }
    }
}

impl Shared {
    /// ParameterStatus.
    fn parameter(&mut self, body: &[u8]) {
        let mut reader = Reader(body);
        if reader.cstring() == Some(b"standard_conforming_strings") {
            self.standard_strings = match reader.cstring() {
                Some(b"on") => Some(true),
                Some(b"off") => Some(false),
                _ => None,
            };
        }
    }
}

impl Rewrite for FromServer {
    fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        self.state.pass(input, b'D')
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let result = self.carry(input, out);
        result.inspect_err(|error| self.state = State::Failed(error.clone()))
    }
}

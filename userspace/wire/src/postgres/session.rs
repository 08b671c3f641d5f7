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
//!
//! Where answers are masked ([`masking`](super::masking)), two things are asked of the server that the
//! agent has not asked, and their answers are left out: which columns are masked, before the first such
//! command; and what the columns of a portal are, before each Execute.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Severity, error_response, header,
    masking::{
        self, Copied, Rows,
        catalogue::{self, Catalogue},
    },
};
use crate::{
    Next, Progress, Rewrite, RewriteError,
    command::{Command, Judge, Masked, Reach, Verdict},
    reader::Reader,
};

/// Longest Query or Parse that is read, in bytes. What is longer cannot be told.
const MAX_STATEMENT: usize = 256 * 1024;

/// Longest pair of names in a Bind. Servers cut names off at 63 bytes.
const MAX_NAMES: usize = 4 * 1024;

/// Longest message of the server's that is looked into.
const MAX_ANSWER: usize = 64 * 1024;

/// Longest row, and longest description of one, that is masked.
const MAX_ROW: usize = 1024 * 1024;

/// Most portals of which is remembered what they can have looked at.
const MAX_PORTALS: usize = 1024;

/// Most answers that the server may owe.
const MAX_OWED: usize = 128 * 1024;

/// Type byte and length.
const HEADER: usize = 5;

/// What stands in the place of a refused text, or names a statement that is not there.
const REFUSED: &[u8] = b"refused by mantled";

/// The two directions of a session, from its start-up packet on.
///
/// The first holds at most a message of 256 KiB, the second one of 64 KiB, or of 1 MiB where rows are
/// masked; together they remember at
/// most 128 Ki answers that are owed.
pub fn inspect(judge: Box<dyn Judge>) -> (FromAgent, FromServer) {
    let shared = Arc::new(Mutex::new(Shared::default()));
    (
        FromAgent {
            shared: Arc::clone(&shared),
            judge,
            state: State::Startup(Vec::new()),
            asking: Asking::default(),
        },
        FromServer {
            shared,
            state: State::Head(Vec::new()),
            rows: None,
            copied: None,
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
    /// The transaction's state, as the last ReadyForQuery has told it.
    status: u8,
    /// What is masked in what the server says unasked; None: nothing yet.
    masked: Option<Masked>,
    /// Which columns are masked, once the server has said it; None: it is not known.
    catalogue: Option<Catalogue>,
}

/// An answer that the server owes. What has been refused carries the words for the agent.
#[derive(Debug)]
enum Owed {
    /// To the start-up packet: everything until ReadyForQuery.
    Startup,
    /// To Query and FunctionCall: everything until ReadyForQuery.
    Query(Option<Box<str>>, Option<Masked>),
    /// To Execute: one message that ends it.
    Execute(Option<Masked>),
    /// To a Describe of the portal that is executed next, of our own: it is left out.
    Portal(Masked),
    /// To what we ask about the catalogue: everything is left out until the last of it.
    Catalogue {
        /// So far.
        found: Box<Catalogue>,
        /// ReadyForQuery comes; else the second CloseComplete is the last.
        has_sync: bool,
        closed: usize,
    },
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
            ),
            (Some(Owed::Execute(_)), b'C' | b'I' | b's') => true,
            (Some(Owed::Portal(_)), b'T' | b'n') => true,
            (Some(Owed::Startup | Owed::Query(..) | Owed::Sync), b'Z') => true,
            _ => false,
        };
        if done {
            self.owed.pop_front();
        }
    }

    /// The server has answered with an error: what the agent is told in its place, if that is ours.
    fn failed(&mut self) -> Option<Box<str>> {
        match self.owed.front_mut() {
            Some(Owed::Query(refused, _)) => refused.take(),
            Some(Owed::Part(_, refused)) => {
                let refused = refused.take();
                self.skip();
                refused
            }
            Some(Owed::Execute(_) | Owed::Portal(_) | Owed::Catalogue { .. }) => {
                self.skip();
                None
            }
            _ => None,
        }
    }

    /// The server skips everything until Sync.
    fn skip(&mut self) {
        while !matches!(self.owed.front(), Some(Owed::Sync | Owed::Startup) | None) {
            self.owed.pop_front();
        }
        self.skipping = self.owed.is_empty();
    }

    /// What is masked in what comes next.
    fn masked(&self) -> Option<&Masked> {
        match self.owed.front() {
            Some(Owed::Query(_, masked) | Owed::Execute(masked)) => masked.as_ref(),
            Some(Owed::Portal(masked)) => Some(masked),
            _ => None,
        }
    }

    /// Is what comes next for us alone? What the server says unasked is not.
    fn is_ours(&self, kind: u8) -> bool {
        match self.owed.front() {
            Some(Owed::Catalogue { .. }) => !b"NSA".contains(&kind),
            Some(Owed::Portal(_)) => matches!(kind, b'T' | b'n'),
            _ => false,
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn fault<T>(what: &str) -> Result<T, RewriteError> {
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
    /// How much of `input` is carried as it is: what is left of a message, and those behind it whose
    /// type needs no look.
    fn pass(
        &mut self,
        input: &[u8],
        needs_none: impl Fn(u8) -> bool,
    ) -> Result<usize, RewriteError> {
        let mut rest = input;
        loop {
            match self {
                Self::Pass(0) => *self = Self::Head(Vec::new()),
                Self::Pass(_) if rest.is_empty() => return Ok(input.len()),
                Self::Pass(left) => {
                    take(left, &mut rest);
                }
                Self::Head(held) if held.is_empty() => match message(rest) {
                    Ok(Some((kind, body))) if needs_none(kind) => {
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
    asking: Asking,
}

/// What is asked of the server on our own account.
#[derive(Debug, Default)]
struct Asking {
    /// Goes before the message that is decided about.
    before: Vec<u8>,
    /// What each portal can have looked at.
    portals: HashMap<Vec<u8>, Arc<Reach>>,
    /// The agent's pipeline has no Sync yet.
    in_pipeline: bool,
    /// The columns that were asked about last, and when.
    asked: Option<(Arc<[mantled_mask::Column]>, u64)>,
}

impl Asking {
    /// What is masked in the answer to the command that was carried just now.
    fn masked(
        &mut self,
        shared: &mut Shared,
        judge: &dyn Judge,
    ) -> Result<Option<Masked>, RewriteError> {
        let Some(masked) = judge.masked() else {
            return Ok(None);
        };
        if !masked.columns.is_empty() {
            self.ask(shared, &masked)?;
        }
        shared.masked = Some(Masked {
            reach: Arc::new(Reach::unknown()),
            ..masked.clone()
        });
        Ok(Some(masked))
    }

    /// Asks which columns are masked, where that is not known, or is too old and asking is nobody's
    /// harm: outside of transactions and pipelines.
    fn ask(&mut self, shared: &mut Shared, masked: &Masked) -> Result<(), RewriteError> {
        let are_known = matches!(&self.asked, Some((columns, _)) if **columns == *masked.columns);
        let is_fresh = matches!(self.asked, Some((_, epoch)) if epoch == masked.epoch);
        let is_idle = shared.owed.is_empty() && shared.status == b'I' && !self.in_pipeline;
        if are_known && (is_fresh || !is_idle) || shared.skipping {
            return Ok(());
        }
        let has_sync = !self.in_pipeline;
        shared.owe(Owed::Catalogue {
            found: Box::default(),
            has_sync,
            closed: 0,
        })?;
        self.before = catalogue::question(&masked.columns, has_sync);
        self.asked = Some((Arc::clone(&masked.columns), masked.epoch));
        Ok(())
    }

    /// A portal is executed: what its columns are is asked first.
    fn execute(
        &mut self,
        portal: &[u8],
        shared: &mut Shared,
        judge: &dyn Judge,
    ) -> Result<Option<Masked>, RewriteError> {
        let Some(mut masked) = self.masked(shared, judge)? else {
            return Ok(None);
        };
        // A portal that DECLARE has made, for one, is not known.
        let reach = self.portals.get(portal).cloned();
        masked.reach = reach.unwrap_or_else(|| Arc::new(Reach::unknown()));
        self.before
            .extend(framed(b'D', &[b"P", portal, &[0]].concat()));
        shared.owe(Owed::Portal(masked.clone()))?;
        Ok(Some(masked))
    }

    fn bound(&mut self, portal: &[u8], masked: Option<&Masked>) {
        if self.portals.len() >= MAX_PORTALS {
            self.portals.clear();
        }
        match masked {
            Some(masked) => {
                let reach = Arc::clone(&masked.reach);
                self.portals.insert(portal.to_owned(), reach);
            }
            None => {
                self.portals.remove(portal);
            }
        }
    }
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
                        match decide(held, &self.shared, &mut *self.judge, &mut self.asking)? {
                            Decision::NeedMore(more) => needed = more,
                            decision => break decision,
                        }
                    };
                    let Some((_, body)) = message(held)? else {
                        return Ok(Next::Continue);
                    };
                    let left = (HEADER + body).saturating_sub(held.len());
                    out.append(&mut self.asking.before);
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
        self.state.pass(input, |kind| kind == b'd')
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
    asking: &mut Asking,
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
            return statement(kind, (!is_long).then_some(come), &mut shared, judge, asking);
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
            return match judge.judge(&Command::Prepared { name }) {
                Verdict::Carry => {
                    let masked = asking.masked(&mut shared, judge)?;
                    asking.bound(portal, masked.as_ref());
                    asking.in_pipeline = true;
                    carried(Owed::Part(Part::Bind, None), &mut shared)
                }
                Verdict::Refuse(words) => {
                    asking.in_pipeline = true;
                    let names = [portal, &[0], REFUSED, &[0; 7]];
                    let owed = Owed::Part(Part::Bind, Some(words.into()));
                    replaced(owed, framed(b'B', &names.concat()), &mut shared)
                }
            };
        }
        b'F' => {
            // The answer to one whose values nobody can tell cannot be masked.
            let verdict = match judge.judge(&Command::Unknown) {
                Verdict::Carry if judge.masked().is_some() => {
                    let words = "the result of a function that is called by its number cannot be \
                                 masked; SELECT it";
                    Verdict::Refuse(words.to_owned())
                }
                verdict => verdict,
            };
            asking.in_pipeline = false;
            return match verdict {
                Verdict::Carry => carried(Owed::Query(None, None), &mut shared),
                Verdict::Refuse(words) => {
                    let owed = Owed::Query(Some(words.into()), None);
                    // Function 0, no formats, no arguments, its result as text.
                    replaced(owed, framed(b'F', &[0; 10]), &mut shared)
                }
            };
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
        b'E' => {
            let beginning = body.min(MAX_NAMES);
            if come.len() < beginning {
                return Ok(Decision::NeedMore(HEADER + beginning));
            }
            let Some(portal) = Reader(come).cstring() else {
                return fault("an Execute without a name");
            };
            let masked = asking.execute(portal, &mut shared, judge)?;
            asking.in_pipeline = true;
            return carried(Owed::Execute(masked), &mut shared);
        }
        b'S' => {
            asking.in_pipeline = false;
            shared.owe(Owed::Sync)?;
            return Ok(Decision::Carry);
        }
        // CopyData, CopyDone, CopyFail, Flush, passwords, Terminate.
        b'd' | b'c' | b'f' | b'H' | b'p' | b'X' => return Ok(Decision::Carry),
        kind => return fault(&format!("a message of unknown type {kind:#04x}")),
    };
    asking.in_pipeline = true;
    carried(Owed::Part(part, None), &mut shared)
}

/// Decides about a Query or a Parse, whose body is None where it is too long.
fn statement(
    kind: u8,
    body: Option<&[u8]>,
    shared: &mut Shared,
    judge: &mut dyn Judge,
    asking: &mut Asking,
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
    let text = [b"\"", REFUSED, b"\"\0"].concat();
    let decision = match (kind, verdict) {
        (b'Q', Verdict::Carry) => {
            let masked = asking.masked(shared, judge)?;
            carried(Owed::Query(None, masked), shared)
        }
        (b'Q', Verdict::Refuse(words)) => {
            let owed = Owed::Query(Some(words.into()), None);
            replaced(owed, framed(b'Q', &text), shared)
        }
        (_, Verdict::Carry) => carried(Owed::Part(Part::Parse, None), shared),
        (_, Verdict::Refuse(words)) => {
            let owed = Owed::Part(Part::Parse, Some(words.into()));
            // Of no name: one that the agent gives is not taken.
            let other = [&[0][..], &text, &[0, 0]].concat();
            replaced(owed, framed(b'P', &other), shared)
        }
    };
    asking.in_pipeline = kind == b'P';
    decision
}

fn carried(owed: Owed, shared: &mut Shared) -> Result<Decision, RewriteError> {
    shared.owe(owed)?;
    Ok(Decision::Carry)
}

fn replaced(owed: Owed, other: Vec<u8>, shared: &mut Shared) -> Result<Decision, RewriteError> {
    shared.owe(owed)?;
    Ok(Decision::Replace(other))
}

pub(super) fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind][..], &length, body].concat()
}

// ---- From the server

/// Follows what the server answers, replaces the errors that stand for a refusal, and masks.
#[derive(Debug)]
pub struct FromServer {
    shared: Arc<Mutex<Shared>>,
    state: State,
    /// The result whose rows come, where it is masked.
    rows: Option<Rows>,
    /// Rows that are copied out, where they are masked.
    copied: Option<Copied>,
}

/// How much of a message of this type must have come to be looked into; None: its head is enough.
fn longest(kind: u8, shared: &Shared, is_copied: bool) -> Option<usize> {
    match kind {
        b'S' | b'E' | b'Z' => Some(MAX_ANSWER),
        _ if shared.is_ours(kind) => Some(MAX_ROW),
        b'N' | b'A' if shared.masked.is_some() => Some(MAX_ANSWER),
        b'T' | b'D' | b'G' | b'H' | b'W' if shared.masked().is_some() => Some(MAX_ROW),
        b'd' if is_copied => Some(MAX_ROW),
        _ => None,
    }
}

impl FromServer {
    fn carry(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let known = Arc::clone(&self.shared);
        let mut shared = lock(&known);
        loop {
            match &mut self.state {
                State::Startup(held) | State::Head(held) => {
                    if !fill(held, HEADER, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let Some((kind, body)) = message(held)? else {
                        return Ok(Next::Continue);
                    };
                    let longest = longest(kind, &shared, self.copied.is_some());
                    let length = match longest {
                        Some(longest) if body > longest => {
                            return fault(&format!(
                                "a message of {body} bytes that has to be looked into; {longest} \
                                 bytes are read at most"
                            ));
                        }
                        Some(_) => HEADER + body,
                        None => HEADER,
                    };
                    if !fill(held, length, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let left = (HEADER + body).saturating_sub(held.len());
                    let mut held = std::mem::take(held);
                    let come = held.get(HEADER..).unwrap_or_default();
                    match self.answered(kind, come, &mut shared)? {
                        Answer::Carry => out.append(&mut held),
                        Answer::Replace(other) => out.extend_from_slice(&other),
                        Answer::Leave => {}
                    }
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

    /// What becomes of a message of the server's; `body` is whole where it is looked into.
    fn answered(
        &mut self,
        kind: u8,
        body: &[u8],
        shared: &mut Shared,
    ) -> Result<Answer, RewriteError> {
        if shared.is_ours(kind) {
            return self.ours(kind, body, shared);
        }
        match kind {
            b'S' => shared.parameter(body),
            b'Z' => {
                shared.status = body.first().copied().unwrap_or_default();
                (self.rows, self.copied) = (None, None);
                shared.answered(kind);
            }
            b'E' => {
                let masked = shared.masked().or(shared.masked.as_ref()).cloned();
                (self.rows, self.copied) = (None, None);
                if let Some(words) = shared.failed() {
                    let hint = "`mantled policy explain` tells more about the session";
                    return Ok(Answer::Replace(error_response(
                        Severity::Error,
                        "42501",
                        &format!("refused by mantled: {words}"),
                        None,
                        Some(hint),
                    )));
                }
                if let Some(masked) = masked {
                    let catalogue = shared.catalogue.as_ref();
                    let other = masking::words(kind, body, &masked, catalogue)?;
                    return Ok(Answer::Replace(other));
                }
            }
            b'N' => {
                if let Some(masked) = shared.masked().or(shared.masked.as_ref()) {
                    let catalogue = shared.catalogue.as_ref();
                    let other = masking::words(kind, body, masked, catalogue)?;
                    return Ok(Answer::Replace(other));
                }
            }
            b'A' => {
                if let Some(masked) = &shared.masked {
                    return Ok(Answer::Replace(notification(body, masked)));
                }
            }
            b'T' => {
                if let Some(masked) = shared.masked() {
                    let catalogue = shared.catalogue.as_ref();
                    self.rows = Some(Rows::described(body, masked, catalogue)?);
                }
                shared.answered(kind);
            }
            b'D' => match (shared.masked(), &self.rows) {
                (None, _) => {}
                (Some(_), Some(rows)) if rows.is_carried() => {}
                (Some(masked), Some(rows)) => {
                    return Ok(Answer::Replace(rows.masked(body, masked)?));
                }
                (Some(_), None) => return fault("a row that was not described"),
            },
            b'H' | b'W' if shared.masked().is_some() => {
                if kind == b'W' {
                    return fault("replication cannot be masked");
                }
                self.copied = Some(Copied::described(body));
            }
            b'd' => {
                if let (Some(masked), Some(copied)) = (shared.masked(), &mut self.copied) {
                    return Ok(Answer::Replace(copied.masked(body, masked)?));
                }
            }
            kind => {
                if matches!(kind, b'C' | b'I' | b's') {
                    (self.rows, self.copied) = (None, None);
                }
                shared.answered(kind);
            }
        }
        Ok(Answer::Carry)
    }

    /// A part of an answer that the agent has not asked for.
    fn ours(&mut self, kind: u8, body: &[u8], shared: &mut Shared) -> Result<Answer, RewriteError> {
        if let Some(Owed::Portal(masked)) = shared.owed.front() {
            self.rows = Some(match kind {
                b'T' => Rows::described(body, masked, shared.catalogue.as_ref())?,
                _ => Rows::none(),
            });
            shared.answered(kind);
            return Ok(Answer::Leave);
        }
        let Some(Owed::Catalogue {
            found,
            has_sync,
            closed,
        }) = shared.owed.front_mut()
        else {
            return Ok(Answer::Carry);
        };
        match kind {
            b'D' if found.learn(body).is_none() => {
                return fault("its catalogue cannot be read, so that columns cannot be masked");
            }
            b'E' => {
                let why = super::error_message(&framed(b'E', body)).unwrap_or_default();
                return fault(&format!(
                    "its catalogue cannot be read, so that columns cannot be masked: {why}"
                ));
            }
            b'3' => *closed += 1,
            _ => {}
        }
        let is_last = match kind {
            b'Z' => true,
            b'3' => !*has_sync && *closed == 2,
            _ => false,
        };
        if is_last && let Some(Owed::Catalogue { found, .. }) = shared.owed.pop_front() {
            shared.catalogue = Some(*found);
        }
        Ok(Answer::Leave)
    }
}

/// What becomes of a message of the server's.
enum Answer {
    Carry,
    Leave,
    /// This is carried in its place.
    Replace(Vec<u8>),
}

/// The NotificationResponse that is carried in this one's place.
fn notification(body: &[u8], masked: &Masked) -> Vec<u8> {
    let (sender, words) = body.split_at_checked(4).unwrap_or((body, &[]));
    framed(b'A', &[sender, &masked.masker.text(words)].concat())
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
        let shared = lock(&self.shared);
        let is_carried =
            shared.masked().is_none() || self.rows.as_ref().is_some_and(Rows::is_carried);
        let is_ours = shared.is_ours(b'D');
        let is_copied = self.copied.is_some();
        self.state.pass(input, |kind| match kind {
            b'D' => is_carried && !is_ours,
            b'd' => !is_copied,
            _ => false,
        })
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let result = self.carry(input, out);
        result.inspect_err(|error| self.state = State::Failed(error.clone()))
    }
}

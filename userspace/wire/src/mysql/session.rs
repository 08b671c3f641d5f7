//! A session's commands (MySQL Internals, "Command Phase"), each put to a judge.
//!
//! What is judged: COM_QUERY and COM_STMT_PREPARE by their text, COM_INIT_DB and COM_FIELD_LIST by the
//! statements that do the same, COM_STMT_EXECUTE as whatever was prepared, and every other command that
//! does more than to keep the session as one whose effect nobody can tell.
//!
//! A refused command is replaced by a COM_QUERY whose text is no SQL. The server answers it with an
//! error that quotes the text, by which it is known on the way back, and gets the reason for its words.
//!
//! A command begins in a packet of number 0, and a server takes no other for one. Packets of other
//! numbers are what a command goes on with: the file of LOAD DATA LOCAL, where the server has asked for
//! it. Elsewhere they end the session.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{ERR, error_packet};
use crate::{
    Next, Rewrite, RewriteError,
    command::{Command, Judge, Verdict},
};

/// Longest command that is read, in bytes. What is longer cannot be told.
const MAX_COMMAND: usize = 256 * 1024;

/// Longest error of the server's that is looked into.
const MAX_ERROR: usize = 4 * 1024;

/// Length and number.
const HEADER: usize = 4;

/// The longest payload of a packet; what is longer goes on in the next one.
const FULL: usize = 0xff_ffff;

/// The first byte of the answer by which a server asks for a file.
const LOCAL_INFILE: u8 = 0xfb;

/// What a refused command is replaced by, and a number behind it.
const REFUSED: &str = "refused by mantled ";

/// Most reasons that are remembered until their errors come back.
const REASONS: usize = 1024;

/// ER_SPECIFIC_ACCESS_DENIED_ERROR and its SQLSTATE.
const DENIED: (u16, &[u8; 5]) = (1227, b"42000");

/// The two directions of a session, from its first command on. `no_backslash_escapes`: the SQL mode
/// that the server has begun with.
///
/// The first holds at most a command of 256 KiB, the second an error of 4 KiB.
pub fn inspect(judge: Box<dyn Judge>, no_backslash_escapes: bool) -> (FromAgent, FromServer) {
    let reasons = Arc::new(Mutex::new(Reasons::default()));
    (
        FromAgent {
            judge,
            reasons: Arc::clone(&reasons),
            plain_strings: Some(no_backslash_escapes),
            state: State::Head(Vec::new()),
            goes_on: None,
            refusal: None,
        },
        FromServer {
            reasons,
            state: State::Head(Vec::new()),
            goes_on: false,
        },
    )
}

/// Why commands were refused, by the number in the text that stands for them; and how many packets
/// more than one they had, by which their answers are numbered.
#[derive(Debug, Default)]
struct Reasons {
    /// The server has asked for a file, and its end has not come.
    expects_file: bool,
    next: u64,
    known: VecDeque<(u64, String, u8)>,
}

fn lock(reasons: &Mutex<Reasons>) -> MutexGuard<'_, Reasons> {
    reasons.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where in its stream a direction is.
#[derive(Debug)]
enum State {
    /// In a packet of which nothing is decided; this has come.
    Head(Vec<u8>),
    /// So many bytes are still to be carried.
    Pass(usize),
    /// So many bytes are still to be left out.
    Leave(usize),
}

/// Length of the payload and number of the packet that begins here.
fn header(stream: &[u8]) -> Option<(usize, u8)> {
    let [a, b, c, number] = *stream.first_chunk::<HEADER>()?;
    Some((u32::from_le_bytes([a, b, c, 0]) as usize, number))
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
    judge: Box<dyn Judge>,
    reasons: Arc<Mutex<Reasons>>,
    /// NO_BACKSLASH_ESCAPES; None: the agent may have changed it.
    plain_strings: Option<bool>,
    state: State,
    /// The last packet was full, so the next one goes on with it: carried, or not.
    goes_on: Option<bool>,
    /// Why the command that is being read is refused, and how many packets more than one it has.
    refusal: Option<(String, u8)>,
}

impl FromAgent {
    fn carry(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        loop {
            match &mut self.state {
                State::Pass(0) | State::Leave(0) => self.state = State::Head(Vec::new()),
                State::Pass(_) | State::Leave(_) if input.is_empty() => return Ok(Next::Continue),
                State::Pass(left) => out.extend_from_slice(take(left, &mut input)),
                State::Leave(left) => {
                    take(left, &mut input);
                }
                State::Head(held) => {
                    if !fill(held, HEADER, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let Some((length, number)) = header(held) else {
                        return Ok(Next::Continue);
                    };
                    let is_new = self.goes_on.is_none() && number == 0;
                    let is_long = length > MAX_COMMAND;
                    // Of a long one its first byte tells which command it is.
                    let needed = if is_long { 1 } else { length };
                    if is_new && !fill(held, HEADER + needed, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let carried = match (is_new, self.goes_on) {
                        (false, Some(carried)) => carried,
                        (false, None) => {
                            let mut reasons = lock(&self.reasons);
                            if !reasons.expects_file {
                                return Err(RewriteError::Protocol(
                                    "MySQL: a packet that belongs to no command".to_owned(),
                                ));
                            }
                            // An empty one ends the file.
                            reasons.expects_file = length > 0;
                            true
                        }
                        (true, _) => {
                            lock(&self.reasons).expects_file = false;
                            let payload = held.get(HEADER..).unwrap_or_default();
                            match decide(
                                payload,
                                is_long,
                                &mut *self.judge,
                                &mut self.plain_strings,
                            ) {
                                Verdict::Carry => true,
                                Verdict::Refuse(reason) => {
                                    self.refusal = Some((reason, 0));
                                    false
                                }
                            }
                        }
                    };
                    self.goes_on = (length == FULL).then_some(carried);
                    if self.goes_on.is_some() {
                        if let Some((_, packets)) = &mut self.refusal {
                            *packets = packets.wrapping_add(1);
                        }
                    } else if let Some((reason, packets)) = self.refusal.take() {
                        // Behind the last packet, so that the answer gets its number.
                        out.extend_from_slice(&refused(&self.reasons, reason, packets));
                    }
                    let left = (HEADER + length).saturating_sub(held.len());
                    if carried {
                        out.append(held);
                        self.state = State::Pass(left);
                    } else {
                        self.state = State::Leave(left);
                    }
                }
            }
        }
    }
}

/// Decides about a command.
fn decide(
    payload: &[u8],
    is_long: bool,
    judge: &mut dyn Judge,
    plain_strings: &mut Option<bool>,
) -> Verdict {
    let Some((command, body)) = payload.split_first() else {
        return judge.judge(&Command::Unknown);
    };
    let quoted = |name: &[u8]| {
        let doubled = String::from_utf8_lossy(name).replace('`', "``");
        format!("`{doubled}`").into_bytes()
    };
    let (text, name) = match command {
        // COM_QUIT, COM_STATISTICS, COM_PING; COM_STMT_SEND_LONG_DATA, _CLOSE, _RESET, _FETCH;
        // COM_SET_OPTION, COM_RESET_CONNECTION.
        0x01 | 0x09 | 0x0e | 0x18..=0x1a | 0x1b | 0x1c | 0x1f => return Verdict::Carry,
        // COM_STMT_EXECUTE, and MariaDB's COM_STMT_BULK_EXECUTE.
        0x17 | 0xfa => return judge.judge(&Command::Prepared { name: b"" }),
        // COM_INIT_DB
        0x02 => ([b"use ", quoted(body).as_slice()].concat(), None),
        // COM_FIELD_LIST: a table, NUL, a pattern.
        0x04 => {
            let table = body.split(|byte| *byte == 0).next().unwrap_or_default();
            ([b"describe ", quoted(table).as_slice()].concat(), None)
        }
        // COM_QUERY, COM_STMT_PREPARE
        0x03 => (body.to_vec(), None),
        0x16 => (body.to_vec(), Some(&b""[..])),
        _ => return judge.judge(&Command::Unknown),
    };
    let verdict = judge.judge(&Command::Statement {
        text: (!is_long).then_some(&text),
        plain_strings: *plain_strings,
        name,
    });
    if names_the_mode(&text) || is_long {
        *plain_strings = None;
    }
    verdict
}

/// May this change how strings are read?
fn names_the_mode(text: &[u8]) -> bool {
    text.windows(8)
        .any(|window| window.eq_ignore_ascii_case(b"sql_mode"))
}

/// Remembers why, and makes what stands for the command.
fn refused(reasons: &Mutex<Reasons>, reason: String, packets: u8) -> Vec<u8> {
    let mut reasons = lock(reasons);
    let number = reasons.next;
    reasons.next += 1;
    if reasons.known.len() >= REASONS {
        reasons.known.pop_front();
    }
    reasons.known.push_back((number, reason, packets));
    let text = format!("\x03{REFUSED}{number};");
    super::framed(0, text.as_bytes()).to_vec()
}

impl Rewrite for FromAgent {
    fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        match &mut self.state {
            State::Pass(left) => {
                let mut rest = input;
                Ok(take(left, &mut rest).len())
            }
            _ => Ok(0),
        }
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.carry(input, out)
    }
}

// ---- From the server

/// Replaces the errors that stand for a refusal.
#[derive(Debug)]
pub struct FromServer {
    reasons: Arc<Mutex<Reasons>>,
    state: State,
    /// The last packet was full: the next one goes on with it.
    goes_on: bool,
}

impl FromServer {
    fn carry(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        loop {
            match &mut self.state {
                State::Pass(0) | State::Leave(0) => self.state = State::Head(Vec::new()),
                State::Pass(_) | State::Leave(_) if input.is_empty() => return Ok(Next::Continue),
                State::Pass(left) | State::Leave(left) => {
                    out.extend_from_slice(take(left, &mut input));
                }
                State::Head(held) => {
                    if !fill(held, HEADER, &mut input) {
                        return Ok(Next::Continue);
                    }
                    let Some((length, number)) = header(held) else {
                        return Ok(Next::Continue);
                    };
                    if !fill(held, HEADER + length.min(1), &mut input) {
                        return Ok(Next::Continue);
                    }
                    let is_error =
                        !self.goes_on && held.get(HEADER) == Some(&ERR) && length <= MAX_ERROR;
                    if is_error {
                        if !fill(held, HEADER + length, &mut input) {
                            return Ok(Next::Continue);
                        }
                        if let Some((reason, packets)) = reason(&self.reasons, held) {
                            let number = number.wrapping_add(packets);
                            let (code, state) = DENIED;
                            let text = format!("refused by mantled: {reason}");
                            *held = error_packet(number, code, Some(state), &text);
                            out.append(held);
                            continue;
                        }
                    }
                    if !self.goes_on && number == 1 && held.get(HEADER) == Some(&LOCAL_INFILE) {
                        lock(&self.reasons).expects_file = true;
                    }
                    self.goes_on = length == FULL;
                    let left = (HEADER + length).saturating_sub(held.len());
                    out.append(held);
                    self.state = State::Pass(left);
                }
            }
        }
    }
}

/// Why what this error stands for was refused, and in how many packets more than one; None: it is the server's own.
fn reason(reasons: &Mutex<Reasons>, packet: &[u8]) -> Option<(String, u8)> {
    let text = String::from_utf8_lossy(packet);
    let (_, number) = text.split_once(REFUSED)?;
    let end = number
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(number.len());
    let number: u64 = number.get(..end)?.parse().ok()?;
    let reasons = lock(reasons);
    let mut known = reasons.known.iter();
    known
        .find(|(known, ..)| *known == number)
        .map(|(_, reason, packets)| (reason.clone(), *packets))
}

impl Rewrite for FromServer {
    /// Rows and what else is no error, packet after packet.
    fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        let mut rest = input;
        loop {
            match &mut self.state {
                State::Pass(0) => self.state = State::Head(Vec::new()),
                State::Pass(_) if rest.is_empty() => return Ok(input.len()),
                State::Pass(left) => {
                    take(left, &mut rest);
                }
                State::Head(held) if held.is_empty() => match (header(rest), rest.get(HEADER)) {
                    (Some((length @ 1.., number)), Some(first))
                        if self.goes_on
                            || (*first != ERR && (number, *first) != (1, LOCAL_INFILE)) =>
                    {
                        self.goes_on = length == FULL;
                        self.state = State::Pass(HEADER + length);
                    }
                    _ => return Ok(input.len() - rest.len()),
                },
                _ => return Ok(input.len() - rest.len()),
            }
        }
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.carry(input, out)
    }
}

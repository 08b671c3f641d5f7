//! What agent and server say on the control connection, changed on its way.

use std::{
    fmt::Debug,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    address::{active_command, extended_passive_port, parse_eprt, parse_port, passive_port},
    code,
};
use crate::{Next, Rewrite, RewriteError};

/// Longest line of either side, in bytes; servers take about 4 KiB.
const MAX_LINE: usize = 8 * 1024;

/// Stands for a command that must not reach the server: none knows it, so its refusal comes in
/// the order of replies, with a code that every client takes for one (500, 502 or 530).
const UNKNOWN: &[u8] = b"XREFUSED\r\n";

/// What an agent whose TLS is made for it may not say: RFC 2228 and RFC 4217, their extensions for
/// transfers between servers, REIN (which ends TLS), and the addresses of RFC 1639.
const REFUSED: [&[u8]; 13] = [
    b"AUTH", b"ADAT", b"PBSZ", b"PROT", b"CCC", b"MIC", b"CONF", b"ENC", b"CPSV", b"SSCN", b"REIN",
    b"LPRT", b"LPSV",
];

/// Features that such an agent is not shown.
const HIDDEN: [&[u8]; 6] = [b"AUTH", b"PBSZ", b"PROT", b"CCC", b"CPSV", b"SSCN"];

/// What the two filters tell and ask about data connections.
pub trait DataChannels: Send + Debug {
    /// The server listens on this port of its own for the next data connection.
    fn passive(&mut self, port: u16);

    /// The agent listens there for the next data connection. Where is the server to connect
    /// instead? None: nowhere, and the agent is refused.
    fn active(&mut self, listener: SocketAddr) -> Option<SocketAddr>;
}

/// What the filters are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The proxy has made TLS, of which the agent knows nothing.
    Secured,
    /// The control connection is carried in clear; only data connections are looked after, until
    /// the agent makes TLS of its own.
    Watched,
}

/// The filters of a control connection, first of what the agent sends.
pub fn filters<D: DataChannels + Clone>(channels: D, role: Role) -> (Commands<D>, Replies<D>) {
    let opaque = Arc::new(AtomicBool::new(false));
    let commands = Commands {
        channels: channels.clone(),
        role,
        opaque: Arc::clone(&opaque),
        lines: Lines::default(),
    };
    let replies = Replies {
        channels,
        role,
        opaque,
        lines: Lines::default(),
        within: None,
        closing: false,
    };
    (commands, replies)
}

/// Changes what the agent sends.
#[derive(Debug)]
pub struct Commands<D> {
    channels: D,
    role: Role,
    /// The server has agreed to TLS of the agent's own.
    opaque: Arc<AtomicBool>,
    lines: Lines,
}

/// Changes what the server sends.
#[derive(Debug)]
pub struct Replies<D> {
    channels: D,
    role: Role,
    opaque: Arc<AtomicBool>,
    lines: Lines,
    /// The code of the reply of several lines in which the next line stands.
    within: Option<u16>,
    /// The last reply was that the server closes (221, 421).
    closing: bool,
}

/// Cuts a stream into lines.
///
/// Invariant: `held` is the beginning of a line, without its end, and shorter than [`MAX_LINE`].
#[derive(Debug, Default)]
struct Lines {
    held: Vec<u8>,
}

/// What [`Lines`] found.
enum Found {
    /// A line with its end.
    Line(Vec<u8>),
    /// Nothing whole; the input is used up.
    NeedMore,
    /// A line that is longer than any may be.
    TooLong,
}

impl Lines {
    fn next(&mut self, input: &mut &[u8]) -> Found {
        let end = input.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(input.len(), |end| end + 1);
        if self.held.len() + length >= MAX_LINE {
            return Found::TooLong;
        }
        let (taken, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
        self.held.extend_from_slice(taken);
        *input = rest;
        match end {
            Some(_) => Found::Line(std::mem::take(&mut self.held)),
            None => Found::NeedMore,
        }
    }
}

impl<D: DataChannels> Rewrite for Commands<D> {
    fn rewrite(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        loop {
            if self.opaque.load(Ordering::Relaxed) {
                out.append(&mut self.lines.held);
                out.extend_from_slice(input);
                return Ok(Next::Done);
            }
            match self.lines.next(&mut input) {
                Found::Line(line) => self.command(&line, out),
                Found::NeedMore => return Ok(Next::Continue),
                Found::TooLong => {
                    too_long(self.role, "command")?;
                    self.opaque.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.lines.held);
        if !line.is_empty() {
            self.command(&line, out);
        }
    }
}

impl<D: DataChannels> Commands<D> {
    fn command(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let command = match self.role {
            Role::Secured => without_telnet(line),
            Role::Watched => line,
        };
        let (verb, argument) = words(command);
        let listener = match verb.as_slice() {
            b"PORT" => parse_port(argument),
            b"EPRT" => parse_eprt(argument),
            verb if self.role == Role::Secured && REFUSED.contains(&verb) => {
                out.extend_from_slice(UNKNOWN);
                return;
            }
            _ => {
                out.extend_from_slice(command);
                return;
            }
        };
        match listener.and_then(|listener| self.channels.active(listener)) {
            Some(listener) => {
                out.extend_from_slice(active_command(listener, verb == b"PORT").as_bytes());
            }
            None => out.extend_from_slice(UNKNOWN),
        }
    }
}

impl<D: DataChannels> Rewrite for Replies<D> {
    fn rewrite(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        loop {
            if self.opaque.load(Ordering::Relaxed) {
                out.append(&mut self.lines.held);
                out.extend_from_slice(input);
                return Ok(Next::Done);
            }
            match self.lines.next(&mut input) {
                Found::Line(line) => self.reply(line, out),
                Found::NeedMore => return Ok(Next::Continue),
                Found::TooLong => {
                    too_long(self.role, "reply")?;
                    self.opaque.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.closing && self.lines.held.is_empty()
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.lines.held);
        if !line.is_empty() {
            self.reply(line, out);
        }
    }
}

impl<D: DataChannels> Replies<D> {
    fn reply(&mut self, mut line: Vec<u8>, out: &mut Vec<u8>) {
        let own = code(&line);
        let more = own.is_some() && line.get(3) == Some(&b'-');
        let last = matches!(line.get(3), Some(b' ' | b'\r' | b'\n'));
        let begins = self.within.is_none();
        let code = match self.within {
            Some(within) => within,
            None => own.unwrap_or_default(),
        };
        // Does the line carry the reply's code, as its first and its last do?
        let marked = own == Some(code);
        self.within = match (begins, more) {
            (true, true) => own,
            (false, false) if marked && last => None,
            (_, _) => self.within,
        };
        self.closing = self.within.is_none() && matches!(code, 221 | 421);
        if self.role == Role::Secured && code == 211 && !begins && is_hidden(&line) {
            return;
        }
        if marked {
            self.announce(code, &line);
        }
        if marked && matches!(code, 234 | 334) {
            match (self.role, line.first_mut()) {
                // Nothing that the agent can have asked for. "Request denied for policy reasons".
                (Role::Secured, Some(first)) => *first = b'5',
                (Role::Watched, _) if code == 234 && self.within.is_none() => {
                    self.opaque.store(true, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        out.append(&mut line);
    }

    /// Tells of the data connection that a reply names.
    fn announce(&mut self, code: u16, line: &[u8]) {
        let port = match code {
            227 => passive_port(line),
            229 => extended_passive_port(line),
            _ => None,
        };
        if let Some(port) = port.filter(|port| *port != 0) {
            self.channels.passive(port);
        }
    }
}

fn too_long(role: Role, what: &str) -> Result<(), RewriteError> {
    match role {
        Role::Secured => Err(RewriteError::Protocol(format!(
            "an FTP {what} of more than {MAX_LINE} bytes"
        ))),
        Role::Watched => Ok(()),
    }
}

/// Clients send Telnet's "interrupt process" and "synch" before ABOR (RFC 959 §4.1.3, RFC 854) as
/// urgent data, which TLS does not have; servers do not expect them there.
fn without_telnet(mut line: &[u8]) -> &[u8] {
    while let [0xff, 0xf1..=0xf9, rest @ ..] = line {
        line = rest;
    }
    line
}

/// A command's verb, in capitals, and its argument.
fn words(line: &[u8]) -> (Vec<u8>, &[u8]) {
    let line = line.trim_ascii();
    let end = line
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(line.len());
    let (verb, argument) = line.split_at_checked(end).unwrap_or((line, &[]));
    (verb.to_ascii_uppercase(), argument.trim_ascii())
}

/// Is this a feature (RFC 2389 §3.2) that the agent is not shown? Some servers repeat the code
/// on every line.
fn is_hidden(line: &[u8]) -> bool {
    let feature = match line {
        [b' ', feature @ ..] => feature,
        [b'2', b'1', b'1', b'-', feature @ ..] => feature,
        _ => return false,
    };
    let end = feature
        .iter()
        .position(|byte| !byte.is_ascii_alphanumeric())
        .unwrap_or(feature.len());
    let name = feature.get(..end).unwrap_or_default().to_ascii_uppercase();
    HIDDEN.contains(&name.as_slice())
}

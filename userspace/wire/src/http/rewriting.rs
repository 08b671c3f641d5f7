//! HTTP/1.1 inside TLS for an agent that speaks it in clear (RFC 9112, RFC 9110).
//!
//! The agent believes that it talks to `http://host`, the server knows that it is
//! `https://host`. What either says about itself is translated, so that the agent stays on the
//! connection that mantled verifies, and the server takes the agent for its own.
//!
//! From the server:
//! - `Location`, `Content-Location` and the URL of `Refresh` that point to `https://` of the host
//!   that was asked become `http://` with the agent's port. An agent that followed them with TLS
//!   of its own would leave mantled's sight; and where a server redirects `http` to `https`, it
//!   would do so for ever. Other hosts and other ports are left alone.
//! - `Strict-Transport-Security` (RFC 6797 §7.2 forbids it on `http`) and `Alt-Svc` (RFC 7838) are
//!   taken out: both lead the agent to another connection than this one.
//! - `Secure` is taken out of `Set-Cookie` (RFC 6265 §5.2.5), for an agent returns such a cookie
//!   only to `https`. Cookies named `__Secure-` and `__Host-` are left alone: clients that know
//!   the prefixes refuse them without `Secure`, and on `http` in any case. `SameSite=None`
//!   without `Secure` stays, which browsers alone refuse.
//!
//! From the agent: `Origin`, `Referer` and WebDAV's `Destination` with `http://` of the host that
//! is asked become `https://`, which is what servers compare them with against forged requests.
//! `Host` and request targets, absolute ones too, are left alone.
//!
//! Bodies and trailers pass as they are. So does everything after a connection has become another
//! protocol's (`101 Switching Protocols`, `CONNECT`). HTTP/2 is not changed: its header sections
//! are compressed with a state that both ends share (RFC 7541), so changing one field takes a
//! proxy of the whole protocol.
//!
//! Messages are framed strictly. Where agent and server could see different boundaries between
//! messages the session ends (RFC 9112 §11.2).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Asks, Begins, begins_with,
    body::{Body, Framing},
    forbidden,
    head::{Field, Section, after, fault, is_token, start_and_fields, trimmed},
    origin::{self, Host, Ports},
};
use crate::{
    Next, Rewrite, RewriteError,
    command::{Command, Judge, Verdict},
};

/// Most requests that wait for their answers. Clients that pipeline have a few dozen.
const MAX_PENDING: usize = 1024;

/// Fields by which a request asks for another method than its line does. No standard has them; many
/// frameworks do.
const METHOD_OVERRIDES: [&str; 3] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
];

/// What is known of a stream before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It is HTTP/1.
    Http,
    /// It may be. The agent's first bytes tell, and anything else passes as it is.
    Anything,
}

/// The two directions of a session: what changes the agent's requests, and the server's
/// responses. They share what is asked and not answered.
///
/// Each holds at most one header section of 64 KiB, and together at most 1024 requests' hosts.
pub fn rewriting(expected: Expected, ports: Ports) -> (Requests, Responses) {
    directions(expected, Some(ports), None)
}

/// The same for a session whose requests are put to a judge. One that is refused does not reach the
/// server, and is answered in its turn with 403. Without ports nothing is translated, for the server
/// speaks in clear as well.
pub fn inspect(ports: Option<Ports>, judge: Box<dyn Judge>) -> (Requests, Responses) {
    directions(Expected::Http, ports, Some(judge))
}

fn directions(
    expected: Expected,
    ports: Option<Ports>,
    judge: Option<Box<dyn Judge>>,
) -> (Requests, Responses) {
    let exchange = Arc::new(Mutex::new(Exchange {
        ports,
        mode: match expected {
            Expected::Http => Mode::Http,
            Expected::Anything => Mode::Undecided,
        },
        pending: VecDeque::new(),
        host: None,
        between_requests: true,
        is_over: false,
    }));
    let state = match expected {
        Expected::Http => RequestState::Head(Section::default()),
        Expected::Anything => RequestState::Undecided(Vec::new()),
    };
    (
        Requests {
            exchange: Arc::clone(&exchange),
            judge,
            state,
            carried: 0,
        },
        Responses {
            exchange,
            state: ResponseState::Head(Section::default()),
            last: false,
        },
    )
}

/// What both directions know.
#[derive(Debug)]
struct Exchange {
    /// None: nothing is translated.
    ports: Option<Ports>,
    mode: Mode,
    /// Requests without their final answer, oldest first; at most [`MAX_PENDING`].
    pending: VecDeque<Asked>,
    /// The last request's host.
    host: Option<Arc<Host>>,
    /// The agent's stream is between two requests, and nothing of the next one has come.
    between_requests: bool,
    /// The last answer was the proxy's, and has been given.
    is_over: bool,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// That is not known yet.
    Undecided,
    /// HTTP.
    Http,
    /// Something else, from here on or from the beginning.
    Other,
}

/// What a request says about its answer.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    /// Another protocol may follow.
    upgrade: bool,
    host: Option<Arc<Host>>,
    refused: Option<Refused>,
}

/// What becomes of a request that was refused.
#[derive(Clone, Debug)]
struct Refused {
    answer: Vec<u8>,
    /// The connection ends behind it.
    is_last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

impl Exchange {
    /// What follows is another protocol's. Whatever the agent has said already was read as HTTP.
    fn leave_http(&mut self) -> Result<(), RewriteError> {
        if !self.pending.is_empty() || !self.between_requests {
            return fault("the agent went on before the server had switched protocols");
        }
        self.mode = Mode::Other;
        Ok(())
    }
}

impl Exchange {
    /// Appends the answer to the oldest request, if that was refused.
    fn answer(&mut self, out: &mut Vec<u8>) -> bool {
        let refused = self
            .pending
            .front_mut()
            .and_then(|asked| asked.refused.take());
        let Some(refused) = refused else {
            return false;
        };
        out.extend_from_slice(&refused.answer);
        self.is_over = refused.is_last;
        self.pending.pop_front();
        true
    }
}

fn lock(exchange: &Mutex<Exchange>) -> MutexGuard<'_, Exchange> {
    exchange.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- Requests

/// Changes what the agent sends.
#[derive(Debug)]
pub struct Requests {
    exchange: Arc<Mutex<Exchange>>,
    judge: Option<Box<dyn Judge>>,
    state: RequestState,
    /// So much of the head that is being read was carried when nobody knew yet what it is. A
    /// request line is not changed, so the rest of the head can follow.
    carried: usize,
}

#[derive(Debug)]
enum RequestState {
    /// At the beginning, of which at most 24 bytes are needed. They are carried as they come: who
    /// speaks something else may be waiting for an answer to them.
    Undecided(Vec<u8>),
    Head(Section),
    Body(Body),
    /// The body of a request that was refused.
    Refused(Body),
    Failed(RewriteError),
}

impl Requests {
    fn carry(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let mut exchange = lock(&self.exchange);
        let mut rest = input;
        loop {
            if exchange.mode == Mode::Other {
                out.extend_from_slice(rest);
                return Ok(Next::Done);
            }
            match &mut self.state {
                RequestState::Undecided(seen) => {
                    let Some((byte, after)) = rest.split_first() else {
                        return Ok(Next::Continue);
                    };
                    seen.push(*byte);
                    out.push(*byte);
                    rest = after;
                    match begins_with(seen) {
                        Begins::NeedMore => {}
                        Begins::Http1 => {
                            let mut section = Section::default();
                            section.take(&mut seen.as_slice())?;
                            self.carried = seen.len();
                            exchange.mode = Mode::Http;
                            self.state = RequestState::Head(section);
                        }
                        Begins::Http2 | Begins::No => exchange.mode = Mode::Other,
                    }
                }
                RequestState::Head(section) => {
                    let whole = section.take(&mut rest)?;
                    exchange.between_requests = section.is_empty();
                    match whole {
                        None => return Ok(Next::Continue),
                        // What older clients send behind a body (RFC 9112 §2.2).
                        Some(section) if section == b"\r\n" => {}
                        Some(section) => {
                            let mut head = Vec::with_capacity(section.len() + 16);
                            let judge = self.judge.as_deref_mut();
                            let body = request(&section, &mut exchange, judge, &mut head)?;
                            let carried = std::mem::take(&mut self.carried);
                            out.extend_from_slice(head.get(carried..).unwrap_or_default());
                            exchange.between_requests = matches!(body, Body::Ended);
                            self.state = if head.is_empty() {
                                RequestState::Refused(body)
                            } else {
                                RequestState::Body(body)
                            };
                        }
                    }
                }
                RequestState::Body(Body::Ended) | RequestState::Refused(Body::Ended) => {
                    exchange.between_requests = true;
                    self.state = RequestState::Head(Section::default());
                }
                RequestState::Body(_) | RequestState::Refused(_) if rest.is_empty() => {
                    return Ok(Next::Continue);
                }
                RequestState::Body(body) => body.carry(&mut rest, out)?,
                RequestState::Refused(body) => body.carry(&mut rest, &mut Vec::new())?,
                RequestState::Failed(error) => return Err(error.clone()),
            }
        }
    }
}

impl Rewrite for Requests {
    fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        match &mut self.state {
            RequestState::Body(body) => {
                let passed = body.pass(input);
                if matches!(body, Body::Ended) {
                    lock(&self.exchange).between_requests = true;
                }
                passed.inspect_err(|error| self.state = RequestState::Failed(error.clone()))
            }
            _ => Ok(0),
        }
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let result = self.carry(input, out);
        result.inspect_err(|error| self.state = RequestState::Failed(error.clone()))
    }
}

/// Appends a request's head as the server is to see it, and says what body follows. Nothing is
/// appended where the judge refuses it.
fn request(
    section: &[u8],
    exchange: &mut Exchange,
    judge: Option<&mut (dyn Judge + 'static)>,
    out: &mut Vec<u8>,
) -> Result<Body, RewriteError> {
    let Some((start, fields)) = start_and_fields(section) else {
        return fault("no request");
    };
    let line = RequestLine::parse(start)?;
    let mut framing = Framing::default();
    let mut host_field = None;
    let mut upgrade = false;
    let mut to_other = false;
    let mut overrides = false;
    // Whether a body follows that was to be waited for nobody can tell (RFC 9110 §10.1.1).
    let mut is_last = line.is_old;
    for field in fields.clone() {
        let field = field?;
        framing.note(&field)?;
        overrides |= METHOD_OVERRIDES.iter().any(|name| field.is(name));
        is_last |= field.is("expect") || (field.is("connection") && says_close(field.value));
        if field.is("host") && host_field.replace(field.value).is_some() {
            return fault("two Host fields");
        }
        if field.is("upgrade") {
            upgrade = true;
            to_other |= !field.value.eq_ignore_ascii_case(b"websocket");
        }
    }
    if framing.chunked && line.is_old {
        return fault("Transfer-Encoding in HTTP/1.0");
    }
    let method = line.method;
    if method == Method::Connect && (framing.chunked || framing.length.is_some()) {
        return fault("CONNECT with a body");
    }
    let host = Host::of_target(line.target).or_else(|| Host::parse(host_field?));
    exchange.host = origin::shared(host, &exchange.host);
    if exchange.pending.len() >= MAX_PENDING {
        return fault("too many requests without an answer");
    }
    let body = Body::new(framing, Body::Ended);
    let refused: Option<Refused> = judge.and_then(|judge| {
        let own = host_field.and_then(Host::parse);
        let named = exchange.host.as_deref();
        let host = named.map(Host::lower_case);
        let command = Command::Request {
            method: &String::from_utf8_lossy(line.word),
            host: host.as_deref(),
            target: &String::from_utf8_lossy(line.target),
            is_more: upgrade || overrides || method == Method::Connect,
            // Behind h2c are requests that nobody reads.
            is_ambiguous: own.as_ref() != named || to_other,
        };
        match judge.judge(&command) {
            Verdict::Carry => None,
            Verdict::Refuse(reason) => {
                let asks = Asks {
                    head: method == Method::Head,
                    close: is_last,
                    kubernetes: [&b"/api/"[..], b"/apis/"]
                        .iter()
                        .any(|begin| line.target.starts_with(begin)),
                };
                Some(Refused {
                    answer: forbidden(&reason, asks),
                    is_last,
                })
            }
        }
    });
    let is_refused = refused.is_some();
    exchange.pending.push_back(Asked {
        method,
        upgrade,
        host: exchange.host.clone(),
        refused,
    });
    if is_refused {
        return Ok(if is_last { Body::UntilEnd } else { body });
    }

    out.extend_from_slice(start);
    out.extend_from_slice(b"\r\n");
    for field in fields {
        let field = field?;
        let names_itself = ["origin", "referer", "destination"]
            .iter()
            .any(|name| field.is(name));
        let own = match (&exchange.host, exchange.ports) {
            (Some(host), Some(ports)) if names_itself => host.as_https(field.value, ports),
            _ => None,
        };
        append(out, &field, own);
    }
    out.extend_from_slice(b"\r\n");
    Ok(body)
}

/// A request line (RFC 9112 §3).
struct RequestLine<'a> {
    word: &'a [u8],
    method: Method,
    target: &'a [u8],
    /// HTTP/1.0.
    is_old: bool,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, RewriteError> {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return fault("a request line that has not three words");
        };
        if !is_token(method) {
            return fault("a method that is no token");
        }
        if target.is_empty() || target.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f)) {
            return fault("a malformed request target");
        }
        Ok(Self {
            word: method,
            method: match method {
                b"HEAD" => Method::Head,
                b"CONNECT" => Method::Connect,
                _ => Method::Other,
            },
            target,
            is_old: is_old(version)?,
        })
    }
}

/// Does a Connection field say that this message is the last (RFC 9112 §9.6)?
fn says_close(value: &[u8]) -> bool {
    value
        .split(|byte| *byte == b',')
        .any(|option| trimmed(option).eq_ignore_ascii_case(b"close"))
}

/// Is it HTTP/1.0, and not a later HTTP/1?
fn is_old(version: &[u8]) -> Result<bool, RewriteError> {
    match version {
        b"HTTP/1.0" => Ok(true),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => Ok(false),
        _ => fault("a version that is not HTTP/1"),
    }
}

// ---- Responses

/// Changes what the server sends.
#[derive(Debug)]
pub struct Responses {
    exchange: Arc<Mutex<Exchange>>,
    state: ResponseState,
    /// The server has said that it gives up: what is answered now is the last.
    last: bool,
}

#[derive(Debug)]
enum ResponseState {
    Head(Section),
    Body(Body),
    Failed(RewriteError),
}

/// What follows the head of a response.
enum Follows {
    Body(Body),
    OtherProtocol,
}

impl Responses {
    fn carry(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let mut exchange = lock(&self.exchange);
        if exchange.mode == Mode::Undecided && !input.is_empty() {
            // In HTTP the agent speaks first.
            exchange.mode = Mode::Other;
        }
        let mut rest = input;
        loop {
            if exchange.mode == Mode::Other {
                out.extend_from_slice(rest);
                return Ok(Next::Done);
            }
            match &mut self.state {
                ResponseState::Head(_) if rest.is_empty() => return Ok(Next::Continue),
                ResponseState::Head(_) if self.last => {
                    return fault("the server goes on behind its last response");
                }
                ResponseState::Head(section) if section.is_empty() && exchange.answer(out) => {}
                ResponseState::Head(section) => match section.take(&mut rest)? {
                    None => return Ok(Next::Continue),
                    Some(section) => {
                        match response(&section, &mut exchange, &mut self.last, out)? {
                            Follows::Body(body) => self.state = ResponseState::Body(body),
                            Follows::OtherProtocol => exchange.leave_http()?,
                        }
                    }
                },
                ResponseState::Body(Body::Ended) => {
                    self.state = ResponseState::Head(Section::default());
                }
                ResponseState::Body(Body::UntilEnd) => {
                    out.extend_from_slice(rest);
                    return Ok(Next::Done);
                }
                ResponseState::Body(_) if rest.is_empty() => return Ok(Next::Continue),
                ResponseState::Body(body) => body.carry(&mut rest, out)?,
                ResponseState::Failed(error) => return Err(error.clone()),
            }
        }
    }
}

impl Rewrite for Responses {
    fn pass(&mut self, input: &[u8]) -> Result<usize, RewriteError> {
        match &mut self.state {
            ResponseState::Body(body) => {
                let passed = body.pass(input);
                passed.inspect_err(|error| self.state = ResponseState::Failed(error.clone()))
            }
            _ => Ok(0),
        }
    }

    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let result = self.carry(input, out);
        result.inspect_err(|error| self.state = ResponseState::Failed(error.clone()))
    }

    fn is_over(&self) -> bool {
        lock(&self.exchange).is_over
    }

    fn speak(&mut self, out: &mut Vec<u8>) {
        let is_between = match &self.state {
            ResponseState::Head(section) => section.is_empty(),
            ResponseState::Body(Body::Ended) => true,
            _ => false,
        };
        if is_between && !self.last {
            while lock(&self.exchange).answer(out) {}
        }
    }
}

/// Appends a response's head as the agent is to see it, and says what follows.
fn response(
    section: &[u8],
    exchange: &mut Exchange,
    last: &mut bool,
    out: &mut Vec<u8>,
) -> Result<Follows, RewriteError> {
    let Some((start, fields)) = start_and_fields(section) else {
        return fault("no response");
    };
    let line = StatusLine::parse(start)?;
    let mut framing = Framing::default();
    for field in fields.clone() {
        framing.note(&field?)?;
    }
    if framing.chunked && line.is_old {
        return fault("Transfer-Encoding in HTTP/1.0");
    }
    let is_interim = line.status < 200 && line.status != 101;
    let asked = if is_interim {
        exchange.pending.front().cloned()
    } else {
        exchange.pending.pop_front()
    };
    // A server that does not want to wait for the next request any longer may say so (408).
    // Whoever takes that for an answer must not get another one.
    *last |= asked.is_none();
    if asked.is_none() && line.status < 400 {
        return fault("a response without a request");
    }

    out.extend_from_slice(start);
    out.extend_from_slice(b"\r\n");
    let host = asked.as_ref().and_then(|asked| asked.host.as_deref());
    for field in fields {
        let field = field?;
        let Some(ports) = exchange.ports else {
            out.extend_from_slice(field.line);
            continue;
        };
        if !(field.is("strict-transport-security") || field.is("alt-svc")) {
            append(out, &field, for_agent(&field, host, ports));
        }
    }
    out.extend_from_slice(b"\r\n");

    let method = asked.as_ref().map_or(Method::Other, |asked| asked.method);
    Ok(match (line.status, method) {
        (101, _) if asked.is_some_and(|asked| asked.upgrade) => Follows::OtherProtocol,
        (101, _) => return fault("the server switches protocols unasked"),
        (200..=299, Method::Connect) => Follows::OtherProtocol,
        // RFC 9112 §6.3: whatever the fields say.
        (..=199 | 204 | 304, _) | (_, Method::Head) => Follows::Body(Body::Ended),
        _ => Follows::Body(Body::new(framing, Body::UntilEnd)),
    })
}

/// A status line (RFC 9112 §4).
struct StatusLine {
    status: u16,
    /// HTTP/1.0.
    is_old: bool,
}

impl StatusLine {
    fn parse(line: &[u8]) -> Result<Self, RewriteError> {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let is_old = is_old(words.next().unwrap_or_default())?;
        let (Some([a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']), reason) =
            (words.next(), words.next().unwrap_or_default())
        else {
            return fault("a status that is no number of three digits");
        };
        if reason.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return fault("CR or NUL in a status line");
        }
        let digit = |byte: &u8| u16::from(byte - b'0');
        Ok(Self {
            status: digit(a) * 100 + digit(b) * 10 + digit(c),
            is_old,
        })
    }
}

/// What a field of a response says to the agent, where that is something else.
fn for_agent(field: &Field<'_>, host: Option<&Host>, ports: Ports) -> Option<Vec<u8>> {
    if field.is("set-cookie") {
        return without_secure(field.value);
    }
    let host = host?;
    if field.is("location") || field.is("content-location") {
        host.as_http(field.value, ports)
    } else if field.is("refresh") {
        let (before, url, rest) = refresh(field.value)?;
        Some([before, &host.as_http(url, ports)?, rest].concat())
    } else {
        None
    }
}

/// `5; url="https://..."` (WHATWG HTML, "shared declarative refresh steps"): what stands before
/// the URL, the URL, and what follows it.
fn refresh(value: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let separator = value.iter().position(|byte| matches!(byte, b';' | b','))?;
    let mut url = trimmed(value.get(separator + 1..)?);
    if let Some(rest) = after(url, "url")
        && let [b'=', rest @ ..] = trimmed(rest)
    {
        url = trimmed(rest);
    }
    let mut end = url.len();
    if let [quote @ (b'\'' | b'"'), rest @ ..] = url {
        url = rest;
        end = rest.iter().position(|byte| byte == quote)?;
    }
    let before = value.get(..value.len() - url.len())?;
    let (url, rest) = url.split_at_checked(end)?;
    Some((before, url, rest))
}

/// A cookie without `Secure`; None where there is nothing to take out.
fn without_secure(cookie: &[u8]) -> Option<Vec<u8>> {
    if after(cookie, "__Secure-").is_some() || after(cookie, "__Host-").is_some() {
        return None;
    }
    let is_secure = |attribute: &[u8]| {
        let name = attribute.split(|byte| *byte == b'=').next();
        trimmed(name.unwrap_or_default()).eq_ignore_ascii_case(b"secure")
    };
    let mut parts = cookie.split(|byte| *byte == b';');
    let mut kept = parts.next()?.to_vec();
    for attribute in parts.filter(|attribute| !is_secure(attribute)) {
        kept.push(b';');
        kept.extend_from_slice(attribute);
    }
    (kept.len() < cookie.len()).then_some(kept)
}

/// Appends a field line, as it is or with another value.
fn append(out: &mut Vec<u8>, field: &Field<'_>, value: Option<Vec<u8>>) {
    match value {
        None => out.extend_from_slice(field.line),
        Some(value) => {
            out.extend_from_slice(field.name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(&value);
            out.extend_from_slice(b"\r\n");
        }
    }
}

//! LDAP version 3 (RFC 4511): the StartTLS operation (§4.14), how a client begins, and answers in
//! its own words.
//!
//! The session is carried as it is. What a server lists in its root DSE is not changed either: it
//! may go on listing StartTLS, which it answers with operationsError inside TLS (§4.14.1), and SASL
//! mechanisms with security layers of their own, which the agent may negotiate over this TLS as it
//! would in clear (Active Directory declines that combination).

mod ber;
#[cfg(test)]
mod tests;

use ber::{Header, Malformed as BadBer, header, push};

use crate::{
    Look, Progress,
    reader::Reader,
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome, shown},
};

/// The name of the StartTLS operation (§4.14.1).
const START_TLS: &[u8; 22] = b"1.3.6.1.4.1.1466.20037";

/// The name of the Notice of Disconnection (§4.4.1).
const DISCONNECTION: &[u8; 22] = b"1.3.6.1.4.1.1466.20036";

/// The proxy's own StartTLS request, with message id 1.
const REQUEST: &[u8; 31] = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037";

/// Longest StartTLS request or response that is read, in bytes. Controls and referrals aside they
/// have about forty, and a diagnostic message.
const MAX_MESSAGE: usize = 16 * 1024;

/// resultCode `success` (§4.1.9).
const SUCCESS: u8 = 0;
/// resultCode `unavailable`.
const UNAVAILABLE: u8 = 52;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
/// `requestName [0]` of an ExtendedRequest (§4.12).
const REQUEST_NAME: u8 = 0x80;
/// `responseName [10]` of an ExtendedResponse.
const RESPONSE_NAME: u8 = 0x8a;

const UNBIND: u8 = 0x42;
const ABANDON: u8 = 0x50;
const EXTENDED_REQUEST: u8 = 0x77;
const EXTENDED_RESPONSE: u8 = 0x78;

/// The tags of requests, each with that of the response that ends it (§4.2 to §4.12); unbinding
/// and abandoning have none.
const OPERATIONS: [(u8, Option<u8>); 10] = [
    (0x60, Some(0x61)), // bind
    (UNBIND, None),
    (0x63, Some(0x65)), // search
    (0x66, Some(0x67)), // modify
    (0x68, Some(0x69)), // add
    (0x4a, Some(0x6b)), // delete
    (0x6c, Some(0x6d)), // modify DN
    (0x6e, Some(0x6f)), // compare
    (ABANDON, None),
    (EXTENDED_REQUEST, Some(EXTENDED_RESPONSE)),
];

/// Bytes that are no LDAP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No definite-length BER of a plausible size, or not the elements that must be there.
    #[error("malformed LDAP message")]
    Encoding,
    /// A StartTLS request of this many bytes.
    #[error("StartTLS request of {0} bytes")]
    Length(usize),
}

impl From<BadBer> for Malformed {
    fn from(BadBer: BadBer) -> Self {
        Self::Encoding
    }
}

/// What a client asks for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TLS of its own; the request is so many bytes long.
    StartTls {
        /// The message id, which the answer repeats.
        id: u32,
        /// The bytes of the message.
        length: usize,
    },
    /// The end of the session.
    Unbind,
    /// Any other operation.
    Other,
}

/// The outer layers of an LDAPMessage (§4.1.1).
#[derive(Clone, Copy, Debug)]
struct Envelope {
    /// Of the whole message.
    length: usize,
    id: u32,
    operation: u8,
    /// Where the operation's content begins and ends.
    content: (usize, usize),
}

/// Reads the outer layers. At most 18 bytes decide; the operation's content need not have come.
fn envelope(stream: &[u8]) -> Result<Progress<Envelope>, Malformed> {
    let Some(message) = next(stream, 0, SEQUENCE)? else {
        return Ok(Progress::NeedMore);
    };
    let Some(id) = next(stream, message.begins, INTEGER)? else {
        return Ok(Progress::NeedMore);
    };
    if !(1..=4).contains(&id.length) {
        return Err(Malformed::Encoding);
    }
    let Some(digits) = stream.get(id.begins..id.ends()) else {
        return Ok(Progress::NeedMore);
    };
    if digits.first().is_some_and(|first| *first > 0x7f) {
        return Err(Malformed::Encoding);
    }
    let Some(operation) = header(stream.get(id.ends()..).unwrap_or_default())? else {
        return Ok(Progress::NeedMore);
    };
    let operation = operation.at(id.ends());
    if operation.ends() > message.ends() {
        return Err(Malformed::Encoding);
    }
    Ok(Progress::Done(Envelope {
        length: message.ends(),
        id: digits
            .iter()
            .fold(0, |value, digit| value << 8 | u32::from(*digit)),
        operation: operation.tag,
        content: (operation.begins, operation.ends()),
    }))
}

/// The header at a place, which must have this tag.
fn next(stream: &[u8], at: usize, tag: u8) -> Result<Option<Header>, Malformed> {
    let rest = stream.get(at..).unwrap_or_default();
    if rest.first().is_some_and(|first| *first != tag) {
        return Err(Malformed::Encoding);
    }
    Ok(header(rest)?.map(|header| header.at(at)))
}

/// Does a client's stream begin with a request? At most 18 bytes decide.
pub fn looks_like_request(stream: &[u8]) -> Look {
    match envelope(stream) {
        Ok(Progress::Done(envelope)) if envelope.id > 0 && is_request(envelope.operation) => {
            Look::Yes
        }
        Ok(Progress::NeedMore) => Look::NeedMore,
        _ => Look::No,
    }
}

fn is_request(operation: u8) -> bool {
    OPERATIONS.iter().any(|(request, _)| *request == operation)
}

/// Reads as much of a client's first message as tells what it asks for.
///
/// # Errors
/// [`Malformed`].
pub fn parse_request(stream: &[u8]) -> Result<Progress<Request>, Malformed> {
    let Progress::Done(envelope) = envelope(stream)? else {
        return Ok(Progress::NeedMore);
    };
    match envelope.operation {
        UNBIND => return Ok(Progress::Done(Request::Unbind)),
        EXTENDED_REQUEST => {}
        request if is_request(request) => return Ok(Progress::Done(Request::Other)),
        _ => return Err(Malformed::Encoding),
    }
    let (begins, ends) = envelope.content;
    let Some(name) = next(stream, begins, REQUEST_NAME)? else {
        return Ok(Progress::NeedMore);
    };
    if name.ends() > ends {
        return Err(Malformed::Encoding);
    }
    if name.length != START_TLS.len() {
        return Ok(Progress::Done(Request::Other));
    }
    let Some(text) = stream.get(name.begins..name.ends()) else {
        return Ok(Progress::NeedMore);
    };
    if text != START_TLS {
        Ok(Progress::Done(Request::Other))
    } else if envelope.length > MAX_MESSAGE {
        Err(Malformed::Length(envelope.length))
    } else if stream.len() < envelope.length {
        Ok(Progress::NeedMore)
    } else {
        Ok(Progress::Done(Request::StartTls {
            id: envelope.id,
            length: envelope.length,
        }))
    }
}

/// Tells an agent that its own handshake comes next.
pub fn start_tls_accepted(id: u32) -> Vec<u8> {
    response(id, EXTENDED_RESPONSE, SUCCESS, "", Some(START_TLS))
}

/// Tells an agent that there is no TLS for it: one that only tries goes on in clear.
pub fn start_tls_declined(id: u32, reason: &str) -> Vec<u8> {
    response(id, EXTENDED_RESPONSE, UNAVAILABLE, reason, Some(START_TLS))
}

/// An answer to the message that `head` begins with, which says why nothing is served; a Notice
/// of Disconnection where there is no such message, or none that is answered.
pub fn refusal(head: &[u8], reason: &str) -> Vec<u8> {
    let reason = format!("mantled refused this connection: {reason}");
    let answered = match envelope(head) {
        Ok(Progress::Done(envelope)) => OPERATIONS
            .iter()
            .find(|(request, _)| *request == envelope.operation)
            .and_then(|(_, response)| *response)
            .map(|response| (envelope.id, response)),
        _ => None,
    };
    match answered {
        Some((id, operation)) => response(id, operation, UNAVAILABLE, &reason, None),
        None => response(
            0,
            EXTENDED_RESPONSE,
            UNAVAILABLE,
            &reason,
            Some(DISCONNECTION),
        ),
    }
}

/// A message that holds an LDAPResult (§4.1.9).
fn response(id: u32, operation: u8, code: u8, diagnostic: &str, name: Option<&[u8]>) -> Vec<u8> {
    let mut result = Vec::new();
    push(&mut result, ENUMERATED, &[code]);
    push(&mut result, OCTET_STRING, b""); // matchedDN
    push(&mut result, OCTET_STRING, diagnostic.as_bytes());
    if let Some(name) = name {
        push(&mut result, RESPONSE_NAME, name);
    }
    let mut message = Vec::new();
    // Ids are below 2^31, so that all four bytes are a non-negative number.
    push(&mut message, INTEGER, shortest(&id.to_be_bytes()));
    push(&mut message, operation, &result);
    let mut whole = Vec::new();
    push(&mut whole, SEQUENCE, &message);
    whole
}

/// A non-negative number without the leading zeros that BER forbids.
fn shortest(mut digits: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = digits
        && rest.first().is_some_and(|next| *next < 0x80)
    {
        digits = rest;
    }
    digits
}

/// The proxy's half of §4.14: one request, one answer.
#[derive(Debug, Default)]
pub struct StartTls {
    asked: bool,
}

impl Dialogue for StartTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        if !self.asked {
            self.asked = true;
            return Ok(Step::Say {
                consumed: 0,
                words: Preamble::constant(REQUEST),
            });
        }
        Ok(match answer(heard)? {
            Progress::NeedMore => Step::NeedMore,
            Progress::Done(consumed) => Step::Handshake { consumed },
        })
    }

    fn welcome(&mut self) -> Welcome {
        Welcome::default()
    }
}

/// Reads the answer to [`REQUEST`]; how long it is where it is a success.
fn answer(heard: &[u8]) -> Result<Progress<usize>, DialogueError> {
    const NO_MESSAGE: DialogueError =
        DialogueError::Protocol("it answers StartTLS with bytes that are no LDAP message");

    let envelope = match envelope(heard) {
        Ok(Progress::Done(envelope)) if envelope.length <= MAX_MESSAGE => envelope,
        Ok(Progress::NeedMore) => return Ok(Progress::NeedMore),
        _ => return Err(NO_MESSAGE),
    };
    if envelope.operation != EXTENDED_RESPONSE {
        return Err(DialogueError::Protocol(
            "it answers StartTLS with another operation than an ExtendedResponse",
        ));
    }
    if heard.len() < envelope.length {
        return Ok(Progress::NeedMore);
    }
    let (begins, ends) = envelope.content;
    let content = heard.get(begins..ends).unwrap_or_default();
    let (code, diagnostic) = result(content).ok_or(NO_MESSAGE)?;
    match (envelope.id, code) {
        (1, SUCCESS) => Ok(Progress::Done(envelope.length)),
        (1, code) => Err(DialogueError::Declined(format!(
            "resultCode {code}, {}",
            shown(diagnostic)
        ))),
        // The only message with this id is the Notice of Disconnection (§4.4).
        (0, _) => Err(DialogueError::Declined(format!(
            "it disconnected, {}",
            shown(diagnostic)
        ))),
        _ => Err(DialogueError::Protocol(
            "it answers another request than the one for StartTLS",
        )),
    }
}

/// resultCode and diagnosticMessage of an LDAPResult.
fn result(content: &[u8]) -> Option<(u8, &[u8])> {
    let mut reader = Reader(content);
    let mut field = |tag| {
        let header = header(reader.0).ok()??;
        reader.take(header.begins)?;
        let field = reader.take(header.length)?;
        (header.tag == tag).then_some(field)
    };
    let [code] = field(ENUMERATED)? else {
        return None;
    };
    field(OCTET_STRING)?; // matchedDN
    Some((*code, field(OCTET_STRING)?))
}

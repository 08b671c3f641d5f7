//! XMPP (RFC 6120): STARTTLS negotiation (§5), how a client's stream begins, and a stream error in
//! the server's place.
//!
//! The stream restarts inside TLS (§5.4.3.3), so the proxy opens one of its own before, with a
//! header that holds of the agent's only the domain it is for; the agent's own header goes inside.
//! What the agent is then offered is changed by [`FeaturesFilter`].

mod features;
#[cfg(test)]
mod tests;
mod xml;

pub use features::FeaturesFilter;
use xml::{BadXml, Element, Token, attribute, element, token};

use crate::{
    Look, Progress, begins,
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome, shown},
};

/// Longest XML declaration that is taken for one, and most white space behind it.
const MAX_DECLARATION: usize = 128;
const MAX_SPACE: usize = 8;

/// Longest header of a stream, in bytes. They have two or three hundred.
const MAX_HEADER: usize = 8 * 1024;

/// Longest domain part of an address (RFC 7622 §3.2), in bytes.
const MAX_DOMAIN: usize = 1023;

const STREAM: &[u8] = b"stream:stream";
const STARTTLS: &[u8] = b"urn:ietf:params:xml:ns:xmpp-tls";

/// Does a client's stream begin with a stream header? At most 153 bytes decide.
pub fn looks_like_stream(stream: &[u8]) -> Look {
    let header = match begins(stream, b"<?xml") {
        Look::NeedMore => return Look::NeedMore,
        Look::No => stream,
        Look::Yes => match after_declaration(stream) {
            Ok(header) => header,
            Err(undecided) => return undecided,
        },
    };
    match begins(header, b"<stream:stream") {
        Look::Yes => match header.get(STREAM.len() + 1) {
            None => Look::NeedMore,
            Some(next) if next.is_ascii_whitespace() => Look::Yes,
            Some(_) => Look::No,
        },
        undecided => undecided,
    }
}

fn after_declaration(stream: &[u8]) -> Result<&[u8], Look> {
    let head = stream.get(..MAX_DECLARATION).unwrap_or(stream);
    let rest = match head.windows(2).position(|pair| pair == b"?>") {
        Some(end) => stream.get(end + 2..).unwrap_or_default(),
        None if stream.len() < MAX_DECLARATION => return Err(Look::NeedMore),
        None => return Err(Look::No),
    };
    let header = rest.trim_ascii_start();
    if rest.len() - header.len() > MAX_SPACE {
        Err(Look::No)
    } else {
        Ok(header)
    }
}

/// The header of a client's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The domain that it is for.
    to: Option<String>,
    /// The sender is a server itself.
    from_server: bool,
}

/// A header that no server would accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not XML, or no `<stream:stream>`.
    #[error("malformed stream header")]
    Xml,
    /// Longer than any.
    #[error("stream header of more than {MAX_HEADER} bytes")]
    Length,
    /// `to` is no domain.
    #[error("the stream header's `to` is no domain")]
    To,
}

impl From<BadXml> for Malformed {
    fn from(BadXml: BadXml) -> Self {
        Self::Xml
    }
}

/// Reads the header that a client's stream begins with (§4.7).
///
/// # Errors
/// [`Malformed`].
pub fn parse_header(stream: &[u8]) -> Result<Progress<Header>, Malformed> {
    let bounded = stream.get(..MAX_HEADER).unwrap_or(stream);
    match opening(bounded)? {
        Some((attributes, _)) => {
            let to = attribute(attributes, b"to")?.map(domain).transpose()?;
            Ok(Progress::Done(Header {
                to: to.map(str::to_owned),
                from_server: attribute(attributes, b"xmlns")? == Some(b"jabber:server"),
            }))
        }
        None if stream.len() < MAX_HEADER => Ok(Progress::NeedMore),
        None => Err(Malformed::Length),
    }
}

/// The attributes of the stream header that the bytes begin with, and where it ends; None while
/// it is not complete.
fn opening(stream: &[u8]) -> Result<Option<(&[u8], usize)>, BadXml> {
    let mut at = 0;
    while let Some((token, length)) = token(stream.get(at..).unwrap_or_default())? {
        at += length;
        match token {
            Token::Declaration => {}
            Token::Text(text) if text.trim_ascii().is_empty() => {}
            Token::Open {
                name: STREAM,
                attributes,
                empty: false,
            } => return Ok(Some((attributes, at))),
            _ => return Err(BadXml),
        }
    }
    Ok(None)
}

/// A name of letters (of any script), digits, hyphens, low lines and dots, or an IPv4 address:
/// nothing that could end an attribute.
fn domain(value: &[u8]) -> Result<&str, Malformed> {
    str::from_utf8(value)
        .ok()
        .filter(|name| (1..=MAX_DOMAIN).contains(&name.len()))
        .filter(|name| {
            name.chars()
                .all(|letter| letter.is_alphanumeric() || "-_.".contains(letter))
        })
        .ok_or(Malformed::To)
}

/// The proxy's half of §5: a stream, STARTTLS where it is a feature, and the go-ahead.
#[derive(Debug)]
pub struct StartTls {
    state: State,
    header: Header,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing is said.
    Silent,
    /// The server's header is next.
    Opened,
    /// Its features are next.
    Stream,
    /// Its answer is next.
    Asked,
}

impl StartTls {
    /// For an agent that begins with this header. The domain is no secret: any client of XMPP
    /// that upgrades tells it in clear.
    pub fn new(header: Header) -> Self {
        Self {
            state: State::Silent,
            header,
        }
    }

    fn opening(&self) -> Vec<u8> {
        let to = match &self.header.to {
            Some(domain) => format!(" to='{domain}'"),
            None => String::new(),
        };
        let namespace = if self.header.from_server {
            "jabber:server"
        } else {
            "jabber:client"
        };
        format!(
            "<?xml version='1.0'?><stream:stream{to} version='1.0' xmlns='{namespace}' \
             xmlns:stream='http://etherx.jabber.org/streams'>"
        )
        .into_bytes()
    }
}

const BAD_XML: DialogueError = DialogueError::Protocol("it says something that is not XMPP's XML");

impl Dialogue for StartTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        match self.state {
            State::Silent => {
                self.state = State::Opened;
                Ok(Step::Say {
                    consumed: 0,
                    words: Preamble::built(self.opening()),
                })
            }
            State::Opened => match opening(heard).map_err(|_| BAD_XML)? {
                None => Ok(Step::NeedMore),
                Some((_, consumed)) => {
                    self.state = State::Stream;
                    Ok(Step::Say {
                        consumed,
                        words: Preamble::constant(b""),
                    })
                }
            },
            State::Stream => {
                let Some((features, consumed)) = answer(heard)? else {
                    return Ok(Step::NeedMore);
                };
                if features.name != b"stream:features" {
                    return Err(DialogueError::Protocol(
                        "it opens a stream and does not list its features",
                    ));
                }
                if !offers_starttls(&features)? {
                    return Err(DialogueError::NotOffered("no starttls in its features"));
                }
                self.state = State::Asked;
                Ok(Step::Say {
                    consumed,
                    words: Preamble::constant(
                        b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
                    ),
                })
            }
            State::Asked => match answer(heard)? {
                None => Ok(Step::NeedMore),
                Some((answer, consumed)) if answer.is(b"proceed", STARTTLS) => {
                    Ok(Step::Handshake { consumed })
                }
                Some((answer, _)) if answer.is(b"failure", STARTTLS) => Err(
                    DialogueError::Declined("it answers starttls with failure".to_owned()),
                ),
                Some(_) => Err(DialogueError::Protocol(
                    "it answers starttls with neither proceed nor failure",
                )),
            },
        }
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            from_server: Some(Box::new(FeaturesFilter::default())),
            ..Welcome::default()
        }
    }
}

fn offers_starttls(features: &Element<'_>) -> Result<bool, DialogueError> {
    let (children, _) = features.children().map_err(|_| BAD_XML)?;
    Ok(children
        .iter()
        .any(|(_, child)| child.is(b"starttls", STARTTLS)))
}

/// The next element of the server's stream, and where it ends. A stream error, or the stream's
/// end, is a decline.
fn answer(heard: &[u8]) -> Result<Option<(Element<'_>, usize)>, DialogueError> {
    let rest = heard.trim_ascii_start();
    let skipped = heard.len() - rest.len();
    match token(rest).map_err(|_| BAD_XML)? {
        Some((Token::Close(STREAM), _)) => {
            Err(DialogueError::Declined("it closes the stream".to_owned()))
        }
        Some((Token::Open { .. }, _)) => match element(rest).map_err(|_| BAD_XML)? {
            Some(element) if element.name == b"stream:error" => Err(stream_error(&element)),
            Some(element) => Ok(Some((element, skipped + element.whole.len()))),
            None => Ok(None),
        },
        None => Ok(None),
        Some(_) => Err(BAD_XML),
    }
}

/// The condition of a stream error (§4.9), and its text.
fn stream_error(error: &Element<'_>) -> DialogueError {
    let (children, _) = error.children().unwrap_or_default();
    let words: Vec<String> = children
        .iter()
        .map(|(_, child)| match child.name {
            b"text" => shown(child.content),
            name => shown(name),
        })
        .take(2)
        .collect();
    DialogueError::Declined(format!("stream error {}", words.join(", ")))
}

/// A stream that holds nothing but the reason (§4.9.3.14), in which nothing can end the text.
pub fn refusal(reason: &str) -> Vec<u8> {
    let mut text = String::new();
    for letter in reason.chars() {
        match letter {
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '&' => text.push_str("&amp;"),
            '\u{fffe}' | '\u{ffff}' => text.push(' '),
            letter if letter.is_control() => text.push(' '),
            letter => text.push(letter),
        }
    }
    format!(
        "<?xml version='1.0'?><stream:stream id='mantled' version='1.0' xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams'><stream:error>\
         <policy-violation xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
         <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>\
         mantled refused this connection: {text}</text></stream:error></stream:stream>"
    )
    .into_bytes()
}

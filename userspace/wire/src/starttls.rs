//! The dialogue in clear that ends with a TLS handshake.
//!
//! A [`Dialogue`] is the proxy's half of it, without I/O: it is given what the server has said and
//! answers what to do next. Whoever drives it keeps three rules for every protocol: what follows
//! the go-ahead in the same breath was injected and ends the connection (CVE-2011-0411,
//! CVE-2021-23222), the agent hears nothing before the certificate is verified, and the server is
//! told nothing that the agent wrote but what a [`Preamble`] holds.

use std::borrow::Cow;

use crate::Rewrite;

/// Words that may be said to a server of which nothing is proven: constants of a protocol, and
/// requests that a codec of this crate builds without anything confidential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preamble(Cow<'static, [u8]>);

impl Preamble {
    /// A constant of a protocol.
    pub const fn constant(words: &'static [u8]) -> Self {
        Self(Cow::Borrowed(words))
    }

    /// What a codec has built. Nothing of it may be confidential.
    pub(crate) fn built(words: Vec<u8>) -> Self {
        Self(Cow::Owned(words))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// What the server has said is not complete.
    NeedMore,
    /// Take so many bytes off what the server has said, and say this.
    Say {
        /// Bytes that were understood.
        consumed: usize,
        /// What to say; may be empty.
        words: Preamble,
    },
    /// Take so many bytes off; the handshake comes next. If bytes are left, they were injected.
    Handshake {
        /// Bytes that were understood.
        consumed: usize,
    },
}

/// Why there will be no handshake. What a server wrote is shown without control characters and
/// cut to a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialogueError {
    /// It does not offer TLS.
    #[error("the server does not offer TLS ({0})")]
    NotOffered(&'static str),
    /// It was asked and declined.
    #[error("the server declined TLS: {0}")]
    Declined(String),
    /// It says something else than the protocol does.
    #[error("the server does not follow the protocol: {0}")]
    Protocol(&'static str),
}

impl DialogueError {
    /// [`Self::Declined`] with the server's own words, made harmless.
    pub fn declined(words: &[u8]) -> Self {
        Self::Declined(shown(words))
    }
}

/// What a server wrote, for an error: one line, no control characters, at most 200 of them.
pub(crate) fn shown(words: &[u8]) -> String {
    let line = words
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(line)
        .chars()
        .filter(|letter| !letter.is_control())
        .take(200)
        .collect()
}

/// One protocol's dialogue. Splitting what the server says in other pieces changes nothing.
pub trait Dialogue: Send + std::fmt::Debug {
    /// `heard` is everything that the server has said and that was not consumed. First it is
    /// empty: a protocol in which the client begins answers with [`Step::Say`].
    ///
    /// # Errors
    /// There will be no handshake.
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError>;

    /// Called once, when the certificate is verified.
    fn welcome(&mut self) -> Welcome;
}

/// How a session goes on inside TLS.
#[derive(Debug, Default)]
pub struct Welcome {
    /// What the agent is told first, in the server's place: its greeting, where the server does
    /// not repeat it inside TLS.
    pub to_agent: Vec<u8>,
    /// Changes what the agent sends.
    pub from_agent: Option<Box<dyn Rewrite>>,
    /// Changes what the server sends.
    pub from_server: Option<Box<dyn Rewrite>>,
}

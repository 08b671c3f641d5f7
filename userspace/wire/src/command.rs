//! Commands on their way to a server.
//!
//! An inspector reads a protocol's commands and asks a [`Judge`] about each before a byte of it is
//! carried. It knows the protocol, and nothing of policy; the judge knows policy, and nothing of bytes.
//!
//! Where a protocol allows it, a command that is refused is not swallowed: in its place the server gets
//! one of the same form that it can only answer with an error, and that error's words are replaced on
//! the way back. So the server itself keeps the order of answers, fails the transaction, and knows the
//! state that the agent is told.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use mantled_mask::{Column, Masker};

/// One command, as far as its protocol tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// A statement, or several; it gets a name where the protocol gives it one.
    Statement {
        /// The text; None where it is too long to be read.
        text: Option<&'a [u8]>,
        /// Does a backslash in '...' mean itself? None: nobody can tell.
        plain_strings: Option<bool>,
        /// The prepared statement that it becomes; may be empty.
        name: Option<&'a [u8]>,
    },
    /// A prepared statement is about to be executed.
    Prepared {
        /// Its name.
        name: &'a [u8],
    },
    /// A prepared statement is given up.
    Closed {
        /// Its name.
        name: &'a [u8],
    },
    /// One whose effect nobody here can tell: a function that is called by its number (PostgreSQL's
    /// FunctionCall), a command that is not known.
    Unknown,
    /// A request of HTTP/1.
    Request {
        /// The method.
        method: &'a str,
        /// The host that is asked, without port, in lower case.
        host: Option<&'a str>,
        /// The request target, as it was sent.
        target: &'a str,
        /// It asks for more than its method says: another protocol, or another method.
        is_more: bool,
        /// Target and Host name two hosts, or it asks for another protocol than WebSocket, behind which
        /// there may be further requests.
        is_ambiguous: bool,
    },
    /// A command of Redis.
    Redis {
        /// Its name and arguments.
        arguments: &'a [Cow<'a, [u8]>],
        /// These are all of them; else it is too long to be read.
        whole: bool,
    },
}

/// What is to become of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried.
    Carry,
    /// It is not, and the agent is told this: a sentence, without control characters.
    Refuse(String),
}

/// Who decides.
pub trait Judge: Send + std::fmt::Debug {
    /// Asked once for each command, in the order in which the server would see them.
    fn judge(&mut self, command: &Command<'_>) -> Verdict;

    /// What is masked in the answer to the command that was judged last, if anything. What is masked
    /// once stays so until the session ends.
    fn masked(&self) -> Option<Masked> {
        None
    }
}

/// What is masked in an answer.
#[derive(Clone, Debug)]
pub struct Masked {
    /// Masks it.
    pub masker: Arc<Masker>,
    /// All columns that the masks of any answer of this session can name, always in the same order.
    pub columns: Arc<[Column]>,
    /// A number that changes when what is known of the server's tables is too old.
    pub epoch: u64,
    /// What the command can have looked at.
    pub reach: Arc<Reach>,
}

/// What a command can have looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Every name in it, in lower case; None: nobody can tell.
    pub names: Option<BTreeSet<String>>,
    /// It may take rows whole, or columns by names that are not their own.
    pub takes_rows: bool,
    /// It may write, or do other things than read.
    pub writes: bool,
}

impl Reach {
    /// Of a command of which nothing is known.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// What this command and another one can have looked at.
    pub fn add(&mut self, other: &Self) {
        self.names = match (self.names.take(), &other.names) {
            (Some(mut names), Some(others)) => {
                names.extend(others.iter().cloned());
                Some(names)
            }
            _ => None,
        };
        self.takes_rows |= other.takes_rows;
        self.writes |= other.writes;
    }
}

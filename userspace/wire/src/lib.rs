//! Codecs of the protocols that mantled carries.
//!
//! Everything here is a function of bytes: no sockets, no clock, no policy. What a peer sends is
//! hostile until proven otherwise, so no input may panic, allocate more than the bound that the
//! function states, or be judged differently because it arrived in other pieces. Each parser tells
//! "this is not complete" apart from "this can never become valid".
//!
//! One protocol a file; each file names the specification that it follows.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod amqp;
pub mod command;
pub mod dns;
pub mod fluentd;
pub mod ftp;
pub mod http;
pub mod imap;
pub mod ldap;
mod line;
pub mod lumberjack;
pub mod managesieve;
pub mod memcached;
pub mod mqtt;
pub mod mysql;
pub mod nats;
pub mod nntp;
pub mod pop3;
pub mod postgres;
mod reader;
pub mod redis;
mod rewrite;
pub mod smtp;
pub mod ssh;
pub mod starttls;
pub mod syslog;
pub mod tds;
pub mod tls;
pub mod xmpp;

pub use rewrite::{Next, Rewrite, RewriteError};

/// Does a stream that begins with these bytes speak a protocol?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It does.
    Yes,
    /// It does not, whatever follows.
    No,
    /// More bytes are needed to tell.
    NeedMore,
}

/// What a parser made of the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// A whole value.
    Done(T),
    /// The bytes are the beginning of a value.
    NeedMore,
}

/// Compares a prefix of a stream with what it has to begin with.
pub(crate) fn begins(stream: &[u8], with: &[u8]) -> Look {
    if stream.iter().zip(with).any(|(have, want)| have != want) {
        Look::No
    } else if stream.len() < with.len() {
        Look::NeedMore
    } else {
        Look::Yes
    }
}

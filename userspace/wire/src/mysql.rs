//! MySQL and MariaDB (MySQL Source Code Documentation, "Client/Server Protocol", sections
//! "Connection Phase" and "Authentication Methods"; MariaDB documentation, "Connecting"): the
//! connection phase, which is all that an upgrade to TLS touches.
//!
//! The server greets first, and the client asks for TLS with a beginning of its answer,
//! SSLRequest. The answer proper, which holds the account and what proves the password, follows
//! inside TLS. What is changed for an agent that speaks no TLS, and why:
//!
//! - The greeting loses CLIENT_SSL, so that the agent answers in clear.
//! - SSLRequest repeats what the agent's answer begins with (capabilities, packet size, character
//!   set), since a server takes these from there alone. Nothing else leaves before the
//!   certificate is verified.
//! - Packets are numbered, and SSLRequest is one more: what the server numbers is renumbered until
//!   the authentication ends. Commands begin at 0 again.
//! - Two ways to authenticate depend on whether the client speaks TLS; see [`Authentication`].
//!
//! The agent hears the greeting of a server of which nothing is proven, as every MySQL client
//! does: the protocol has no other place for it, and the agent cannot answer without it. Its
//! answer to that greeting waits for the verified server. A forged greeting can choose the nonce
//! and what the agent believes that the server is capable of, but not where the answer goes.

mod authentication;
mod goodbye;
mod greeting;
mod response;
mod session;
#[cfg(test)]
mod tests;

pub use authentication::{Authentication, AuthenticationError, Reply, ToAgent};
pub use goodbye::{Goodbye, LastWords};
pub use greeting::{FirstWords, Greeting, ServerError};
pub use response::{Answer, HandshakeResponse};
pub use session::{FromAgent, FromServer, inspect};

use zeroize::Zeroizing;

use crate::{Look, Progress};

/// Longest packet of a connection phase, in bytes: answers hold attributes of up to 64 KiB, but
/// those of real clients have a few hundred bytes.
pub const MAX_PACKET: usize = 60 * 1024;

/// Longest greeting. Real ones have about a hundred bytes.
const MAX_GREETING: usize = 4096;

/// Longest name of a version.
const MAX_VERSION: usize = 255;

/// Length (three bytes, the lowest first) and sequence number.
pub const HEADER: usize = 4;

/// The version of the protocol that everything since MySQL 3.21 speaks.
const PROTOCOL: u8 = 10;

/// First byte of ERR_Packet.
const ERR: u8 = 0xff;

/// Numbers of a server's errors. Those below are the operating system's, those of 2000 and a few
/// a client's own; nothing is numbered above.
const ERRORS: std::ops::Range<u16> = 1000..20_000;

/// Capabilities Flags.
mod capability {
    pub(super) const CONNECT_WITH_DB: u32 = 1 << 3;
    pub(super) const COMPRESS: u32 = 1 << 5;
    pub(super) const PROTOCOL_41: u32 = 1 << 9;
    pub(super) const SSL: u32 = 1 << 11;
    pub(super) const SECURE_CONNECTION: u32 = 1 << 15;
    pub(super) const PLUGIN_AUTH: u32 = 1 << 19;
    pub(super) const PLUGIN_AUTH_LENENC_CLIENT_DATA: u32 = 1 << 21;
    pub(super) const ZSTD_COMPRESSION: u32 = 1 << 26;
    pub(super) const QUERY_ATTRIBUTES: u32 = 1 << 27;
    pub(super) const ILLEGIBLE: u32 = COMPRESS | ZSTD_COMPRESSION | QUERY_ATTRIBUTES;
    pub(super) const MULTI_FACTOR_AUTHENTICATION: u32 = 1 << 28;
}

/// What neither a server nor a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length that none has in the connection phase.
    #[error("packet of {0} bytes in the connection phase")]
    Length(usize),
    /// No greeting of protocol 10.
    #[error("malformed greeting")]
    Greeting,
    /// No answer to a greeting.
    #[error("malformed answer to the greeting")]
    Response,
    /// An answer in the protocol of before MySQL 4.1.
    #[error("the client speaks the protocol of before MySQL 4.1")]
    Old,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its number in the exchange.
    pub sequence: u8,
    /// What it holds.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads the packet at the beginning of a stream; it takes [`Self::length`] bytes.
    ///
    /// # Errors
    /// [`Malformed::Length`] above [`MAX_PACKET`].
    pub fn parse(stream: &'a [u8]) -> Result<Progress<Self>, Malformed> {
        let Some(([a, b, c, sequence], rest)) = stream.split_first_chunk::<HEADER>() else {
            return Ok(Progress::NeedMore);
        };
        let length = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
        if length > MAX_PACKET {
            return Err(Malformed::Length(length));
        }
        Ok(match rest.get(..length) {
            Some(payload) => Progress::Done(Self {
                sequence: *sequence,
                payload,
            }),
            None => Progress::NeedMore,
        })
    }

    /// How many bytes it takes in its stream.
    pub fn length(&self) -> usize {
        HEADER + self.payload.len()
    }
}

/// A packet as it is sent. What goes to a server can hold a password, so all of them are wiped.
fn framed(sequence: u8, payload: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut packet = Zeroizing::new(Vec::with_capacity(HEADER + payload.len()));
    let [a, b, c, _] = (payload.len() as u32).to_le_bytes();
    packet.extend_from_slice(&[a, b, c, sequence]);
    packet.extend_from_slice(payload);
    packet
}

/// Does a server's stream begin with a greeting, or with an error in its place? At most
/// 5 + 255 + 1 bytes decide.
pub fn looks_like_greeting(stream: &[u8]) -> Look {
    let valid = |(at, byte): (usize, &u8)| match at {
        1 => usize::from(*byte) < MAX_GREETING >> 8,
        2 | 3 => *byte == 0,
        4 => matches!(*byte, PROTOCOL | ERR),
        _ => true,
    };
    if !stream.iter().enumerate().take(5).all(valid) {
        return Look::No;
    }
    match stream.get(4..) {
        Some([ERR, low, high, ..]) if ERRORS.contains(&u16::from_le_bytes([*low, *high])) => {
            Look::Yes
        }
        Some([ERR, _, _, ..]) => Look::No,
        Some([PROTOCOL, version @ ..]) => looks_like_version(version),
        _ => Look::NeedMore,
    }
}

/// "8.0.36", "5.5.5-10.11.6-MariaDB", and whatever else begins with a digit.
fn looks_like_version(stream: &[u8]) -> Look {
    let length = stream
        .iter()
        .take_while(|byte| matches!(byte, b' '..=b'~'))
        .count();
    match stream.first() {
        None => return Look::NeedMore,
        Some(first) if !first.is_ascii_digit() => return Look::No,
        Some(_) if length > MAX_VERSION => return Look::No,
        Some(_) => {}
    }
    match stream.get(length) {
        None => Look::NeedMore,
        Some(0) => Look::Yes,
        Some(_) => Look::No,
    }
}

/// ER_ACCESS_DENIED_ERROR. The number of clients for the same matter, CR_SSL_CONNECTION_ERROR,
/// would be clearer, but MariaDB's clients take no such number from a server.
const ACCESS_DENIED: u16 = 1045;

/// SQLSTATE "SQL-server rejected establishment of SQL-connection".
const REJECTED: &[u8; 5] = b"08004";

/// An ERR_Packet with the reason. `sequence` is the number that the agent expects; 0 in place of a
/// greeting, where nobody has agreed on the protocol of 4.1 yet, so that there is no SQLSTATE.
pub fn refusal(sequence: u8, reason: &str) -> Vec<u8> {
    let text = format!("mantled refused this connection: {reason}");
    error_packet(sequence, ACCESS_DENIED, Some(REJECTED), &text)
}

fn error_packet(sequence: u8, number: u16, sqlstate: Option<&[u8; 5]>, text: &str) -> Vec<u8> {
    let [low, high] = number.to_le_bytes();
    let mut payload = vec![ERR, low, high];
    if let Some(sqlstate) = sqlstate.filter(|_| sequence > 0) {
        payload.push(b'#');
        payload.extend_from_slice(sqlstate);
    }
    // MYSQL_ERRMSG_SIZE: what a client keeps of it.
    payload.extend(
        text.chars()
            .filter(|letter| !letter.is_control())
            .take(500)
            .collect::<String>()
            .bytes(),
    );
    framed(sequence, &payload).to_vec()
}

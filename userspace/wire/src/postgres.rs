//! PostgreSQL, frontend/backend protocol 3 (PostgreSQL documentation, chapter "Frontend/Backend
//! Protocol"): the beginning of a connection, which is all that an upgrade to TLS touches, and the
//! commands that follow it, where they are to be judged.

mod authentication;
mod masking;
mod message;
mod session;
#[cfg(test)]
mod tests;

pub use authentication::{AuthenticationError, AuthenticationFilter};
pub use message::{Severity, error_message, error_response};
pub use session::{FromAgent, FromServer, inspect};

use crate::{Look, Progress, reader::Reader};

/// SSLRequest (section "SSL Session Encryption"): length 8, code 80877103.
pub const SSL_REQUEST: &[u8; 8] = b"\x00\x00\x00\x08\x04\xd2\x16\x2f";

/// The one byte by which a server, or a proxy in its place, declines SSLRequest and
/// GSSENCRequest.
pub const UNWILLING: &[u8; 1] = b"N";

/// Longest start-up packet that a server accepts, in bytes: `MAX_STARTUP_PACKET_LENGTH`, which
/// the server compares after it has taken off the four bytes of the length (postmaster.c,
/// `ProcessStartupPacket`).
pub const MAX_STARTUP: usize = 10_000 + 4;

const CANCEL_CODE: u32 = 80_877_102;
const SSL_CODE: u32 = 80_877_103;
const GSSENC_CODE: u32 = 80_877_104;

/// The first packet of a client; it has no type byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// The client asks for TLS.
    SslRequest,
    /// The client asks for GSSAPI encryption.
    GssEncRequest,
    /// CancelRequest: stop what another connection runs. The connection carries nothing else.
    Cancel,
    /// StartupMessage.
    Parameters {
        /// The protocol version, 196608 for 3.0.
        version: u32,
        /// Parameter `user`.
        user: Option<String>,
        /// Parameter `database`; the server takes the user's name where it is missing.
        database: Option<String>,
        /// Parameter `application_name`.
        application_name: Option<String>,
    },
}

/// A first packet that no server would accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than 8 bytes or longer than [`MAX_STARTUP`].
    #[error("start-up packet of {0} bytes")]
    Length(u32),
    /// A version of the protocol that is not 3.x, or an unknown request.
    #[error("start-up packet with code {0}")]
    Code(u32),
    /// Parameters that are no list of pairs.
    #[error("malformed start-up parameters")]
    Parameters,
}

/// Does a client's stream begin with a start-up packet? Eight bytes decide: a plausible length
/// and one of the known codes.
pub fn looks_like_startup(stream: &[u8]) -> Look {
    if stream.iter().take(2).any(|byte| *byte != 0) {
        return Look::No;
    }
    match header(stream) {
        Ok(Progress::Done(_)) => Look::Yes,
        Ok(Progress::NeedMore) => Look::NeedMore,
        Err(_) => Look::No,
    }
}

/// Length (its own four bytes included) and code.
fn header(stream: &[u8]) -> Result<Progress<(usize, u32)>, Malformed> {
    let mut reader = Reader(stream);
    let Some(length) = reader.u32() else {
        return Ok(Progress::NeedMore);
    };
    if !(8..=MAX_STARTUP as u32).contains(&length) {
        return Err(Malformed::Length(length));
    }
    let Some(code) = reader.u32() else {
        return Ok(Progress::NeedMore);
    };
    let valid = match code {
        SSL_CODE | GSSENC_CODE => length == 8,
        // The key is 4 bytes in protocol 3.0 and up to 256 in 3.2.
        CANCEL_CODE => (16..=268).contains(&length),
        version => version >> 16 == 3,
    };
    if valid {
        Ok(Progress::Done((length as usize, code)))
    } else {
        Err(Malformed::Code(code))
    }
}

/// Reads the first packet, and how many bytes it takes (section "Message Formats"). Allocates
/// no more than thrice [`MAX_STARTUP`] bytes (text that is not UTF-8 is replaced).
///
/// # Errors
/// [`Malformed`].
pub fn parse_startup(stream: &[u8]) -> Result<Progress<(Startup, usize)>, Malformed> {
    let (length, code) = match header(stream)? {
        Progress::Done(header) => header,
        Progress::NeedMore => return Ok(Progress::NeedMore),
    };
    let Some(packet) = stream.get(8..length) else {
        return Ok(Progress::NeedMore);
    };
    let startup = match code {
        SSL_CODE => Startup::SslRequest,
        GSSENC_CODE => Startup::GssEncRequest,
        CANCEL_CODE => Startup::Cancel,
        version => parameters(version, packet).ok_or(Malformed::Parameters)?,
    };
    Ok(Progress::Done((startup, length)))
}

fn parameters(version: u32, packet: &[u8]) -> Option<Startup> {
    let mut reader = Reader(packet);
    let (mut user, mut database, mut application_name) = (None, None, None);
    loop {
        let name = reader.cstring()?;
        if name.is_empty() {
            return reader.is_empty().then_some(Startup::Parameters {
                version,
                user,
                database,
                application_name,
            });
        }
        let value = reader.cstring()?;
        let text = || Some(String::from_utf8_lossy(value).into_owned());
        match name {
            b"user" => user = text(),
            b"database" => database = text(),
            b"application_name" => application_name = text(),
            _ => {}
        }
    }
}

/// A server's answer to SSLRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SslAnswer {
    /// `S`: the TLS handshake comes next.
    Willing,
    /// `N`: it has no TLS.
    Unwilling,
    /// An ErrorResponse, with its message text where it has come. Nobody has authenticated the
    /// server yet, so the text proves nothing (CVE-2024-10977).
    Error(Option<String>),
}

/// What no honest server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SslAnswerError {
    /// Bytes after the answer, before the handshake: whoever sent them was not authenticated
    /// (CVE-2021-23222).
    #[error("bytes after the answer to SSLRequest")]
    InjectedBytes,
    /// None of the answers.
    #[error("no answer to SSLRequest but byte {0:#04x}")]
    Unknown(u8),
}

/// Reads the answer to SSLRequest (section "SSL Session Encryption"). Pass everything that has
/// come. An error is not waited for: the connection ends whatever it says.
///
/// # Errors
/// [`SslAnswerError`].
pub fn parse_ssl_answer(stream: &[u8]) -> Result<Progress<SslAnswer>, SslAnswerError> {
    match *stream {
        [] => Ok(Progress::NeedMore),
        [b'S'] => Ok(Progress::Done(SslAnswer::Willing)),
        [b'N'] => Ok(Progress::Done(SslAnswer::Unwilling)),
        [b'S' | b'N', ..] => Err(SslAnswerError::InjectedBytes),
        [b'E', ..] => Ok(Progress::Done(SslAnswer::Error(error_message(stream)))),
        [other, ..] => Err(SslAnswerError::Unknown(other)),
    }
}

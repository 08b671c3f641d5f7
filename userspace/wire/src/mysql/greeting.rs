//! What a server says first: Protocol::HandshakeV10, or ERR_Packet.

use super::{
    ERR, ERRORS, MAX_GREETING, MAX_VERSION, Malformed, PROTOCOL, Packet, capability, error_packet,
    framed,
};
use crate::{Progress, reader::Reader, starttls::shown};

/// Length of the nonce that authentication is bound to.
pub(super) const SCRAMBLE: usize = 20;

/// What a server says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstWords {
    /// Its greeting.
    Greeting(Greeting),
    /// It has no place for this client ("Too many connections", "Host is blocked").
    Error(ServerError),
}

impl FirstWords {
    /// Reads them, and how many bytes they take. Allocates no more than twice 4 KiB.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(stream: &[u8]) -> Result<Progress<(Self, usize)>, Malformed> {
        // A length that is too long is not waited for.
        if let [a, b, c, ..] = *stream {
            let length = u32::from_le_bytes([a, b, c, 0]) as usize;
            if length > MAX_GREETING {
                return Err(Malformed::Length(length));
            }
        }
        let packet = match Packet::parse(stream)? {
            Progress::Done(packet) => packet,
            Progress::NeedMore => return Ok(Progress::NeedMore),
        };
        if packet.sequence != 0 {
            return Err(Malformed::Greeting);
        }
        let words = match packet.payload.first() {
            Some(&ERR) => ServerError::parse(packet.payload).map(Self::Error),
            Some(&PROTOCOL) => Greeting::parse(packet.payload).map(Self::Greeting),
            _ => None,
        };
        let words = words.ok_or(Malformed::Greeting)?;
        Ok(Progress::Done((words, packet.length())))
    }
}

/// An error that stands in place of the greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// Its number.
    pub number: u16,
    /// Its words: one line, no control characters, at most 200 of them.
    pub text: String,
}

impl ServerError {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader(payload.get(1..)?);
        let number = reader.u16().map(u16::swap_bytes)?;
        if !ERRORS.contains(&number) {
            return None;
        }
        // With a SQLSTATE of some servers, before which stands a '#'.
        let text = match reader.0 {
            [b'#', rest @ ..] => rest.get(5..)?,
            text => text,
        };
        Some(Self {
            number,
            text: shown(text),
        })
    }

    /// The same for an agent. Its number is the server's, since agents and their pools act upon
    /// it; nobody has proven that it is the server who says so, and the text tells that.
    pub fn for_agent(&self) -> Vec<u8> {
        let text = format!("{} (said before TLS, by whoever answers there)", self.text);
        error_packet(0, self.number, None, &text)
    }
}

/// Protocol::HandshakeV10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    payload: Vec<u8>,
    /// Where the lower two bytes of the capabilities stand.
    ///
    /// Invariant: inside of `payload`.
    capabilities_at: usize,
    capabilities: u32,
    scramble: Vec<u8>,
}

impl Greeting {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader(payload.get(1..)?);
        if reader.cstring()?.len() > MAX_VERSION {
            return None;
        }
        reader.take(4)?; // the connection's number
        let mut scramble = reader.take(8)?.to_vec();
        reader.u8()?;
        let capabilities_at = payload.len().checked_sub(reader.0.len())?;
        let lower = reader.u16().map(u16::swap_bytes)?;
        // Servers of before 4.1 stop here.
        reader.take(3)?; // character set, status
        let upper = reader.u16().map(u16::swap_bytes)?;
        reader.take(11)?; // length of the nonce, filler
        let rest = reader
            .0
            .get(..SCRAMBLE - scramble.len())
            .unwrap_or_default();
        scramble.extend_from_slice(rest);
        Some(Self {
            payload: payload.to_vec(),
            capabilities_at,
            capabilities: u32::from(upper) << 16 | u32::from(lower),
            scramble,
        })
    }

    /// Can the server speak TLS? Without the protocol of 4.1 it cannot.
    pub fn offers_tls(&self) -> bool {
        let needed = capability::SSL | capability::PROTOCOL_41;
        self.capabilities & needed == needed
    }

    pub(super) fn capabilities(&self) -> u32 {
        self.capabilities
    }

    /// The SQL mode that the session begins with has `NO_BACKSLASH_ESCAPES`
    /// (SERVER_STATUS_NO_BACKSLASH_ESCAPES).
    pub fn no_backslash_escapes(&self) -> bool {
        // Behind the lower capabilities and the character set.
        let status = self.capabilities_at + 3;
        matches!(self.payload.get(status..status + 2), Some([_, high]) if high & 0x02 != 0)
    }

    /// The same without what would hide commands: compression, and attributes before them.
    #[must_use]
    pub fn legible(mut self) -> Self {
        self.capabilities &= !capability::ILLEGIBLE;
        let [a, b, c, d] = self.capabilities.to_le_bytes();
        for (at, bytes) in [(0, [a, b]), (5, [c, d])] {
            let at = self.capabilities_at + at;
            if let Some(flags) = self.payload.get_mut(at..at + 2) {
                flags.copy_from_slice(&bytes);
            }
        }
        self
    }

    /// The nonce that authentication is bound to.
    pub(super) fn scramble(&self) -> &[u8] {
        &self.scramble
    }

    /// The packet as the server sent it.
    pub fn packet(&self) -> Vec<u8> {
        framed(0, &self.payload).to_vec()
    }

    /// The packet without the offer of TLS.
    pub fn without_tls(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        let lower = (self.capabilities & !capability::SSL) as u16;
        if let Some(flags) = payload.get_mut(self.capabilities_at..self.capabilities_at + 2) {
            flags.copy_from_slice(&lower.to_le_bytes());
        }
        framed(0, &payload).to_vec()
    }
}

//! Packets (MS-TDS §2.2.3), and the TLS handshake inside them.

use super::Malformed;

pub(super) const TABULAR_RESULT: u8 = 0x04;
pub(super) const PRELOGIN: u8 = 0x12;

/// Status: the last packet of its message.
pub(super) const END_OF_MESSAGE: u8 = 0x01;

/// Type, status, length, SPID, packet id, window.
pub(super) const HEADER: usize = 8;

/// What servers and clients take before they have agreed on more.
pub(super) const MAX_PACKET: usize = 4096;

/// A message of one packet. What is too long for one is cut.
pub(super) fn packet(kind: u8, data: &[u8]) -> Vec<u8> {
    let data = data.get(..MAX_PACKET - HEADER).unwrap_or(data);
    let mut packet = Vec::with_capacity(HEADER + data.len());
    push(&mut packet, kind, END_OF_MESSAGE, 0, data);
    packet
}

fn push(out: &mut Vec<u8>, kind: u8, status: u8, id: u8, data: &[u8]) {
    let length = (HEADER + data.len()) as u16;
    out.extend_from_slice(&[kind, status]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[0, 0, id, 0]);
    out.extend_from_slice(data);
}

/// Puts one flight of a client's handshake into packets (§2.2.6.5, "Encryption"): one message.
pub fn wrap_handshake(flight: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut pieces = flight.chunks(MAX_PACKET - HEADER).peekable();
    let mut id = 0_u8;
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        push(&mut out, PRELOGIN, u8::from(last), id, piece);
        id = id.wrapping_add(1);
    }
    out
}

/// Follows the packets that a server's handshake comes in, so that never more is read than a
/// packet holds: what comes after the handshake is bare.
#[derive(Clone, Debug, Default)]
pub struct Unwrapper {
    header: [u8; HEADER],
    /// Bytes of the header that are there. Invariant: below [`HEADER`] where `left` is 0.
    have: usize,
    /// Bytes of the packet's data that are still to come.
    left: usize,
}

/// What is to be read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// So many bytes of a header.
    Header(usize),
    /// At most so many bytes of the handshake.
    Data(usize),
}

impl Unwrapper {
    /// What to read next; none of it is zero.
    pub fn wanted(&self) -> Wanted {
        match self.left {
            0 => Wanted::Header(HEADER - self.have.min(HEADER - 1)),
            left => Wanted::Data(left),
        }
    }

    /// Takes bytes of a header, at most as many as are wanted.
    ///
    /// # Errors
    /// No packet that holds a piece of a handshake: PRELOGIN, or TABULAR RESULT as servers before
    /// TDS 7.2 have it.
    pub fn header(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        for byte in bytes {
            if let Some(place) = self.header.get_mut(self.have) {
                *place = *byte;
                self.have += 1;
            }
        }
        let [kind, _, high, low, ..] = self.header;
        if self.have < HEADER {
            return Ok(());
        }
        self.have = 0;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !matches!(kind, PRELOGIN | TABULAR_RESULT) || length <= HEADER {
            return Err(Malformed);
        }
        self.left = length - HEADER;
        Ok(())
    }

    /// So many bytes of the handshake were read.
    pub fn took(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Is nothing of a packet outstanding?
    pub fn is_between_packets(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

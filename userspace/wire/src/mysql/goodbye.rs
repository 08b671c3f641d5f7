//! COM_QUIT: the client's last words, to which no server answers. Most of them close at once, and
//! some without TLS' goodbye, so that whoever wants to know whether a session was cut has to know
//! whether the client was done.

use crate::{Next, Rewrite, RewriteError};

/// The server's stream after it has refused the client: nothing more is expected of it, so nothing
/// can be missing where it ends without TLS' goodbye.
#[derive(Clone, Copy, Debug)]
pub struct LastWords;

impl Rewrite for LastWords {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        out.extend_from_slice(input);
        Ok(Next::Continue)
    }

    fn has_ended(&self) -> bool {
        true
    }
}

/// COM_QUIT, a packet of one byte. Inside of a compressed packet its own header stands before it.
const QUIT: [u8; 5] = [1, 0, 0, 0, 1];

/// Watches what an agent sends after its authentication.
#[derive(Clone, Debug)]
pub struct Goodbye {
    /// Bytes of a header: 4, and 7 of a compressed packet (section "Compression").
    header: usize,
    /// The beginning of a packet.
    ///
    /// Invariant: at most a header and [`QUIT`].
    head: Vec<u8>,
    /// Bytes of its payload that are not in `head` and still to come.
    left: usize,
}

impl Goodbye {
    /// At the beginning of a packet; `compressed` where packets are since the authentication.
    pub(super) fn new(compressed: bool) -> Self {
        Self {
            header: if compressed { 7 } else { 4 },
            head: Vec::new(),
            left: 0,
        }
    }

    /// Takes what the agent sends next.
    pub fn watch(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() {
            let wanted = match self.length() {
                _ if self.left > 0 => {
                    let (_, rest) = chunk.split_at_checked(self.left).unwrap_or((chunk, &[]));
                    self.left -= chunk.len() - rest.len();
                    chunk = rest;
                    continue;
                }
                None => self.header,
                Some(payload) => self.header + payload.min(QUIT.len()),
            };
            if self.head.len() == wanted {
                // It was whole, and another one begins.
                self.head.clear();
                continue;
            }
            let missing = wanted.saturating_sub(self.head.len());
            let (taken, rest) = chunk.split_at_checked(missing).unwrap_or((chunk, &[]));
            self.head.extend_from_slice(taken);
            chunk = rest;
            if let Some(payload) = self.length()
                && self.head.len() == self.header + payload.min(QUIT.len())
            {
                self.left = payload.saturating_sub(QUIT.len());
            }
        }
    }

    /// Length of the payload, once the header is there.
    fn length(&self) -> Option<usize> {
        let [a, b, c, ..] = *self.head else {
            return None;
        };
        (self.head.len() >= self.header).then(|| u32::from_le_bytes([a, b, c, 0]) as usize)
    }

    /// Was COM_QUIT the last that the agent has sent?
    pub fn said(&self) -> bool {
        match (self.header, self.head.as_slice()) {
            (4, packet) => packet == QUIT,
            // So short a payload is not compressed, which a length of 0 says.
            (_, [5, 0, 0, _, 0, 0, 0, payload @ ..]) => payload == QUIT,
            _ => false,
        }
    }
}

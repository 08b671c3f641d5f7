//! The server's answer to PRELOGIN inside the TLS of TDS 8.

use super::{Malformed, prelogin::parse_answer};
use crate::{Next, Progress, Rewrite, RewriteError};

/// Takes encryption out of the server's first packet, its answer to the agent's PRELOGIN: there it
/// means nothing, but the agent might begin a handshake for it.
#[derive(Clone, Debug, Default)]
pub struct PreloginFilter {
    /// The beginning of the packet. Invariant: less than a packet between calls.
    held: Vec<u8>,
}

impl Rewrite for PreloginFilter {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.held.extend_from_slice(input);
        match parse_answer(&self.held) {
            Ok(Progress::NeedMore) => Ok(Next::Continue),
            Ok(Progress::Done((answer, length))) => {
                out.extend(answer.response());
                out.extend(self.held.drain(..).skip(length));
                Ok(Next::Done)
            }
            Err(Malformed) => Err(RewriteError::Protocol(
                "the server answers PRELOGIN with something else".to_owned(),
            )),
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }
}

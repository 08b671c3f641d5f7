//! connect() that has already succeeded.
//!
//! The agent's connect() ends at the proxy, before the server was dialled. When the dial fails
//! the agent gets a reset; and for a moment the kernel answers connect() to that address with the
//! errno of the dial, so that the agent's next attempt sees the truth and goes on to its next
//! address.

use std::{io, time::Duration};

use mantled_redirect::Peer;
use nix::libc::{ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT};

use super::{
    Context,
    upstream::{Dial, Dialled},
};

/// Long enough for an agent's retry, short enough that a server which comes back is found.
const MEMORY: Duration = Duration::from_secs(1);

/// Dials, and has the kernel remember when that fails.
pub fn remembering(
    context: &Context,
    peer: &Peer,
    dial: Dial,
) -> impl Future<Output = io::Result<Dialled>> + Send + use<> {
    // A source, device or mark of the agent's own choice can make anything unreachable, for which
    // others must not suffer.
    let ordinary = dial.source.is_none() && dial.device == 0 && dial.mark == 0;
    let (flows, netns, destination) = (context.flows.clone(), context.netns, peer.destination);
    async move {
        let result = dial.connect().await;
        if ordinary
            && let Err(error) = &result
            && let Some(errno @ (ECONNREFUSED | EHOSTUNREACH | ENETUNREACH | ETIMEDOUT)) =
                error.raw_os_error()
            && let Err(error) = flows.mark_unreachable(netns, destination, errno, MEMORY)
        {
            tracing::debug!(%error, "the failed dial could not be remembered");
        }
        result
    }
}

//! connect() that has already succeeded.
//!
//! The agent's connect() ends at the proxy, before the server was dialled. When the dial fails
//! the agent gets a reset; and for a moment the kernel answers connect() to that address with the
//! errno of the dial, so that the agent's next attempt sees the truth and goes on to its next
//! address.

use std::{io, net::SocketAddr, time::Duration};

use nix::libc::{ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT};

use super::{Context, upstream::Dial};

/// Long enough for an agent's retry, short enough that a server which comes back is found.
const MEMORY: Duration = Duration::from_secs(1);

/// Has the kernel remember that `dial`, made for this destination of an agent's, has failed.
pub fn remember(context: &Context, destination: SocketAddr, dial: &Dial, error: &io::Error) {
    // A source, device or mark of the agent's own choice can make anything unreachable, for which
    // others must not suffer.
    if dial.source.is_some() || dial.device != 0 || dial.mark != 0 {
        return;
    }
    let Some(errno @ (ECONNREFUSED | EHOSTUNREACH | ENETUNREACH | ETIMEDOUT)) =
        error.raw_os_error()
    else {
        return;
    };
    if let Err(error) =
        context
            .flows
            .mark_unreachable(dial.place.cookie(), destination, errno, MEMORY)
    {
        tracing::debug!(%error, "the failed dial could not be remembered");
    }
}

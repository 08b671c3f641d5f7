//! Who is the peer, and where did it want to go?

use std::net::SocketAddr;

use mantled_redirect::{Flows, Peer};
use tokio::net::TcpStream;

use super::place::Place;
use crate::error::{Cause, Failure};

/// Takes the flow of a connection that was accepted in this place. A miss is a peer that the kernel
/// did not redirect: it is refused, for the proxy serves nobody who merely found its port.
///
/// # Errors
/// [`Cause::NotRedirected`], [`Cause::Internal`].
pub fn take(
    flows: &Flows,
    socket: &TcpStream,
    place: &Place,
    peer: SocketAddr,
) -> Result<Peer, Failure> {
    match flows.take(socket, place.cookie(), peer) {
        Ok(Some(peer)) => Ok(peer),
        Ok(None) => Err(Failure::new(
            Cause::NotRedirected,
            "this connection did not come from an enrolled group",
        )),
        Err(error) => Err(Failure::new(
            Cause::Internal,
            format!("the kernel's list of flows: {error}"),
        )),
    }
}

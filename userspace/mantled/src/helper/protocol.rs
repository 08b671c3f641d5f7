//! What the proxy and its helper say to each other: packets of JSON on a Unix socket that keeps
//! packets apart (`SOCK_SEQPACKET`).
//!
//! The proxy asks, the helper answers, in turns; a list comes in as many packets as it needs. A
//! request names processes and cgroups by number, and sockets by their place in the list that the
//! same connection was told last: no request holds a path, a name or an address. An answer that hands
//! over a descriptor would carry it as `SCM_RIGHTS` (`mantled_redirect::sys::send_descriptors`);
//! none does yet, and requests never do: what comes with one is closed unseen.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use mantled_redirect::existing::Socket;
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest packet. A path is of 4 KiB at most, and escaping makes it six times as long; the socket
/// buffer of a Linux without settings holds 208 KiB.
pub(super) const PACKET: usize = 64 << 10;

/// Sockets in one packet, at most 110 bytes each.
pub(super) const PAGE: usize = 256;

/// Sockets of one group. With more of them none is ended, and the operator is told.
pub(super) const SOCKETS: usize = 1 << 16;

/// What the proxy asks.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Request {
    /// Which executable does this process run? It must be in that cgroup, and that in an enrolled
    /// one.
    Process { pid: u32, cgroup: u64 },
    /// Which cgroup is this process in? Of any process, since callers of the admin socket are in
    /// none that is enrolled.
    CgroupOf { pid: u32 },
    /// Which sockets has this enrolled group?
    Sockets { cgroup: u64 },
    /// End these, by their places in the list that this connection was told last.
    End { places: Vec<usize> },
}

/// What the helper answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Answer {
    /// To `Process`.
    Process {
        cgroup: String,
        executable: Option<String>,
    },
    /// To `Process`: there is no such process in that cgroup, or nobody enrolled that.
    Gone {},
    /// To `CgroupOf`.
    Cgroup { path: String },
    /// To `Sockets`, one or more.
    Sockets {
        sockets: Vec<Listed>,
        /// Processes whose sockets could not be looked at.
        hidden: usize,
        /// More packets follow.
        more: bool,
    },
    /// To `End`: for each place 0 where it was ended, else the errno; `ENOENT`: it ended by itself.
    Ended { results: Vec<i32> },
    /// It is not done, and why.
    Refused { reason: String },
}

/// [`Socket`], as it is written.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Listed {
    Listener {
        port: u16,
        foreign: bool,
    },
    Connection {
        peer: SocketAddr,
        stream: bool,
        inbound: bool,
    },
}

impl From<Socket> for Listed {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Listener { port, foreign } => Self::Listener { port, foreign },
            Socket::Connection {
                peer,
                stream,
                inbound,
            } => Self::Connection {
                peer,
                stream,
                inbound,
            },
        }
    }
}

impl From<Listed> for Socket {
    fn from(listed: Listed) -> Self {
        match listed {
            Listed::Listener { port, foreign } => Self::Listener { port, foreign },
            Listed::Connection {
                peer,
                stream,
                inbound,
            } => Self::Connection {
                peer,
                stream,
                inbound,
            },
        }
    }
}

/// Sends one packet.
pub(super) fn send(socket: &OwnedFd, message: &impl Serialize) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > PACKET {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // A peer that is gone is an error, not a signal.
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&packet)],
        &[],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one packet; None: the other end has closed.
pub(super) fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<T>> {
    let mut buffer = vec![0; PACKET];
    // With MSG_TRUNC the length is the packet's, also where it is longer than the buffer.
    let length = loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Err(nix::errno::Errno::EINTR) => {}
            received => break received?,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let packet = buffer.get(..length).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(serde_json::from_slice(packet)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_answers_fit_in_a_packet() {
        let longest = || Listed::Connection {
            peer: "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
                .parse()
                .unwrap(),
            stream: false,
            inbound: false,
        };
        let path = "\u{1}".repeat(4096);
        let answers = [
            Answer::Sockets {
                sockets: std::iter::repeat_with(longest).take(PAGE).collect(),
                hidden: usize::MAX,
                more: true,
            },
            Answer::Process {
                cgroup: path.clone(),
                executable: Some(path),
            },
            Answer::Ended {
                results: vec![i32::MAX; PAGE],
            },
        ];
        for answer in answers {
            let length = serde_json::to_vec(&answer).unwrap().len();
            assert!(length < PACKET, "{length} bytes");
        }
        let request = Request::End {
            places: vec![SOCKETS; PAGE],
        };
        assert!(serde_json::to_vec(&request).unwrap().len() < PACKET);
    }
}

//! What the proxy and its helper say to each other: packets of JSON on a Unix socket that keeps
//! packets apart (`SOCK_SEQPACKET`).
//!
//! The proxy asks, the helper answers, in turns; a list comes in as many packets as it needs. A
//! request names processes, cgroups and network namespaces by number, and sockets by their place in
//! the list that the same connection was told last: no request holds a path, a name or an address. An
//! answer hands over sockets as `SCM_RIGHTS` (unix(7)); requests never do: what comes with one is
//! closed unseen.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use mantled_redirect::{
    descriptors,
    existing::Socket,
    namespaces::{self, Kind},
};
use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest packet. A path is of 4 KiB at most, and escaping makes it six times as long; the socket
/// buffer of a Linux without settings holds 208 KiB.
pub(super) const PACKET: usize = 64 << 10;

/// Sockets in one packet, at most 110 bytes each.
pub(super) const PAGE: usize = 256;

/// Sockets of one group. With more of them none is ended, and the operator is told.
pub(super) const SOCKETS: usize = 1 << 16;

/// Network namespaces of one group. With more of them none is served, and the operator is told.
pub(super) const NAMESPACES: usize = 1024;

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
    /// Which sockets has this enrolled group, in the helper's network namespace or in this one?
    Sockets {
        cgroup: u64,
        namespace: Option<Used>,
    },
    /// End these, by their places in the list that this connection was told last.
    End { places: Vec<usize> },
    /// Which network namespaces does this enrolled group use?
    Namespaces { cgroup: u64 },
    /// Listen in this one, on loopback. Its task must be in an enrolled group.
    Listen { namespace: Used },
    /// Make a socket in this one, likewise.
    Socket { namespace: Used, kind: SocketKind },
}

/// [`namespaces::Used`], as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Used {
    pub(super) inode: u64,
    pub(super) task: u32,
}

impl From<namespaces::Used> for Used {
    fn from(namespaces::Used { inode, task }: namespaces::Used) -> Self {
        Self { inode, task }
    }
}

impl From<Used> for namespaces::Used {
    fn from(Used { inode, task }: Used) -> Self {
        Self { inode, task }
    }
}

/// [`Kind`], as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SocketKind {
    Stream4,
    Stream6,
    Datagram4,
    Datagram6,
}

impl From<Kind> for SocketKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Stream4 => Self::Stream4,
            Kind::Stream6 => Self::Stream6,
            Kind::Datagram4 => Self::Datagram4,
            Kind::Datagram6 => Self::Datagram6,
        }
    }
}

impl From<SocketKind> for Kind {
    fn from(kind: SocketKind) -> Self {
        match kind {
            SocketKind::Stream4 => Self::Stream4,
            SocketKind::Stream6 => Self::Stream6,
            SocketKind::Datagram4 => Self::Datagram4,
            SocketKind::Datagram6 => Self::Datagram6,
        }
    }
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
    /// To `Process`: there is no such process in that cgroup, or nobody enrolled that. To what
    /// names a network namespace: that task does not use it, or nobody enrolled its cgroup. To
    /// `Namespaces`: nobody enrolled it, or it is not there any more.
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
    /// To `Namespaces`, each once.
    Namespaces { used: Vec<Used> },
    /// To `Listen` and `Socket`; the sockets come with it.
    Opened {},
    /// To `Namespaces`, `Listen` and `Socket`: the system does not do it.
    Failed { errno: i32 },
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
    hand_over(socket, message, &[])
}

/// Sends one packet with descriptors.
pub(super) fn hand_over(
    socket: &OwnedFd,
    message: &impl Serialize,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > PACKET {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    descriptors::send(socket, &packet, sockets)
}

/// Receives one packet, with the descriptors that come with it; None: the other end has closed.
pub(super) fn take_over<T: DeserializeOwned>(
    socket: &OwnedFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; PACKET];
    let (length, sockets) = loop {
        match descriptors::receive(socket, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => break received?,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let packet = buffer.get(..length).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some((serde_json::from_slice(packet)?, sockets)))
}

/// Receives one packet; None: the other end has closed. Descriptors that come with it are closed by
/// the kernel.
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
            Answer::Namespaces {
                used: vec![
                    Used {
                        inode: u64::MAX,
                        task: u32::MAX,
                    };
                    NAMESPACES
                ],
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

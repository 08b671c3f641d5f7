//! Sockets that were there before a group was enrolled.
//!
//! A connection that is older than the enrolment does not go through the proxy, and what the
//! egress program drops of it would leave the agent waiting. `SOCK_DESTROY` (sock_diag(7)) ends
//! it with ECONNABORTED, so that the agent connects again. Sockets are matched by the inodes of
//! the group's descriptors: the cgroup in which a socket was made can be another one.

use std::{
    collections::HashSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::cgroup::Cgroup;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_CGROUP_ID: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// Length of struct nlmsghdr.
const HEADER: usize = 16;
/// Length of struct inet_diag_sockid.
const ID: usize = 48;
/// `TCP_LISTEN` of the kernel's socket states.
const LISTEN: u8 = 10;

/// A socket of a group's that tells something about it, or could be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A TCP server's, beyond loopback.
    Listener {
        /// Its port.
        port: u16,
        /// It was made in another cgroup (by socket activation, or before the process moved in):
        /// what it accepts belongs to that cgroup, so the group's egress program does not see its
        /// packets.
        foreign: bool,
    },
    /// A connection, or a datagram socket that is connected.
    Connection {
        /// The other end.
        peer: SocketAddr,
        /// It is TCP.
        stream: bool,
        /// It came in to a server of the group's.
        inbound: bool,
    },
}

/// The sockets of a group, as they were when they were listed.
#[derive(Debug)]
pub struct Listing {
    /// Processes whose sockets must not be looked at.
    pub hidden: usize,
    /// None: there is nothing to end.
    netlink: Option<OwnedFd>,
    sockets: Vec<(Socket, Handle)>,
}

/// How the kernel is told which socket is meant.
#[derive(Clone, Copy, Debug)]
struct Handle {
    family: u8,
    protocol: u8,
    /// struct inet_diag_sockid as it came, cookie included, so that no other socket is meant.
    id: [u8; ID],
}

/// Lists the sockets of a group's processes, in the network namespace that `netlink` is of; None is
/// that of the calling thread.
///
/// # Errors
/// As netlink(7).
pub fn list(cgroup: &Cgroup, netlink: Option<OwnedFd>) -> io::Result<Listing> {
    let (inodes, hidden) = socket_inodes(cgroup);
    if inodes.is_empty() {
        return Ok(Listing {
            netlink: None,
            sockets: Vec::new(),
            hidden,
        });
    }
    let own = cgroup.ids();
    let netlink = match netlink {
        Some(netlink) => netlink,
        None => open()?,
    };
    let mut all = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        for protocol in [libc::IPPROTO_TCP as u8, libc::IPPROTO_UDP as u8] {
            let found = dump(&netlink, family, protocol)?;
            all.extend(
                found
                    .into_iter()
                    .filter(|found| inodes.contains(&found.inode))
                    .map(|found| (family, protocol, found)),
            );
        }
    }
    let is_listener =
        |protocol: u8, found: &Found| protocol == libc::IPPROTO_TCP as u8 && found.state == LISTEN;
    let served: HashSet<u16> = all
        .iter()
        .filter(|(_, protocol, found)| is_listener(*protocol, found))
        .map(|(_, _, found)| found.local_port)
        .collect();
    let sockets = all
        .into_iter()
        .filter_map(|(family, protocol, found)| {
            let socket = if is_listener(protocol, &found) {
                if found.local.is_loopback() {
                    return None;
                }
                Socket::Listener {
                    port: found.local_port,
                    foreign: found.cgroup.is_some_and(|id| !own.contains(&id)),
                }
            } else if found.peer_port != 0 {
                Socket::Connection {
                    peer: SocketAddr::new(found.peer, found.peer_port),
                    stream: protocol == libc::IPPROTO_TCP as u8,
                    inbound: served.contains(&found.local_port),
                }
            } else {
                return None;
            };
            let id = found.id;
            let handle = Handle {
                family,
                protocol,
                id,
            };
            Some((socket, handle))
        })
        .collect();
    Ok(Listing {
        netlink: Some(netlink),
        sockets,
        hidden,
    })
}

impl Listing {
    /// What was found.
    pub fn sockets(&self) -> impl Iterator<Item = Socket> {
        self.sockets.iter().map(|(socket, _)| *socket)
    }

    /// Ends the socket that came at this place of the list. False: it ended by itself meanwhile.
    ///
    /// # Errors
    /// As netlink(7); no such place.
    pub fn end(&self, index: usize) -> io::Result<bool> {
        let (Some((_, handle)), Some(netlink)) = (self.sockets.get(index), &self.netlink) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match destroy(netlink, handle) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The inodes of the sockets that a group's processes have, and how many processes must not be
/// looked at. A process that has gone has none.
fn socket_inodes(cgroup: &Cgroup) -> (HashSet<u32>, usize) {
    let mut inodes = HashSet::new();
    let mut hidden = 0;
    for pid in cgroup.processes() {
        if add_inodes(pid, &mut inodes)
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            hidden += 1;
        }
    }
    (inodes, hidden)
}

fn add_inodes(pid: u32, inodes: &mut HashSet<u32>) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = match fs::read_link(entry?.path()) {
            // It was closed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            target => target?,
        };
        let inode = target
            .to_str()
            .and_then(|text| text.strip_prefix("socket:["))
            .and_then(|text| text.strip_suffix(']'))
            .and_then(|text| text.parse::<u32>().ok());
        inodes.extend(inode);
    }
    Ok(())
}

/// One socket of a dump: the parts of struct inet_diag_msg that are looked at.
struct Found {
    state: u8,
    local: IpAddr,
    local_port: u16,
    peer: IpAddr,
    peer_port: u16,
    inode: u32,
    /// The cgroup in which it was made (Linux 5.9).
    cgroup: Option<u64>,
    /// struct inet_diag_sockid as it came, cookie included, so that no other socket is meant.
    id: [u8; ID],
}

impl Found {
    /// struct inet_diag_msg: family, state, timer, retrans, id, expires, rqueue, wqueue, uid, inode.
    fn parse(message: &[u8]) -> Option<Self> {
        let family = *message.first()?;
        let id: [u8; ID] = message.get(4..4 + ID)?.try_into().ok()?;
        let address = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
            Some(if i32::from(family) == libc::AF_INET {
                let [a, b, c, d, ..] = bytes;
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            } else {
                Ipv6Addr::from(bytes).to_canonical()
            })
        };
        Some(Self {
            state: *message.get(1)?,
            local: address(4)?,
            local_port: u16::from_be_bytes([id[0], id[1]]),
            peer: address(20)?,
            peer_port: u16::from_be_bytes([id[2], id[3]]),
            inode: u32::from_ne_bytes(message.get(68..72)?.try_into().ok()?),
            cgroup: attribute(message.get(72..).unwrap_or_default(), INET_DIAG_CGROUP_ID)
                .and_then(|value| Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))),
            id,
        })
    }
}

/// The value of an attribute: struct nlattr is length (itself included) and type, and values are
/// padded to four bytes.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A socket that lists and ends the sockets of its network namespace.
pub(crate) fn open() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?)
}

/// A message of struct nlmsghdr and struct inet_diag_req_v2.
fn request(kind: u16, flags: u16, family: u8, protocol: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + 8 + ID);
    message.extend_from_slice(&((HEADER + 8 + ID) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port: answers are read before the next request
    message.extend_from_slice(&[family, protocol, 0, 0]); // no extensions, padding
    message.extend_from_slice(&u32::MAX.to_ne_bytes()); // every state
    message.extend_from_slice(id);
    message
}

fn send(netlink: &OwnedFd, message: &[u8]) -> io::Result<()> {
    sendto(
        netlink.as_raw_fd(),
        message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    Ok(())
}

fn dump(netlink: &OwnedFd, family: u8, protocol: u8) -> io::Result<Vec<Found>> {
    send(
        netlink,
        &request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, &[0; ID]),
    )?;
    let mut found = Vec::new();
    answers(netlink, |kind, body| match kind {
        NLMSG_DONE => Ok(true),
        NLMSG_ERROR => errno(body).map(|()| true),
        _ => {
            found.extend(Found::parse(body));
            Ok(false)
        }
    })?;
    Ok(found)
}

fn destroy(netlink: &OwnedFd, socket: &Handle) -> io::Result<()> {
    send(
        netlink,
        &request(
            SOCK_DESTROY,
            NLM_F_ACK,
            socket.family,
            socket.protocol,
            &socket.id,
        ),
    )?;
    answers(netlink, |kind, body| match kind {
        NLMSG_ERROR => errno(body).map(|()| true),
        _ => Ok(true),
    })
}

/// Reads messages until `handle` says that it has the last.
fn answers(
    netlink: &OwnedFd,
    mut handle: impl FnMut(u16, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    // The kernel fills dumps up to 32 KiB a datagram.
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(header) = rest.get(..HEADER) {
            let size = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let Some(body) = rest.get(HEADER..size) else {
                break;
            };
            if handle(kind, body)? {
                return Ok(());
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// struct nlmsgerr: a negative errno first; 0 acknowledges.
fn errno(body: &[u8]) -> io::Result<()> {
    match body
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(negative) => Err(io::Error::from_raw_os_error(-negative)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

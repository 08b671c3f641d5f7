//! The sockets that redirected connections arrive at, and the one that proves there is a daemon.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mantled_abi as abi;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::{Error, map::Map, sys};

/// Connections that wait for accept(). The kernel caps it at net.core.somaxconn, 4096 by default.
const BACKLOG: i32 = 4096;

/// How often a pair of free ports is looked for.
const ATTEMPTS: u32 = 64;

/// Listeners of one network namespace. They are on loopback only: nobody else can reach them.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1.
    v4: TcpListener,
    /// ::1, on the same port; None where the host has no IPv6.
    v6: Option<TcpListener>,
    /// The same addresses and port, for datagrams.
    datagrams: Vec<UdpSocket>,
    /// Nobody connects to it. It is never handed on, so it is gone when the daemon is.
    pub(crate) liveness: TcpListener,
}

impl Listeners {
    /// Binds them in the network namespace of the calling thread. Port 0: the kernel picks one.
    ///
    /// # Errors
    /// [`Error::Io`] when the port is taken.
    pub fn bind(port: u16) -> Result<Self, Error> {
        let failed = |source| {
            Error::io(
                format!(
                    "listening on 127.0.0.1 and ::1, port {port} ([listen] port; 0 takes a free one)"
                ),
                source,
            )
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            match Self::bind_once(port, false) {
                Ok(listeners) => return Ok(listeners),
                // Somebody has that port in another way; another one will do if any would.
                Err(_) if port == 0 && attempt < ATTEMPTS => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Those of a predecessor, which accepts no more; with a proof of its own.
    ///
    /// # Errors
    /// They are not what a predecessor has; as listen(2).
    pub fn inherit(streams: Vec<OwnedFd>, datagrams: Vec<OwnedFd>) -> io::Result<Self> {
        let mut streams = streams.into_iter().map(TcpListener::from);
        let v4 = streams
            .next()
            .ok_or_else(|| io::Error::other("the predecessor has handed over no listener"))?;
        Ok(Self {
            v4,
            v6: streams.next(),
            datagrams: datagrams.into_iter().map(UdpSocket::from).collect(),
            liveness: listener((Ipv4Addr::LOCALHOST, 0).into(), 1, false)?,
        })
    }

    /// Binds them in another network namespace, that of the calling thread, on a free port. The
    /// addresses need not be there yet: a new namespace gets them when its loopback device comes
    /// up.
    ///
    /// # Errors
    /// As bind(2).
    pub(crate) fn bind_ahead() -> io::Result<Self> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match Self::bind_once(0, true) {
                Err(_) if attempt < ATTEMPTS => {}
                result => return result,
            }
        }
    }

    fn bind_once(port: u16, ahead: bool) -> io::Result<Self> {
        let listener = |address, backlog| listener(address, backlog, ahead);
        let datagrams = |address| datagrams(address, ahead);
        let liveness = listener((Ipv4Addr::LOCALHOST, 0).into(), 1)?;
        let v4 = listener((Ipv4Addr::LOCALHOST, port).into(), BACKLOG)?;
        let chosen = v4.local_addr()?.port();
        let mut datagram_sockets = vec![datagrams((Ipv4Addr::LOCALHOST, chosen).into())?];
        let v6 = match listener((Ipv6Addr::LOCALHOST, chosen).into(), BACKLOG) {
            Ok(v6) => {
                datagram_sockets.push(datagrams((Ipv6Addr::LOCALHOST, chosen).into())?);
                Some(v6)
            }
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
                ) =>
            {
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            v4,
            v6,
            datagrams: datagram_sockets,
            liveness,
        })
    }

    /// Their descriptors, for [`Self::from_descriptors`] of another process.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [self.v4.as_fd(), self.liveness.as_fd()]
            .into_iter()
            .chain(self.datagrams.iter().map(|socket| socket.as_fd()))
            .chain(self.v6.iter().map(|socket| socket.as_fd()))
            .collect()
    }

    /// The listeners behind the descriptors of [`Self::descriptors`], in that order.
    ///
    /// # Errors
    /// It is another number of them than any listeners have.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not the sockets of a listener");
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(wrong);
        let (v4, liveness, datagram) = (next()?, next()?, next()?);
        let (datagram6, v6) = (descriptors.next(), descriptors.next());
        if datagram6.is_some() != v6.is_some() || descriptors.next().is_some() {
            return Err(wrong());
        }
        Ok(Self {
            v4: v4.into(),
            v6: v6.map(TcpListener::from),
            datagrams: std::iter::once(datagram)
                .chain(datagram6)
                .map(UdpSocket::from)
                .collect(),
            liveness: liveness.into(),
        })
    }

    /// Port of the proxy's listeners.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.v4.local_addr()?.port())
    }

    pub(crate) fn liveness_port(&self) -> io::Result<u16> {
        Ok(self.liveness.local_addr()?.port())
    }

    /// The proxy's sockets.
    pub fn into_parts(self) -> Parts {
        Parts {
            streams: std::iter::once(self.v4).chain(self.v6).collect(),
            datagrams: self.datagrams,
            liveness: Liveness {
                _socket: self.liveness,
            },
        }
    }

    /// The network namespace that they are in.
    ///
    /// # Errors
    /// As getsockopt(2); the kernel is older than 5.14.
    pub fn netns(&self) -> io::Result<u64> {
        sys::netns_cookie(&self.v4)
    }
}

/// The proxy's sockets, each of which has its reader.
#[derive(Debug)]
pub struct Parts {
    /// Where connections arrive.
    pub streams: Vec<TcpListener>,
    /// Where datagrams arrive.
    pub datagrams: Vec<UdpSocket>,
    /// The proof that there is a daemon: dropping it makes the kernel programs do what
    /// `on_daemon_down` says, at once.
    pub liveness: Liveness,
}

impl Parts {
    /// Another descriptor of each stream and each datagram socket, for a successor.
    ///
    /// # Errors
    /// As dup(2).
    pub fn duplicate(&self) -> io::Result<(Vec<OwnedFd>, Vec<OwnedFd>)> {
        let streams: io::Result<_> = self
            .streams
            .iter()
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .collect();
        let datagrams: io::Result<_> = self
            .datagrams
            .iter()
            .map(|socket| socket.as_fd().try_clone_to_owned())
            .collect();
        Ok((streams?, datagrams?))
    }
}

/// As long as it exists, the kernel programs find a daemon.
#[derive(Debug)]
pub struct Liveness {
    _socket: TcpListener,
}

fn listener(address: SocketAddr, backlog: i32, ahead: bool) -> io::Result<TcpListener> {
    let socket = unbound(address, SockType::Stream, ahead)?;
    // Connections of an earlier daemon may linger in TIME_WAIT on the configured port.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(backlog)?)?;
    Ok(TcpListener::from(socket))
}

/// A socket for an address; `ahead` of the address' being there.
fn unbound(address: SocketAddr, kind: SockType, ahead: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if ahead {
        sys::bind_freely(&socket, address.is_ipv6())?;
    }
    Ok(socket)
}

/// Room for a burst of datagrams, in bytes; the kernel caps it at net.core.rmem_max.
const DATAGRAM_ROOM: usize = 4 << 20;

fn datagrams(address: SocketAddr, ahead: bool) -> io::Result<UdpSocket> {
    let socket = unbound(address, SockType::Datagram, ahead)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    setsockopt(&socket, sockopt::RcvBuf, &DATAGRAM_ROOM)?;
    Ok(UdpSocket::from(socket))
}

/// Where this daemon listens, as the kernel programs know it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Served(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    listeners: Map<u64, abi::Listener>,
    liveness: Map<i32, u64>,
    /// Marks the liveness sockets of this daemon.
    instance: u64,
    /// What it has told them, by network namespace.
    told: Mutex<HashMap<u64, abi::Listener>>,
}

impl Served {
    pub(crate) fn new(listeners: Map<u64, abi::Listener>, liveness: Map<i32, u64>) -> Self {
        Self(Arc::new(Inner {
            listeners,
            liveness,
            // Never zero, and never the number of a daemon that was here before.
            instance: sys::monotonic().max(1),
            told: Mutex::new(HashMap::new()),
        }))
    }

    fn told(&self) -> MutexGuard<'_, HashMap<u64, abi::Listener>> {
        // Nothing panics while it holds the lock; a map is whole after every call in any case.
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, connections of their network namespace go to these listeners.
    ///
    /// # Errors
    /// As bpf(2); more namespaces than the map holds.
    pub fn add(&self, listeners: &Listeners) -> io::Result<()> {
        let socket = listeners.liveness.as_raw_fd();
        self.0.liveness.insert(&socket, &self.0.instance)?;
        let entry = abi::Listener {
            instance: self.0.instance,
            proxy_port: listeners.port()?,
            liveness_port: listeners.liveness_port()?,
            pad: 0,
        };
        let netns = listeners.netns()?;
        self.0.listeners.insert(&netns, &entry)?;
        self.told().insert(netns, entry);
        Ok(())
    }

    /// This daemon does not listen in that network namespace any more; a successor may.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn remove(&self, netns: u64) -> io::Result<()> {
        self.told().remove(&netns);
        match self.0.listeners.get(&netns)? {
            Some(entry) if entry.instance == self.0.instance => {
                self.0.listeners.remove(&netns).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Tells everything again, after a successor has told something else.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn restore(&self) -> io::Result<()> {
        for (netns, entry) in self.told().iter() {
            self.0.listeners.insert(netns, entry)?;
        }
        Ok(())
    }

    /// Forgets where an earlier daemon has listened and this one does not.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn forget_others(&self) -> io::Result<()> {
        let own: Vec<u64> = self.told().keys().copied().collect();
        self.0.listeners.retain(&own)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn listeners_survive_being_handed_on() {
        let bound = Listeners::bind(0).unwrap();
        let (port, liveness, netns) = (
            bound.port().unwrap(),
            bound.liveness_port().unwrap(),
            bound.netns().unwrap(),
        );
        let copies = |listeners: &Listeners| -> Vec<OwnedFd> {
            let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
            listeners.descriptors().into_iter().map(copy).collect()
        };
        let mut descriptors = copies(&bound);
        let handed = Listeners::from_descriptors(copies(&bound)).unwrap();
        assert_eq!(handed.port().unwrap(), port);
        assert_eq!(handed.liveness_port().unwrap(), liveness);
        assert_eq!(handed.netns().unwrap(), netns);
        drop(bound);
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let parts = handed.into_parts();
        let from = parts.streams[0].accept().unwrap().1;
        assert_eq!(from, client.local_addr().unwrap());
        for socket in &parts.datagrams {
            assert_eq!(socket.local_addr().unwrap().port(), port);
        }

        descriptors.truncate(2);
        assert!(Listeners::from_descriptors(descriptors).is_err());
    }
}

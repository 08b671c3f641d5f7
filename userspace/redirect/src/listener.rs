//! The sockets that redirected connections arrive at, and the one that proves there is a daemon.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::{Error, sys};

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
            match Self::bind_once(port) {
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
            liveness: listener((Ipv4Addr::LOCALHOST, 0).into(), 1)?,
        })
    }

    fn bind_once(port: u16) -> io::Result<Self> {
        let liveness = listener((Ipv4Addr::LOCALHOST, 0).into(), 1)?;
        let v4 = listener((Ipv4Addr::LOCALHOST, port).into(), BACKLOG)?;
        let chosen = v4.local_addr()?.port();
        let mut datagrams = vec![datagrams((Ipv4Addr::LOCALHOST, chosen).into())?];
        let v6 = match listener((Ipv6Addr::LOCALHOST, chosen).into(), BACKLOG) {
            Ok(v6) => {
                datagrams.push(self::datagrams((Ipv6Addr::LOCALHOST, chosen).into())?);
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
            datagrams,
            liveness,
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

fn listener(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    // Connections of an earlier daemon may linger in TIME_WAIT on the configured port.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &SockaddrStorage::from(address),
    )?;
    listen(&socket, Backlog::new(backlog)?)?;
    Ok(TcpListener::from(socket))
}

/// Room for a burst of datagrams, in bytes; the kernel caps it at net.core.rmem_max.
const DATAGRAM_ROOM: usize = 4 << 20;

fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBuf, &DATAGRAM_ROOM)?;
    Ok(socket)
}

//! Network namespaces: where agents are, and from where their servers are dialled.
//!
//! An agent in a container has addresses, routes and neighbours of its own, so a server is reached
//! from there as well: the socket is made in the agent's namespace, and everything else happens
//! here. In the daemon's own namespace that costs nothing.

use std::{
    hash::{Hash, Hasher},
    io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::Arc,
};

use mantled_redirect::namespaces::{Kind, Namespaces};
use tokio::{net::TcpSocket, sync::watch};

/// A network namespace; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Place {
    cookie: u64,
    /// None in the daemon's own.
    elsewhere: Option<Elsewhere>,
}

#[derive(Clone, Debug)]
struct Elsewhere {
    namespaces: Arc<dyn Namespaces>,
    ended: watch::Receiver<bool>,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cookie == other.cookie
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.cookie.hash(state);
    }
}

impl Place {
    /// The daemon's own.
    pub fn home(cookie: u64) -> Self {
        Self {
            cookie,
            elsewhere: None,
        }
    }

    /// Another one, in which the daemon listens until `ended` turns true.
    pub fn elsewhere(
        cookie: u64,
        namespaces: Arc<dyn Namespaces>,
        ended: watch::Receiver<bool>,
    ) -> Self {
        Self {
            cookie,
            elsewhere: Some(Elsewhere { namespaces, ended }),
        }
    }

    /// `SO_NETNS_COOKIE` of its sockets.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Is it the daemon's own?
    pub fn is_home(&self) -> bool {
        self.elsewhere.is_none()
    }

    /// Are the agents gone?
    pub fn has_ended(&self) -> bool {
        self.elsewhere.as_ref().is_some_and(|elsewhere| {
            *elsewhere.ended.borrow() || elsewhere.ended.has_changed().is_err()
        })
    }

    /// Returns when the agents are gone, so that nothing keeps the namespace.
    pub async fn ended(&self) {
        match &self.elsewhere {
            Some(elsewhere) => {
                // Who would have said so is gone as well.
                let _ = elsewhere.ended.clone().wait_for(|ended| *ended).await;
            }
            None => std::future::pending().await,
        }
    }

    /// A TCP socket for this address.
    ///
    /// # Errors
    /// As socket(2); [`io::ErrorKind::NotConnected`] when the namespace has ended.
    pub async fn stream(&self, address: IpAddr) -> io::Result<TcpSocket> {
        let Some(elsewhere) = &self.elsewhere else {
            return here(address);
        };
        // It may have to ask another process.
        let (namespaces, cookie) = (Arc::clone(&elsewhere.namespaces), self.cookie);
        let made =
            tokio::task::spawn_blocking(move || namespaces.socket(cookie, stream_kind(address)));
        made.await.map_err(io::Error::other)?.map(of)
    }

    /// The same, for where nobody can wait.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub fn stream_at_once(&self, address: IpAddr) -> io::Result<TcpSocket> {
        match &self.elsewhere {
            Some(elsewhere) => elsewhere
                .namespaces
                .socket(self.cookie, stream_kind(address))
                .map(of),
            None => here(address),
        }
    }

    /// Is it an address of this namespace's own? Only such can be bound.
    pub fn owns(&self, address: IpAddr) -> bool {
        let Some(elsewhere) = &self.elsewhere else {
            return UdpSocket::bind((address, 0)).is_ok();
        };
        let kind = if address.is_ipv4() {
            Kind::Datagram4
        } else {
            Kind::Datagram6
        };
        elsewhere
            .namespaces
            .socket(self.cookie, kind)
            .and_then(|socket| {
                socket2::Socket::from(socket).bind(&SocketAddr::new(address, 0).into())
            })
            .is_ok()
    }
}

fn here(address: IpAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

fn stream_kind(address: IpAddr) -> Kind {
    if address.is_ipv4() {
        Kind::Stream4
    } else {
        Kind::Stream6
    }
}

/// tokio makes sockets of its own only; this is its way to take one that is not connected yet.
fn of(socket: OwnedFd) -> TcpSocket {
    TcpSocket::from_std_stream(TcpStream::from(socket))
}

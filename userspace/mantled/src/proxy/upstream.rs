//! Connections to servers, by what has been proven of them.
//!
//! A connection starts as [`Dialled`], which cannot carry what an agent sent: it says only a
//! [`Preamble`]. The ways on are the variants of [`Upstream`], and there is no
//! other type that the relay writes to.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mantled_record::TlsFacts;
use mantled_redirect::Peer;
use mantled_wire::starttls::Preamble;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    place::Place,
    plan::{ClearTextPermit, Plan},
    transport::Transport,
};
use crate::{
    error::{Cause, Failure},
    tls::{Connector, Offer},
};

/// How to reach a server: as the agent would have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dial {
    /// From which network namespace.
    pub place: Place,
    /// Where to.
    pub address: SocketAddr,
    /// From which local address; None leaves it to the kernel.
    pub source: Option<IpAddr>,
    /// By which device (`SO_BINDTOIFINDEX`); 0 leaves it to the kernel.
    pub device: u32,
    /// With which mark (`SO_MARK`); 0 for none.
    pub mark: u32,
    /// For how long it is tried.
    pub patience: Duration,
}

impl Dial {
    /// As the plan says, in the way that the agent would have.
    pub fn of(plan: &Plan, peer: &Peer, place: &Place, patience: Duration) -> Self {
        Self {
            place: place.clone(),
            address: plan.address(),
            source: peer.source,
            device: peer.flow.device,
            mark: peer.flow.mark,
            patience,
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// The system's own error, so that the agent can be given its errno.
    pub fn connect(&self) -> impl Future<Output = io::Result<Dialled>> + Send + use<> {
        let dial = self.clone();
        async move {
            let socket = dial.place.stream(dial.address.ip()).await?;
            if dial.device != 0 {
                mantled_redirect::sys::bind_to_device(&socket, dial.device)?;
            }
            if dial.mark != 0 {
                nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &dial.mark)?;
            }
            if let Some(source) = dial.source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            let stream = timeout(dial.patience, socket.connect(dial.address))
                .await
                .map_err(|_| io::Error::from_raw_os_error(nix::libc::ETIMEDOUT))??;
            // Records are written whole, so waiting for more only adds delay.
            stream.set_nodelay(true)?;
            keep_alive(&stream)?;
            Ok(Dialled(stream))
        }
    }
}

/// Has the kernel ask a silent peer whether it is still there, so that a session whose peer has
/// vanished (or closed for good, which looks like the end of its side alone) ends within two
/// minutes.
///
/// # Errors
/// As setsockopt(2).
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// A connection to a server of which nothing is proven.
#[derive(Debug)]
pub struct Dialled(TcpStream);

impl Dialled {
    /// Says something that holds nothing of the agent's.
    ///
    /// # Errors
    /// As write(2).
    pub async fn say(&mut self, words: &Preamble) -> io::Result<()> {
        self.0.write_all(words.bytes()).await
    }

    /// Hears what has come, at most as much as fits; 0 at the end of the stream.
    ///
    /// # Errors
    /// As read(2).
    pub async fn hear(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).await
    }

    /// Waits until the server says something, or ends the stream. Nothing is taken.
    ///
    /// # Errors
    /// As recv(2).
    pub async fn spoken(&self) -> io::Result<usize> {
        self.0.peek(&mut [0]).await
    }

    /// Shows what the server has said, and leaves it there; 0 at the end of the stream. It waits
    /// for the first byte only.
    ///
    /// # Errors
    /// As recv(2).
    pub async fn glance(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.peek(buffer).await
    }

    /// A connection that a server has made to the proxy.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        Ok(Self(stream))
    }

    /// The address from which the server is reached.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_address(&self) -> io::Result<IpAddr> {
        Ok(self.0.local_addr()?.ip())
    }

    /// The server's port.
    pub fn port(&self) -> Option<u16> {
        self.0.peer_addr().ok().map(|address| address.port())
    }

    /// Makes TLS of it and verifies the name.
    ///
    /// # Errors
    /// See [`Connector::connect`]; [`Cause::UpgradeTimeout`].
    pub async fn verify(
        self,
        connector: &Connector,
        name: &ServerName<'static>,
        offer: Offer,
        patience: Duration,
    ) -> Result<Verified, Failure> {
        Verified::by(
            connector,
            connector.connect(self.0, name, offer),
            name,
            patience,
        )
        .await
    }

    /// The same for a data connection.
    ///
    /// # Errors
    /// See [`Connector::connect_data`]; [`Cause::UpgradeTimeout`].
    pub async fn verify_data(
        self,
        connector: &Connector,
        name: &ServerName<'static>,
        patience: Duration,
    ) -> Result<Verified, Failure> {
        Verified::by(
            connector,
            connector.connect_data(self.0, name),
            name,
            patience,
        )
        .await
    }

    /// Makes a handshake to see what the server proves, and closes.
    ///
    /// # Errors
    /// See [`Connector::check`].
    pub async fn check(
        self,
        connector: &Connector,
        name: &ServerName<'static>,
        alpn: Vec<Vec<u8>>,
    ) -> Result<TlsFacts, Failure> {
        connector.check(self.0, name, alpn).await
    }

    /// Leaves it in clear text, which needs a permit.
    pub fn expose(self, _permit: ClearTextPermit) -> Exposed {
        Exposed(self.0)
    }

    /// Leaves the encryption to the agent. What it carries is checked to be TLS records.
    pub fn native(self) -> Native {
        Native(self.0)
    }
}

/// TLS with a server that has proven its name.
#[derive(Debug)]
pub struct Verified {
    stream: TlsStream<Transport>,
    facts: TlsFacts,
}

/// Clear text, by permit.
#[derive(Debug)]
pub struct Exposed(TcpStream);

/// The agent's own TLS.
#[derive(Debug)]
pub struct Native(TcpStream);

/// What agent bytes can be written to.
#[derive(Debug)]
pub enum Upstream {
    /// See [`Verified`].
    Verified(Box<Verified>),
    /// See [`Exposed`].
    Exposed(Exposed),
    /// See [`Native`].
    Native(Native),
    /// Syslog's messages over connections that are each verified, see [`super::syslog`].
    Syslog(Box<super::syslog::Line>),
}

impl Verified {
    async fn by(
        connector: &Connector,
        handshake: impl Future<Output = Result<TlsStream<Transport>, Failure>>,
        name: &ServerName<'static>,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let stream = timeout(patience, handshake).await.map_err(|_| {
            Failure::new(
                Cause::UpgradeTimeout,
                format!(
                    "the server did not finish the TLS handshake in {} s",
                    patience.as_secs_f32()
                ),
            )
        })??;
        let facts = connector.facts(&stream, name);
        Ok(Self { stream, facts })
    }

    /// Says something of the proxy's own.
    ///
    /// # Errors
    /// As write(2).
    pub async fn say(&mut self, words: &[u8]) -> io::Result<()> {
        self.stream.write_all(words).await?;
        self.stream.flush().await
    }

    /// Hears what has come, at most as much as fits; 0 at the end of the stream.
    ///
    /// # Errors
    /// As read(2), or the stream is cut.
    pub async fn hear(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).await
    }

    /// What the handshake has shown.
    pub fn facts(&self) -> &TlsFacts {
        &self.facts
    }

    /// The stream, for a way to TLS that goes on inside.
    pub fn stream(&mut self) -> &mut TlsStream<Transport> {
        &mut self.stream
    }

    /// The application protocol that the server chose.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }

    /// The stream.
    pub fn into_stream(self) -> TlsStream<Transport> {
        self.stream
    }
}

impl Exposed {
    /// The stream, for a dialogue that goes on in clear.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.0
    }

    /// The stream.
    pub fn into_stream(self) -> TcpStream {
        self.0
    }
}

impl Native {
    /// The stream.
    pub fn into_stream(self) -> TcpStream {
        self.0
    }
}

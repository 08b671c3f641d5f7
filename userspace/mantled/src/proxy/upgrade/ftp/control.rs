//! What the two filters of a control connection share: the data connection that was announced
//! last.
//!
//! A passive one is expected. For an active one the server is told a listener of the proxy's, on
//! the address from which it reaches the server, and the proxy connects to the agent's own
//! listener on this host. FTP's clients are TLS' clients here too.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use mantled_record::{Path, Process};
use mantled_redirect::Peer;
use mantled_wire::ftp::DataChannels as Announced;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    time::timeout,
};

use crate::{
    error::{Cause, Failure},
    proxy::{
        Context,
        agent::Agent,
        data_channels::{DataChannels, Expectation, PATIENCE, Service, WINDOW},
        filter::Filter,
        ledger::{Ledger, Session},
        plan::ClearTextPermit,
        relay::relay,
        revocation::Revocation,
        upstream::{Dialled, Upstream},
    },
};

/// Ports below this are never connected to for an agent: nobody waits for a file there (RFC 2577
/// §3).
const FIRST_PORT: u16 = 1024;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Control {
    transfer: Transfer,
    channels: DataChannels,
    /// The address from which the server is reached.
    local: Option<IpAddr>,
    announced: Arc<Mutex<Announcement>>,
}

/// The data connection that was announced last; announcing another one ends it.
#[derive(Debug)]
enum Announcement {
    None,
    /// The agent connects.
    Passive {
        _expected: Expectation,
    },
    /// The server connects, until this is dropped.
    Active {
        _waiting: oneshot::Sender<()>,
    },
}

/// What a transfer in active mode needs.
#[derive(Clone, Debug)]
struct Transfer {
    ledger: Ledger,
    /// Of the control connection.
    peer: Peer,
    process: Option<Process>,
    service: Service,
    clear_text: Option<ClearTextPermit>,
    revocation: Revocation,
}

impl Control {
    pub(super) fn new(
        context: &Context,
        peer: Peer,
        process: Option<Process>,
        local: Option<IpAddr>,
        service: Service,
        clear_text: Option<ClearTextPermit>,
        revocation: Revocation,
    ) -> Self {
        Self {
            transfer: Transfer {
                ledger: context.ledger.clone(),
                peer,
                process,
                service,
                clear_text,
                revocation,
            },
            channels: context.data_channels.clone(),
            local,
            announced: Arc::new(Mutex::new(Announcement::None)),
        }
    }

    /// Ends what was announced before `next` is made.
    fn replace(&self, next: impl FnOnce() -> Announcement) {
        let mut announced = self
            .announced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *announced = Announcement::None;
        *announced = next();
    }

    /// Listens in the agent's place.
    fn listen(&self, agent: SocketAddr) -> io::Result<SocketAddr> {
        let local = self.local.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let listener = std::net::TcpListener::bind((local, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let (waiting, given_up) = oneshot::channel();
        self.replace(|| Announcement::Active { _waiting: waiting });
        let transfer = self.transfer.clone();
        self.channels.run(async move {
            let accepted = tokio::select! {
                accepted = timeout(WINDOW, transfer.accept(&listener)) => accepted.ok(),
                _ = given_up => None,
            };
            drop(listener);
            if let Some((stream, server)) = accepted {
                transfer.serve(stream, server, agent).await;
            }
        });
        Ok(address)
    }
}

impl Announced for Control {
    /// The host that the reply names is not asked: only this server's own address is expected,
    /// so that nobody can have the agent's connections to other hosts taken for its data.
    fn passive(&mut self, port: u16) {
        let Transfer { peer, service, .. } = &self.transfer;
        let destination = SocketAddr::new(peer.destination.ip(), port);
        self.replace(|| Announcement::Passive {
            _expected: self
                .channels
                .expect(peer.flow.group, destination, service.clone()),
        });
    }

    /// Another host than this one is refused: the proxy connects nowhere else for an agent.
    fn active(&mut self, listener: SocketAddr) -> Option<SocketAddr> {
        if listener.port() < FIRST_PORT || !is_of_this_host(listener.ip()) {
            return None;
        }
        self.listen(listener)
            .inspect_err(|error| tracing::debug!(%error, "no listener for an active transfer"))
            .ok()
    }
}

/// Is it an address of this host? Only such can be bound.
fn is_of_this_host(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok()
}

impl Transfer {
    /// Accepts one connection of the server's; those of others are closed.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, SocketAddr) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) if from.ip() == self.peer.destination.ip() => {
                    return (stream, from);
                }
                Ok((_, from)) => {
                    tracing::warn!(%from, "a stranger connected for an active FTP transfer");
                }
                // Out of descriptors or memory.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    }

    /// One transfer, with a record of its own.
    async fn serve(self, stream: TcpStream, server: SocketAddr, listener: SocketAddr) {
        let peer = Peer {
            destination: server,
            ..self.peer
        };
        let mut session = self
            .ledger
            .open_inward(&peer, self.process.clone(), listener);
        session.record.protocol = Some("ftp");
        session.record.route = self.service.route.map(|index| index + 1);
        match self.carry(stream, listener, &mut session).await {
            Ok(cut) => {
                drop(cut); // resets
                session.finish(Ok(()));
            }
            Err(failure) => session.finish(Err(failure)),
        }
    }

    /// Carries the file. An agent that is returned was not told of the end, and must be reset.
    async fn carry(
        &self,
        stream: TcpStream,
        listener: SocketAddr,
        session: &mut Session,
    ) -> Result<Option<Agent>, Failure> {
        let dialled = Dialled::accepted(stream)
            .map_err(|error| Failure::new(Cause::UpstreamClosed, format!("the server: {error}")))?;
        let upstream = match (&self.service.connector, self.clear_text) {
            (Some(connector), _) => {
                let verified = dialled
                    .verify_data(connector, &self.service.name, PATIENCE)
                    .await?;
                session.record.tls = verified.facts().clone();
                session.goes(Path::Verified);
                Upstream::Verified(Box::new(verified))
            }
            (None, Some(permit)) => {
                session.goes(Path::Exposed);
                Upstream::Exposed(dialled.expose(permit))
            }
            (None, None) => {
                return Err(Failure::new(
                    Cause::Internal,
                    "clear text was about to leave without a permit",
                ));
            }
        };
        let mut agent = connect(listener).await.map(Agent::new).map_err(|error| {
            Failure::new(
                Cause::AgentClosed,
                format!("the agent's listener for the file could not be reached: {error}"),
            )
        })?;
        let (carried, result) = relay(
            &mut agent,
            upstream,
            Filter::None,
            Filter::None,
            self.revocation.clone(),
        )
        .await;
        session.record.sent = carried.sent;
        session.record.received = carried.received;
        result?;
        if carried.cut {
            return Ok(Some(agent));
        }
        agent.finish();
        Ok(None)
    }
}

/// Connects to the agent's listener from a loopback address, whichever address of this host it
/// has: what is sent to loopback never leaves the host, so the kernel program lets an enforced
/// agent answer.
async fn connect(listener: SocketAddr) -> io::Result<TcpStream> {
    let (socket, loopback) = if listener.is_ipv4() {
        (TcpSocket::new_v4()?, IpAddr::from(Ipv4Addr::LOCALHOST))
    } else {
        (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::LOCALHOST))
    };
    socket.bind(SocketAddr::new(loopback, 0))?;
    let stream = timeout(WINDOW, socket.connect(listener))
        .await
        .map_err(|_| io::Error::from_raw_os_error(nix::libc::ETIMEDOUT))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

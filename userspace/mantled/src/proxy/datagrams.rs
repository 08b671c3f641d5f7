//! Syslog over UDP (RFC 5426), carried over TLS (RFC 5425).
//!
//! The kernel sends the datagrams of an enforced group's sockets to the proxy's own; each is one
//! message. The messages of one socket are one session, which walks as a connection does, from its
//! first message until nothing has come for [`IDLE`]. What a datagram can lose it can lose here
//! too: where a server is slower than its agent, or refused, messages are dropped and counted.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use mantled_redirect::Peer;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::UdpSocket,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{Context, Live, Phase, drain, session};

/// A socket that has sent nothing for so long has ended its session.
const IDLE: Duration = Duration::from_secs(60);

/// How often idle sockets are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// After a session was refused: nothing of its socket is tried for so long.
const RESPITE: Duration = Duration::from_secs(10);

/// Messages of one socket that wait to be sent.
const AHEAD: usize = 1024;

/// Longest datagram.
const MAX_DATAGRAM: usize = 65_535;

/// What a session reads: messages, each with its length before it (RFC 5425 §4.3).
#[derive(Debug)]
pub struct Messages {
    incoming: mpsc::Receiver<Vec<u8>>,
    /// What did not fit into the last reader's buffer.
    rest: Vec<u8>,
}

impl AsyncRead for Messages {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(this.incoming.poll_recv(cx)) {
                Some(message) => this.rest = message,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.rest.len().min(buffer.remaining());
        buffer.put_slice(this.rest.get(..length).unwrap_or_default());
        this.rest.drain(..length);
        Poll::Ready(Ok(()))
    }
}

/// A socket of an agent's.
struct Sender {
    messages: mpsc::Sender<Vec<u8>>,
    last: Instant,
    dropped: u64,
}

/// Takes datagrams while the daemon serves, then lets the sessions end.
pub async fn run(live: Live, socket: std::net::UdpSocket, phases: watch::Receiver<Phase>) {
    match UdpSocket::from_std(socket) {
        Ok(socket) => receive(&live, socket, phases).await,
        Err(error) => tracing::error!(%error, "datagrams cannot be received"),
    }
}

async fn receive(live: &Live, socket: UdpSocket, mut phases: watch::Receiver<Phase>) {
    let mut senders: HashMap<(u64, SocketAddr), Sender> = HashMap::new();
    let mut sessions = JoinSet::new();
    let mut clock = interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let phase = *phases.borrow_and_update();
        if matches!(phase, Phase::Succeeded | Phase::Stopping) {
            break;
        }
        tokio::select! {
            changed = phases.changed() => if changed.is_err() {
                break;
            },
            received = socket.recv_from(&mut buffer), if phase == Phase::Serving => match received {
                Ok((length, from)) => {
                    let message = buffer.get(..length).unwrap_or_default();
                    take(&live.current(), &mut senders, &mut sessions, message, from);
                }
                Err(error) => tracing::debug!(%error, "a datagram"),
            },
            now = clock.tick() => {
                senders.retain(|_, sender| keep(sender, now));
                while sessions.try_join_next().is_some() {}
            }
        }
    }
    drop(socket);
    // The ends of the messages end the sessions.
    senders.clear();
    drain(live, &mut sessions, phases).await;
}

fn keep(sender: &mut Sender, now: Instant) -> bool {
    if sender.dropped > 0 {
        tracing::warn!(
            messages = sender.dropped,
            "dropped syslog messages that no server took in time"
        );
        sender.dropped = 0;
    }
    let patience = if sender.messages.is_closed() {
        RESPITE
    } else {
        IDLE
    };
    now.duration_since(sender.last) < patience
}

fn take(
    context: &Arc<Context>,
    senders: &mut HashMap<(u64, SocketAddr), Sender>,
    sessions: &mut JoinSet<()>,
    message: &[u8],
    from: SocketAddr,
) {
    // Who found the port without the kernel's help is nobody that the proxy serves.
    let Ok(Some(peer)) = context.flows.of_datagram(context.netns, from) else {
        return;
    };
    if message.is_empty() {
        return;
    }
    let key = (peer.flow.cookie, peer.destination);
    let sender = senders
        .entry(key)
        .or_insert_with(|| open(context, sessions, peer, from));
    let mut framed = format!("{} ", message.len()).into_bytes();
    framed.extend_from_slice(message);
    if sender.messages.try_send(framed).is_err() {
        sender.dropped += 1;
    } else {
        sender.last = Instant::now();
    }
}

fn open(
    context: &Arc<Context>,
    sessions: &mut JoinSet<()>,
    peer: Peer,
    from: SocketAddr,
) -> Sender {
    let (messages, incoming) = mpsc::channel(AHEAD);
    let context = Arc::clone(context);
    sessions.spawn(async move {
        let messages = Messages {
            incoming,
            rest: Vec::new(),
        };
        session::serve_datagrams(&context, &peer, messages, from).await;
    });
    Sender {
        messages,
        last: Instant::now(),
        dropped: 0,
    }
}

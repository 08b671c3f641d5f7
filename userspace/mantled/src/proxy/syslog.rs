//! Syslog's own relay: messages are counted for TLS, and none is lost with a server.
//!
//! Nothing in syslog says that a message has arrived, and what the server's kernel has
//! acknowledged is lost with the server's process. So the last messages are kept, and when the
//! connection breaks the proxy connects anew, verifies again, sends them once more in their order,
//! and goes on. A server may so store messages twice; it never gets them in another order.
//!
//! What is guaranteed, and what is not:
//!
//! - A message is kept for [`KEEP`](window::KEEP) after the server's kernel has acknowledged it, if it is among
//!   the last [`WINDOW`](window::WINDOW) bytes ([`SMALL_WINDOW`](window::SMALL_WINDOW) while all sessions together keep more than
//!   [`BUDGET`](window::BUDGET)). A server that dies with more than that in its memory, or later, has lost the
//!   older ones.
//! - A server that is away is tried for [`GIVE_UP`]. Meanwhile the agent is not read from, so it
//!   feels what it would feel before a slow server. After that it is reset, and what was kept is
//!   lost, as it is when the daemon stops.
//! - When the agent closes, everything is sent; the connection is watched for `window::LINGER` after the
//!   last message was acknowledged, since a server may die with it, and then the server's own
//!   close is waited for: it says that the server has read to the end.
//!
//! What a server sends is no part of the protocol and is not carried.

mod window;

use std::{io, time::Duration};

use mantled_redirect::sys;
use mantled_wire::syslog::Framer;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    time::{Instant, interval, sleep, timeout},
};
use tokio_rustls::client::TlsStream;

pub use window::Kept;
use window::Window;

use super::{
    agent::Agent,
    relay::Carried,
    revocation::Revocation,
    transport::Transport,
    upstream::{Dial, Verified},
};
use crate::{
    error::{Cause, Failure},
    tls::{Alpn, LiveConnectors, Offer},
};

/// Bytes that are read from the agent at once: a full TLS record.
const READ: usize = 16 << 10;

/// How long a server may leave what was sent unacknowledged before it counts as gone. The kernel
/// would wait for a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// How long a server that is away is tried: a machine has restarted by then.
const GIVE_UP: Duration = Duration::from_secs(300);

/// Pauses between attempts, which double from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A connection that has lasted so long makes the next attempt a first one.
const STEADY: Duration = Duration::from_secs(10);

/// How long the server's close is waited for after everything was sent.
const GOODBYE: Duration = Duration::from_secs(10);

/// A verified connection, and how to have another one.
#[derive(Debug)]
pub struct Line {
    /// The connection.
    pub verified: Verified,
    /// How to connect anew.
    pub again: Again,
    /// What other sessions keep.
    pub kept: Kept,
}

/// How to connect anew to the server that was verified first.
#[derive(Debug)]
pub struct Again {
    /// Where to, and how.
    pub dial: Dial,
    /// Its trust, which may be another one by then.
    pub connectors: LiveConnectors,
    /// The route of which it is.
    pub route: Option<usize>,
    /// What its certificate must prove.
    pub name: ServerName<'static>,
    /// How long the handshake may take.
    pub patience: Duration,
}

impl Again {
    async fn connect(&self) -> Result<Verified, Failure> {
        let dialled = self.dial.connect().await.map_err(|error| {
            Failure::new(
                Cause::DialFailed,
                format!("the server could not be reached: {error}"),
            )
        })?;
        dialled
            .verify(
                &self.connectors.of_route(self.route),
                &self.name,
                Offer::One(Alpn::None),
                self.patience,
            )
            .await
    }
}

/// Carries an agent's messages until it has closed and the server has read everything, or the
/// revocation says that they must not go on.
pub async fn relay(
    agent: &mut Agent,
    line: Line,
    revocation: Revocation,
) -> (Carried, Result<(), Failure>) {
    let mut window = Window::new(line.kept);
    let mut source = Source {
        framer: Framer::default(),
        state: Flow::Open,
    };
    let head = std::mem::take(&mut agent.head);
    source.frame(&head, &mut window);
    let result = tokio::select! {
        biased;
        failure = revocation.wait() => Err(failure),
        ended = carry(agent, line.verified, &line.again, &mut source, &mut window) => ended,
    };
    let carried = Carried {
        sent: window.carried,
        ..Carried::default()
    };
    (carried, result)
}

async fn carry(
    agent: &mut Agent,
    verified: Verified,
    again: &Again,
    source: &mut Source,
    window: &mut Window,
) -> Result<(), Failure> {
    let mut verified = verified;
    let mut attempts = Attempts::default();
    loop {
        attempts.connected();
        let error = match send(agent, verified.into_stream(), source, window).await {
            Ok(()) => return source.end(),
            Err(error) => error,
        };
        tracing::info!(
            %error,
            bytes = window.len(),
            "a syslog server is gone; what was sent to it last is sent again"
        );
        if attempts.are_over() {
            return Err(Failure::new(
                Cause::UpstreamClosed,
                format!("the server accepts connections, but none of them lasts: {error}"),
            ));
        }
        // Without anything to send there is no reason to connect.
        while window.is_empty() {
            if source.state != Flow::Open {
                return source.end();
            }
            let mut buffer = vec![0; READ];
            let read = agent.stream.read(&mut buffer).await;
            source.take(read, &buffer, window);
            source.release(agent).await;
        }
        verified = loop {
            sleep(attempts.pause()).await;
            match again.connect().await {
                Ok(verified) => break verified,
                Err(failure) if attempts.are_over() => {
                    return Err(Failure::new(
                        failure.cause,
                        format!(
                            "the server was lost and has not come back: {}",
                            failure.text
                        ),
                    ));
                }
                Err(failure) => tracing::debug!(%failure, "the syslog server is still away"),
            }
        };
    }
}

/// Sends over one connection, from the first message that is kept to the last that the agent has.
///
/// # Errors
/// The connection broke: what is kept must be sent again.
async fn send(
    agent: &mut Agent,
    stream: TlsStream<Transport>,
    source: &mut Source,
    window: &mut Window,
) -> io::Result<()> {
    let socket = stream.get_ref().0.socket().try_clone()?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    window.rewind();
    let (mut reader, mut writer) = split(stream);
    let mut clock = interval(Duration::from_secs(1));
    let mut buffer = vec![0; READ];
    let mut ignored = [0; 512];
    // The writer may hold bytes that it has not put on the wire.
    let mut unflushed = false;
    loop {
        let waiting = !window.unsent().is_empty();
        let all_is_sent = !waiting && !unflushed && source.state != Flow::Open;
        if all_is_sent && window.is_settled(Instant::now()) {
            return goodbye(&mut reader, &mut writer).await;
        }
        let reads = source.state == Flow::Open && window.has_room();
        tokio::select! {
            heard = reader.read(&mut ignored) => if heard? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            },
            written = write(&mut writer, window.unsent()), if waiting || unflushed => {
                window.note_sent(written?);
                unflushed = waiting;
            }
            read = agent.stream.read(&mut buffer), if reads => {
                source.take(read, &buffer, window);
                source.release(agent).await;
            }
            now = clock.tick() => {
                if !unflushed && sys::unacknowledged(&socket)? == 0 {
                    window.note_acknowledged(now);
                }
                window.forget(now);
            }
        }
    }
}

/// Writes some of what waits; where nothing does, has what was written put on the wire. It can be
/// cancelled: then nothing was written.
async fn write(writer: &mut WriteHalf<TlsStream<Transport>>, waits: &[u8]) -> io::Result<usize> {
    if waits.is_empty() {
        return writer.flush().await.map(|()| 0);
    }
    match writer.write(waits).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        length => Ok(length),
    }
}

/// Says that nothing more comes, and waits until the server has read that. A server that is
/// killed with something unread resets the connection.
async fn goodbye(
    reader: &mut ReadHalf<TlsStream<Transport>>,
    writer: &mut WriteHalf<TlsStream<Transport>>,
) -> io::Result<()> {
    writer.shutdown().await?;
    let mut ignored = [0; 512];
    let end = timeout(GOODBYE, async {
        loop {
            match reader.read(&mut ignored).await {
                Ok(0) => return Ok(()),
                // Without a goodbye of its own, as many close.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
    });
    // One that does not close has had the time to read.
    end.await.unwrap_or(Ok(()))
}

/// Attempts to have a connection.
#[derive(Debug, Default)]
struct Attempts {
    pause: Option<Duration>,
    /// Since when there is no steady connection.
    since: Option<Instant>,
    connected: Option<Instant>,
}

impl Attempts {
    fn connected(&mut self) {
        self.connected = Some(Instant::now());
    }

    /// How long to wait before the next one.
    fn pause(&mut self) -> Duration {
        let was_steady = self
            .connected
            .take()
            .is_some_and(|connected| connected.elapsed() > STEADY);
        if was_steady {
            *self = Self::default();
        }
        self.since.get_or_insert_with(Instant::now);
        let pause = self.pause.unwrap_or(FIRST_PAUSE);
        self.pause = Some((pause * 2).min(LONGEST_PAUSE));
        pause
    }

    fn are_over(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > GIVE_UP)
    }
}

/// The agent's messages.
#[derive(Debug)]
struct Source {
    framer: Framer,
    state: Flow,
}

#[derive(Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// The agent has closed.
    Closed,
    /// Its connection broke.
    Broken(io::ErrorKind),
}

impl Source {
    /// Takes what a read from the agent has given.
    fn take(&mut self, read: io::Result<usize>, buffer: &[u8], window: &mut Window) {
        match read {
            Ok(0) => self.close(Flow::Closed, window),
            Ok(length) => self.frame(buffer.get(..length).unwrap_or_default(), window),
            Err(error) => self.close(Flow::Broken(error.kind()), window),
        }
    }

    fn frame(&mut self, mut bytes: &[u8], window: &mut Window) {
        while let Some(message) = self.framer.next(&mut bytes) {
            window.push(&message);
        }
    }

    /// An agent that has closed its side need not wait for the server.
    async fn release(&self, agent: &mut Agent) {
        if self.state == Flow::Closed {
            // It may have gone already.
            let _ = agent.stream.shutdown().await;
        }
    }

    fn close(&mut self, state: Flow, window: &mut Window) {
        if let Some(message) = self.framer.finish() {
            window.push(&message);
        }
        self.state = state;
    }

    /// How the session ended for the agent, everything being sent.
    fn end(&self) -> Result<(), Failure> {
        match self.state {
            Flow::Broken(kind) => Err(Failure::new(Cause::AgentClosed, format!("agent: {kind}"))),
            Flow::Open | Flow::Closed => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_slower_and_end() {
        let mut attempts = Attempts::default();
        attempts.connected();
        let pauses: Vec<_> = (0..8).map(|_| attempts.pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        attempts.connected();
        assert_eq!(attempts.pause(), LONGEST_PAUSE);
        assert!(!attempts.are_over());
    }
}

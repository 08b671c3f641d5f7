//! Which protocol is it? Asked from whichever side speaks first, while the server is dialled.

use std::{future::Future, io, pin::Pin, time::Duration};

use mantled_wire::{Look, ftp, http, postgres, redis, syslog, tls};
use tokio::time::{Instant, sleep, sleep_until};

use super::{agent::Agent, spoken::Spoken, upstream::Dialled};
use crate::{
    config::Protocol,
    error::{Cause, Failure},
};

/// A server that is being dialled, or was.
pub enum Dialling {
    /// Not there yet.
    Pending(Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send>>),
    /// There.
    Ready(Dialled),
    /// Not to be had.
    Failed(io::Error),
}

impl Dialling {
    /// Starts; nothing happens until it is awaited.
    pub fn start(dial: impl Future<Output = io::Result<Dialled>> + Send + 'static) -> Self {
        Self::Pending(Box::pin(dial))
    }

    /// Waits for the connection. It can be cancelled and called again.
    ///
    /// # Errors
    /// As connect(2).
    pub async fn ready(&mut self) -> io::Result<&mut Dialled> {
        if let Self::Pending(dial) = self {
            *self = match dial.await {
                Ok(dialled) => Self::Ready(dialled),
                Err(error) => Self::Failed(error),
            };
        }
        match self {
            Self::Ready(dialled) => Ok(dialled),
            Self::Failed(error) => Err(match error.raw_os_error() {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => error.kind().into(),
            }),
            Self::Pending(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Waits for the connection and takes it.
    ///
    /// # Errors
    /// As connect(2).
    pub async fn take(self) -> io::Result<Dialled> {
        match self {
            Self::Pending(dial) => dial.await,
            Self::Ready(dialled) => Ok(dialled),
            Self::Failed(error) => Err(error),
        }
    }
}

/// How long the agent is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// Until the server has spoken, or for so long.
    For(Duration),
    /// Until the server is connected: the upgrade does not depend on what the agent says.
    UntilConnected,
}

/// Listens to both sides. What the agent said is in its `head`.
///
/// Where TLS may be on another port (`elsewhere`), a server that cannot be reached is no answer
/// yet: what the agent says decides whether that port is tried.
///
/// # Errors
/// The error of the dial, as it is; it tells the errno that the agent should have got.
pub async fn listen(
    agent: &mut Agent,
    dialling: &mut Dialling,
    patience: Patience,
    elsewhere: bool,
) -> Result<Spoken, Heard> {
    // Until the server is there the dial's own limit counts: one that speaks first cannot speak
    // before.
    let mut deadline = Instant::now() + Duration::from_secs(3600);
    let mut connected = false;
    let mut failed = false;
    loop {
        match recognise(&agent.head) {
            Some(spoken) => return Ok(spoken),
            None if connected && matches!(patience, Patience::UntilConnected) => {
                return Ok(if agent.head.is_empty() {
                    Spoken::Silent
                } else {
                    Spoken::Opaque
                });
            }
            None => {}
        }
        tokio::select! {
            // What is there already is looked at before the server's arrival is.
            biased;
            more = agent.read_more() => match more {
                Ok(true) => {}
                Ok(false) if agent.head.is_empty() => return Ok(Spoken::Nothing),
                Ok(false) => return Ok(Spoken::Opaque),
                Err(error) => return Err(Heard::Agent(error)),
            },
            event = server(dialling, connected), if !failed => match event {
                Ok(Event::Connected) => {
                    connected = true;
                    if let Patience::For(time) = patience {
                        deadline = Instant::now() + time;
                    }
                }
                Ok(Event::Spoken) if agent.head.is_empty() => return Ok(Spoken::ServerFirst),
                // It answered what is not a whole request yet; what the agent says decides.
                Ok(Event::Spoken) => return Ok(Spoken::Opaque),
                Err(_) if elsewhere && !connected => {
                    failed = true;
                    if let Patience::For(time) = patience {
                        deadline = Instant::now() + time;
                    }
                }
                Err(error) => return Err(Heard::Dial(error)),
            },
            () = sleep_until(deadline) => {
                return Ok(if agent.head.is_empty() { Spoken::Silent } else { Spoken::Opaque });
            }
        }
    }
}

/// Which protocol a server that speaks first speaks, by its greeting; [`Spoken::ServerFirst`]
/// where nobody here knows it. Nothing is taken from the connection.
pub async fn greeting(dialling: &mut Dialling, port: u16, patience: Duration) -> Spoken {
    /// How long to wait for the rest of a greeting that came in pieces.
    const PAUSE: Duration = Duration::from_millis(5);

    let deadline = Instant::now() + patience;
    let mut greeting = [0; 1024];
    loop {
        let Ok(dialled) = dialling.ready().await else {
            return Spoken::ServerFirst;
        };
        let length = dialled.glance(&mut greeting).await.unwrap_or_default();
        match recognise_greeting(greeting.get(..length).unwrap_or_default(), port) {
            Some(spoken) => return spoken,
            None if length == 0 || length == greeting.len() || Instant::now() > deadline => {
                return Spoken::ServerFirst;
            }
            None => sleep(PAUSE).await,
        }
    }
}

/// What a server's first bytes are; None while they can become several things. The port decides
/// where several protocols greet alike.
fn recognise_greeting(greeting: &[u8], port: u16) -> Option<Spoken> {
    let looks = [(
        Spoken::Known(Protocol::Ftp),
        ftp::looks_like_greeting(greeting, port == 21),
    )];
    if let Some((spoken, _)) = looks.iter().find(|(_, look)| *look == Look::Yes) {
        return Some(*spoken);
    }
    looks
        .iter()
        .all(|(_, look)| *look == Look::No)
        .then_some(Spoken::ServerFirst)
}

/// Which side failed.
#[derive(Debug)]
pub enum Heard {
    /// The server could not be reached.
    Dial(io::Error),
    /// The agent's connection broke.
    Agent(io::Error),
}

enum Event {
    Connected,
    Spoken,
}

async fn server(dialling: &mut Dialling, connected: bool) -> io::Result<Event> {
    let dialled = dialling.ready().await?;
    if !connected {
        return Ok(Event::Connected);
    }
    dialled.spoken().await?;
    Ok(Event::Spoken)
}

/// What the agent's first bytes are; None while they can become several things.
fn recognise(head: &[u8]) -> Option<Spoken> {
    if head.is_empty() {
        return None;
    }
    let http = match http::begins_with(head) {
        http::Begins::Http1 => return Some(Spoken::Known(Protocol::Http)),
        http::Begins::Http2 => return Some(Spoken::Known(Protocol::Http2)),
        http::Begins::No => Look::No,
        http::Begins::NeedMore => Look::NeedMore,
    };
    let looks = [
        (Spoken::Tls, tls::looks_like_client_hello(head)),
        (
            Spoken::Known(Protocol::Postgresql),
            postgres::looks_like_startup(head),
        ),
        (
            Spoken::Known(Protocol::Redis),
            redis::looks_like_command(head),
        ),
        (
            Spoken::Known(Protocol::Syslog),
            syslog::looks_like_message(head),
        ),
        (Spoken::Known(Protocol::Http), http),
    ];
    if let Some((spoken, _)) = looks.iter().find(|(_, look)| *look == Look::Yes) {
        return Some(*spoken);
    }
    looks
        .iter()
        .all(|(_, look)| *look == Look::No)
        .then_some(Spoken::Opaque)
}

/// A failed dial as a failure of the session.
pub fn dial_failure(error: &io::Error) -> Failure {
    Failure::new(
        Cause::DialFailed,
        format!("the server could not be reached: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_recognised() {
        for (head, expected) in [
            (&b""[..], None),
            (b"GET / HTTP/1.1\r\n", Some(Spoken::Known(Protocol::Http))),
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                Some(Spoken::Known(Protocol::Http2)),
            ),
            (b"PRI", None),
            (b"\x16\x03\x01\x02\x00\x01", Some(Spoken::Tls)),
            (
                b"\0\0\0\x08\x04\xd2\x16\x2f",
                Some(Spoken::Known(Protocol::Postgresql)),
            ),
            (b"\0\0", None),
            (
                b"*1\r\n$4\r\nPING\r\n",
                Some(Spoken::Known(Protocol::Redis)),
            ),
            (b"PING\r\n", Some(Spoken::Opaque)),
            (b"\0\x01", Some(Spoken::Opaque)),
            (b"hello", Some(Spoken::Opaque)),
            (b"<13>1 2024", Some(Spoken::Known(Protocol::Syslog))),
            (b"11 <13>1 2024", Some(Spoken::Known(Protocol::Syslog))),
            (b"11 ", None),
            (b"<stream:stream", Some(Spoken::Opaque)),
        ] {
            assert_eq!(recognise(head), expected, "{}", head.escape_ascii());
        }
    }
}

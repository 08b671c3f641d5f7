//! Which protocol is it? Asked from whichever side speaks first, while the server is dialled.

use std::{future::Future, io, pin::Pin, time::Duration};

use mantled_wire::{
    Look, Progress, amqp, fluentd, ftp, http, imap, ldap, lumberjack, managesieve, memcached, mqtt,
    mysql, nats, nntp, pop3, postgres, redis, smtp, ssh, syslog, tds, tls, xmpp,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

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

/// The host that a request names, which the agent is waited for to finish.
pub async fn host(agent: &mut Agent, patience: Duration) -> Option<String> {
    let read = async {
        loop {
            if let Progress::Done(host) = http::host(&agent.head) {
                return host;
            }
            if !matches!(agent.read_more().await, Ok(true)) {
                return None;
            }
        }
    };
    timeout(patience, read).await.ok().flatten()
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
            // A banner can be longer than anybody needs to read.
            None if length == greeting.len() => return by_port(&greeting, port),
            None if length == 0 || Instant::now() > deadline => return Spoken::ServerFirst,
            None => sleep(PAUSE).await,
        }
    }
}

/// What a server's first bytes are; None while they can become several things. The port decides
/// where several protocols greet alike.
pub fn recognise_greeting(greeting: &[u8], port: u16) -> Option<Spoken> {
    let looks = [
        (
            Protocol::Ftp,
            ftp::looks_like_greeting(greeting, port == 21),
        ),
        (Protocol::Mysql, mysql::looks_like_greeting(greeting)),
        (Protocol::Nats, nats::looks_like_info(greeting)),
        (Protocol::Ssh, ssh::looks_like_banner(greeting)),
        (Protocol::Smtp, smtp::looks_like_greeting(greeting)),
        (Protocol::Lmtp, smtp::looks_like_lmtp_greeting(greeting)),
        (Protocol::Imap, imap::looks_like_greeting(greeting)),
        (Protocol::Pop3, pop3::looks_like_greeting(greeting)),
        (Protocol::Nntp, nntp::looks_like_greeting(greeting)),
        (
            Protocol::Managesieve,
            managesieve::looks_like_greeting(greeting),
        ),
    ];
    if let Some((protocol, _)) = looks.iter().find(|(_, look)| *look == Look::Yes) {
        return Some(Spoken::Known(*protocol));
    }
    looks
        .iter()
        .all(|(_, look)| *look == Look::No)
        .then(|| by_port(greeting, port))
}

/// What a greeting is that names nothing: that of a server which refuses, for one. Only a greeting
/// that the port's protocol can begin with counts.
fn by_port(greeting: &[u8], port: u16) -> Spoken {
    let begins = |words: &[&[u8]]| words.iter().any(|word| greeting.starts_with(word));
    match usual(port) {
        Some(protocol @ (Protocol::Smtp | Protocol::Lmtp)) if smtp::may_be_greeting(greeting) => {
            Spoken::Known(protocol)
        }
        Some(Protocol::Pop3) if begins(&[b"-ERR"]) => Spoken::Known(Protocol::Pop3),
        Some(Protocol::Nntp) if begins(&[b"400", b"502"]) => Spoken::Known(Protocol::Nntp),
        Some(Protocol::Managesieve) if begins(&[b"BYE", b"NO"]) => {
            Spoken::Known(Protocol::Managesieve)
        }
        _ => Spoken::ServerFirst,
    }
}

/// The protocol of a port whose server speaks first (IANA's service name registry; 2525 by
/// custom). A hint for what says nothing of itself: a greeting that names no protocol, a server
/// that makes its clients wait for one.
pub fn usual(port: u16) -> Option<Protocol> {
    Some(match port {
        21 => Protocol::Ftp,
        24 => Protocol::Lmtp,
        25 | 587 | 2525 => Protocol::Smtp,
        110 => Protocol::Pop3,
        119 | 433 => Protocol::Nntp,
        143 => Protocol::Imap,
        3306 => Protocol::Mysql,
        4190 => Protocol::Managesieve,
        4222 => Protocol::Nats,
        _ => return None,
    })
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
pub fn recognise(head: &[u8]) -> Option<Spoken> {
    if head.is_empty() {
        return None;
    }
    let looks = looks(head);
    let looks = looks.as_ref();
    if let Some((spoken, _)) = looks.iter().find(|(_, look)| *look == Look::Yes) {
        return Some(*spoken);
    }
    looks
        .iter()
        .all(|(_, look)| *look == Look::No)
        .then_some(Spoken::Opaque)
}

/// What each codec makes of the agent's first bytes. No two say yes to the same.
fn looks(head: &[u8]) -> impl AsRef<[(Spoken, Look)]> {
    let (http1, http2) = match http::begins_with(head) {
        http::Begins::Http1 => (Look::Yes, Look::No),
        http::Begins::Http2 => (Look::No, Look::Yes),
        http::Begins::No => (Look::No, Look::No),
        http::Begins::NeedMore => (Look::NeedMore, Look::NeedMore),
    };
    [
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
        (
            Spoken::Known(Protocol::Ldap),
            ldap::looks_like_request(head),
        ),
        (Spoken::Known(Protocol::Xmpp), xmpp::looks_like_stream(head)),
        (Spoken::Known(Protocol::Tds), tds::looks_like_prelogin(head)),
        (Spoken::Known(Protocol::Ssh), ssh::looks_like_banner(head)),
        (Spoken::Known(Protocol::Http), http1),
        (Spoken::Known(Protocol::Http2), http2),
        (
            Spoken::Known(Protocol::Mqtt),
            mqtt::looks_like_connect(head),
        ),
        (Spoken::Known(Protocol::Amqp), amqp::looks_like_header(head)),
        (
            Spoken::Known(Protocol::Memcached),
            memcached::looks_like_command(head),
        ),
        (
            Spoken::Known(Protocol::Fluentd),
            fluentd::looks_like_event(head),
        ),
        (
            Spoken::Known(Protocol::Lumberjack),
            lumberjack::looks_like_window(head),
        ),
    ]
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greetings_are_recognised() {
        for (greeting, expected) in [
            (&b""[..], None),
            (
                b"\x4a\0\0\0\x0a8.0.36\0",
                Some(Spoken::Known(Protocol::Mysql)),
            ),
            (b"\x4a\0\0\0\x0a8.0.36", None),
            (b"\x4a\0\0\x01\x0a8.0.36\0", Some(Spoken::ServerFirst)),
            (b"INFO {\"server_id\"", Some(Spoken::Known(Protocol::Nats))),
            (b"INF", None),
            (b"INFORMATION", Some(Spoken::ServerFirst)),
            (b"\r\nlogin: ", Some(Spoken::ServerFirst)),
        ] {
            assert_eq!(
                recognise_greeting(greeting, 7000),
                expected,
                "{}",
                greeting.escape_ascii()
            );
        }
    }

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
            (
                b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03",
                Some(Spoken::Known(Protocol::Ldap)),
            ),
            (b"\x30\x0c\x02", None),
            (
                b"<?xml version='1.0'?><stream:stream to=",
                Some(Spoken::Known(Protocol::Xmpp)),
            ),
            (
                b"\x12\x01\0\x3a\0\0\0\0\0\0\x1a\0\x06",
                Some(Spoken::Known(Protocol::Tds)),
            ),
            (b"<", None),
            (b"<34>1 ", Some(Spoken::Known(Protocol::Syslog))),
            (b"PING\r\n", Some(Spoken::Opaque)),
            (b"\0\x01", Some(Spoken::Opaque)),
            (b"hello", Some(Spoken::Opaque)),
            (
                b"\x10\x0c\0\x04MQTT\x04",
                Some(Spoken::Known(Protocol::Mqtt)),
            ),
            (b"AMQP\0\0\x09\x01", Some(Spoken::Known(Protocol::Amqp))),
            (b"get a\r\n", Some(Spoken::Known(Protocol::Memcached))),
            (b"\x93\xa1t\x01", Some(Spoken::Known(Protocol::Fluentd))),
            (b"2W\0\0\0\x01", Some(Spoken::Known(Protocol::Lumberjack))),
            (b"<13>1 2024", Some(Spoken::Known(Protocol::Syslog))),
            (b"11 <13>1 2024", Some(Spoken::Known(Protocol::Syslog))),
            (b"11 ", None),
        ] {
            assert_eq!(recognise(head), expected, "{}", head.escape_ascii());
        }
    }

    /// Beginnings of all protocols, and pieces to go on with.
    const PIECES: &[&[u8]] = &[
        b"GET / ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"*1\r\n$4\r\n",
        b"\x10\x0c\0\x04MQTT\x04",
        b"AMQP\0\0\x09\x01",
        b"get a\r\n",
        b"\x80\0\0\0\0\0\0\0\0\0\0\0",
        b"\x93\xa1t\x01",
        b"2W\0\0\0\x01",
        b"12 <34>1 - - - - - -",
        b"<?xml version='1.0'?><stream:stream",
        b"\x30\x0c\x02\x01\x01\x60\x07",
        b"\x12\x01\0\x2f\0\0\x01\0",
        b"SSH-2.0-x\r\n",
        b"hello\r\n",
        b"\r\n",
        b" ",
        b"\0",
    ];

    proptest! {
        #[test]
        fn no_two_codecs_take_the_same_bytes_and_more_bytes_change_nothing(
            first in 0..PIECES.len(),
            kept in 0_usize..24,
            rest in proptest::collection::vec(prop_oneof![
                (0..PIECES.len()).prop_map(|n| PIECES[n].to_vec()),
                proptest::collection::vec(any::<u8>(), 1..4),
            ], 0..4),
        ) {
            let begin = &PIECES[first][..kept.min(PIECES[first].len())];
            let stream = [begin, &rest.concat()].concat();
            let mut before = None;
            for length in 1..=stream.len() {
                let head = &stream[..length];
                let looks = looks(head);
                let taken = looks.as_ref().iter().filter(|(_, look)| *look == Look::Yes);
                prop_assert!(taken.count() <= 1, "{}", head.escape_ascii());
                let recognised = recognise(head);
                prop_assert!(before.is_none() || recognised == before, "{}", head.escape_ascii());
                before = recognised;
            }
        }
    }

    #[test]
    fn greetings_of_mail_and_news_are_recognised() {
        let known = |protocol| Some(Spoken::Known(protocol));
        for (greeting, port, expected) in [
            (&b""[..], 25, None),
            (b"220 mx ESMTP\r\n", 7000, known(Protocol::Smtp)),
            (b"220-mx\r\n", 25, None),
            (b"220 mx ready\r\n", 25, known(Protocol::Smtp)),
            (b"220 mx ready\r\n", 24, known(Protocol::Lmtp)),
            (b"220 mx ready\r\n", 7000, Some(Spoken::ServerFirst)),
            (b"220 ready\r\n", 110, Some(Spoken::ServerFirst)),
            (b"554 no\r\n", 587, known(Protocol::Smtp)),
            (b"220 box LMTP\r\n", 25, known(Protocol::Lmtp)),
            (b"* OK ready\r\n", 7000, known(Protocol::Imap)),
            (b"* BYE busy\r\n", 143, known(Protocol::Imap)),
            (b"+OK <1@x>\r\n", 7000, known(Protocol::Pop3)),
            (b"-ERR busy\r\n", 110, known(Protocol::Pop3)),
            (
                b"-ERR max number of clients reached\r\n",
                6379,
                Some(Spoken::ServerFirst),
            ),
            (b"200 news\r\n", 7000, known(Protocol::Nntp)),
            (b"400 busy\r\n", 119, known(Protocol::Nntp)),
            (
                b"\"IMPLEMENTATION\" \"x\"\r\n",
                7000,
                known(Protocol::Managesieve),
            ),
            (b"BYE \"busy\"\r\n", 4190, known(Protocol::Managesieve)),
            (b"SSH-2.0-x\r\n", 25, known(Protocol::Ssh)),
        ] {
            let found = recognise_greeting(greeting, port);
            assert_eq!(found, expected, "{}", greeting.escape_ascii());
        }
    }
}

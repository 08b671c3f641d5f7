//! The agent's side of a session.

use std::{io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    agent_stream::{AgentStream, Rewound},
    datagrams::Messages,
};

/// Most bytes that are read from an agent before its protocol and first packet are understood.
/// A ClientHello is the longest of them.
const MAX_HEAD: usize = mantled_wire::tls::MAX_HANDSHAKE + 1024;

/// How long a refused agent is given to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// The agent's connection. When it is dropped before [`finish`](Self::finish) it is reset, so
/// that an agent never takes a session that was cut for one that is complete.
#[derive(Debug)]
pub struct Agent {
    /// The stream.
    pub stream: AgentStream,
    /// What was read and not carried yet.
    pub head: Vec<u8>,
    /// What it is told should it be refused, where its protocol's dialogue has got so far that
    /// only the way to TLS knows.
    pub parting: Option<Vec<u8>>,
    /// It has sent a ClientHello: until a handshake comes about it understands alerts alone.
    pub expects_tls: bool,
    /// MySQL: the SQL mode that its session begins with has `NO_BACKSLASH_ESCAPES`.
    pub no_backslash_escapes: bool,
    finished: bool,
}

impl Agent {
    /// Of an accepted connection.
    pub fn new(stream: TcpStream) -> Self {
        Self::of(AgentStream::Clear(stream))
    }

    /// Of datagrams.
    pub fn of_datagrams(messages: Messages) -> Self {
        Self::of(AgentStream::Datagrams(messages))
    }

    fn of(stream: AgentStream) -> Self {
        Self {
            stream,
            head: Vec::new(),
            parting: None,
            expects_tls: false,
            no_backslash_escapes: false,
            finished: false,
        }
    }

    /// Reads more into `head`. False: the agent has closed its side. It can be cancelled without
    /// losing bytes.
    ///
    /// # Errors
    /// As read(2), or more than anything that begins a session can take.
    pub async fn read_more(&mut self) -> io::Result<bool> {
        if self.head.len() >= MAX_HEAD {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(self.stream.read_buf(&mut self.head).await? > 0)
    }

    /// Takes `length` bytes off the front of `head`.
    pub fn consume(&mut self, length: usize) {
        self.head.drain(..length.min(self.head.len()));
    }

    /// Writes something of the proxy's own.
    ///
    /// # Errors
    /// As write(2).
    pub async fn say(&mut self, words: &[u8]) -> io::Result<()> {
        self.stream.write_all(words).await
    }

    /// Ends the agent's own TLS here: makes the handshake that its `head` begins, in the place of
    /// the server. What is read and written from then on is what is inside.
    ///
    /// # Errors
    /// The error of the handshake; the agent can be told no more.
    pub async fn accept_tls(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let stream = match std::mem::replace(&mut self.stream, AgentStream::Gone) {
            AgentStream::Clear(stream) => stream,
            other => {
                self.stream = other;
                return Err(io::ErrorKind::InvalidInput.into());
            }
        };
        // One that is given up in the middle has no owner to reset it.
        let _ = stream.set_zero_linger();
        let rewound = Rewound::new(std::mem::take(&mut self.head), stream);
        let accepted = TlsAcceptor::from(config)
            .accept(rewound)
            .into_fallible()
            .await;
        let result = match accepted {
            Ok(stream) => {
                self.stream = AgentStream::Tls(Box::new(stream));
                self.expects_tls = false;
                Ok(())
            }
            Err((error, rewound)) => {
                self.stream = AgentStream::Clear(rewound.into_inner());
                Err(error)
            }
        };
        if let Some(socket) = self.stream.socket() {
            let _ = SockRef::from(socket).set_linger(None);
        }
        result
    }

    /// Says why it is refused, and closes so that the words arrive: closing a socket with unread
    /// data resets it, which would discard them.
    pub async fn dismiss(mut self, words: &[u8]) {
        let farewell = async {
            self.stream.write_all(words).await?;
            self.stream.shutdown().await?;
            let mut ignored = [0; 1024];
            while self.stream.read(&mut ignored).await? > 0 {}
            io::Result::Ok(())
        };
        if let Ok(Ok(())) = timeout(FAREWELL, farewell).await {
            self.finish();
        }
    }

    /// The session is complete: close, do not reset.
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !self.finished
            && let Some(socket) = self.stream.socket()
        {
            // It can fail only for a socket that is gone already.
            let _ = socket.set_zero_linger();
        }
    }
}

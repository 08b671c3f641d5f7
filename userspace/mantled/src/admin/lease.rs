//! The group of a `mantled exec`, which is enrolled for as long as its admin connection is held.
//!
//! The daemon sends copies of the group's records down the connection, each as a line of JSON. When
//! `exec` ends its own direction, its command is over: then come the records that are still owed, and
//! a last line. When the connection just breaks, nobody waits for them. The group itself is withdrawn
//! once the connection is gone and no process is left in it, whoever of the two comes first
//! ([`crate::groups`]).

use std::{
    io::{self, BufRead as _, BufReader},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use mantled_record::SessionRecord;
use mantled_redirect::Flows;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::OwnedWriteHalf,
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use super::{Reply, Request, converse_with};
use crate::{proxy::ledger::Ledger, summary};

/// Records that may wait for a caller who does not read.
const WAITING: usize = 1024;

/// How long the last sessions of a command that has ended may take to end. Its processes are gone,
/// so what they have sent is on its way, and no more comes.
const SETTLE: Duration = Duration::from_secs(10);

/// What is sent after the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A session has ended.
    Session {
        /// In one line, for a person.
        summary: String,
        /// Its record, as it is in the session log.
        record: String,
    },
    /// That was all.
    End {
        /// Sessions that could not be told in time.
        missed: u64,
    },
}

/// What the caller has, on the daemon's side. The group's enrolment ends after it is dropped.
#[derive(Debug)]
pub struct Lease {
    group: u64,
    flows: Flows,
    ledger: Ledger,
    records: mpsc::Receiver<SessionRecord>,
    /// Only that it is there is looked at.
    _held: oneshot::Receiver<()>,
}

impl Lease {
    /// For a group that was enrolled, with what tells that the lease is over.
    pub fn new(group: u64, flows: Flows, ledger: Ledger) -> (Self, oneshot::Sender<()>) {
        let (copies, records) = mpsc::channel(WAITING);
        ledger.watch(group, copies);
        let (holder, held) = oneshot::channel();
        let lease = Self {
            group,
            flows,
            ledger,
            records,
            _held: held,
        };
        (lease, holder)
    }

    /// Sends the group's records until the caller has gone.
    pub(super) async fn serve(mut self, stream: tokio::net::UnixStream) {
        // Whatever fails, the caller is gone or will notice that the daemon is.
        let _ = self.try_serve(stream).await;
    }

    async fn try_serve(&mut self, stream: tokio::net::UnixStream) -> io::Result<()> {
        let (mut reader, mut writer) = stream.into_split();
        let mut byte = [0];
        loop {
            tokio::select! {
                Some(record) = self.records.recv() => tell(&mut writer, &record).await?,
                // Nothing is asked any more, so this is the end.
                _ = reader.read(&mut byte) => break,
            }
        }
        let patience = Instant::now() + SETTLE;
        while self.owes()? && Instant::now() < patience {
            tokio::select! {
                Some(record) = self.records.recv() => tell(&mut writer, &record).await?,
                () = sleep(Duration::from_millis(20)) => {}
            }
        }
        let missed = self.ledger.unwatch(self.group);
        while let Some(record) = self.records.recv().await {
            tell(&mut writer, &record).await?;
        }
        send(&mut writer, &Message::End { missed }).await
    }

    /// Is there a connection of the group's without a record?
    fn owes(&self) -> io::Result<bool> {
        let unsettled = self.flows.unsettled()?;
        Ok(unsettled.iter().any(|peer| peer.flow.group == self.group))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.unwatch(self.group);
    }
}

async fn tell(writer: &mut OwnedWriteHalf, record: &SessionRecord) -> io::Result<()> {
    let message = Message::Session {
        summary: summary::describe(record),
        record: record.to_line(),
    };
    send(writer, &message).await
}

async fn send(writer: &mut OwnedWriteHalf, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// What the caller has, on its own side.
#[derive(Debug)]
pub struct Tenancy(BufReader<UnixStream>);

impl Tenancy {
    /// Has the daemon enrol a cgroup.
    ///
    /// # Errors
    /// No daemon, or what it has against it.
    pub fn begin(socket: &Path, request: &Request) -> Result<Self, String> {
        match converse_with(socket, request)? {
            (Reply::Enrolled { .. }, stream) => {
                stream
                    .get_ref()
                    .set_read_timeout(None)
                    .map_err(|error| error.to_string())?;
                Ok(Self(stream))
            }
            _ => Err("the daemon answered something else".to_owned()),
        }
    }

    /// The next message; None: the daemon has gone.
    ///
    /// # Errors
    /// As read(2), or it is none.
    pub fn hear(&mut self) -> io::Result<Option<Message>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }

    /// For another thread, which says that the command is over.
    ///
    /// # Errors
    /// As dup(2).
    pub fn ender(&self) -> io::Result<Ender> {
        self.0.get_ref().try_clone().map(Ender)
    }
}

impl AsFd for Tenancy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// See [`Tenancy::ender`].
#[derive(Debug)]
pub struct Ender(UnixStream);

impl Ender {
    /// The command is over.
    ///
    /// # Errors
    /// As shutdown(2).
    pub fn end(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

/// Does a daemon answer there that serves the network namespace of this process?
pub fn is_served(socket: &Path) -> bool {
    let pid = UnixStream::connect(socket).and_then(|stream| {
        let credentials = getsockopt(&stream, PeerCredentials)?;
        Ok(credentials.pid())
    });
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    pid.is_ok_and(|pid| {
        let daemons = namespace(&pid.to_string());
        daemons.is_some() && daemons == namespace("self")
    })
}

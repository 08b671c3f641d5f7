//! The admin socket: `mantled enroll`, `withdraw`, `status` and `exec` ask the daemon here.
//!
//! One connection, one request, one answer; each is a line of JSON. `exec` holds its connection, by
//! which more comes ([`lease`]). Only root and the daemon's own user are answered, and nobody inside
//! of an enrolled group.

pub mod lease;

use std::{
    collections::BTreeMap,
    fs, io,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mantled_redirect::abi::GroupCounts;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use self::lease::Lease;
use crate::{
    config::{Inbound, Mode, OnDown},
    share::Share,
};

/// Longest request.
const REQUEST_BYTES: u64 = 64 << 10;

/// How long a caller may take to ask, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the daemon may take to answer: a successor that prepares itself reads every file.
const LONGEST_ANSWER: Duration = Duration::from_secs(90);

/// Callers at once.
const CALLERS: usize = 16;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Enrol a group, or change how it is enrolled.
    Enroll {
        /// A unit, or a cgroup's path.
        target: String,
        /// What is done to its connections.
        mode: Mode,
        /// Whether servers inside may answer; None: as the mode has it.
        inbound: Option<Inbound>,
        /// What happens while the daemon is down; None: as the configuration has it.
        on_daemon_down: Option<OnDown>,
        /// The share of its connections that goes through the proxy; None: all.
        #[serde(default)]
        canary: Option<Share>,
        /// End the connections that it has, in observe mode too.
        #[serde(default)]
        reset: bool,
        /// Seconds after which it is as it was before, unless it is confirmed.
        #[serde(default)]
        revert_after: Option<u64>,
    },
    /// What `Enroll` began for a time is to stay.
    Confirm {
        /// As it was enrolled.
        target: String,
    },
    /// Enrol a cgroup for as long as this connection is held, and send copies of its records.
    Exec {
        /// The cgroup's path.
        cgroup: String,
        /// What is done to its connections.
        mode: Mode,
    },
    /// End what `Enroll` began.
    Withdraw {
        /// As it was enrolled.
        target: String,
    },
    /// What is enrolled, and how it goes.
    Status,
    /// The sessions that were opened last.
    Sessions {
        /// So many at most.
        most: usize,
    },
    /// Read the configuration again.
    Reload,
    /// Start the program that is installed now, and have it take over.
    Upgrade,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The group is enrolled.
    Enrolled {
        /// Its cgroup; None: the unit does not run, and is enrolled when it starts.
        cgroup: Option<String>,
        /// Connections from before that were ended.
        ended: usize,
        /// Connections from before that stay as they are, past the proxy.
        staying: usize,
        /// Whom some of them are with.
        staying_with: Vec<SocketAddr>,
        /// Ports on which the group listens.
        listening: Vec<u16>,
    },
    /// It stays as it is.
    Confirmed {},
    /// It is not enrolled any more.
    Withdrawn {},
    /// How it goes.
    Status(Box<Status>),
    /// Open sessions, the newest first.
    Sessions(Vec<OpenSession>),
    /// The configuration of now is that of the file.
    Reloaded {
        /// What waits for a restart, or could not be done.
        notes: Vec<String>,
    },
    /// Another process serves now.
    Upgraded {
        /// The new process's version.
        version: String,
        /// The new process.
        pid: u32,
        /// Sessions that go on to their end in the old one.
        draining: usize,
    },
}

/// How the daemon goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Sessions that are open.
    pub sessions_open: usize,
    /// Sessions since the daemon started.
    pub sessions: u64,
    /// Commands that policies were asked about, of sessions that have ended since then.
    #[serde(default)]
    pub commands: u64,
    /// Those of them that were refused, or would have been in enforce mode.
    #[serde(default)]
    pub commands_refused: u64,
    /// Records written since then.
    pub records_written: u64,
    /// Records lost since then (`on_failure = "continue"`).
    pub records_dropped: u64,
    /// Records cannot be written now.
    pub records_failing: bool,
    /// Connections since then that are neither open nor recorded: 0, see [`crate::completeness`].
    pub records_missing: u64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// How sessions have ended since then.
    pub ends: Vec<EndCount>,
    /// What the kernel programs have counted since they were first attached.
    pub kernel: BTreeMap<String, u64>,
    /// The enrolled groups.
    pub groups: Vec<GroupStatus>,
}

/// So many sessions have ended in this way; "none" stands for what they do not have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndCount {
    /// What was spoken.
    pub protocol: String,
    /// What was decided.
    pub verdict: String,
    /// Where the agent's bytes went.
    pub path: String,
    /// `error.type`.
    pub error: String,
    /// So many.
    pub count: u64,
}

/// A session that is open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenSession {
    /// Its id, as in its record.
    pub id: String,
    /// For how long, in milliseconds.
    pub open_ms: u64,
    /// Process id of the agent.
    pub pid: Option<u32>,
    /// Name of its executable.
    pub process: Option<String>,
    /// The id of its group's cgroup.
    pub group: Option<u64>,
    /// Where the agent wanted to go.
    pub destination: Option<String>,
}

/// How a group goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupStatus {
    /// As it was enrolled.
    pub target: String,
    /// "configuration", "command" or "exec".
    pub origin: String,
    /// What is done to its connections.
    pub mode: Mode,
    /// Whether servers inside may answer.
    pub inbound: Inbound,
    /// What happens while the daemon is down.
    pub on_daemon_down: OnDown,
    /// The share of its connections that goes through the proxy.
    pub canary: Share,
    /// Seconds until it is as it was before, unless it is confirmed.
    pub reverts_in_s: Option<u64>,
    /// What it is then: "not enrolled", or a mode.
    pub reverts_to: Option<String>,
    /// Its cgroup; None: there is none now.
    pub cgroup: Option<String>,
    /// Hooks whose programs the kernel does not run for this group: none where it is whole.
    pub detached: Vec<String>,
    /// What has happened in it.
    #[serde(flatten)]
    pub tally: Tally,
}

/// What has happened in a group since the daemon started; what the kernel counts, since it was
/// enrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Sessions that have ended.
    pub sessions: u64,
    /// Those that the proxy carried over TLS that it verified.
    pub upgraded: u64,
    /// Those that went out in clear.
    pub exposed: u64,
    /// Those with TLS of the agent's own.
    pub native: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Those that failed, or were cut.
    pub failed: u64,
    /// Packets and datagrams past the proxy, which the kernel refused.
    pub bypass_attempts: u64,
    /// Connections past the proxy, because only a share goes through it.
    pub left_out: u64,
}

impl From<GroupCounts> for Tally {
    fn from(counts: GroupCounts) -> Self {
        Self {
            bypass_attempts: counts.bypass_attempts,
            left_out: counts.left_out,
            ..Self::default()
        }
    }
}

impl Tally {
    /// The counts of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            sessions: self.sessions + other.sessions,
            upgraded: self.upgraded + other.upgraded,
            exposed: self.exposed + other.exposed,
            native: self.native + other.native,
            refused: self.refused + other.refused,
            failed: self.failed + other.failed,
            bypass_attempts: self.bypass_attempts + other.bypass_attempts,
            left_out: self.left_out + other.left_out,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(Reply),
    Error(String),
}

/// A request on its way to the one who answers.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Process id of the caller.
    pub caller: u32,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Answered, String>>,
}

/// What is answered to a call.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub reply: Reply,
    /// What the caller has from now on, for as long as it holds its connection.
    pub lease: Option<Lease>,
}

impl From<Reply> for Answered {
    fn from(reply: Reply) -> Self {
        Self { reply, lease: None }
    }
}

/// The socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes it, for root and the daemon's user. The caller has seen to it that no other daemon
    /// answers there, so what is there already is of a dead one.
    ///
    /// # Errors
    /// What cannot be done, and what to do about it.
    pub fn bind(path: &Path) -> Result<Self, String> {
        Self::try_bind(path).map_err(|error| {
            format!(
                "the admin socket {} cannot be made: {error}; make its directory writable for mantled, or set [admin] socket",
                path.display()
            )
        })
    }

    fn try_bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
            // Somebody's data, by a mistake in the configuration.
            Ok(_) => return Err(io::Error::other("what is there is not a socket")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Answers for ever.
    pub async fn serve(self, calls: mpsc::Sender<Call>) {
        let listener = match self
            .listener
            .try_clone()
            .and_then(tokio::net::UnixListener::from_std)
        {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the admin socket cannot be served");
                return;
            }
        };
        let permits = Arc::new(Semaphore::new(CALLERS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        let mut stream = stream;
                        let lease = converse(&mut stream, &calls).await;
                        drop(permit);
                        if let Ok(Some(lease)) = lease {
                            lease.serve(stream).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin socket");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// SIGHUP is `mantled reload` without an answer. Never ends; `answers`: there is a daemon.
pub async fn on_hangup(answers: bool, calls: mpsc::Sender<Call>) {
    let hangups = answers.then(|| signal(SignalKind::hangup())).transpose();
    let mut hangups = match hangups {
        Ok(Some(hangups)) => hangups,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "SIGHUP does nothing");
            return;
        }
    };
    while hangups.recv().await.is_some() {
        let (reply, answered) = oneshot::channel();
        let call = Call {
            request: Request::Reload,
            caller: std::process::id(),
            reply,
        };
        if calls.send(call).await.is_err() {
            return;
        }
        // What has come of it is in the log.
        let _ = answered.await;
    }
}

async fn converse(
    stream: &mut UnixStream,
    calls: &mpsc::Sender<Call>,
) -> io::Result<Option<Lease>> {
    let (answer, lease) = match answer(stream, calls).await {
        Ok(answered) => (Answer::Ok(answered.reply), answered.lease),
        Err(text) => (Answer::Error(text), None),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    // One who does not ask or listen in time is left alone.
    timeout(PATIENCE, stream.write_all(&line)).await??;
    Ok(lease)
}

async fn answer(stream: &mut UnixStream, calls: &mpsc::Sender<Call>) -> Result<Answered, String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?;
    let own = nix::unistd::geteuid().as_raw();
    let caller = match peer.pid() {
        Some(pid) if peer.uid() == 0 || peer.uid() == own => pid.unsigned_abs(),
        _ => return Err("only root may ask; use sudo".to_owned()),
    };
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(stream.take(REQUEST_BYTES));
    timeout(PATIENCE, reader.read_until(b'\n', &mut line))
        .await
        .map_err(|_| "the request did not come in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let request = serde_json::from_slice(&line).map_err(|error| {
        format!("the request is not understood ({error}); use the mantled of the daemon's version")
    })?;
    let (reply, answered) = oneshot::channel();
    let stopping = || "the daemon is stopping".to_owned();
    calls
        .send(Call {
            request,
            caller,
            reply,
        })
        .await
        .map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())?
}

/// Asks the daemon.
///
/// # Errors
/// No daemon, or what it has against the request.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, String> {
    converse_with(socket, request).map(|(reply, _)| reply)
}

/// Asks the daemon, and keeps the connection.
fn converse_with(
    socket: &Path,
    request: &Request,
) -> Result<(Reply, BufReader<std::os::unix::net::UnixStream>), String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "no daemon answers at {}; start it with `systemctl start mantled`",
            socket.display()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{} is for root; use sudo", socket.display())
        }
        _ => format!("asking the daemon at {}: {error}", socket.display()),
    };
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(failed)?;
    stream
        .set_read_timeout(Some(LONGEST_ANSWER))
        .map_err(failed)?;
    let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut answer).map_err(failed)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(reply)) => Ok((reply, stream)),
        Ok(Answer::Error(text)) => Err(text),
        Err(error) => Err(format!("the daemon's answer is not understood: {error}")),
    }
}

//! The proxy's side: asking `mantled helper`.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mantled_redirect::{
    Listeners, cgroup,
    existing::Socket,
    namespaces::{Kind, Namespaces, Opened, Used},
};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike as _},
};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{
    End, Seen,
    paths::Paths,
    protocol::{self, Answer, PAGE, Request, SOCKETS},
};

/// How long a session waits to be told who its agent is. The helper needs some 0.1 ms; systemd
/// starts one that has died in some 10 ms.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long listing and ending a group's sockets may take, each step.
const SOCKET_PATIENCE: Duration = Duration::from_secs(5);

/// How long nobody asks a helper that has failed: sessions must not wait for it one by one.
const PAUSE: Duration = Duration::from_secs(1);

/// Sessions that ask at once. Each has a connection to the helper and a thread here.
const ASKING: usize = 4;

/// "No such socket any more": `ENOENT`.
const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;

/// The helper at a socket.
#[derive(Debug)]
pub struct Remote {
    socket: PathBuf,
    asking: Semaphore,
    /// Connections that nobody uses now.
    idle: Mutex<Vec<OwnedFd>>,
    health: Mutex<Health>,
    /// What is asked of groups.
    groups: Gate,
    /// What is opened in other network namespaces.
    openings: Gate,
    paths: Paths,
    places: Mutex<Places>,
}

/// One asks at a time: the helper takes few connections. Until when nobody asks: nobody must wait for
/// a helper that hangs after somebody else has.
type Gate = Mutex<Option<Instant>>;

/// What is known of other network namespaces. The helper keeps none of them: each time, it enters
/// one by way of a task that is there.
#[derive(Debug, Default)]
struct Places {
    /// Inodes of those in which the daemon listens, by cookie.
    listening: HashMap<u64, u64>,
    /// By group, when it was looked at last.
    tasks: HashMap<u64, Vec<Used>>,
}

impl Places {
    /// Tasks that were seen in the namespace of this cookie.
    fn tasks(&self, cookie: u64) -> io::Result<Vec<Used>> {
        let inode = self
            .listening
            .get(&cookie)
            .ok_or(io::ErrorKind::NotConnected)?;
        let mut tasks: Vec<Used> = self
            .tasks
            .values()
            .flatten()
            .filter(|used| used.inode == *inode)
            .copied()
            .collect();
        tasks.sort_unstable_by_key(|used| used.task);
        tasks.dedup();
        Ok(tasks)
    }
}

#[derive(Debug, Default)]
struct Health {
    paused_until: Option<Instant>,
    /// The last question was not answered.
    failed: bool,
}

/// A connection on which the helper has listed a group's sockets.
#[derive(Debug)]
pub struct Conversation {
    connection: OwnedFd,
    pub(super) sockets: Vec<Socket>,
    pub(super) hidden: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Everything that is locked here is whole after every call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks, unless the helper did not answer a moment ago.
fn patiently<T>(gate: &Gate, ask: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut silent_until = lock(gate);
    if silent_until.is_some_and(|until| Instant::now() < until) {
        return Err(io::Error::other("the helper does not answer"));
    }
    let answered = ask();
    *silent_until = match &answered {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Some(Instant::now() + PAUSE),
        _ => None,
    };
    answered
}

/// The answer to what was asked on this connection.
fn answer(connection: &OwnedFd, request: &Request) -> io::Result<(Answer, Vec<OwnedFd>)> {
    protocol::send(connection, request).map_err(told)?;
    next(connection)
}

/// The next packet of an answer.
fn next(connection: &OwnedFd) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let hung_up = || io::Error::new(io::ErrorKind::UnexpectedEof, "the helper hung up");
    protocol::take_over(connection)
        .map_err(told)?
        .ok_or_else(hung_up)
}

/// An error, in words: at the end of our patience the kernel says "try again".
fn told(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            "the helper does not answer in time",
        ),
        _ => error,
    }
}

fn unexpected(answer: Answer) -> io::Error {
    match answer {
        Answer::Refused { reason } => io::Error::other(format!("the helper: {reason}")),
        Answer::Failed { errno } => io::Error::from_raw_os_error(errno),
        Answer::Gone {} => io::ErrorKind::NotFound.into(),
        _ => io::Error::other(
            "the helper answered something else; restart it, it is of another version",
        ),
    }
}

impl Remote {
    pub(super) fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            asking: Semaphore::new(ASKING),
            idle: Mutex::default(),
            health: Mutex::default(),
            groups: Gate::default(),
            openings: Gate::default(),
            paths: Paths::default(),
            places: Mutex::default(),
        }
    }

    pub(super) async fn process(self: Arc<Self>, pid: u32, cgroup: u64) -> Seen {
        let answer = if lock(&self.health).is_paused() {
            None
        } else {
            let asked = timeout(PATIENCE, self.ask_for_process(pid, cgroup)).await;
            let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            lock(&self.health).note(&self.socket, asked)
        };
        match answer {
            Some(seen) => seen,
            None => spawn_blocking(move || Seen::Unavailable {
                cgroup: self.paths.find(cgroup).ok().map(|found| found.below_root()),
            })
            .await
            .unwrap_or(Seen::Unavailable { cgroup: None }),
        }
    }

    async fn ask_for_process(self: &Arc<Self>, pid: u32, cgroup: u64) -> io::Result<Seen> {
        let _permit = self.asking.acquire().await.map_err(io::Error::other)?;
        let remote = Arc::clone(self);
        let asking = spawn_blocking(move || remote.ask(&Request::Process { pid, cgroup }));
        match asking.await.map_err(io::Error::other)?? {
            (Answer::Process { cgroup, executable }, _) => Ok(Seen::Process { cgroup, executable }),
            (Answer::Gone {}, _) => Ok(Seen::Gone),
            (other, _) => Err(unexpected(other)),
        }
    }

    pub(super) fn cgroup_of(&self, pid: u32) -> io::Result<String> {
        match self.ask(&Request::CgroupOf { pid })? {
            (Answer::Cgroup { path }, _) => Ok(path),
            (other, _) => Err(unexpected(other)),
        }
    }

    pub(super) fn sockets(&self, cgroup: u64, namespace: Option<u64>) -> io::Result<Conversation> {
        match namespace {
            None => patiently(&self.groups, || self.list(cgroup, None)),
            Some(cookie) => self.somewhere(cookie, |used| {
                patiently(&self.groups, || self.list(cgroup, Some(used)))
            }),
        }
    }

    /// Asks for something in the namespace of this cookie, by way of one task after the other until
    /// one is still there.
    fn somewhere<T>(&self, cookie: u64, ask: impl Fn(Used) -> io::Result<T>) -> io::Result<T> {
        let mut tried: Vec<Used> = Vec::new();
        // Those that were seen last; then it is time to look again.
        for again in [false, true] {
            if again {
                let groups: Vec<u64> = lock(&self.places).tasks.keys().copied().collect();
                for group in groups {
                    // Another group may do.
                    let _ = self.look(group);
                }
            }
            let tasks = lock(&self.places).tasks(cookie)?;
            for used in tasks {
                if tried.contains(&used) {
                    continue;
                }
                match ask(used) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => tried.push(used),
                    answered => return answered,
                }
            }
        }
        Err(io::ErrorKind::NotConnected.into())
    }

    fn look(&self, cgroup: u64) -> io::Result<Vec<Used>> {
        let answer = patiently(&self.groups, || self.ask(&Request::Namespaces { cgroup }))?;
        let used: Vec<Used> = match answer {
            (Answer::Namespaces { used }, _) => used.into_iter().map(Into::into).collect(),
            (other, _) => return Err(unexpected(other)),
        };
        self.note(cgroup, &used);
        Ok(used)
    }

    fn note(&self, cgroup: u64, used: &[Used]) {
        let mut places = lock(&self.places);
        if used.is_empty() {
            places.tasks.remove(&cgroup);
        } else {
            places.tasks.insert(cgroup, used.to_vec());
        }
    }

    /// Asks for sockets.
    fn open(&self, request: &Request) -> io::Result<Vec<OwnedFd>> {
        match self.ask(request)? {
            (Answer::Opened {}, sockets) => Ok(sockets),
            (other, _) => Err(unexpected(other)),
        }
    }

    fn list(&self, cgroup: u64, namespace: Option<Used>) -> io::Result<Conversation> {
        let mut conversation = Conversation {
            connection: self.connect(SOCKET_PATIENCE)?,
            sockets: Vec::new(),
            hidden: 0,
        };
        let request = Request::Sockets {
            cgroup,
            namespace: namespace.map(Into::into),
        };
        let mut page = answer(&conversation.connection, &request)?.0;
        loop {
            match page {
                Answer::Sockets {
                    sockets,
                    hidden,
                    more,
                } => {
                    let sockets = sockets.into_iter().map(Socket::from);
                    conversation.sockets.extend(sockets);
                    conversation.hidden = hidden;
                    if conversation.sockets.len() > SOCKETS {
                        return Err(io::Error::other("the helper lists more than it may"));
                    }
                    if !more {
                        return Ok(conversation);
                    }
                    page = next(&conversation.connection)?.0;
                }
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Asks on a connection that is there, or else on a new one: the helper may have been started
    /// again since.
    fn ask(&self, request: &Request) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let idle = lock(&self.idle).pop();
        if let Some(connection) = idle
            && let Ok(answer) = self.ask_on(connection, request)
        {
            return Ok(answer);
        }
        self.ask_on(self.connect(PATIENCE)?, request)
    }

    /// A connection that has failed is closed, so that no answer meets a later question.
    fn ask_on(&self, connection: OwnedFd, request: &Request) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let answer = answer(&connection, request)?;
        let mut idle = lock(&self.idle);
        if idle.len() < ASKING {
            idle.push(connection);
        }
        Ok(answer)
    }

    fn connect(&self, patience: Duration) -> io::Result<OwnedFd> {
        let connection = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let limit = TimeVal::milliseconds(patience.as_millis() as i64);
        setsockopt(&connection, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(&connection, sockopt::SendTimeout, &limit)?;
        connect(connection.as_raw_fd(), &UnixAddr::new(&self.socket)?)
            .map_err(|error| told(error.into()))?;
        Ok(connection)
    }
}

impl Namespaces for Remote {
    fn used(&self, path: &Path, cgroup: u64) -> io::Result<Vec<Used>> {
        match self.look(cgroup) {
            // It is not enrolled any more, or has gone. What its tasks have there may go on, for as
            // long as one that was seen is still in the cgroup, which anybody can see.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let here = cgroup::threads(path);
                let known = lock(&self.places).tasks.get(&cgroup).cloned();
                let mut known = known.unwrap_or_default();
                known.retain(|used| here.contains(&used.task));
                self.note(cgroup, &known);
                Ok(known)
            }
            looked => looked,
        }
    }

    fn listen(&self, used: Used) -> io::Result<Opened> {
        let request = Request::Listen {
            namespace: used.into(),
        };
        let opened = patiently(&self.openings, || self.open(&request))?;
        let listeners = Listeners::from_descriptors(opened)?;
        let cookie = listeners.netns()?;
        lock(&self.places).listening.insert(cookie, used.inode);
        Ok(Opened { cookie, listeners })
    }

    fn socket(&self, cookie: u64, kind: Kind) -> io::Result<OwnedFd> {
        self.somewhere(cookie, |used| {
            let request = Request::Socket {
                namespace: used.into(),
                kind: kind.into(),
            };
            let opened = patiently(&self.openings, || self.open(&request))?;
            let [socket] = <[OwnedFd; 1]>::try_from(opened)
                .map_err(|_| io::Error::other("the helper handed over something else"))?;
            Ok(socket)
        })
    }

    fn close(&self, cookie: u64) {
        lock(&self.places).listening.remove(&cookie);
    }
}

impl Health {
    fn is_paused(&self) -> bool {
        self.paused_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Takes note of an answer, and tells when that changes.
    fn note(&mut self, socket: &Path, answer: io::Result<Seen>) -> Option<Seen> {
        let socket = socket.display();
        match answer {
            Ok(seen) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!(%socket, "the helper answers again");
                }
                self.paused_until = None;
                Some(seen)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::error!(%socket, %error, "the helper does not answer; records lack the executables of agents. `systemctl status mantled-helper.socket` tells more");
                }
                self.paused_until = Some(Instant::now() + PAUSE);
                None
            }
        }
    }
}

impl Conversation {
    pub(super) fn end(&self, places: &[usize]) -> Vec<End> {
        let mut ends = Vec::with_capacity(places.len());
        for page in places.chunks(PAGE) {
            let request = Request::End {
                places: page.to_vec(),
            };
            let answer = answer(&self.connection, &request).and_then(|answer| match answer {
                (Answer::Ended { results }, _) if results.len() == page.len() => Ok(results),
                (other, _) => Err(unexpected(other)),
            });
            match answer {
                Ok(results) => ends.extend(results.into_iter().map(|errno| match errno {
                    0 => End::Ended,
                    ENOENT => End::Gone,
                    errno => End::Failed(io::Error::from_raw_os_error(errno)),
                })),
                Err(error) => ends.extend(
                    page.iter()
                        .map(|_| End::Failed(io::Error::new(error.kind(), error.to_string()))),
                ),
            }
        }
        ends
    }
}

//! A planned upgrade: a new process takes over from an old one, and no connection is refused.
//!
//! The old process has the new one started with a socket as its standard input. The new one does all
//! that can fail and changes nothing, and says `prepared`. The old one leaves arriving connections
//! in the kernel's backlog and hands over its listeners and the host's lock. The new one swaps the
//! kernel programs, tells them where it listens, accepts, and says `serving`. From then on the old
//! one only carries its sessions to their end. Should the new one fail before, the old one takes
//! everything back.
//!
//! The socket stays open while both live: the new one learns by its end that the old one has gone,
//! and what that has not recorded is written as lost; the old one learns by its end that its
//! sessions are to end now. The proof that there is a daemon is never handed over: each has its
//! own, and the old one keeps its until the new one serves.

use std::{
    env,
    ffi::OsString,
    io::{self, Read as _},
    net::Shutdown,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use mantled_redirect::descriptors;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// The hidden option of `mantled run` in a successor.
const TAKE_OVER_OPTION: &str = "--take-over";

/// The hidden option of the process that starts it and ends, see [`start_and_leave`].
const START_OPTION: &str = "--start-successor";

/// How long a successor may take to prepare: it loads programs and reads every file.
const PREPARE: Duration = Duration::from_secs(60);

/// How long connections may wait in the backlog for it.
const TAKE_OVER: Duration = Duration::from_secs(15);

/// Longest message.
const MESSAGE: usize = 4096;

/// What the two say to each other, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// New to old: everything that can fail has been done.
    Prepared { version: String, pid: u32 },
    /// Old to new, with so many descriptors: stream listeners, datagram sockets, the lock.
    Take { streams: usize, datagrams: usize },
    /// New to old: connections are served.
    Serving,
    /// New to old: it cannot.
    Failed { reason: String },
}

fn say(socket: &UnixStream, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    descriptors::send(socket, &line, fds)
}

/// One message. Each is answered before the next is sent, so that no two arrive together.
fn hear(socket: &UnixStream, patience: Duration) -> io::Result<(Message, Vec<OwnedFd>)> {
    socket.set_read_timeout(Some(patience))?;
    let mut buffer = [0; MESSAGE];
    let (length, fds) = descriptors::receive(socket, &mut buffer)?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = buffer.get(..length).unwrap_or_default();
    Ok((serde_json::from_slice(line)?, fds))
}

/// The process that is to take over; killed unless it has.
#[derive(Debug)]
pub struct Successor {
    socket: UnixStream,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    serves: bool,
}

impl Successor {
    /// Starts the program that is installed where this one was, with the same arguments, and
    /// waits until it is prepared. Blocks.
    ///
    /// # Errors
    /// Why there is none; this process goes on.
    pub fn start() -> Result<Self, String> {
        let failed = |error: io::Error| format!("the new process could not be started: {error}");
        let (here, there) = UnixStream::pair().map_err(failed)?;
        let program = installed().map_err(failed)?;
        let started = command(&program, START_OPTION)
            // It is another process than the one that the service manager has named there.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(OwnedFd::from(there)))
            .status()
            .map_err(|error| format!("{} could not be started: {error}", program.display()))?;
        if !started.success() {
            return Err(format!(
                "{} could not be started: {started}",
                program.display()
            ));
        }
        let mut successor = Self {
            socket: here,
            pid: 0,
            version: String::new(),
            serves: false,
        };
        match successor.hear(PREPARE)? {
            Message::Prepared { version, pid } => {
                successor.version = version;
                successor.pid = pid;
            }
            other => return Err(format!("the new process said {other:?}")),
        }
        Ok(successor)
    }

    fn hear(&mut self, patience: Duration) -> Result<Message, String> {
        match hear(&self.socket, patience) {
            Ok((Message::Failed { reason }, _)) => Err(reason),
            Ok((message, _)) => Ok(message),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err("the new process ended before it could take over; its log says why".to_owned())
            }
            Err(error) => Err(format!("the new process said nothing in time ({error})")),
        }
    }

    /// Hands everything over, and waits until it serves. Blocks.
    ///
    /// # Errors
    /// It does not serve; what it has changed is to be taken back.
    pub fn take_over(
        &mut self,
        streams: &[OwnedFd],
        datagrams: &[OwnedFd],
        lock: &OwnedFd,
    ) -> Result<(), String> {
        let fds: Vec<BorrowedFd<'_>> = streams
            .iter()
            .chain(datagrams)
            .chain([lock])
            .map(|fd| fd.as_fd())
            .collect();
        let message = Message::Take {
            streams: streams.len(),
            datagrams: datagrams.len(),
        };
        say(&self.socket, &message, &fds)
            .map_err(|error| format!("handing over the listeners: {error}"))?;
        match self.hear(TAKE_OVER)? {
            Message::Serving => {
                self.serves = true;
                Ok(())
            }
            other => Err(format!("the new process said {other:?}")),
        }
    }

    /// Ends when this process is to end its sessions: the successor says so, or is gone. Blocks.
    pub fn wait(&mut self) {
        let _ = self.socket.set_read_timeout(None);
        let mut buffer = [0; 16];
        while matches!(self.socket.read(&mut buffer), Ok(1..)) {}
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // It ends by itself when the socket is closed, unless it hangs.
        if !self.serves && self.pid != 0 {
            let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        }
    }
}

/// This process's command line for `program`, with one of the two options.
fn command(program: &Path, option: &str) -> Command {
    let own = [TAKE_OVER_OPTION, START_OPTION];
    let mut command = Command::new(program);
    command
        .args(
            env::args_os()
                .skip(1)
                .filter(|word| own.iter().all(|own| word != own)),
        )
        .arg(option);
    command
}

/// Starts the successor and leaves it: without a parent it is a child of the service manager, which
/// does not wait for the end of any other.
///
/// # Errors
/// As execve(2).
pub fn start_and_leave() -> io::Result<()> {
    command(&env::current_exe()?, TAKE_OVER_OPTION)
        .spawn()
        .map(drop)
}

/// The program that is installed where this one was: the kernel marks one that was replaced.
fn installed() -> io::Result<PathBuf> {
    let path = env::current_exe()?.into_os_string();
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(path) => PathBuf::from(OsString::from(path)),
        None => PathBuf::from(path.clone()),
    })
}

/// What a predecessor hands over.
#[derive(Debug)]
pub struct Inheritance {
    /// Stream listeners.
    pub streams: Vec<OwnedFd>,
    /// Datagram sockets.
    pub datagrams: Vec<OwnedFd>,
    /// The host's lock.
    pub lock: OwnedFd,
}

/// The process from which this one takes over.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// At the other end of standard input.
    ///
    /// # Errors
    /// There is none.
    pub fn of_stdin() -> io::Result<Self> {
        let fd = io::stdin().as_fd().try_clone_to_owned()?;
        let socket = UnixStream::from(fd);
        socket.peer_addr()?;
        Ok(Self(socket))
    }

    /// Another handle.
    ///
    /// # Errors
    /// As dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Says that all is prepared, and waits for what is handed over. Blocks.
    ///
    /// # Errors
    /// The predecessor goes on by itself.
    pub fn inherit(&self) -> io::Result<Inheritance> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let pid = std::process::id();
        say(&self.0, &Message::Prepared { version, pid }, &[])?;
        let (message, mut streams) = hear(&self.0, PREPARE)?;
        let wrong = || io::Error::other("the predecessor has handed over something else");
        match message {
            Message::Take {
                streams: first,
                datagrams: second,
            } if streams.len() == first.saturating_add(second).saturating_add(1) => {
                let lock = streams.pop().ok_or_else(wrong)?;
                let datagrams = streams.split_off(first);
                Ok(Inheritance {
                    streams,
                    datagrams,
                    lock,
                })
            }
            _ => Err(wrong()),
        }
    }

    /// Says that connections are served here.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub fn release(&self) -> io::Result<()> {
        say(&self.0, &Message::Serving, &[])
    }

    /// Says why this process cannot take over.
    pub fn refuse(&self, reason: &str) {
        // The predecessor reads no more than one buffer.
        let reason: String = reason.chars().take(MESSAGE / 8).collect();
        let _ = say(&self.0, &Message::Failed { reason }, &[]);
    }

    /// Tells it to end its sessions.
    pub fn end(&self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// Waits until it has gone. Blocks.
    ///
    /// # Errors
    /// As read(2).
    pub fn gone(&self) -> io::Result<()> {
        self.0.set_read_timeout(None)?;
        let mut buffer = [0; 16];
        while (&self.0).read(&mut buffer)? > 0 {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_arrives_and_its_end_is_heard() {
        let (old, new) = UnixStream::pair().unwrap();
        let new = Predecessor(new);
        let successor = std::thread::spawn(move || {
            let inheritance = new.inherit().unwrap();
            let sockets = (inheritance.streams.len(), inheritance.datagrams.len());
            new.release().unwrap();
            new.gone().unwrap();
            sockets
        });
        let (prepared, _) = hear(&old, TAKE_OVER).unwrap();
        assert!(matches!(prepared, Message::Prepared { .. }));
        let fds: Vec<OwnedFd> = (0..4)
            .map(|_| OwnedFd::from(UnixStream::pair().unwrap().0))
            .collect();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let message = Message::Take {
            streams: 2,
            datagrams: 1,
        };
        say(&old, &message, &fds).unwrap();
        let (serving, _) = hear(&old, TAKE_OVER).unwrap();
        assert!(matches!(serving, Message::Serving));
        drop(old);
        assert_eq!(successor.join().unwrap(), (2, 1));
    }

    #[test]
    fn fewer_descriptors_than_promised_are_refused() {
        let (old, new) = UnixStream::pair().unwrap();
        let message = Message::Take {
            streams: 2,
            datagrams: 1,
        };
        say(&old, &message, &[old.as_fd()]).unwrap();
        assert!(Predecessor(new).inherit().is_err());
    }
}

//! Other network namespaces: which of them the tasks of a group use, and sockets in them.
//!
//! Only who may enter a namespace can make a socket in it (setns(2), CAP_SYS_ADMIN), and only who
//! may look into other users' processes sees which one they use (CAP_SYS_PTRACE). [`Namespaces`]
//! is all that needs these, so that another process can do it for one that has none of them;
//! [`InProcess`] does it here. What it does is in [`used`] and [`within`], which know nothing of a
//! daemon.
//!
//! A socket, and a descriptor of a namespace, keep the namespace: whoever opens one closes it when
//! the processes are gone for which it was opened.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
    sync::mpsc,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::{Listeners, cgroup, existing};

/// A network namespace, and a task that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its inode, which names it for as long as it exists.
    pub inode: u64,
    /// A thread, by its id in the initial pid namespace.
    pub task: u32,
}

/// Listeners in another network namespace.
#[derive(Debug)]
pub struct Opened {
    /// `SO_NETNS_COOKIE`: the name that the kernel programs know, which is never given again.
    pub cookie: u64,
    /// The listeners.
    pub listeners: Listeners,
}

/// What a socket in a namespace is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Stream4,
    /// TCP over IPv6.
    Stream6,
    /// UDP over IPv4.
    Datagram4,
    /// UDP over IPv6.
    Datagram6,
}

impl Kind {
    /// Makes one in the namespace of the calling thread. It does not block, and is closed by
    /// exec().
    ///
    /// # Errors
    /// As socket(2).
    pub fn open(self) -> io::Result<OwnedFd> {
        let (family, kind) = match self {
            Self::Stream4 => (AddressFamily::Inet, SockType::Stream),
            Self::Stream6 => (AddressFamily::Inet6, SockType::Stream),
            Self::Datagram4 => (AddressFamily::Inet, SockType::Datagram),
            Self::Datagram6 => (AddressFamily::Inet6, SockType::Datagram),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(socket(family, kind, flags, None)?)
    }
}

/// Access to other network namespaces. Calls may block for as long as it takes to ask another
/// process.
pub trait Namespaces: fmt::Debug + Send + Sync {
    /// See [`used`]. The cgroup is told by its path and by its id.
    ///
    /// # Errors
    /// As [`used`].
    fn used(&self, cgroup: &Path, id: u64) -> io::Result<Vec<Used>>;

    /// Listens in a namespace on a free port of loopback, and remembers it until [`Self::close`].
    ///
    /// # Errors
    /// As [`within`], and bind(2).
    fn listen(&self, used: Used) -> io::Result<Opened>;

    /// Makes a socket in a namespace that was listened in.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`]: it was closed, or nobody uses it any more. As setns(2) and
    /// socket(2).
    fn socket(&self, cookie: u64, kind: Kind) -> io::Result<OwnedFd>;

    /// Forgets a namespace. What was opened in it is the caller's to close.
    fn close(&self, cookie: u64);
}

/// The network namespaces that the threads of a cgroup use, and of those below it; each once.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] without CAP_SYS_PTRACE, where they are another user's.
pub fn used(cgroup: &Path) -> io::Result<Vec<Used>> {
    let mut found: Vec<Used> = Vec::new();
    for task in cgroup::threads(cgroup) {
        match inode_of(task) {
            Ok(inode) if !found.iter().any(|used| used.inode == inode) => {
                found.push(Used { inode, task });
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Known already, or the thread has ended meanwhile.
            _ => {}
        }
    }
    Ok(found)
}

/// The inode of the caller's own network namespace.
///
/// # Errors
/// As readlink(2).
pub fn own_inode() -> io::Result<u64> {
    parse(&fs::read_link("/proc/thread-self/ns/net")?)
}

fn inode_of(task: u32) -> io::Result<u64> {
    parse(&fs::read_link(format!("/proc/{task}/ns/net"))?)
}

/// "net:[4026531840]"
fn parse(link: &Path) -> io::Result<u64> {
    link.to_str()
        .and_then(|text| text.strip_prefix("net:["))
        .and_then(|text| text.strip_suffix(']'))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Works in the network namespace of a task. The calling thread enters it, and comes back.
///
/// # Errors
/// [`io::ErrorKind::NotFound`]: the task has gone, or uses another one by now. As setns(2), and the
/// work's own.
pub fn within<T>(used: Used, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    Visitor::new()?.visit(&open(used)?, work)
}

/// Listens on a free port of loopback, in the network namespace of the calling thread.
///
/// # Errors
/// As bind(2).
pub fn listen() -> io::Result<Listeners> {
    Listeners::bind_ahead()
}

fn open(used: Used) -> io::Result<File> {
    let namespace = File::open(format!("/proc/{}/ns/net", used.task))?;
    if namespace.metadata()?.ino() == used.inode {
        Ok(namespace)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Enters namespaces, and comes back. It belongs to one thread: that thread's namespace changes
/// while a method runs.
#[derive(Debug)]
struct Visitor {
    home: File,
    known: HashMap<u64, File>,
}

impl Visitor {
    /// Of the calling thread.
    fn new() -> io::Result<Self> {
        Ok(Self {
            home: File::open("/proc/thread-self/ns/net")?,
            known: HashMap::new(),
        })
    }

    fn listen(&mut self, used: Used) -> io::Result<Opened> {
        let namespace = open(used)?;
        let listeners = self.visit(&namespace, listen)?;
        let cookie = listeners.netns()?;
        self.known.insert(cookie, namespace);
        Ok(Opened { cookie, listeners })
    }

    /// Makes a socket in a namespace that was listened in.
    fn socket(
        &self,
        cookie: u64,
        make: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<OwnedFd> {
        let namespace = self.known.get(&cookie).ok_or(io::ErrorKind::NotConnected)?;
        self.visit(namespace, make)
    }

    fn visit<T>(&self, namespace: &File, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let result = work();
        // The capability was there a moment ago. A thread that stayed would make the next home
        // socket in somebody else's namespace, so it must not go on.
        setns(&self.home, CloneFlags::CLONE_NEWNET)
            .expect("who could leave its namespace can come back");
        result
    }
}

type Job = Box<dyn FnOnce(&mut Visitor) + Send>;

/// A thread of this process that enters the namespaces.
#[derive(Debug)]
pub struct InProcess {
    jobs: mpsc::Sender<Job>,
}

impl InProcess {
    /// Starts it, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// As clone(2).
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let mut visitor = Visitor::new()?;
        thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn(move || {
                for job in queue {
                    job(&mut visitor);
                }
            })?;
        Ok(Self { jobs })
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Visitor) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let gone = || io::Error::other("the thread that enters network namespaces is gone");
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |visitor| {
            // Nobody waits any more: what was made is closed.
            let _ = answer.send(work(visitor));
        });
        self.jobs.send(job).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    /// A socket that lists and ends the sockets of a namespace that was listened in, for
    /// [`existing::list`].
    ///
    /// # Errors
    /// As [`Namespaces::socket`].
    pub fn diagnosis(&self, cookie: u64) -> io::Result<OwnedFd> {
        self.ask(move |visitor| visitor.socket(cookie, existing::open))
    }
}

impl Namespaces for InProcess {
    fn used(&self, cgroup: &Path, _: u64) -> io::Result<Vec<Used>> {
        used(cgroup)
    }

    fn listen(&self, used: Used) -> io::Result<Opened> {
        self.ask(move |visitor| visitor.listen(used))
    }

    fn socket(&self, cookie: u64, kind: Kind) -> io::Result<OwnedFd> {
        self.ask(move |visitor| visitor.socket(cookie, || kind.open()))
    }

    fn close(&self, cookie: u64) {
        let close: Job = Box::new(move |visitor| drop(visitor.known.remove(&cookie)));
        // Without the thread there is nothing to close.
        let _ = self.jobs.send(close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read() {
        assert_eq!(parse(Path::new("net:[4026531840]")).unwrap(), 4_026_531_840);
        assert!(parse(Path::new("mnt:[4026531840]")).is_err());
        assert_eq!(own_inode().unwrap(), inode_of(std::process::id()).unwrap());
    }

    #[test]
    fn what_was_not_listened_in_gives_no_socket() {
        let namespaces = InProcess::start().unwrap();
        let error = namespaces.socket(1, Kind::Stream4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        let own = own_inode().unwrap();
        let used = Used {
            inode: own + 1,
            task: std::process::id(),
        };
        let error = namespaces.listen(used).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}

//! What needs more privilege than the proxy should have, behind one interface.
//!
//! The proxy parses bytes of strangers. So its unit may load kernel programs and nothing else, and
//! sees no process but itself; a second, small process, `mantled helper`, reads other processes'
//! executables and descriptors, ends their sockets, and makes sockets in the network namespaces of
//! containers. It listens on a socket of systemd's ([`server`]), is asked by packets ([`protocol`]),
//! and answers the proxy's user alone.
//! Without it ([`Helper::Local`]: `mantled run` as root by hand, `mantled exec`) the same is done
//! in this process.
//!
//! Without an answer sessions go on with what the kernel has told of them, and their records say so.
//! Nothing is enforced by what it answers: packets of sockets that could not be ended are dropped.

mod paths;
mod protocol;
mod remote;
pub mod server;

use std::{io, path::Path, sync::Arc};

use mantled_redirect::{
    cgroup::{self, Cgroup},
    existing::{self, Socket},
    namespaces::{InProcess, Namespaces},
    process,
};

use remote::{Conversation, Remote};

/// Who does it.
#[derive(Clone, Debug)]
pub enum Helper {
    /// This process.
    Local(Arc<InProcess>),
    /// `mantled helper`, at this socket.
    Remote(Arc<Remote>),
}

/// What was found out about a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Its cgroup's path below the hierarchy's root, and its executable where that could be read.
    Process {
        /// The cgroup.
        cgroup: String,
        /// The executable.
        executable: Option<String>,
    },
    /// It has gone, or moved.
    Gone,
    /// Nobody could look.
    Unavailable {
        /// The cgroup, which the kernel has told.
        cgroup: Option<String>,
    },
}

impl Helper {
    /// The helper that listens at `socket`; None: this process, from the network namespace of the
    /// calling thread.
    ///
    /// # Errors
    /// As clone(2).
    pub fn at(socket: Option<&Path>) -> io::Result<Self> {
        Ok(match socket {
            None => Self::Local(Arc::new(InProcess::start()?)),
            Some(socket) => Self::Remote(Arc::new(Remote::at(socket))),
        })
    }

    /// Access to other network namespaces.
    pub fn namespaces(&self) -> Arc<dyn Namespaces> {
        match self {
            Self::Local(here) => Arc::clone(here) as Arc<dyn Namespaces>,
            Self::Remote(remote) => Arc::clone(remote) as Arc<dyn Namespaces>,
        }
    }

    /// Looks at the process that the kernel saw in this cgroup.
    pub async fn process(&self, pid: u32, cgroup: u64) -> Seen {
        match self {
            Self::Local(_) => process::look(pid, cgroup).into(),
            Self::Remote(remote) => Arc::clone(remote).process(pid, cgroup).await,
        }
    }

    /// The cgroup of a process, whichever that is.
    ///
    /// # Errors
    /// It has gone; no helper.
    pub fn cgroup_of(&self, pid: u32) -> io::Result<String> {
        match self {
            Self::Local(_) => cgroup::of_process(pid),
            Self::Remote(remote) => remote.cgroup_of(pid),
        }
    }

    /// Lists the sockets of an enrolled group in the daemon's network namespace, or in the one with
    /// this cookie, in which the daemon listens.
    ///
    /// # Errors
    /// As netlink(7); no helper.
    pub fn sockets(&self, group: &Cgroup, namespace: Option<u64>) -> io::Result<Sockets> {
        match self {
            Self::Local(here) => {
                let netlink = namespace.map(|cookie| here.diagnosis(cookie)).transpose()?;
                existing::list(group, netlink).map(Sockets::Local)
            }
            Self::Remote(remote) => remote.sockets(group.id(), namespace).map(Sockets::Remote),
        }
    }
}

impl From<Option<process::Seen>> for Seen {
    fn from(seen: Option<process::Seen>) -> Self {
        seen.map_or(Self::Gone, |seen| Self::Process {
            cgroup: seen.cgroup,
            executable: seen
                .executable
                .map(|path| path.to_string_lossy().into_owned()),
        })
    }
}

/// The sockets of a group, of which some may be ended.
#[derive(Debug)]
pub enum Sockets {
    /// Listed by this process.
    Local(existing::Listing),
    /// Listed by the helper, which remembers them.
    Remote(Conversation),
}

/// How it went with a socket that was to be ended.
#[derive(Debug)]
pub enum End {
    /// It is ended.
    Ended,
    /// It ended by itself.
    Gone,
    /// It goes on.
    Failed(io::Error),
}

impl Sockets {
    /// What was found.
    pub fn found(&self) -> Vec<Socket> {
        match self {
            Self::Local(listing) => listing.sockets().collect(),
            Self::Remote(conversation) => conversation.sockets.clone(),
        }
    }

    /// Processes whose sockets could not be looked at.
    pub fn hidden(&self) -> usize {
        match self {
            Self::Local(listing) => listing.hidden,
            Self::Remote(conversation) => conversation.hidden,
        }
    }

    /// Ends those at these places of what was found. As many answers come, in the same order.
    pub fn end(&self, places: &[usize]) -> Vec<End> {
        match self {
            Self::Local(listing) => places
                .iter()
                .map(|place| match listing.end(*place) {
                    Ok(true) => End::Ended,
                    Ok(false) => End::Gone,
                    Err(error) => End::Failed(error),
                })
                .collect(),
            Self::Remote(conversation) => conversation.end(places),
        }
    }
}

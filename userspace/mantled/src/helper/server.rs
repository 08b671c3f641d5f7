//! The privileged side. It takes for granted that who asks may be somebody who has taken over the
//! proxy, and gives away no more than this:
//!
//! - the executable's path of a process, where the asker knows the cgroup that it is in, and that
//!   cgroup is enrolled or lies in one that is;
//! - the cgroup's path of a process;
//! - the addresses of an enrolled group's connections, and their end. Which they are is never the
//!   asker's to say: it names places in a list that this process has made for that connection;
//! - where this process may enter network namespaces at all: which of them the tasks of an enrolled
//!   group use, and sockets in these, for as long as a task of an enrolled group is there.
//!
//! A group counts as enrolled where its programs are pinned. That is the proxy's own doing, as
//! enrolling is: a proxy that was taken over can enrol what it likes, except for the root, this
//! process and the groups around them. Nothing is written, no program is started, and no path,
//! name, address or descriptor is taken from a request.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use mantled_redirect::{
    Error, Listeners, Pins, cgroup,
    existing::{self, Listing},
    namespaces::{self, Kind},
    process,
};
use nix::{
    errno::Errno,
    sys::{
        socket::{SockType, getsockopt, setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
    unistd::Uid,
};

use super::{
    Seen,
    paths::Paths,
    protocol::{self, Answer, NAMESPACES, PAGE, Request, SOCKETS, Used},
};

/// Connections at once; the proxy has at most five.
const CONNECTIONS: usize = 16;

/// How long a client may leave an answer lying, in seconds.
const PATIENCE: i64 = 5;

/// The socket that the process was started with, which must be a listening one that keeps packets
/// apart.
///
/// # Errors
/// It is another, or none.
pub fn listener(passed: impl AsFd) -> io::Result<UnixListener> {
    let is_listener = getsockopt(&passed, sockopt::AcceptConn)?
        && getsockopt(&passed, sockopt::SockType)? == SockType::SeqPacket;
    if !is_listener {
        return Err(Errno::ENOTSOCK.into());
    }
    Ok(passed.as_fd().try_clone_to_owned()?.into())
}

/// Answers `client` for ever.
///
/// # Errors
/// As accept(2).
pub fn serve(listener: &UnixListener, client: Uid) -> io::Result<()> {
    let running = Arc::new(());
    let paths = Arc::new(Paths::default());
    loop {
        let connection = match listener.accept() {
            Ok((connection, _)) => OwnedFd::from(connection),
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Err(reason) = admit(&connection, client, Arc::strong_count(&running) - 1) {
            tracing::warn!(%reason, "refused");
            let reason = reason.to_string();
            // One who does not listen is not told.
            let _ = protocol::send(&connection, &Answer::Refused { reason });
            continue;
        }
        let guard = Arc::clone(&running);
        let paths = Arc::clone(&paths);
        let started = thread::Builder::new()
            .name("mantled".to_owned())
            .spawn(move || {
                if let Err(error) = converse(&connection, &paths) {
                    tracing::warn!(%error, "a connection is closed");
                }
                drop(guard);
            });
        if let Err(error) = started {
            tracing::warn!(%error, "a connection is closed");
        }
    }
}

/// Errors of accept(2) that end by themselves.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOMEM
                | Errno::ENOBUFS
                | Errno::ECONNABORTED
                | Errno::EINTR
        )
    )
}

fn admit(connection: &OwnedFd, client: Uid, running: usize) -> io::Result<()> {
    let limit = TimeVal::seconds(PATIENCE);
    setsockopt(connection, sockopt::SendTimeout, &limit)?;
    let peer = getsockopt(connection, sockopt::PeerCredentials)?;
    if peer.uid() != client.as_raw() {
        return Err(io::Error::other(format!(
            "user {} may not ask, but {client} alone",
            peer.uid()
        )));
    }
    if running >= CONNECTIONS {
        return Err(io::Error::other("too many connections"));
    }
    Ok(())
}

/// Answers one connection until it is closed. What is not understood closes it.
fn converse(connection: &OwnedFd, paths: &Paths) -> io::Result<()> {
    let pins = Pins::default();
    let mut listing = None;
    while let Some(request) = protocol::receive(connection)? {
        match request {
            Request::Process { pid, cgroup } => {
                protocol::send(connection, &look(&pins, pid, cgroup))?;
            }
            Request::CgroupOf { pid } => {
                let answer = match cgroup::of_process(pid) {
                    Ok(path) => Answer::Cgroup { path },
                    Err(error) => refused(&error),
                };
                protocol::send(connection, &answer)?;
            }
            Request::Sockets { cgroup, namespace } => match list(&pins, paths, cgroup, namespace) {
                Ok(found) => tell(connection, listing.insert(found))?,
                Err(reason) => {
                    listing = None;
                    protocol::send(connection, &Answer::Refused { reason })?;
                }
            },
            Request::End { places } => {
                protocol::send(connection, &end(listing.as_ref(), &places))?;
            }
            Request::Namespaces { cgroup } => {
                protocol::send(connection, &used(&pins, paths, cgroup))?;
            }
            Request::Listen { namespace } => match within(&pins, namespace, namespaces::listen) {
                Ok(listeners) => hand_over(connection, &listeners)?,
                Err(answer) => protocol::send(connection, &answer)?,
            },
            Request::Socket { namespace, kind } => {
                match within(&pins, namespace, || Kind::from(kind).open()) {
                    Ok(socket) => {
                        protocol::hand_over(connection, &Answer::Opened {}, &[socket.as_fd()])?;
                    }
                    Err(answer) => protocol::send(connection, &answer)?,
                }
            }
        }
    }
    Ok(())
}

fn refused(reason: &dyn std::fmt::Display) -> Answer {
    Answer::Refused {
        reason: reason.to_string(),
    }
}

fn look(pins: &Pins, pid: u32, cgroup: u64) -> Answer {
    let seen = process::look(pid, cgroup).filter(|seen| is_enrolled(pins, &seen.cgroup));
    match Seen::from(seen) {
        Seen::Process { cgroup, executable } => Answer::Process { cgroup, executable },
        Seen::Gone | Seen::Unavailable { .. } => Answer::Gone {},
    }
}

/// Is this cgroup enrolled, or one around it?
fn is_enrolled(pins: &Pins, path: &str) -> bool {
    Path::new(path)
        .ancestors()
        .filter_map(|path| cgroup::id_of(path.to_str()?).ok())
        .any(|id| pins.has_group(id))
}

fn failed(error: &io::Error) -> Answer {
    Answer::Failed {
        errno: error.raw_os_error().unwrap_or(Errno::EIO as i32),
    }
}

fn used(pins: &Pins, paths: &Paths, id: u64) -> Answer {
    if !pins.has_group(id) {
        return Answer::Gone {};
    }
    let cgroup = match paths.find(id) {
        Ok(cgroup) => cgroup,
        Err(Error::NoSuchCgroup { .. }) => return Answer::Gone {},
        Err(error) => return refused(&error),
    };
    match namespaces::used(cgroup.path()) {
        Ok(used) if used.len() > NAMESPACES => refused(&format!(
            "the group uses {} network namespaces, more than {NAMESPACES}",
            used.len()
        )),
        Ok(used) => Answer::Namespaces {
            used: used.into_iter().map(Used::from).collect(),
        },
        Err(error) => failed(&error),
    }
}

/// Works in the network namespace of a task that is in an enrolled group.
fn within<T>(
    pins: &Pins,
    namespace: Used,
    work: impl FnOnce() -> io::Result<T>,
) -> Result<T, Answer> {
    if !cgroup::of_process(namespace.task).is_ok_and(|cgroup| is_enrolled(pins, &cgroup)) {
        return Err(Answer::Gone {});
    }
    namespaces::within(namespace.into(), work).map_err(|error| {
        if is_gone(&error) {
            Answer::Gone {}
        } else {
            failed(&error)
        }
    })
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

fn hand_over(connection: &OwnedFd, listeners: &Listeners) -> io::Result<()> {
    protocol::hand_over(connection, &Answer::Opened {}, &listeners.descriptors())
}

fn list(pins: &Pins, paths: &Paths, id: u64, namespace: Option<Used>) -> Result<Listing, String> {
    if !pins.has_group(id) {
        return Err(format!("no group {id} is enrolled"));
    }
    let cgroup = paths.find(id).map_err(|error| error.to_string())?;
    cgroup
        .check_enrollable()
        .map_err(|error| error.to_string())?;
    let listing = match namespace {
        None => existing::list(&cgroup, None).map_err(|error| error.to_string())?,
        Some(namespace) => within(pins, namespace, || existing::list(&cgroup, None)).map_err(
            |answer| match answer {
                Answer::Failed { errno } => io::Error::from_raw_os_error(errno).to_string(),
                _ => "the group does not use that network namespace any more".to_owned(),
            },
        )?,
    };
    let count = listing.sockets().count();
    if count > SOCKETS {
        return Err(format!(
            "the group has {count} sockets, more than {SOCKETS}"
        ));
    }
    Ok(listing)
}

fn tell(connection: &OwnedFd, listing: &Listing) -> io::Result<()> {
    let mut sockets = listing.sockets().map(Into::into).peekable();
    loop {
        let page = sockets.by_ref().take(PAGE).collect();
        let more = sockets.peek().is_some();
        let answer = Answer::Sockets {
            sockets: page,
            hidden: listing.hidden,
            more,
        };
        protocol::send(connection, &answer)?;
        if !more {
            return Ok(());
        }
    }
}

fn end(listing: Option<&Listing>, places: &[usize]) -> Answer {
    let Some(listing) = listing else {
        return refused(&"nothing was listed on this connection");
    };
    if places.len() > PAGE {
        return refused(&"more places than one request may hold");
    }
    let results = places.iter().map(|place| match listing.end(*place) {
        Ok(true) => 0,
        Ok(false) => Errno::ENOENT as i32,
        Err(error) => error.raw_os_error().unwrap_or(Errno::EINVAL as i32),
    });
    let results: Vec<i32> = results.collect();
    tracing::info!(
        sockets = results.iter().filter(|result| **result == 0).count(),
        "ended"
    );
    Answer::Ended { results }
}

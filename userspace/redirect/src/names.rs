//! What enrolled groups asked DNS, what they were told, and where the names survive a restart.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Mutex, PoisonError},
};

use aya::maps::{MapData, RingBuf};
use mantled_abi::{Answer, NAME_BYTES, NameEntry, NameKey};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{Error, from_abi, map::Map, map::from_bytes, to_abi};

/// The stream of answers, and the map of names.
pub struct Names {
    ring: Mutex<RingBuf<MapData>>,
    kept: Map<NameKey, NameEntry>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Names")
    }
}

/// A name of an address, as it survives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The enrolled cgroup that asked.
    pub group: u64,
    /// What it was told.
    pub address: IpAddr,
    /// What it asked for: lower case, without the last dot; at most 255 bytes.
    pub name: String,
    /// Until when the name is live: `CLOCK_MONOTONIC`, nanoseconds.
    pub until: u64,
    /// When it was last learnt or used.
    pub used: u64,
}

impl Names {
    pub(crate) fn new(ring: RingBuf<MapData>, kept: Map<NameKey, NameEntry>) -> Self {
        Self {
            ring: Mutex::new(ring),
            kept,
        }
    }

    /// Shows every answer that has come: the group, the query and the answer, each from the
    /// message's first byte. An answer is here before the agent can have read it.
    pub fn drain(&self, mut show: impl FnMut(u64, &[u8], &[u8])) {
        // Nothing panics while it holds the lock but `show`, and the ring is whole then, too.
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(item) = ring.next() {
            let Some(answer) = from_bytes::<Answer>(&item) else {
                continue;
            };
            let query = answer.query.bytes.get(..answer.query.length as usize);
            let message = answer.bytes.get(..answer.length as usize);
            if let (Some(query), Some(message)) = (query, message) {
                show(answer.group, query, message);
            }
        }
    }

    /// A descriptor that is readable while there are answers. Call it in a tokio runtime.
    ///
    /// # Errors
    /// As epoll(7).
    pub fn readiness(&self) -> Result<Readiness, Error> {
        let failed = |source| Error::io("watching the kernel's DNS answers", source);
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = ring.as_fd().try_clone_to_owned().map_err(failed)?;
        // SAFETY: an owned descriptor stays open, and the same, until it is dropped.
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map(Readiness)
            .map_err(|error| failed(error.into()))
    }

    /// Every name that was kept.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut found = Vec::new();
        for key in self.kept.keys()? {
            let Some(entry) = self.kept.get(&key)? else {
                continue;
            };
            let name = entry.name.get(..entry.length as usize);
            let name = name.and_then(|name| std::str::from_utf8(name).ok());
            if let Some(name) = name {
                found.push(Kept {
                    group: key.group,
                    address: from_abi(key.address),
                    name: name.to_owned(),
                    until: entry.until,
                    used: entry.used,
                });
            }
        }
        Ok(found)
    }

    /// Keeps a name, in place of what is kept of the same.
    ///
    /// # Errors
    /// As bpf(2); a name that is too long.
    pub fn keep(&self, kept: &Kept) -> io::Result<()> {
        let mut entry = NameEntry {
            until: kept.until,
            used: kept.used,
            length: kept.name.len() as u32,
            pad: 0,
            name: [0; NAME_BYTES],
        };
        entry
            .name
            .get_mut(..kept.name.len())
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(kept.name.as_bytes());
        self.kept.insert(&key(kept), &entry)
    }

    /// Forgets a name.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn forget(&self, kept: &Kept) -> io::Result<()> {
        self.kept.remove(&key(kept)).map(drop)
    }
}

fn key(kept: &Kept) -> NameKey {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    // Without random keys, so that every daemon of this version finds the same entry; another
    // version would make a second one, which does no harm.
    let mut hasher = DefaultHasher::new();
    kept.name.hash(&mut hasher);
    NameKey {
        group: kept.group,
        address: to_abi(kept.address),
        hash: hasher.finish(),
    }
}

/// See [`Names::readiness`].
#[derive(Debug)]
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Waits until there are answers; they are to be drained then.
    ///
    /// # Errors
    /// As epoll(7).
    pub async fn wait(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

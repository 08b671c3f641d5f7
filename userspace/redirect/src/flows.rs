//! Who is the peer of a connection to the proxy, and where did it want to go?

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use mantled_abi::{
    Destination, Flow, Group, GroupCounts, MODE_ENFORCE, MODE_RESOLVER, Source, Unreachable,
};

use crate::{
    cgroup, from_abi,
    map::{Map, PerCpuMap},
    sys, to_abi,
};

/// How long a connection may wait for accept(), which is long where every permit is taken. What is
/// older belongs to a connection that never reached the proxy.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The kernel's list of redirected connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Flows(Arc<Maps>);

#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) flows: Map<Source, u64>,
    pub(crate) sessions: Map<u64, Flow>,
    pub(crate) unreachable: Map<Destination, Unreachable>,
    pub(crate) accepted: Map<i32, u64>,
    pub(crate) groups: Map<u64, Group>,
    pub(crate) datagrams: Map<Source, Flow>,
    pub(crate) counts: PerCpuMap<u64, GroupCounts>,
}

/// A redirected connection, in user space's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// As the kernel recorded it.
    pub flow: Flow,
    /// Where the agent wanted to go.
    pub destination: SocketAddr,
    /// The local address that the agent had bound, if it had.
    pub source: Option<IpAddr>,
}

impl From<Flow> for Peer {
    fn from(flow: Flow) -> Self {
        let source = from_abi(flow.source);
        Self {
            flow,
            destination: SocketAddr::new(from_abi(flow.destination), flow.port as u16),
            source: (!source.is_unspecified()).then_some(source),
        }
    }
}

impl Flows {
    pub(crate) fn new(maps: Maps) -> Self {
        Self(Arc::new(maps))
    }

    /// The flow of a connection that the proxy has accepted from `peer`. None: it was not
    /// redirected, so it is nobody that the proxy serves.
    ///
    /// The kernel has noted the flow on the socket itself when the handshake ended. accept() can
    /// come a moment before that; then the flow is still found under its source address.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn take(
        &self,
        socket: impl AsFd,
        netns: u64,
        peer: SocketAddr,
    ) -> io::Result<Option<Peer>> {
        let socket = socket.as_fd().as_raw_fd();
        let id = match self.0.accepted.get(&socket)? {
            Some(id) => id,
            None => {
                let address = to_abi(peer.ip());
                let key = Source {
                    netns,
                    address,
                    port: peer.port().into(),
                    pad: 0,
                };
                match self.0.flows.take(&key)? {
                    Some(id) => id,
                    // Between the two looks the kernel may have moved it.
                    None => match self.0.accepted.get(&socket)? {
                        Some(id) => id,
                        None => return Ok(None),
                    },
                }
            }
        };
        let Some(mut flow) = self.0.sessions.get(&id)? else {
            return Ok(None);
        };
        // A connection that was decided before its group was enforced is enforced too.
        if let Some(group) = self.0.groups.get(&flow.group)?
            && group.mode == MODE_ENFORCE
        {
            flow.mode = MODE_ENFORCE;
        }
        Ok(Some(Peer::from(flow)))
    }

    /// The socket that sent a datagram to the proxy from `source`. None: the kernel did not send it
    /// there.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn of_datagram(&self, netns: u64, source: SocketAddr) -> io::Result<Option<Peer>> {
        let key = Source {
            netns,
            address: to_abi(source.ip()),
            port: source.port().into(),
            pad: 0,
        };
        Ok(self.0.datagrams.get(&key)?.map(Peer::from))
    }

    /// How a cgroup is enrolled now, by its id.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn group(&self, id: u64) -> io::Result<Option<Group>> {
        self.0.groups.get(&id)
    }

    /// What the kernel has counted of an enrolled cgroup, by its id; nothing where it is not enrolled.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn counts(&self, id: u64) -> io::Result<GroupCounts> {
        let counts = self.0.counts.get(&id)?.unwrap_or_default();
        Ok(counts
            .iter()
            .fold(GroupCounts::default(), |sum, cpu| GroupCounts {
                bypass_attempts: sum.bypass_attempts + cpu.bypass_attempts,
                left_out: sum.left_out + cpu.left_out,
            }))
    }

    /// Counts what happens in a cgroup from now on, where it is not counted already.
    pub(crate) fn count(&self, id: u64) -> io::Result<()> {
        if self.0.counts.get(&id)?.is_none() {
            self.0.counts.insert(&id, &GroupCounts::default())?;
        }
        Ok(())
    }

    /// Ends what [`Self::count`] began.
    pub(crate) fn end_count(&self, id: u64) -> io::Result<()> {
        self.0.counts.remove(&id).map(drop)
    }

    /// The group that a cgroup belongs to, by its path below the hierarchy's root: as the kernel
    /// programs have it, the deepest enrolled one. Resolvers do not count.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn group_around(&self, path: &str) -> io::Result<Option<Group>> {
        for cgroup in Path::new(path).ancestors() {
            // One that is gone holds nobody.
            let Ok(id) = cgroup::id_of(&cgroup.to_string_lossy()) else {
                continue;
            };
            if let Some(group) = self.group(id)?
                && group.mode != MODE_RESOLVER
            {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// The record of this connection is written. Was it one of the kernel's list?
    ///
    /// # Errors
    /// As bpf(2).
    pub fn settle(&self, id: u64) -> io::Result<bool> {
        self.0.sessions.remove(&id)
    }

    /// How many connections lack a record, open ones included.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn count_unsettled(&self) -> io::Result<u64> {
        // A walk begins anew where an entry goes meanwhile, so some may come twice.
        let ids: HashSet<u64> = self.0.sessions.keys()?.into_iter().collect();
        Ok(ids.len() as u64)
    }

    /// Does this connection lack a record?
    ///
    /// # Errors
    /// As bpf(2).
    pub fn is_unsettled(&self, id: u64) -> io::Result<bool> {
        self.0.sessions.get(&id).map(|found| found.is_some())
    }

    /// The connections that lack a record.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn unsettled(&self) -> io::Result<Vec<Peer>> {
        let mut found = Vec::new();
        for id in self.0.sessions.keys()? {
            if let Some(flow) = self.0.sessions.get(&id)? {
                found.push(Peer::from(flow));
            }
        }
        Ok(found)
    }

    /// Forgets connections on their way to accept(): all of them where `all`, for a daemon that
    /// starts (they went to another's listener), else those that have waited too long.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn forget_waiting(&self, all: bool) -> io::Result<()> {
        for key in self.0.flows.keys()? {
            let Some(cookie) = self.0.flows.get(&key)? else {
                continue;
            };
            let stale = match self.0.sessions.get(&cookie)? {
                Some(flow) => is_stale(&flow),
                None => true,
            };
            if all || stale {
                self.0.flows.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Makes connect() to `destination` fail with `errno` for `duration`: the agent's next
    /// attempt gets the answer that its last one should have had.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn mark_unreachable(
        &self,
        netns: u64,
        destination: SocketAddr,
        errno: i32,
        duration: Duration,
    ) -> io::Result<()> {
        let key = Destination {
            netns,
            address: to_abi(destination.ip()),
            port: destination.port().into(),
            pad: 0,
        };
        let until = sys::monotonic() + duration.as_nanos() as u64;
        self.0.unreachable.insert(
            &key,
            &Unreachable {
                until,
                errno: errno as u32,
                pad: 0,
            },
        )
    }
}

/// Has this connection been on its way to accept() for longer than any can be?
pub(crate) fn is_stale(flow: &Flow) -> bool {
    sys::monotonic().saturating_sub(flow.at) > LONGEST_WAIT.as_nanos() as u64
}

impl Peer {
    /// Has it been on its way to accept() for longer than any can be?
    pub fn is_stale(&self) -> bool {
        is_stale(&self.flow)
    }
}

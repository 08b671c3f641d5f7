//! Which name did an agent ask for before it connected to an address?
//!
//! The kernel shows every DNS answer to an enrolled group, with the query, before the agent can
//! read it; so whoever looks here after accept() finds what the agent knew at connect(). A name
//! belongs to the group that asked for it: what one agent asks decides nothing for another.
//!
//! Names are live for their TTL, and afterwards stale: agents that keep addresses for longer than
//! they may (JVMs keep them for ever) are still known by the name that they asked for, unless a
//! live one of another query has taken its place. Names survive a restart in a pinned map.

mod hosts;
mod table;

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mantled_redirect::{self as redirect, Kept, sys};
use mantled_wire::dns::{self, Learner};
use tokio::time::{MissedTickBehavior, interval};

use hosts::Hosts;
use table::Table;

/// How often names that nobody uses any more are looked for.
const SWEEP: Duration = Duration::from_secs(300);

/// The group under which the kernel shows what resolvers themselves ask.
const SHARED: u64 = 0;

/// Where a name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The agent's own query.
    Dns,
    /// A query of a resolver on this host, which may have been for anybody: a hint, never enough
    /// in enforce mode.
    Resolver,
    /// The host's /etc/hosts.
    Hosts,
}

impl Source {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Resolver => "resolver",
            Self::Hosts => "hosts",
        }
    }
}

/// The names by which a group knows an address. Several: nobody knows which one it means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Lower case, without the last dot; empty where none is known.
    pub names: Vec<Arc<str>>,
    /// Where they come from; None where there are none.
    pub source: Option<Source>,
    /// Their time is over.
    pub stale: bool,
}

/// All names.
#[derive(Debug)]
pub struct Names {
    answers: redirect::Names,
    table: Mutex<Table>,
    hosts: Hosts,
    /// A successor reads the kernel's answers now.
    paused: Mutex<bool>,
}

impl Names {
    /// With what an earlier daemon has learnt.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn new(answers: redirect::Names) -> std::io::Result<Self> {
        let mut table = Table::default();
        for kept in answers.kept()? {
            table.restore(kept);
        }
        Ok(Self {
            answers,
            table: Mutex::new(table),
            hosts: Hosts::of(Path::new("/etc/hosts")),
            paused: Mutex::new(false),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it holds the lock; a table is whole after every call in any case.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By which names does the group know the address?
    pub fn of(&self, group: u64, address: IpAddr) -> Found {
        self.drain();
        let (found, touched) = self.table().find(sys::monotonic(), group, address);
        if let Some(kept) = touched {
            self.keep(&kept);
        }
        if !found.names.is_empty() {
            return found;
        }
        let names = self.hosts.of_address(address);
        if !names.is_empty() {
            return Found {
                source: Some(Source::Hosts),
                names,
                stale: false,
            };
        }
        let (mut shared, _) = self.table().find(sys::monotonic(), SHARED, address);
        shared.source = shared.source.map(|_| Source::Resolver);
        shared
    }

    fn paused(&self) -> MutexGuard<'_, bool> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns what there is and stops reading what the kernel shows, which only one process can.
    pub fn pause(&self) {
        self.drain();
        *self.paused() = true;
    }

    /// Goes on reading.
    pub fn resume(&self) {
        *self.paused() = false;
    }

    /// Learns what the kernel has shown since the last call.
    fn drain(&self) {
        let paused = self.paused();
        if *paused {
            return;
        }
        self.answers
            .drain(|group, query, answer| self.learn(group, query, answer));
    }

    fn learn(&self, group: u64, query: &[u8], answer: &[u8]) {
        let Ok(question) = dns::question(query) else {
            return;
        };
        let Ok(addresses) = dns::addresses(answer, &question) else {
            return;
        };
        let name: Arc<str> = question.name.into();
        let now = sys::monotonic();
        for address in addresses {
            let ttl = Duration::from_secs(address.ttl.into());
            let kept = self
                .table()
                .learn(now, group, address.address.to_canonical(), &name, ttl);
            if let Some(kept) = kept {
                self.keep(&kept);
            }
        }
    }

    fn keep(&self, kept: &Kept) {
        if let Err(error) = self.answers.keep(kept) {
            tracing::warn!(%error, "a name will not survive a restart");
        }
    }

    /// Learns as answers come and forgets what is not used any more. Never ends.
    pub async fn follow(&self) {
        let readiness = match self.answers.readiness() {
            Ok(readiness) => readiness,
            Err(error) => {
                tracing::error!(%error, "names are learnt at each connection only");
                return;
            }
        };
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ready = readiness.wait() => {
                    if let Err(error) = ready {
                        tracing::error!(%error, "names are learnt at each connection only");
                        return;
                    }
                    self.drain();
                }
                _ = ticks.tick() => {
                    for forgotten in self.table().forget(sys::monotonic()) {
                        let _ = self.answers.forget(&forgotten);
                    }
                }
            }
        }
    }
}

/// Learns for one group from a stream of DNS over TCP.
#[derive(Debug)]
pub struct GroupLearner {
    /// Where to.
    pub names: Arc<Names>,
    /// For whom.
    pub group: u64,
}

impl Learner for GroupLearner {
    fn learn(&self, query: &[u8], answer: &[u8]) {
        self.names.learn(self.group, query, answer);
    }
}

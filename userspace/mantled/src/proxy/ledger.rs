//! Sessions that are open, and their records.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use mantled_record::{Path, Process, SessionRecord, Sink, Verdict};
use mantled_redirect::{Peer, abi, sys};
use tokio::sync::mpsc;

use crate::{
    admin::Tally,
    error::{Cause, Failure},
    identity,
    names::Found,
};

/// Opens sessions and counts them; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    sink: Sink,
    owed: Owed,
    shared: Arc<Shared>,
    /// `mantled exec` reads its sessions here.
    copies: Option<mpsc::UnboundedSender<SessionRecord>>,
}

#[derive(Debug, Default)]
struct Shared {
    open: AtomicUsize,
    opened: AtomicU64,
    /// By the id of the group; of those alone that are counted, so that they do not grow.
    tallies: Mutex<HashMap<u64, Tally>>,
}

impl Shared {
    fn tallies(&self) -> MutexGuard<'_, HashMap<u64, Tally>> {
        // Numbers are whole after every call.
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flow ids of the sessions whose records are not written yet, so that the sweeper can tell them
/// from connections that never reached the proxy; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Owed(Arc<Mutex<HashSet<u64>>>);

impl Owed {
    fn set(&self) -> MutexGuard<'_, HashSet<u64>> {
        // Nothing panics while it holds the lock; a set is whole after every call in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of this connection is written.
    pub fn settle(&self, flow: u64) {
        self.set().remove(&flow);
    }

    /// Is its record still to be written?
    pub fn contains(&self, flow: u64) -> bool {
        self.set().contains(&flow)
    }
}

impl Ledger {
    /// A ledger whose records go to `sink`, and copies of them to `copies`. The sink settles
    /// `owed`.
    pub fn new(
        sink: Sink,
        owed: Owed,
        copies: Option<mpsc::UnboundedSender<SessionRecord>>,
    ) -> Self {
        Self {
            sink,
            owed,
            shared: Arc::default(),
            copies,
        }
    }

    /// Where the records go.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Sessions that are open now.
    pub fn open_sessions(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Sessions that were ever opened.
    pub fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Is the record of this connection still to be written, by a session that is open or by
    /// the sink?
    pub fn owes(&self, flow: u64) -> bool {
        self.owed.contains(flow)
    }

    /// What has happened in a group since the daemon started.
    pub fn tally(&self, group: u64) -> Tally {
        self.shared
            .tallies()
            .get(&group)
            .copied()
            .unwrap_or_default()
    }

    /// Counts what happens in this group from now on. One that had another cgroup goes on with the
    /// counts of that.
    pub fn count(&self, group: u64, before: Option<u64>) {
        let mut tallies = self.shared.tallies();
        let counted = before.and_then(|before| tallies.remove(&before));
        let tally = tallies.entry(group).or_default();
        *tally = tally.plus(counted.unwrap_or_default());
    }

    /// Ends what [`Self::count`] began.
    pub fn forget(&self, group: u64) {
        self.shared.tallies().remove(&group);
    }

    /// The kernel has refused something that this group sent past the proxy.
    pub fn bypass_attempt(&self, group: u64) {
        if let Some(tally) = self.shared.tallies().get_mut(&group) {
            tally.bypass_attempts += 1;
        }
    }

    /// Opens the session of a redirected connection.
    pub fn open(&self, peer: &Peer, process: Process, client: SocketAddr) -> Session {
        let mut session = self.begin(Some(peer.flow.id), client);
        session.group = Some(peer.flow.group);
        let record = &mut session.record;
        describe(record, peer);
        record.process = Some(process);
        session
    }

    /// Opens the session of a connection that a server made to the proxy at the wish of this agent,
    /// whose flow is another's; `peer` says where it came from.
    pub fn open_inward(&self, peer: &Peer, process: Option<Process>, agent: SocketAddr) -> Session {
        let mut session = self.begin(None, agent);
        session.group = Some(peer.flow.group);
        let record = &mut session.record;
        describe(record, peer);
        record.process = process;
        session
    }

    /// Opens the session of a connection that nobody redirected; it will be refused.
    pub fn open_stranger(&self, client: SocketAddr) -> Session {
        self.begin(None, client)
    }

    fn begin(&self, flow: Option<u64>, client: SocketAddr) -> Session {
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        self.shared.opened.fetch_add(1, Ordering::Relaxed);
        if let Some(flow) = flow {
            self.owed.set().insert(flow);
        }
        let mut record = new_record(SystemTime::now());
        record.client_address = Some(client.ip().to_canonical().to_string());
        record.client_port = Some(client.port());
        Session {
            record,
            flow,
            group: None,
            started: Instant::now(),
            ledger: self.clone(),
            finished: false,
        }
    }

    /// Writes the record of a connection that has no session and will never have one: it was
    /// lost with an earlier daemon, or never reached accept().
    pub fn write_lost(&self, peer: &Peer, reason: &str) {
        let age = sys::monotonic().saturating_sub(peer.flow.at);
        let started = SystemTime::now() - std::time::Duration::from_nanos(age);
        let mut record = new_record(started);
        describe(&mut record, peer);
        record.process = Some(identity::of_kernel(peer));
        record.verdict = Verdict::Aborted;
        record.error = Some(Cause::Stopped.name());
        record.reason = Some(reason.to_owned());
        record.duration_ms = age / 1_000_000;
        self.owed.set().insert(peer.flow.id);
        self.sink.submit(record.to_line(), Some(peer.flow.id));
    }
}

fn new_record(started: SystemTime) -> SessionRecord {
    SessionRecord::new(
        uuid::Uuid::now_v7().to_string(),
        crate::time::rfc3339(started),
    )
}

fn describe(record: &mut SessionRecord, peer: &Peer) {
    record.mode = match peer.flow.mode {
        abi::MODE_OBSERVE => Some("observe"),
        abi::MODE_ENFORCE => Some("enforce"),
        _ => None,
    };
    record.network = Some(if peer.destination.is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    });
    record.server_address = Some(peer.destination.ip().to_string());
    record.server_port = Some(peer.destination.port());
}

/// An open session. When it is dropped its record is written, whatever the way there.
#[derive(Debug)]
pub struct Session {
    /// What is known so far.
    pub record: SessionRecord,
    flow: Option<u64>,
    group: Option<u64>,
    started: Instant,
    ledger: Ledger,
    finished: bool,
}

impl Session {
    /// The agent's bytes go this way.
    pub fn goes(&mut self, path: Path) {
        self.record.path = Some(path);
    }

    /// The agent knows the address by these names.
    pub fn knows(&mut self, names: &Found) {
        if let [name] = names.names.as_slice() {
            if self.record.peer_address.is_none() {
                self.record.peer_address = self.record.server_address.take();
            }
            self.record.server_address = Some(name.to_string());
            self.record.name_stale = names.stale;
        }
    }

    /// Ends the session; the record is written.
    pub fn finish(mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.fail(failure);
        }
        self.finished = true;
    }

    /// This session, as its group counts it.
    fn counts(&self) -> Tally {
        let mut counts = Tally {
            sessions: 1,
            ..Tally::default()
        };
        let slot = match (self.record.verdict, self.record.path) {
            (Verdict::Refused, _) => &mut counts.refused,
            (Verdict::Failed | Verdict::Aborted, _) => &mut counts.failed,
            (_, Some(Path::Verified)) => &mut counts.upgraded,
            (_, Some(Path::Exposed)) => &mut counts.exposed,
            (_, Some(Path::Native)) => &mut counts.native,
            (_, Some(Path::Resolver) | None) => return counts,
        };
        *slot = 1;
        counts
    }

    fn fail(&mut self, failure: Failure) {
        self.record.verdict = failure.cause.verdict();
        self.record.error = Some(failure.cause.name());
        self.record.reason = Some(failure.text);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.finished {
            self.fail(Failure::new(
                Cause::Stopped,
                "the daemon ended this session",
            ));
        }
        if let Some(group) = self.group {
            let counts = self.counts();
            if let Some(tally) = self.ledger.shared.tallies().get_mut(&group) {
                *tally = tally.plus(counts);
            }
        }
        self.record.duration_ms = self.started.elapsed().as_millis() as u64;
        self.ledger.sink.submit(self.record.to_line(), self.flow);
        if let Some(copies) = &self.ledger.copies {
            // The reader may have gone; the record itself is with the sink.
            let _ = copies.send(self.record.clone());
        }
        self.ledger.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

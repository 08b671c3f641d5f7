//! Sessions that are open, and their records.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mantled_record::{Path, Process, SessionRecord, Sink, Verdict};
use mantled_redirect::{
    Peer,
    abi::{self, GroupCounts},
    sys,
};
use tokio::sync::mpsc;

use crate::{
    admin::{EndCount, OpenSession, Tally},
    error::{Cause, Failure},
    identity,
    names::Found,
};

/// Sessions that did not go as the agent wished are logged, at most so many a second: the records
/// have them all.
const LOGGED: u32 = 20;

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
    /// Commands that policies were asked about, and those that were refused.
    commands: AtomicU64,
    commands_refused: AtomicU64,
    /// By the id of the group; of those alone that are counted, so that they do not grow.
    tallies: Mutex<HashMap<u64, Tally>>,
    /// Who wants copies of a group's records, and how many were too many.
    watchers: Mutex<HashMap<u64, (mpsc::Sender<SessionRecord>, u64)>>,
    /// How sessions have ended.
    ends: Mutex<HashMap<End, u64>>,
    /// Refusals that were logged, and since when: see [`LOGGED`].
    logged: Mutex<(Option<Instant>, u32)>,
    /// Those that are open, in the order in which they were opened.
    live: Mutex<BTreeMap<u64, Live>>,
}

/// How a session has ended: a bounded set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct End {
    protocol: Option<&'static str>,
    verdict: Verdict,
    path: Option<Path>,
    error: Option<&'static str>,
}

impl End {
    fn of(record: &SessionRecord) -> Self {
        Self {
            protocol: record.protocol,
            verdict: record.verdict,
            path: record.path,
            error: record.error,
        }
    }
}

/// An open session.
#[derive(Debug)]
struct Live {
    id: String,
    started: Instant,
    process: Option<(u32, String)>,
    group: Option<u64>,
    destination: Option<SocketAddr>,
}

/// Nothing panics while it holds one of these locks; what is inside is whole after every call in any
/// case.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn tallies(&self) -> MutexGuard<'_, HashMap<u64, Tally>> {
        lock(&self.tallies)
    }

    fn ended(&self, record: &SessionRecord) {
        *lock(&self.ends).entry(End::of(record)).or_default() += 1;
        let count = |counter: &AtomicU64, commands: Option<u64>| {
            counter.fetch_add(commands.unwrap_or_default(), Ordering::Relaxed);
        };
        count(&self.commands, record.commands);
        count(&self.commands_refused, record.commands_refused);
        if record.verdict != Verdict::Allowed && self.may_log() {
            tracing::info!(
                session.id = record.id,
                error.r#type = record.error,
                server.address = record.server_address,
                server.port = record.server_port,
                process.pid = record.process.as_ref().map(|process| process.pid),
                process.executable.name = record.process.as_ref().map(|process| &*process.name),
                "{}: {}",
                record.verdict.name(),
                record.reason.as_deref().unwrap_or("no reason is known")
            );
        }
    }

    fn may_log(&self) -> bool {
        let mut logged = lock(&self.logged);
        let (since, count) = &mut *logged;
        if since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (*since, *count) = (Some(Instant::now()), 0);
        }
        *count += 1;
        *count <= LOGGED
    }

    fn watchers(&self) -> MutexGuard<'_, HashMap<u64, (mpsc::Sender<SessionRecord>, u64)>> {
        lock(&self.watchers)
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

    /// Commands of sessions that have ended: those that policies were asked about, and those that were
    /// refused, or would have been in enforce mode.
    pub fn commands(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            read(&self.shared.commands),
            read(&self.shared.commands_refused),
        )
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

    /// How many sessions have ended in which way.
    pub fn ends(&self) -> Vec<EndCount> {
        let none = || "none".to_owned();
        let mut ends: Vec<EndCount> = lock(&self.shared.ends)
            .iter()
            .map(|(end, count)| EndCount {
                protocol: end.protocol.map_or_else(none, str::to_owned),
                verdict: end.verdict.name().to_owned(),
                path: end.path.map_or_else(none, |path| path.name().to_owned()),
                error: end.error.map_or_else(none, str::to_owned),
                count: *count,
            })
            .collect();
        ends.sort_unstable();
        ends
    }

    /// The sessions that were opened last, the newest first.
    pub fn newest(&self, most: usize) -> Vec<OpenSession> {
        lock(&self.shared.live)
            .values()
            .rev()
            .take(most)
            .map(|live| OpenSession {
                id: live.id.clone(),
                open_ms: live.started.elapsed().as_millis() as u64,
                pid: live.process.as_ref().map(|(pid, _)| *pid),
                process: live.process.as_ref().map(|(_, name)| name.clone()),
                group: live.group,
                destination: live.destination.map(|address| address.to_string()),
            })
            .collect()
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

    /// Adds to the counts of this group what the kernel has counted of a cgroup that it had.
    pub fn add(&self, group: u64, counted: GroupCounts) {
        if let Some(tally) = self.shared.tallies().get_mut(&group) {
            *tally = tally.plus(Tally::from(counted));
        }
    }

    /// Sends copies of this group's records to `copies` from now on. It waits for nobody: what is not
    /// taken in time is counted.
    pub fn watch(&self, group: u64, copies: mpsc::Sender<SessionRecord>) {
        self.shared.watchers().insert(group, (copies, 0));
    }

    /// Ends what [`Self::watch`] began; how many were not taken in time.
    pub fn unwatch(&self, group: u64) -> u64 {
        let watcher = self.shared.watchers().remove(&group);
        watcher.map_or(0, |(_, missed)| missed)
    }

    /// Opens the session of a redirected connection.
    pub fn open(&self, peer: &Peer, process: Process, client: SocketAddr) -> Session {
        let mut session = self.begin(Some(peer.flow.id), client);
        session.group = Some(peer.flow.group);
        let record = &mut session.record;
        describe(record, peer);
        record.process = Some(process);
        session.is_live(peer.destination);
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
        session.is_live(peer.destination);
        session
    }

    /// Opens the session of a connection that nobody redirected; it will be refused.
    pub fn open_stranger(&self, client: SocketAddr) -> Session {
        self.begin(None, client)
    }

    fn begin(&self, flow: Option<u64>, client: SocketAddr) -> Session {
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        let serial = self.shared.opened.fetch_add(1, Ordering::Relaxed);
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
            serial,
            started: Instant::now(),
            ledger: self.clone(),
            finished: false,
        }
    }

    /// Writes the record of a connection that has no session and will never have one: it was
    /// lost with an earlier daemon, or never reached accept().
    pub fn write_lost(&self, peer: &Peer, reason: &str) {
        let age = sys::monotonic().saturating_sub(peer.flow.at);
        let started = SystemTime::now() - Duration::from_nanos(age);
        let mut record = new_record(started);
        describe(&mut record, peer);
        record.process = Some(identity::of_kernel(peer));
        record.verdict = Verdict::Aborted;
        record.error = Some(Cause::Stopped.name());
        record.reason = Some(reason.to_owned());
        record.duration_ms = age / 1_000_000;
        self.owed.set().insert(peer.flow.id);
        self.shared.ended(&record);
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
    /// Of this daemon's sessions, from 0.
    serial: u64,
    started: Instant,
    ledger: Ledger,
    finished: bool,
}

impl Session {
    fn is_live(&self, destination: SocketAddr) {
        let process = self.record.process.as_ref();
        let live = Live {
            id: self.record.id.clone(),
            started: self.started,
            process: process.map(|process| (process.pid, process.name.clone())),
            group: self.group,
            destination: Some(destination),
        };
        lock(&self.ledger.shared.live).insert(self.serial, live);
    }

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
        lock(&self.ledger.shared.live).remove(&self.serial);
        self.ledger.shared.ended(&self.record);
        self.record.duration_ms = self.started.elapsed().as_millis() as u64;
        // Before the record is written: then the kernel's entry of the connection goes, and with it
        // what says that there is a copy to come.
        if let Some(group) = self.group
            && let Some((copies, missed)) = self.ledger.shared.watchers().get_mut(&group)
            && copies.try_send(self.record.clone()).is_err()
        {
            *missed += 1;
        }
        self.ledger.sink.submit(self.record.to_line(), self.flow);
        if let Some(copies) = &self.ledger.copies {
            // The reader may have gone; the record itself is with the sink.
            let _ = copies.send(self.record.clone());
        }
        self.ledger.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

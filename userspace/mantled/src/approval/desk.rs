//! The questions of this host: how they come, wait, and end without an answer. Answers are in
//! `answering`.
//!
//! A question is *live* while a ticket waits for it, and *left* when its agent has gone with an
//! earlier daemon. It ends when a live one is answered or its ticket is dropped, when a left one is
//! taken up, and when its time is over. Two locks: the state's is never held while a file is written,
//! and the disk's is taken first where both are, so that files are written in the order in which
//! things happened.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::Instant,
};

use super::{
    Answer, Counts, Held, Ticket,
    disk::{Disk, Kept, KeptGrant, KeptQuestion},
    evidence::{Event, line, wall},
    link::Key,
    sleep_until,
    who::{Accounts, is_member},
};
use crate::config::Approval;

/// Questions at once on this host: more than people read.
pub(super) const HOST: usize = 256;

/// Questions at once of one session: a pipeline asks one after the other, so this is several agents
/// behind one connection.
pub(super) const SESSION: usize = 16;

/// Longest question, in bytes: nobody reads more before they approve it, and the file holds [`HOST`]
/// of them.
pub(super) const LENGTH: usize = 64 << 10;

/// Answers that are remembered for who answers too late.
const RECENT: usize = 256;

/// Lines that wait for the disk: a few for each question that there may be. What comes on top is
/// told by the line of the answer, which is never left out.
const LINES: usize = 1024;

/// How long a daemon that leaves waits for answers that are being written down.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How often it looks whether they are.
const LOOK: Duration = Duration::from_millis(10);

/// What an agent is told that waits while the daemon ends.
pub(super) const LEFT: &str =
    "the daemon is being restarted or upgraded; connect again and ask again, and the same question goes on";

#[derive(Debug)]
pub(super) struct Desk {
    pub(super) config: watch::Sender<Arc<Approval>>,
    /// Nothing is approved without a record.
    pub(super) strict: bool,
    pub(super) accounts: Arc<dyn Accounts>,
    pub(super) state: Mutex<State>,
    pub(super) disk: Mutex<Disk>,
    /// Where the key of links is.
    directory: PathBuf,
    pub(super) key: Mutex<Option<Key>>,
    posts: mpsc::Sender<String>,
    /// Ids of questions that are to be posted.
    pub(super) posted: tokio::sync::Mutex<mpsc::Receiver<String>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) questions: BTreeMap<String, Open>,
    pub(super) grants: BTreeMap<String, Standing>,
    /// What has become of ids, the newest last.
    pub(super) recent: VecDeque<(String, String)>,
    pub(super) counts: Counts,
    /// Lines for the evidence.
    pub(super) lines: Vec<Value>,
    /// The file is not what it should be.
    pub(super) changed: bool,
    /// Somebody is about to write.
    writing: bool,
    /// Nothing is asked here any more.
    left: bool,
    /// The file is another process's.
    closed: bool,
    serial: u64,
}

/// A question.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) held: Held,
    pub(super) standing: String,
    pub(super) asked: u64,
    pub(super) ends: u64,
    pub(super) deadline: Instant,
    pub(super) nonce: String,
    pub(super) stage: Stage,
    /// Who waits; None: it is left.
    pub(super) ticket: Option<(oneshot::Sender<Answer>, u64)>,
}

#[derive(Debug)]
pub(super) enum Stage {
    Waiting,
    /// The answer of this one is being written down.
    Answering(String),
    /// Of a question that is left.
    Answered(Answer),
}

/// A standing grant. It ends by the clock on the wall or by that of the process, whichever is first:
/// the one may be set back, the other stands still while the host sleeps.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) kept: KeptGrant,
    pub(super) deadline: Instant,
}

impl Standing {
    pub(super) fn new(kept: KeptGrant) -> Self {
        let left = Duration::from_millis(kept.until.saturating_sub(wall()));
        Self {
            kept,
            deadline: Instant::now() + left,
        }
    }

    fn holds(&self) -> bool {
        Instant::now() < self.deadline && wall() < self.kept.until
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Everything that is locked here is whole after every call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn take_in(&mut self, kept: Kept, longest: Duration) {
        let now = wall();
        for question in kept.questions {
            // A clock that was set back must not give it more time than anybody has.
            let left = Duration::from_millis(question.ends.saturating_sub(now)).min(longest);
            let stage = question.answer.map_or(Stage::Waiting, Stage::Answered);
            let open = Open {
                standing: question.held.standing(),
                held: question.held,
                asked: question.asked,
                ends: question.ends,
                deadline: Instant::now() + left,
                nonce: question.nonce,
                stage,
                ticket: None,
            };
            self.questions.insert(question.id, open);
        }
        let grants = kept.grants.into_iter();
        self.grants = grants
            .map(|grant| (grant.id.clone(), Standing::new(grant)))
            .collect();
    }

    pub(super) fn kept(&self) -> Kept {
        let questions = self.questions.iter().map(|(id, open)| KeptQuestion {
            id: id.clone(),
            held: open.held.clone(),
            asked: open.asked,
            ends: open.ends,
            nonce: open.nonce.clone(),
            answer: match &open.stage {
                Stage::Answered(answer) => Some(answer.clone()),
                Stage::Waiting | Stage::Answering(_) => None,
            },
        });
        let grants = self.grants.values().map(|grant| grant.kept.clone());
        Kept::new(questions.collect(), grants.collect())
    }

    pub(super) fn note(&mut self, line: Value) {
        if self.lines.len() < LINES {
            self.lines.push(line);
        } else {
            tracing::error!("a line about an approval was lost: the record directory does not take them in time");
        }
    }

    pub(super) fn remember(&mut self, id: &str, what: String) {
        self.recent.push_back((id.to_owned(), what));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// Ends what nobody waits for and whose time is over, and grants that have ended.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let over = |open: &Open| open.ticket.is_none() && open.deadline <= now;
        let ended: Vec<String> = self
            .questions
            .iter()
            .filter(|(_, open)| over(open) && !matches!(open.stage, Stage::Answering(_)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            let Some(open) = self.questions.remove(&id) else {
                continue;
            };
            self.changed = true;
            let event = match open.stage {
                Stage::Answered(_) => Event::Unused,
                Stage::Waiting | Stage::Answering(_) => {
                    self.counts.timed_out += 1;
                    Event::TimedOut
                }
            };
            self.note(line(event, &id, &open.held, open.asked));
            self.remember(&id, "its time is over".to_owned());
        }
        let before = self.grants.len();
        self.grants.retain(|_, grant| grant.holds());
        self.changed |= self.grants.len() != before;
    }

    /// Why one more cannot be held.
    fn refuses(&self, held: &Held) -> Option<String> {
        if held.length() > LENGTH {
            return Some(format!(
                "the command and its values have more than {} KiB, which nobody could review; split it",
                LENGTH >> 10
            ));
        }
        if self.questions.len() >= HOST {
            return Some(format!(
                "{HOST} commands of this host wait for approval already; ask again later"
            ));
        }
        let of_session = self.questions.values();
        let of_session = of_session.filter(|open| open.held.session == held.session);
        (of_session.count() >= SESSION).then(|| {
            format!(
                "{SESSION} commands of this session wait for approval already; ask again later"
            )
        })
    }

    fn is_answering(&self) -> bool {
        let mut open = self.questions.values();
        open.any(|open| matches!(open.stage, Stage::Answering(_)))
    }
}

impl Desk {
    pub(super) fn open(
        config: Approval,
        state: &Path,
        records: &Path,
        strict: bool,
        accounts: Arc<dyn Accounts>,
    ) -> Result<Self, String> {
        let key = key(&config, state)?;
        let (posts, posted) = mpsc::channel(HOST);
        let desk = Self {
            config: watch::Sender::new(Arc::new(config)),
            strict,
            accounts,
            state: Mutex::default(),
            disk: Mutex::new(Disk::new(state, records)),
            directory: state.to_owned(),
            key: Mutex::new(key),
            posts,
            posted: tokio::sync::Mutex::new(posted),
        };
        desk.take_back()?;
        Ok(desk)
    }

    pub(super) fn take_back(&self) -> Result<(), String> {
        let kept = lock(&self.disk).load()?;
        let config = self.config.borrow().clone();
        let mut state = lock(&self.state);
        state.take_in(kept, config.timeout);
        (state.left, state.closed) = (false, false);
        drop(state);
        self.end_grants(&config);
        Ok(())
    }

    pub(super) fn reconfigure(&self, config: Approval) -> Result<(), String> {
        if let Some(key) = key(&config, &self.directory)? {
            *lock(&self.key) = Some(key);
        }
        let config = Arc::new(config);
        self.end_grants(&config);
        self.config.send_replace(config);
        self.flush();
        Ok(())
    }

    /// Grants of who may not answer any more end.
    fn end_grants(&self, config: &Approval) {
        let grants: Vec<KeptGrant> = {
            let state = lock(&self.state);
            state.grants.values().map(|grant| grant.kept.clone()).collect()
        };
        // Users may be looked up on another host: not while the state is locked.
        for grant in grants {
            let holds = config
                .group(&grant.held.group)
                .is_some_and(|group| is_member(&*self.accounts, group, grant.uid));
            if !holds {
                tracing::warn!(
                    id = grant.id,
                    group = grant.held.group,
                    "the grant ends: who gave it is not in the group of approvers any more"
                );
                let mut state = lock(&self.state);
                state.grants.remove(&grant.id);
                state.changed = true;
            }
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut state = lock(&self.state);
        state.expire();
        let waiting = state.questions.values();
        let waiting = waiting.filter(|open| !matches!(open.stage, Stage::Answered(_)));
        Counts {
            held: waiting.count() as u64,
            ..state.counts
        }
    }

    pub(super) fn hold(self: &Arc<Self>, held: Held) -> Ticket {
        let config = self.config.borrow().clone();
        let mut state = lock(&self.state);
        let refused = |state: &mut State, reason: String| {
            state.counts.refused += 1;
            tracing::debug!(group = held.group, reason, "a command is not held but denied");
            Ticket::decided(Answer::nobody(reason))
        };
        if state.left {
            return refused(&mut state, LEFT.to_owned());
        }
        let Some(group) = config.group(&held.group) else {
            let reason = format!(
                "the policy asks for approval by {}, and no [[approval.group]] has that name",
                held.group
            );
            return refused(&mut state, reason);
        };
        state.expire();
        let standing = held.standing();
        let granted = state.grants.values();
        let granted = granted
            .clone()
            .find(|grant| grant.kept.fingerprint == standing)
            .cloned();
        if let Some(grant) = granted {
            drop(state);
            return self.pass(held, &grant);
        }
        let left = state.questions.iter().find(|(_, open)| {
            open.ticket.is_none() && open.standing == standing && open.deadline > Instant::now()
        });
        if let Some(id) = left.map(|(id, _)| id.clone()) {
            return self.take_up(&mut state, id, held);
        }
        if let Some(reason) = state.refuses(&held) {
            return refused(&mut state, reason);
        }
        let Some((id, nonce)) = fresh(&state) else {
            return refused(&mut state, "no random numbers; ask again".to_owned());
        };
        tracing::info!(
            id,
            group = held.group,
            session.id = held.session,
            "a command waits for approval"
        );
        let asked = wall();
        let line = line(Event::Asked, &id, &held, asked);
        state.note(line);
        state.changed = true;
        let open = Open {
            standing,
            held,
            asked,
            ends: asked + config.timeout.as_millis() as u64,
            deadline: Instant::now() + config.timeout,
            nonce,
            stage: Stage::Waiting,
            ticket: None,
        };
        state.questions.insert(id.clone(), open);
        let ticket = self.ticket(&mut state, id.clone());
        drop(state);
        self.flush_later();
        // With as many as that to be posted already, another one would not be read.
        if group.webhook.is_some() && self.posts.try_send(id.clone()).is_err() {
            tracing::warn!(id, "not posted: too many questions wait to be posted");
        }
        ticket
    }

    /// A ticket for this question, from now on the only one.
    fn ticket(self: &Arc<Self>, state: &mut State, id: String) -> Ticket {
        state.serial += 1;
        let serial = state.serial;
        let (sender, answer) = oneshot::channel();
        let limit = state.questions.get_mut(&id).map(|open| {
            open.ticket = Some((sender, serial));
            Box::pin(sleep_until(open.deadline))
        });
        Ticket {
            id,
            desk: Some((Arc::clone(self), serial)),
            answer,
            limit,
            given: None,
        }
    }

    /// Something that waits for the disk alone.
    fn promised(self: &Arc<Self>, id: String) -> (oneshot::Sender<Answer>, Ticket) {
        let (sender, answer) = oneshot::channel();
        let ticket = Ticket {
            id,
            desk: None,
            answer,
            limit: None,
            given: None,
        };
        (sender, ticket)
    }

    /// Lets pass what is granted, when that is written down.
    fn pass(self: &Arc<Self>, held: Held, grant: &Standing) -> Ticket {
        let KeptGrant { id, by, .. } = grant.kept.clone();
        let (sender, ticket) = self.promised(id.clone());
        let desk = Arc::clone(self);
        spawn_blocking(move || {
            let event = Event::Passed {
                by: &by,
                grant: &id,
            };
            let recorded = desk.record(line(event, &id, &held, wall()));
            let mut state = lock(&desk.state);
            let answer = if recorded {
                state.counts.granted += 1;
                tracing::info!(id, group = held.group, approver = by, "passed by a standing grant");
                Answer::Approved { by }
            } else {
                state.counts.refused += 1;
                Answer::nobody(UNRECORDED)
            };
            drop(state);
            let _ = sender.send(answer);
        });
        ticket
    }

    /// An agent has come back to its question, or for its answer.
    fn take_up(self: &Arc<Self>, state: &mut State, id: String, held: Held) -> Ticket {
        state.changed = true;
        let answered = state
            .questions
            .get(&id)
            .is_some_and(|open| matches!(open.stage, Stage::Answered(_)));
        if !answered {
            if let Some(open) = state.questions.get_mut(&id) {
                let asked = open.asked;
                open.held = held;
                let line = line(Event::AskedAgain, &id, &open.held, asked);
                state.note(line);
            }
            tracing::info!(id, "the agent has come back to its question");
            let ticket = self.ticket(state, id);
            self.flush_later();
            return ticket;
        }
        let open = state.questions.remove(&id);
        let (sender, ticket) = self.promised(id.clone());
        let desk = Arc::clone(self);
        spawn_blocking(move || {
            let Some(Open {
                stage: Stage::Answered(answer),
                asked,
                ..
            }) = open
            else {
                return;
            };
            let (approved, by) = match &answer {
                Answer::Approved { by } => (true, Some(by.as_str())),
                Answer::Denied { by, .. } => (false, by.as_deref()),
            };
            let recorded = desk.record(line(Event::TakenUp { approved, by }, &id, &held, asked));
            // Used up, before it counts: it must not be there again after the next restart.
            let answer = match desk.store() {
                _ if !approved => answer,
                Ok(()) if recorded => answer,
                Ok(()) => Answer::nobody(UNRECORDED),
                Err(error) => {
                    tracing::error!(%error, id, "an approval was not taken up, since that could not be kept");
                    Answer::nobody("that the approval is used up could not be kept; ask again")
                }
            };
            tracing::info!(id, approved, "the agent has come for its answer");
            let _ = sender.send(answer);
        });
        ticket
    }

    /// Denies, unless an answer is on its way.
    pub(super) fn time_out(self: &Arc<Self>, id: &str, serial: u64) -> Option<Answer> {
        let open = self.end(id, serial, Event::TimedOut, "nobody has answered it in time")?;
        let waited = Duration::from_millis(open.ends.saturating_sub(open.asked)).as_secs();
        tracing::info!(id, group = open.held.group, verdict = "timed out", "nobody has answered");
        Some(Answer::nobody(format!(
            "nobody has answered within {waited} s"
        )))
    }

    pub(super) fn withdraw(self: &Arc<Self>, id: &str, serial: u64) {
        if self
            .end(id, serial, Event::Withdrawn, "its agent has gone")
            .is_some()
        {
            tracing::info!(id, verdict = "withdrawn", "the agent that asked has gone");
        }
    }

    /// Takes away a question that nobody has answered, and for which this is the ticket.
    fn end(self: &Arc<Self>, id: &str, serial: u64, event: Event<'_>, what: &str) -> Option<Open> {
        let mut state = lock(&self.state);
        let open = state.questions.get(id)?;
        let is_its = open.ticket.as_ref().is_some_and(|(_, of)| *of == serial);
        if !is_its || !matches!(open.stage, Stage::Waiting) {
            return None;
        }
        let open = state.questions.remove(id)?;
        match event {
            Event::TimedOut => state.counts.timed_out += 1,
            _ => state.counts.withdrawn += 1,
        }
        state.changed = true;
        state.note(line(event, id, &open.held, open.asked));
        state.remember(id, what.to_owned());
        drop(state);
        self.flush_later();
        Some(open)
    }

    pub(super) async fn leave(self: &Arc<Self>) {
        let waiting: Vec<oneshot::Sender<Answer>> = {
            let mut state = lock(&self.state);
            state.left = true;
            let open = state.questions.values_mut();
            open.filter(|open| matches!(open.stage, Stage::Waiting))
                .filter_map(|open| open.ticket.take())
                .map(|(sender, _)| sender)
                .collect()
        };
        if !waiting.is_empty() {
            tracing::info!(questions = waiting.len(), "questions are left for the next daemon");
        }
        for sender in waiting {
            let _ = sender.send(Answer::nobody(LEFT));
        }
        let desk = Arc::clone(self);
        let _ = spawn_blocking(move || {
            let until = std::time::Instant::now() + LAST_ANSWERS;
            while lock(&desk.state).is_answering() && std::time::Instant::now() < until {
                std::thread::sleep(LOOK);
            }
            if let Err(error) = desk.store() {
                tracing::error!(%error, "questions that are left could not be kept; the agents must ask anew");
            }
            // A writer that was on its way has written, or sees this.
            let _disk = lock(&desk.disk);
            let mut state = lock(&desk.state);
            state.closed = true;
            state.questions.clear();
            state.grants.clear();
        })
        .await;
    }

    /// Writes what is to be written, in the background.
    pub(super) fn flush_later(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        if state.writing {
            return;
        }
        // A ticket may be dropped while the event loop ends: then nobody comes to it any more.
        let Ok(event_loop) = Handle::try_current() else {
            return;
        };
        state.writing = true;
        let desk = Arc::clone(self);
        event_loop.spawn_blocking(move || {
            loop {
                desk.flush();
                let mut state = lock(&desk.state);
                // What fails is tried again with the next change.
                if !state.changed && state.lines.is_empty() {
                    state.writing = false;
                    return;
                }
            }
        });
    }

    /// Writes what is to be written. Blocks.
    pub(super) fn flush(&self) {
        let mut disk = lock(&self.disk);
        self.flush_lines(&mut disk);
        drop(disk);
        if let Err(error) = self.store() {
            tracing::error!(%error, "what waits for approval could not be kept; a restart would lose it");
        }
    }

    fn flush_lines(&self, disk: &mut Disk) {
        let lines = std::mem::take(&mut lock(&self.state).lines);
        if let Err(error) = disk.append(&lines) {
            tracing::error!(%error, lines = lines.len(), "the record of approvals could not be written");
        }
    }

    /// Writes one line, behind those that wait; true: it is written, or need not be. Blocks.
    pub(super) fn record(&self, line: Value) -> bool {
        let mut disk = lock(&self.disk);
        self.flush_lines(&mut disk);
        match disk.append(&[line]) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "the record of an approval could not be written");
                !self.strict
            }
        }
    }

    /// Writes the file, where it is not what it should be. Blocks.
    pub(super) fn store(&self) -> std::io::Result<()> {
        let mut disk = lock(&self.disk);
        let kept = {
            let mut state = lock(&self.state);
            if !state.changed || state.closed {
                state.changed = false;
                return Ok(());
            }
            state.changed = false;
            state.kept()
        };
        disk.store(&kept)
    }
}

/// Why an approval does not count.
pub(super) const UNRECORDED: &str =
    "the approval could not be recorded, so it does not count; see the daemon's log";

fn key(config: &Approval, directory: &Path) -> Result<Option<Key>, String> {
    match config.link {
        Some(_) => Key::load(directory).map(Some),
        None => Ok(None),
    }
}

/// An id that no other question has, and what makes the link to it good for one answer.
fn fresh(state: &State) -> Option<(String, String)> {
    /// No letter that is taken for another.
    const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bytes = [0; 24];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    let (name, nonce) = bytes.split_at(8);
    let letters = name
        .iter()
        .filter_map(|byte| LETTERS.get(usize::from(byte & 31)));
    let id: String = "a-"
        .chars()
        .chain(letters.map(|letter| char::from(*letter)))
        .collect();
    let known = state.questions.contains_key(&id) || state.grants.contains_key(&id);
    let nonce = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    (!known).then_some((id, nonce))
}

//! Every group that is to be enrolled, and the one place where that changes.
//!
//! A group is wanted by the configuration or by a command, and is enrolled whenever its cgroup is
//! there: a unit that starts again has a new one.

mod lent;
mod reload;
mod unconfirmed;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use mantled_redirect::{Error, Interceptor, abi, cgroup::Cgroup};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, block_in_place, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

pub use self::lent::EXEC;
use crate::{
    admin::{Answered, Call, GroupStatus, Reply, Request, Status, Tally},
    app::bypass_entries,
    completeness::Completeness,
    config::{Enrollment, Inbound, Mode, OnDown, Target},
    enrollment::{self, Existing},
    handover::{Predecessor, Successor},
    proxy::{Context, Live},
    share::Share,
    state::{Revert, Saved, StateFile},
};

/// How often cgroups are looked for. A unit that starts is unprotected for this long at most; then
/// the connections that it has made are ended.
const FOLLOW: Duration = Duration::from_millis(200);

/// Units that resolve names for others, who ask them by other ways than DNS (nss-resolve, nscd).
/// Their own queries tell which names addresses may have been asked for.
const RESOLVERS: [&str; 2] = ["systemd-resolved.service", "nscd.service"];

/// Peers that are named to the operator at most; the rest is counted.
const NAMED_PEERS: usize = 10;
/// Sessions that are told at once.
const MOST_SESSIONS: usize = 256;

/// Of a group whose cgroup another one has: the first one decides.
pub const TAKEN: &str = "its cgroup is enrolled already, by another name, and that one decides how";

/// Who wants a group to be enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `[[enroll]]` in the configuration.
    Configuration,
    /// `mantled enroll`.
    Command,
    /// `mantled exec`, for as long as it runs.
    Exec,
    /// This host's resolvers are listened to, nothing else.
    Resolver,
}

/// A group that is to be enrolled.
#[derive(Debug)]
pub struct Wanted {
    /// Which.
    pub target: Target,
    /// How.
    pub settings: abi::Group,
    /// Who wants it.
    pub origin: Origin,
    /// Its cgroup; None while there is none.
    pub enrolled: Option<u64>,
    /// The cgroup that it has, or had last: its sessions are counted there.
    pub counted: Option<u64>,
    /// Why it could not be enrolled, as it was told last.
    pub trouble: Option<String>,
    /// When it goes back to what it was before, and what that is.
    revert: Option<(Instant, Revert)>,
    /// Of an `exec`: closed once that is gone.
    holder: Option<oneshot::Sender<()>>,
}

/// Ends when a successor is prepared, or could not be; then who asked is told.
async fn prepared(upgrade: &mut Option<Preparing>) -> Option<Upgrade> {
    let Some(preparing) = upgrade else {
        return std::future::pending().await;
    };
    let started = (&mut preparing.started)
        .await
        .unwrap_or_else(|error| Err(error.to_string()));
    let reply = upgrade.take()?.reply;
    match started {
        Ok(successor) => Some(Upgrade { successor, reply }),
        Err(reason) => {
            tracing::error!(%reason, "there is no upgrade; this process goes on");
            let _ = reply.send(Err(format!("{reason}; nothing has changed")));
            None
        }
    }
}

impl Wanted {
    /// One that is not enrolled yet.
    pub fn new(target: Target, settings: abi::Group, origin: Origin) -> Self {
        Self {
            target,
            settings,
            origin,
            enrolled: None,
            counted: None,
            trouble: None,
            revert: None,
            holder: None,
        }
    }

    /// One that the configuration enrols.
    pub fn configured(enrollment: &Enrollment) -> Self {
        let settings = enrollment::group(
            enrollment.mode(),
            enrollment.on_daemon_down(),
            enrollment.inbound(),
        );
        Self::new(enrollment.target().clone(), settings, Origin::Configuration)
    }

    /// One that a command has enrolled.
    ///
    /// # Errors
    /// The target is none.
    pub fn saved(saved: &Saved) -> Result<Self, String> {
        let settings = abi::Group {
            left_out: saved.canary.unwrap_or(Share::ALL).left_out(),
            ..enrollment::group(saved.mode, saved.on_daemon_down, saved.inbound)
        };
        let mut wanted = Self::new(Target::parse(&saved.target)?, settings, Origin::Command);
        // From here on the clock may be set: how long it is, is known.
        wanted.revert = saved
            .revert
            .clone()
            .map(|revert| (Instant::now() + revert.left(), revert));
        Ok(wanted)
    }

    /// As it is kept.
    fn as_saved(&self) -> Saved {
        Saved {
            target: self.target.to_string(),
            mode: self.mode(),
            inbound: self.inbound(),
            on_daemon_down: self.on_daemon_down(),
            canary: Some(self.share()).filter(|share| *share != Share::ALL),
            revert: self.revert.as_ref().map(|(_, revert)| revert.clone()),
        }
    }

    /// The resolvers of this host. Nothing of theirs is redirected.
    pub fn resolvers() -> impl Iterator<Item = Self> {
        RESOLVERS.iter().filter_map(|name| {
            let settings = abi::Group {
                mode: abi::MODE_RESOLVER,
                ..abi::Group::default()
            };
            Some(Self::new(
                Target::parse(name).ok()?,
                settings,
                Origin::Resolver,
            ))
        })
    }

    /// Its cgroup, as it is now; None: there is none.
    ///
    /// # Errors
    /// It cannot be told: several units have that name, or the hierarchy cannot be read.
    pub fn find(&self) -> Result<Option<Cgroup>, Error> {
        let found = match &self.target {
            Target::Unit(unit) => Cgroup::of_unit(unit.as_str()),
            Target::Cgroup(path) => Cgroup::open(Path::new(path.as_str())),
        };
        match found {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(Error::NoSuchUnit { .. } | Error::NoSuchCgroup { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells, once, why it cannot be enrolled as it should be.
    pub fn tell(&mut self, trouble: String) {
        if self.trouble.as_ref() == Some(&trouble) {
            return;
        }
        if self.origin == Origin::Resolver {
            tracing::debug!(group = %self.target, "{trouble}");
        } else {
            tracing::error!(group = %self.target, "COULD NOT BE ENROLLED: {trouble}");
        }
        self.trouble = Some(trouble);
    }

    fn mode(&self) -> Mode {
        match self.settings.mode {
            abi::MODE_OBSERVE => Mode::Observe,
            _ => Mode::Enforce,
        }
    }

    fn share(&self) -> Share {
        Share::except(self.settings.left_out)
    }

    fn inbound(&self) -> Inbound {
        match self.settings.inbound {
            abi::INBOUND_ALLOW => Inbound::Allow,
            _ => Inbound::Refuse,
        }
    }

    fn on_daemon_down(&self) -> OnDown {
        match self.settings.on_daemon_down {
            abi::DOWN_OPEN => OnDown::Open,
            _ => OnDown::Closed,
        }
    }
}

/// The groups of a running daemon.
pub struct Groups {
    /// The kernel side.
    pub interceptor: Interceptor,
    /// What every session reads.
    pub live: Live,
    /// Those that are to be enrolled.
    pub wanted: Vec<Wanted>,
    /// Where those of commands are kept.
    pub state: StateFile,
    /// Is there a record for every connection?
    pub completeness: Completeness,
    /// The daemon from which this one has taken over.
    pub predecessor: Option<Arc<Predecessor>>,
    /// A successor that prepares itself.
    pub upgrade: Option<Preparing>,
}

/// A successor that prepares itself, and who asked for it.
#[derive(Debug)]
pub struct Preparing {
    started: JoinHandle<Result<Successor, String>>,
    reply: oneshot::Sender<Result<Answered, String>>,
}

/// A successor that is prepared, and who is to hear that it serves.
#[derive(Debug)]
pub struct Upgrade {
    /// The successor.
    pub successor: Successor,
    /// Who asked for it.
    pub reply: oneshot::Sender<Result<Answered, String>>,
}

impl Groups {
    /// Follows the groups and answers calls, until a successor is prepared.
    pub async fn run(&mut self, calls: &mut mpsc::Receiver<Call>) -> Upgrade {
        let mut ticks = interval(FOLLOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    // The successor reverts and withdraws by itself what is due from now on.
                    if self.upgrade.is_none() {
                        self.revert_due();
                        self.end_leases();
                    }
                    self.follow();
                }
                Some(call) = calls.recv() => self.take(call),
                upgrade = prepared(&mut self.upgrade) => if let Some(upgrade) = upgrade {
                    return upgrade;
                },
            }
        }
    }

    fn take(&mut self, call: Call) {
        if call.request == Request::Upgrade {
            match self.admit(call.caller) {
                Ok(()) if self.upgrade.is_none() => {
                    self.upgrade = Some(Preparing {
                        started: spawn_blocking(Successor::start),
                        reply: call.reply,
                    });
                }
                Ok(()) => {
                    let _ = call
                        .reply
                        .send(Err("an upgrade is under way already".to_owned()));
                }
                Err(refusal) => {
                    let _ = call.reply.send(Err(refusal));
                }
            }
            return;
        }
        // The successor has read the configuration and the state already.
        let answer = if self.upgrade.is_some()
            && !matches!(call.request, Request::Status | Request::Sessions { .. })
        {
            Err("an upgrade is under way; ask again when it has ended".to_owned())
        } else {
            self.answer(call.request, call.caller)
        };
        // A caller that is gone need not be told.
        let _ = call.reply.send(answer);
    }

    /// What a predecessor still carries was judged by what held before.
    fn end_predecessor(&self) {
        if let Some(predecessor) = &self.predecessor {
            predecessor.end();
        }
    }

    /// Puts everything back as it was, after a successor has begun to take over and failed.
    pub fn take_back(&mut self) {
        let context = self.live.current();
        let kernel = self
            .interceptor
            .take_back()
            .and_then(|()| self.tell_kernel(&context));
        if let Err(error) = kernel {
            tracing::error!(%error, "the kernel programs are not as they should be; restart mantled");
        }
        for wanted in &mut self.wanted {
            let Ok(Some(cgroup)) = wanted.find() else {
                continue;
            };
            if Some(cgroup.id()) == wanted.enrolled
                && let Err(error) = self.interceptor.enroll(&cgroup, wanted.settings)
            {
                wanted.tell(error.to_string());
            }
        }
    }

    /// Tells the kernel programs what the configuration says of destinations.
    fn tell_kernel(&self, context: &Context) -> Result<(), Error> {
        self.interceptor
            .set_bypass(&bypass_entries(context.config.bypasses()))?;
        self.interceptor.set_resolvers(&context.resolvers)?;
        self.interceptor
            .set_relayed(&context.config.relayed_ports())
    }

    /// Enrols groups whose cgroup has come, and withdraws those whose cgroup has gone.
    fn follow(&mut self) {
        let mut all = std::mem::take(&mut self.wanted);
        for index in 0..all.len() {
            let others: Vec<u64> = all
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index)
                .filter_map(|(_, wanted)| wanted.enrolled)
                .collect();
            if let Some(wanted) = all.get_mut(index) {
                self.follow_one(wanted, &others);
            }
        }
        self.wanted = all;
    }

    fn follow_one(&mut self, wanted: &mut Wanted, others: &[u64]) {
        let cgroup = match wanted.find() {
            Ok(cgroup) => cgroup,
            // That does not say that it has gone: what is enrolled stays so.
            Err(error) => return wanted.tell(error.to_string()),
        };
        if cgroup.as_ref().map(Cgroup::id) == wanted.enrolled {
            return;
        }
        if let Some(gone) = wanted.enrolled.take() {
            match self.interceptor.withdraw(gone) {
                // The counts are the group's, whatever its cgroup.
                Ok(counted) => self.live.current().ledger.add(gone, counted),
                Err(error) => {
                    tracing::warn!(%error, group = %wanted.target, "its last cgroup could not be withdrawn");
                }
            }
        }
        let Some(cgroup) = cgroup else {
            wanted.trouble = None;
            if matches!(wanted.origin, Origin::Configuration | Origin::Command) {
                tracing::info!(
                    group = %wanted.target,
                    "has stopped; it is enrolled when it starts"
                );
            }
            return;
        };
        if others.contains(&cgroup.id()) {
            return wanted.tell(TAKEN.to_owned());
        }
        match self.enroll_now(&cgroup, wanted.settings, false) {
            Ok(_) => {
                wanted.trouble = None;
                wanted.enrolled = Some(cgroup.id());
                let before = wanted.counted.replace(cgroup.id());
                let context = self.live.current();
                context.ledger.count(cgroup.id(), before);
                context.judge_again();
            }
            Err(error) => wanted.tell(error.to_string()),
        }
    }

    fn enroll_now(
        &mut self,
        cgroup: &Cgroup,
        settings: abi::Group,
        reset: bool,
    ) -> Result<Option<Existing>, Error> {
        let context = self.live.current();
        enrollment::enroll(
            &mut self.interceptor,
            &context.config,
            &context.resolvers,
            cgroup,
            settings,
            reset,
            &context.helper,
        )
    }

    fn answer(&mut self, request: Request, caller: u32) -> Result<Answered, String> {
        self.admit(caller)?;
        // What is asked is asked of what holds now.
        self.revert_due();
        match request {
            Request::Enroll {
                target,
                mode,
                inbound,
                on_daemon_down,
                canary,
                reset,
                revert_after,
            } => {
                if mode == Mode::Enforce && canary.is_some_and(|share| share != Share::ALL) {
                    return Err("a canary is for observe mode: what is left out of it goes past mantled, and enforce lets nothing past".to_owned());
                }
                let on_daemon_down =
                    on_daemon_down.unwrap_or(self.live.current().config.on_daemon_down_for(mode));
                // As it is kept, whichever way it was typed.
                let target = Target::parse(&target)?;
                let revert = match revert_after {
                    Some(seconds) => {
                        let before = self.commanded(&target).map(Wanted::as_saved);
                        Some(Revert::after(Duration::from_secs(seconds), before)?)
                    }
                    None => None,
                };
                let saved = Saved {
                    target: target.to_string(),
                    mode,
                    inbound: inbound.unwrap_or(mode.default_inbound()),
                    on_daemon_down,
                    canary,
                    revert,
                };
                self.enroll(saved, reset).map(Answered::from)
            }
            Request::Confirm { target } => self.confirm(&target).map(Answered::from),
            Request::Exec { cgroup, mode } => self.lend(&cgroup, mode),
            Request::Withdraw { target } => self.withdraw(&target).map(Answered::from),
            Request::Sessions { most } => Ok(Reply::Sessions(
                self.live.current().ledger.newest(most.min(MOST_SESSIONS)),
            )
            .into()),
            Request::Reload => block_in_place(|| self.reload()).map(Answered::from),
            // See `take`.
            Request::Upgrade => Err("an upgrade is not answered here".to_owned()),
            Request::Status => self
                .status()
                .map(|status| Reply::Status(Box::new(status)).into()),
        }
    }

    /// Nobody inside of an enrolled group may change what holds for it, root or not.
    fn admit(&self, caller: u32) -> Result<(), String> {
        // The watchdog, the metrics and SIGHUP, also while there is no helper to ask.
        if caller == std::process::id() {
            return Ok(());
        }
        let context = self.live.current();
        let path = context
            .helper
            .cgroup_of(caller)
            .map_err(|error| format!("the caller's cgroup cannot be told ({error}); refused"))?;
        match context.flows.group_around(&path) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(format!(
                "the caller is in {path}, which is enrolled; ask from outside of it"
            )),
            Err(error) => Err(format!(
                "whether {path} is enrolled cannot be told: {error}"
            )),
        }
    }

    fn enroll(&mut self, saved: Saved, reset: bool) -> Result<Reply, String> {
        let mut new = Wanted::saved(&saved)?;
        self.refuse_configured(&new.target)?;
        let cgroup = new.find().map_err(|error| error.to_string())?;
        if let (None, Target::Cgroup(path)) = (&cgroup, &new.target) {
            let missing = Error::NoSuchCgroup {
                path: path.as_str().to_owned(),
            };
            return Err(missing.to_string());
        }
        if let Some(cgroup) = &cgroup {
            self.refuse_taken(cgroup, &new.target)?;
        }
        // Kept before it holds: what does not outlive the daemon is not begun.
        let mut kept = self.kept();
        kept.retain(|other| other.target != saved.target);
        kept.push(saved);
        self.state.store(kept).map_err(|error| {
            format!(
                "the enrolment of {} cannot be kept ({error}), so nothing was changed; make the state directory writable",
                new.target
            )
        })?;
        let mut found = None;
        if let Some(cgroup) = &cgroup {
            match self.apply(cgroup, &mut new, reset) {
                Ok(existing) => found = existing,
                Err(error) => {
                    self.save_or_tell();
                    return Err(error.to_string());
                }
            }
        }
        match self.commanded_mut(&new.target) {
            // A cgroup that it had before is withdrawn when the groups are followed.
            Some(known) if new.enrolled.is_none() => {
                known.settings = new.settings;
                known.revert = new.revert;
            }
            Some(known) => *known = new,
            None => self.wanted.push(new),
        }
        Ok(enrolled(cgroup.as_ref(), found))
    }

    /// Enrols this cgroup as it is wanted.
    fn apply(
        &mut self,
        cgroup: &Cgroup,
        wanted: &mut Wanted,
        reset: bool,
    ) -> Result<Option<Existing>, Error> {
        let found = self.enroll_now(cgroup, wanted.settings, reset)?;
        wanted.enrolled = Some(cgroup.id());
        wanted.counted = wanted.enrolled;
        let context = self.live.current();
        context.ledger.count(cgroup.id(), None);
        context.judge_again();
        // A resolver that is enrolled is an agent like any other.
        for resolver in &mut self.wanted {
            if resolver.origin == Origin::Resolver && resolver.enrolled == wanted.enrolled {
                resolver.enrolled = None;
            }
        }
        Ok(found)
    }

    fn withdraw(&mut self, target: &str) -> Result<Reply, String> {
        let target = Target::parse(target)?;
        self.refuse_configured(&target)?;
        let Some(index) = self
            .wanted
            .iter()
            .position(|wanted| wanted.target == target && wanted.origin == Origin::Command)
        else {
            return Err(format!(
                "{target} is not enrolled; `mantled status` shows what is"
            ));
        };
        self.remove(index).map_err(|error| error.to_string())?;
        tracing::info!(group = %target, "withdrawn by command");
        self.save().map_err(|error| {
            format!(
                "{target} is withdrawn, but that could not be kept ({error}), so a restart enrols it again; make the state directory writable and repeat this"
            )
        })?;
        Ok(Reply::Withdrawn {})
    }

    /// Ends the enrolment of a group.
    fn remove(&mut self, index: usize) -> Result<(), Error> {
        if let Some(id) = self.wanted.get(index).and_then(|wanted| wanted.enrolled) {
            self.interceptor.withdraw(id)?;
        }
        if let Some(id) = self.wanted.remove(index).counted {
            self.live.current().ledger.forget(id);
        }
        Ok(())
    }

    /// The group that a command has enrolled by this name.
    fn commanded(&self, target: &Target) -> Option<&Wanted> {
        self.wanted
            .iter()
            .find(|wanted| wanted.target == *target && wanted.origin == Origin::Command)
    }

    fn commanded_mut(&mut self, target: &Target) -> Option<&mut Wanted> {
        self.wanted
            .iter_mut()
            .find(|wanted| wanted.target == *target && wanted.origin == Origin::Command)
    }

    fn refuse_taken(&self, cgroup: &Cgroup, target: &Target) -> Result<(), String> {
        let other = self.wanted.iter().find(|wanted| {
            wanted.enrolled == Some(cgroup.id())
                && (wanted.target != *target || wanted.origin == Origin::Exec)
                && wanted.origin != Origin::Resolver
        });
        match other {
            Some(other) => Err(format!(
                "that cgroup is enrolled already, as {}; withdraw that first",
                other.target
            )),
            None => Ok(()),
        }
    }

    fn refuse_configured(&self, target: &Target) -> Result<(), String> {
        let configured = self
            .wanted
            .iter()
            .any(|wanted| wanted.target == *target && wanted.origin == Origin::Configuration);
        if configured {
            return Err(format!(
                "{target} is enrolled by the configuration file; change it there and `mantled reload`"
            ));
        }
        Ok(())
    }

    /// What commands have enrolled.
    fn kept(&self) -> Vec<Saved> {
        self.wanted
            .iter()
            .filter(|wanted| wanted.origin == Origin::Command)
            .map(Wanted::as_saved)
            .collect()
    }

    fn save(&self) -> std::io::Result<()> {
        self.state.store(self.kept())
    }

    fn save_or_tell(&self) {
        if let Err(error) = self.save() {
            tracing::error!(%error, "what is enrolled cannot be kept; a restart finds what was kept before");
        }
    }

    fn status(&self) -> Result<Status, String> {
        let ledger = &self.live.current().ledger.clone();
        let mut groups = Vec::new();
        for wanted in &self.wanted {
            if wanted.origin == Origin::Resolver {
                continue;
            }
            // One whose cgroup cannot be told by its name, for a moment, still has it.
            let cgroup = match (wanted.find(), wanted.enrolled) {
                (Ok(found), enrolled) => found.filter(|cgroup| Some(cgroup.id()) == enrolled),
                (Err(_), Some(id)) => Cgroup::by_id(id).ok(),
                (Err(_), None) => None,
            };
            let missing = match &cgroup {
                Some(cgroup) => self
                    .interceptor
                    .missing(cgroup)
                    .map_err(|error| error.to_string())?,
                None => Vec::new(),
            };
            groups.push(GroupStatus {
                target: wanted.target.to_string(),
                origin: match wanted.origin {
                    Origin::Configuration => "configuration",
                    Origin::Exec => "exec",
                    _ => "command",
                }
                .to_owned(),
                mode: wanted.mode(),
                inbound: wanted.inbound(),
                on_daemon_down: wanted.on_daemon_down(),
                canary: wanted.share(),
                reverts_in_s: wanted
                    .revert
                    .as_ref()
                    .map(|(at, _)| at.saturating_duration_since(Instant::now()).as_secs()),
                reverts_to: wanted.revert.as_ref().map(|(_, revert)| {
                    let before = revert.to.as_ref();
                    before
                        .map_or("not enrolled", |saved| saved.mode.name())
                        .to_owned()
                }),
                cgroup: cgroup.map(|cgroup| cgroup.path().display().to_string()),
                detached: missing.into_iter().map(str::to_owned).collect(),
                tally: match wanted.counted {
                    Some(id) => {
                        let counted = self.live.current().flows.counts(id).map_err(|error| {
                            format!("what the kernel counts cannot be read: {error}")
                        })?;
                        ledger.tally(id).plus(counted.into())
                    }
                    None => Tally::default(),
                },
            });
        }
        let totals = ledger.sink().totals();
        let (commands, commands_refused) = ledger.commands();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            sessions_open: ledger.open_sessions(),
            sessions: ledger.opened(),
            commands,
            commands_refused,
            records_written: totals.written,
            records_dropped: totals.dropped,
            records_failing: ledger.sink().health() == mantled_record::Health::Failing,
            records_missing: self
                .completeness
                .missing()
                .map_err(|error| error.to_string())?,
            resident_bytes: resident_bytes(),
            ends: ledger.ends(),
            kernel: self
                .interceptor
                .counters()
                .read()
                .map_err(|error| error.to_string())?
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            groups,
        })
    }
}

fn enrolled(cgroup: Option<&Cgroup>, found: Option<Existing>) -> Reply {
    let found = found.unwrap_or_default();
    let mut named = found.staying.clone();
    named.sort_unstable();
    named.dedup();
    named.truncate(NAMED_PEERS);
    Reply::Enrolled {
        cgroup: cgroup.map(|cgroup| cgroup.path().display().to_string()),
        ended: found.ended,
        staying: found.staying.len(),
        staying_with: named,
        listening: found.listening,
    }
}

/// Of this process (proc_pid_statm(5)).
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or_default();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    pages * page.ok().flatten().map_or(4096, |size| size as u64)
}

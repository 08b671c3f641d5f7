//! Every group that is to be enrolled, and the one place where that changes.
//!
//! A group is wanted by the configuration or by a command, and is enrolled whenever its cgroup is
//! there: a unit that starts again has a new one.

mod reload;

use std::{io, path::Path, sync::Arc, time::Duration};

use mantled_redirect::{Error, Interceptor, abi, cgroup::Cgroup};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, block_in_place, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use crate::{
    admin::{Call, GroupStatus, Reply, Request, Status},
    app::bypass_entries,
    config::{Enrollment, Inbound, Mode, OnDown, Target},
    enrollment::{self, Existing},
    handover::{Predecessor, Successor},
    proxy::{Context, Live},
    state::{Saved, StateFile},
};

/// How often cgroups are looked for. A unit that starts is unprotected for this long at most; then
/// the connections that it has made are ended.
const FOLLOW: Duration = Duration::from_millis(200);

/// Units that resolve names for others, who ask them by other ways than DNS (nss-resolve, nscd).
/// Their own queries tell which names addresses may have been asked for.
const RESOLVERS: [&str; 2] = ["systemd-resolved.service", "nscd.service"];

/// Of a group whose cgroup another one has: the first one decides.
pub const TAKEN: &str = "its cgroup is enrolled already, by another name, and that one decides how";

/// Who wants a group to be enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `[[enroll]]` in the configuration.
    Configuration,
    /// `mantled enroll`.
    Command,
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
    /// One that the configuration enrols.
    pub fn configured(enrollment: &Enrollment) -> Self {
        Self {
            target: enrollment.target().clone(),
            settings: enrollment::group(
                enrollment.mode(),
                enrollment.on_daemon_down(),
                enrollment.inbound(),
            ),
            origin: Origin::Configuration,
            enrolled: None,
            counted: None,
            trouble: None,
        }
    }

    /// One that a command has enrolled.
    ///
    /// # Errors
    /// The target is none.
    pub fn saved(saved: &Saved) -> Result<Self, String> {
        Ok(Self {
            target: Target::parse(&saved.target)?,
            settings: enrollment::group(saved.mode, saved.on_daemon_down, saved.inbound),
            origin: Origin::Command,
            enrolled: None,
            counted: None,
            trouble: None,
        })
    }

    /// The resolvers of this host. Nothing of theirs is redirected.
    pub fn resolvers() -> impl Iterator<Item = Self> {
        RESOLVERS.iter().filter_map(|name| {
            Some(Self {
                target: Target::parse(name).ok()?,
                settings: abi::Group {
                    mode: abi::MODE_RESOLVER,
                    ..abi::Group::default()
                },
                origin: Origin::Resolver,
                enrolled: None,
                counted: None,
                trouble: None,
            })
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
    /// The daemon from which this one has taken over.
    pub predecessor: Option<Arc<Predecessor>>,
    /// A successor that prepares itself.
    pub upgrade: Option<Preparing>,
}

/// A successor that prepares itself, and who asked for it.
#[derive(Debug)]
pub struct Preparing {
    started: JoinHandle<Result<Successor, String>>,
    reply: oneshot::Sender<Result<Reply, String>>,
}

/// A successor that is prepared, and who is to hear that it serves.
#[derive(Debug)]
pub struct Upgrade {
    /// The successor.
    pub successor: Successor,
    /// Who asked for it.
    pub reply: oneshot::Sender<Result<Reply, String>>,
}

impl Groups {
    /// Follows the groups and answers calls, until a successor is prepared.
    pub async fn run(&mut self, calls: &mut mpsc::Receiver<Call>) -> Upgrade {
        let mut ticks = interval(FOLLOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.follow(),
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
                    // Only the last one can have sessions that nobody tells to end.
                    self.end_predecessor();
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
        let answer = if self.upgrade.is_some() && call.request != Request::Status {
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
        if let Some(gone) = wanted.enrolled.take()
            && let Err(error) = self.interceptor.withdraw(gone)
        {
            tracing::warn!(%error, group = %wanted.target, "its last cgroup could not be withdrawn");
        }
        let Some(cgroup) = cgroup else {
            wanted.trouble = None;
            if wanted.origin != Origin::Resolver {
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
        match self.enroll_now(&cgroup, wanted.settings) {
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
    ) -> Result<Option<Existing>, Error> {
        let context = self.live.current();
        enrollment::enroll(
            &mut self.interceptor,
            &context.config,
            &context.resolvers,
            cgroup,
            settings,
            &context.helper,
        )
    }

    fn answer(&mut self, request: Request, caller: u32) -> Result<Reply, String> {
        self.admit(caller)?;
        match request {
            Request::Enroll {
                target,
                mode,
                inbound,
                on_daemon_down,
            } => {
                let on_daemon_down =
                    on_daemon_down.unwrap_or(self.live.current().config.on_daemon_down_for(mode));
                self.enroll(&Saved {
                    target,
                    mode,
                    inbound: inbound.unwrap_or(mode.default_inbound()),
                    on_daemon_down,
                })
            }
            Request::Withdraw { target } => self.withdraw(&target),
            Request::Reload => block_in_place(|| self.reload()),
            // See `take`.
            Request::Upgrade => Err("an upgrade is not answered here".to_owned()),
            Request::Status => self.status().map(|status| Reply::Status(Box::new(status))),
        }
    }

    /// Nobody inside of an enrolled group may change what holds for it, root or not.
    fn admit(&self, caller: u32) -> Result<(), String> {
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

    fn enroll(&mut self, saved: &Saved) -> Result<Reply, String> {
        let mut new = Wanted::saved(saved)?;
        self.refuse_configured(&new.target)?;
        let cgroup = new.find().map_err(|error| error.to_string())?;
        if let (None, Target::Cgroup(path)) = (&cgroup, &new.target) {
            let missing = Error::NoSuchCgroup {
                path: path.as_str().to_owned(),
            };
            return Err(missing.to_string());
        }
        let mut found = None;
        if let Some(cgroup) = &cgroup {
            let other = self.wanted.iter().find(|wanted| {
                wanted.enrolled == Some(cgroup.id())
                    && wanted.target != new.target
                    && wanted.origin != Origin::Resolver
            });
            if let Some(other) = other {
                return Err(format!(
                    "that cgroup is enrolled already, as {}; withdraw that first",
                    other.target
                ));
            }
            found = self
                .enroll_now(cgroup, new.settings)
                .map_err(|error| error.to_string())?;
            new.enrolled = Some(cgroup.id());
            new.counted = new.enrolled;
            let context = self.live.current();
            context.ledger.count(cgroup.id(), None);
            context.judge_again();
            // A resolver that is enrolled is an agent like any other.
            for resolver in &mut self.wanted {
                if resolver.origin == Origin::Resolver && resolver.enrolled == new.enrolled {
                    resolver.enrolled = None;
                }
            }
        }
        let known = self
            .wanted
            .iter_mut()
            .find(|wanted| wanted.target == new.target && wanted.origin == Origin::Command);
        match known {
            // A cgroup that it had before is withdrawn when the groups are followed.
            Some(known) if new.enrolled.is_none() => known.settings = new.settings,
            Some(known) => *known = new,
            None => self.wanted.push(new),
        }
        // It holds already: the operator has to know when it would not outlive the daemon.
        self.save().map_err(|error| {
            format!(
                "{} is enrolled, but that could not be kept ({error}), so a restart forgets it; make the state directory writable and enrol it again",
                saved.target
            )
        })?;
        Ok(Reply::Enrolled {
            cgroup: cgroup.map(|cgroup| cgroup.path().display().to_string()),
            ended: found.as_ref().map_or(0, |found| found.ended),
            listening: found.map_or_else(Vec::new, |found| found.listening),
        })
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
        if let Some(id) = self.wanted.get(index).and_then(|wanted| wanted.enrolled) {
            self.interceptor
                .withdraw(id)
                .map_err(|error| error.to_string())?;
        }
        if let Some(id) = self.wanted.remove(index).counted {
            self.live.current().ledger.forget(id);
        }
        tracing::info!(group = %target, "withdrawn by command");
        self.save().map_err(|error| {
            format!(
                "{target} is withdrawn, but that could not be kept ({error}), so a restart enrols it again; make the state directory writable and repeat this"
            )
        })?;
        Ok(Reply::Withdrawn {})
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

    fn save(&self) -> io::Result<()> {
        let enrollments = self
            .wanted
            .iter()
            .filter(|wanted| wanted.origin == Origin::Command)
            .map(|wanted| Saved {
                target: wanted.target.to_string(),
                mode: wanted.mode(),
                inbound: wanted.inbound(),
                on_daemon_down: wanted.on_daemon_down(),
            })
            .collect();
        self.state.store(enrollments)
    }

    fn status(&self) -> Result<Status, String> {
        let ledger = &self.live.current().ledger.clone();
        let mut groups = Vec::new();
        for wanted in &self.wanted {
            if wanted.origin == Origin::Resolver {
                continue;
            }
            let cgroup = wanted
                .find()
                .map_err(|error| error.to_string())?
                .filter(|cgroup| Some(cgroup.id()) == wanted.enrolled);
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
                    _ => "command",
                }
                .to_owned(),
                mode: wanted.mode(),
                inbound: wanted.inbound(),
                on_daemon_down: wanted.on_daemon_down(),
                cgroup: cgroup.map(|cgroup| cgroup.path().display().to_string()),
                detached: missing.into_iter().map(str::to_owned).collect(),
                tally: wanted
                    .counted
                    .map(|id| ledger.tally(id))
                    .unwrap_or_default(),
            });
        }
        let totals = ledger.sink().totals();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            sessions_open: ledger.open_sessions(),
            sessions: ledger.opened(),
            records_written: totals.written,
            records_dropped: totals.dropped,
            records_failing: ledger.sink().health() == mantled_record::Health::Failing,
            groups,
        })
    }
}

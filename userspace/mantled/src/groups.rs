//! Every group that is to be enrolled, and the one place where that changes.
//!
//! A group is wanted by the configuration or by a command, and is enrolled whenever its cgroup is
//! there: a unit that starts again has a new one.

use std::{io, path::Path, sync::Arc, time::Duration};

use mantled_redirect::{Error, Interceptor, abi, cgroup::Cgroup};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use crate::{
    admin::{Call, GroupStatus, Reply, Request, Status},
    config::{Inbound, Mode, OnDown, Target},
    enrollment,
    proxy::Context,
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

impl Wanted {
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
    pub context: Arc<Context>,
    /// Those that are to be enrolled.
    pub wanted: Vec<Wanted>,
    /// Where those of commands are kept.
    pub state: StateFile,
}

impl Groups {
    /// Follows the groups and answers calls. Never ends.
    pub async fn run(&mut self, mut calls: mpsc::Receiver<Call>) {
        let mut ticks = interval(FOLLOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.follow(),
                Some(call) = calls.recv() => {
                    let answer = self.answer(call.request, call.caller);
                    // A caller that is gone need not be told.
                    let _ = call.reply.send(answer);
                }
            }
        }
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
        let enrolled = enrollment::enroll(
            &mut self.interceptor,
            &self.context.config,
            &self.context.resolvers,
            &cgroup,
            wanted.settings,
            &self.context.helper,
        );
        match enrolled {
            Ok(_) => {
                wanted.trouble = None;
                wanted.enrolled = Some(cgroup.id());
                let before = wanted.counted.replace(cgroup.id());
                self.context.ledger.count(cgroup.id(), before);
                self.context.groups_changed.send_replace(());
            }
            Err(error) => wanted.tell(error.to_string()),
        }
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
                    on_daemon_down.unwrap_or(self.context.config.on_daemon_down_for(mode));
                self.enroll(&Saved {
                    target,
                    mode,
                    inbound: inbound.unwrap_or(mode.default_inbound()),
                    on_daemon_down,
                })
            }
            Request::Withdraw { target } => self.withdraw(&target),
            Request::Status => self.status().map(|status| Reply::Status(Box::new(status))),
        }
    }

    /// Nobody inside of an enrolled group may change what holds for it, root or not.
    fn admit(&self, caller: u32) -> Result<(), String> {
        let path =
            self.context.helper.cgroup_of(caller).map_err(|error| {
                format!("the caller's cgroup cannot be told ({error}); refused")
            })?;
        match self.context.flows.group_around(&path) {
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
            found = enrollment::enroll(
                &mut self.interceptor,
                &self.context.config,
                &self.context.resolvers,
                cgroup,
                new.settings,
                &self.context.helper,
            )
            .map_err(|error| error.to_string())?;
            new.enrolled = Some(cgroup.id());
            new.counted = new.enrolled;
            self.context.ledger.count(cgroup.id(), None);
            self.context.groups_changed.send_replace(());
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
            self.context.ledger.forget(id);
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
                "{target} is enrolled by the configuration file; change it there and restart mantled"
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
        let ledger = &self.context.ledger;
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

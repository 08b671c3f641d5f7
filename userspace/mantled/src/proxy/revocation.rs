//! The end of what may not go on: a session that observe mode alone has allowed, once its group is
//! enforced, and one for which another configuration says something else.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use mantled_redirect::{Flows, Peer, abi};
use tokio::sync::watch;

use super::{Context, Terms, plan::Plan};
use crate::{
    error::{Cause, Failure},
    names::Found,
    policy::Case,
};

/// Of one session; cheap to clone. See the module.
#[derive(Clone, Debug)]
pub struct Revocation(Option<Watched>);

#[derive(Clone, Debug)]
struct Watched {
    changes: watch::Receiver<Terms>,
    /// None: it was verified, which enforce mode wants.
    lenient: Option<Group>,
    planned: Arc<Planned>,
}

/// The group that the session was made in.
#[derive(Clone, Debug)]
struct Group {
    flows: Flows,
    id: u64,
    /// The cgroup that the process was in: a group below that one may be enrolled later.
    cgroup: Option<String>,
}

/// What the session was planned with.
#[derive(Debug)]
struct Planned {
    terms: Terms,
    peer: Peer,
    names: Found,
    plan: Plan,
    /// What policies were asked; None where they refuse nothing.
    case: Mutex<Option<Case>>,
    /// Policies refuse it, or judge its commands, and observe mode alone lets it pass.
    only_observed: AtomicBool,
}

impl Revocation {
    /// Of a session that no change concerns.
    pub fn never() -> Self {
        Self(None)
    }

    /// Of a session of this peer, known by these names, whose process was in this cgroup, where
    /// that is known.
    pub fn of(
        context: &Context,
        peer: &Peer,
        names: &Found,
        plan: &Plan,
        cgroup: Option<&str>,
    ) -> Self {
        let mut peer = *peer;
        if let Some(service) = &plan.data_of {
            // What its control connection may, it may.
            peer.destination = service.control;
        }
        Self(Some(Watched {
            changes: context.changes.subscribe(),
            lenient: plan.lenient.then(|| Group {
                flows: context.flows.clone(),
                id: peer.flow.group,
                cgroup: cgroup.map(str::to_owned),
            }),
            planned: Arc::new(Planned {
                plan: Plan::new(&context.config, &peer, names),
                terms: Terms {
                    config: Arc::clone(&context.config),
                    rules: Arc::clone(&context.rules),
                },
                peer,
                names: names.clone(),
                case: Mutex::default(),
                only_observed: AtomicBool::new(false),
            }),
        }))
    }

    /// Observe mode alone lets this pass, verified or not: policies refuse it, or would refuse commands
    /// of it.
    pub fn only_observed(&self) {
        if let Some(watched) = &self.0 {
            let planned = &watched.planned;
            planned.only_observed.store(true, Ordering::Relaxed);
        }
    }

    /// The same for a session that was verified.
    #[must_use]
    pub fn of_verified(mut self) -> Self {
        if let Some(watched) = &mut self.0
            && !watched.planned.only_observed.load(Ordering::Relaxed)
        {
            watched.lenient = None;
        }
        self
    }

    /// Policies have permitted this.
    pub fn permitted(&self, case: Case) {
        if let Some(watched) = &self.0 {
            // It is whole after every call.
            let mut known = watched
                .planned
                .case
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *known = Some(case);
        }
    }

    /// Ends when the session must, and says why.
    pub async fn wait(self) -> Failure {
        let Some(mut watched) = self.0 else {
            return pending().await;
        };
        loop {
            let terms = watched.changes.borrow_and_update().clone();
            if let Some(group) = &watched.lenient
                && group.is_enforced()
            {
                return Failure::new(
                    Cause::ModeChanged,
                    "the group is enforced now, and observe mode alone has allowed this session",
                );
            }
            if !watched.planned.holds(&terms) {
                return Failure::new(
                    Cause::ConfigurationChanged,
                    "the configuration says something else of this session now",
                );
            }
            if !watched.planned.is_permitted(&terms) {
                return Failure::new(
                    Cause::ConfigurationChanged,
                    "policy does not permit this session any more",
                );
            }
            if watched.changes.changed().await.is_err() {
                return pending().await;
            }
        }
    }
}

impl Group {
    fn is_enforced(&self) -> bool {
        let enforced = || {
            let here = match &self.cgroup {
                Some(path) => self.flows.group_around(path)?,
                None => None,
            };
            let group = match here {
                Some(group) => Some(group),
                None => self.flows.group(self.id)?,
            };
            std::io::Result::Ok(group.is_some_and(|group| group.mode == abi::MODE_ENFORCE))
        };
        // A map that cannot be read does not say that the session may go on.
        enforced().unwrap_or(true)
    }
}

impl Planned {
    /// Would this configuration plan the session in the same way?
    fn holds(&self, terms: &Terms) -> bool {
        let (config, own) = (&terms.config, &self.terms.config);
        Arc::ptr_eq(config, own)
            || Plan::new(config, &self.peer, &self.names).is_as(config, &self.plan, own)
    }

    /// Would these policies permit it?
    fn is_permitted(&self, terms: &Terms) -> bool {
        let case = self.case.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(case) = case.as_ref() else {
            return true;
        };
        if Arc::ptr_eq(&terms.rules, &self.terms.rules) {
            return true;
        }
        // An inspector asks the new policies by itself; where there is none, it is too late for one.
        let inspected = self.terms.rules.families(case);
        let to_inspect = terms.rules.families(case);
        // What is masked in all answers of a session is settled when it begins.
        let masked = self.terms.rules.masks(case);
        let mut to_mask = masked.clone();
        to_mask.merge(&terms.rules.masks(case));
        to_mask == masked
            && to_inspect.iter().all(|family| inspected.contains(family))
            && terms
                .rules
                .decide(case)
                .is_none_or(|decision| decision.allowed)
    }
}

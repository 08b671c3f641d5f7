//! The end of what may not go on: a session that observe mode alone has allowed, once its group is
//! enforced, and one for which another configuration says something else.

use std::{future::pending, sync::Arc};

use mantled_redirect::{Flows, Peer, abi};
use tokio::sync::watch;

use super::{Context, plan::Plan};
use crate::{
    config::Config,
    error::{Cause, Failure},
    names::Found,
};

/// Of one session; cheap to clone. See the module.
#[derive(Clone, Debug)]
pub struct Revocation(Option<Watched>);

#[derive(Clone, Debug)]
struct Watched {
    changes: watch::Receiver<Arc<Config>>,
    /// None: it was verified, which enforce mode wants.
    lenient: Option<Group>,
    terms: Arc<Terms>,
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
struct Terms {
    config: Arc<Config>,
    peer: Peer,
    names: Found,
    plan: Plan,
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
            terms: Arc::new(Terms {
                plan: Plan::new(&context.config, &peer, names),
                config: Arc::clone(&context.config),
                peer,
                names: names.clone(),
            }),
        }))
    }

    /// The same for a session that was verified.
    #[must_use]
    pub fn of_verified(mut self) -> Self {
        if let Some(watched) = &mut self.0 {
            watched.lenient = None;
        }
        self
    }

    /// Ends when the session must, and says why.
    pub async fn wait(self) -> Failure {
        let Some(mut watched) = self.0 else {
            return pending().await;
        };
        loop {
            let config = Arc::clone(&watched.changes.borrow_and_update());
            if let Some(group) = &watched.lenient
                && group.is_enforced()
            {
                return Failure::new(
                    Cause::ModeChanged,
                    "the group is enforced now, and this session was not verified",
                );
            }
            if !watched.terms.hold(&config) {
                return Failure::new(
                    Cause::ConfigurationChanged,
                    "the configuration says something else of this session now",
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

impl Terms {
    /// Would this configuration plan the session in the same way?
    fn hold(&self, config: &Arc<Config>) -> bool {
        Arc::ptr_eq(config, &self.config)
            || Plan::new(config, &self.peer, &self.names).is_as(config, &self.plan, &self.config)
    }
}

//! The end of what observe mode alone has allowed: once the group is enforced, a session that was
//! not verified must not go on.

use std::future::pending;

use mantled_redirect::{Flows, abi};
use tokio::sync::watch;

use super::{Context, plan::Plan};

/// Of one session; see the module.
#[derive(Clone, Debug)]
pub struct Revocation(Option<Watched>);

#[derive(Clone, Debug)]
struct Watched {
    flows: Flows,
    changes: watch::Receiver<()>,
    /// The group that the session was made in.
    group: u64,
    /// The cgroup that the process was in: a group below that one may be enrolled later.
    cgroup: Option<String>,
}

impl Revocation {
    /// Of a session that would be the same in enforce mode.
    pub fn never() -> Self {
        Self(None)
    }

    /// Of a session by this plan, whose process was in this cgroup, where that is known.
    pub fn of(context: &Context, plan: &Plan, group: u64, cgroup: Option<&str>) -> Self {
        Self(plan.lenient.then(|| Watched {
            flows: context.flows.clone(),
            changes: context.groups_changed.subscribe(),
            group,
            cgroup: cgroup.map(str::to_owned),
        }))
    }

    /// Ends when the session must.
    pub async fn wait(self) {
        let Some(mut watched) = self.0 else {
            return pending().await;
        };
        while !watched.is_enforced() {
            if watched.changes.changed().await.is_err() {
                return pending().await;
            }
        }
    }
}

impl Watched {
    fn is_enforced(&self) -> bool {
        let enforced = || {
            let here = match &self.cgroup {
                Some(path) => self.flows.group_around(path)?,
                None => None,
            };
            let group = match here {
                Some(group) => Some(group),
                None => self.flows.group(self.group)?,
            };
            std::io::Result::Ok(group.is_some_and(|group| group.mode == abi::MODE_ENFORCE))
        };
        // A map that cannot be read does not say that the session may go on.
        enforced().unwrap_or(true)
    }
}

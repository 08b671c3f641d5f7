//! The groups of `mantled exec`, which are enrolled for as long as it runs.

use std::path::Path;

use mantled_redirect::{Flows, cgroup::Cgroup};

use super::{Groups, Origin, Wanted, enrolled};
use crate::{
    admin::{Answered, lease::Lease},
    config::{Mode, Target},
    enrollment,
};

/// What the names of the cgroups of `mantled exec` begin with.
pub const EXEC: &str = "mantled-exec-";

impl Wanted {
    /// The group of an `exec` that an earlier daemon has enrolled, and whose processes still run: it
    /// must not go on unprotected, though nobody holds it any more.
    pub fn orphan(id: u64, flows: &Flows) -> Option<(Self, Cgroup)> {
        let cgroup = Cgroup::by_id(id).ok()?;
        let name = cgroup.path().file_name()?.to_str()?;
        if !name.starts_with(EXEC) || cgroup.processes().is_empty() {
            return None;
        }
        let settings = flows.group(id).ok().flatten()?;
        let target = Target::parse(&cgroup.below_root()).ok()?;
        let mut orphan = Self::new(target, settings, Origin::Exec);
        orphan.enrolled = Some(id);
        orphan.counted = orphan.enrolled;
        Some((orphan, cgroup))
    }
}

impl Groups {
    /// Enrols a cgroup for the one who asks, as long as it holds its connection.
    pub(super) fn lend(&mut self, path: &str, mode: Mode) -> Result<Answered, String> {
        let target = Target::parse(path)?;
        let settings = enrollment::group(
            mode,
            self.live.current().config.on_daemon_down_for(mode),
            mode.default_inbound(),
        );
        let cgroup = match &target {
            Target::Cgroup(path) => Cgroup::open(Path::new(path.as_str())),
            Target::Unit(_) => return Err(format!("{target} is no cgroup")),
        }
        .map_err(|error| error.to_string())?;
        self.refuse_taken(&cgroup, &target)?;
        if self.wanted.iter().any(|wanted| wanted.target == target) {
            return Err(format!("{target} is enrolled already"));
        }
        let mut wanted = Wanted::new(target, settings, Origin::Exec);
        // Before it is enrolled, so that no record is missed.
        let (lease, holder) = Lease::new(
            cgroup.id(),
            self.live.current().flows.clone(),
            self.live.current().ledger.clone(),
        );
        let found = self
            .apply(&cgroup, &mut wanted, false)
            .map_err(|error| error.to_string())?;
        wanted.holder = Some(holder);
        self.wanted.push(wanted);
        Ok(Answered {
            reply: enrolled(Some(&cgroup), found),
            lease: Some(lease),
        })
    }

    /// Withdraws the groups of `exec`s that are gone. One in which a process still runs stays: it may
    /// be about to be killed, or have outlived whoever was to do that.
    pub(super) fn end_leases(&mut self) {
        let ended = |wanted: &Wanted| {
            let held = wanted
                .holder
                .as_ref()
                .is_some_and(|holder| !holder.is_closed());
            wanted.origin == Origin::Exec
                && !held
                && match wanted.find() {
                    Ok(Some(cgroup)) => {
                        Some(cgroup.id()) != wanted.enrolled || cgroup.processes().is_empty()
                    }
                    Ok(None) => true,
                    Err(_) => false,
                }
        };
        while let Some(index) = self.wanted.iter().position(ended) {
            if let Err(error) = self.remove(index) {
                tracing::warn!(%error, "the group of an exec that has ended");
                return;
            }
        }
    }
}

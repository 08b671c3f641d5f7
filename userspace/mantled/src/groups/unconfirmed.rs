//! What was enrolled for a time (`--for`): it is confirmed, or goes back to what it was before.

use std::time::Instant;

use super::{Groups, Wanted};
use crate::{admin::Reply, config::Target, state::Saved};

impl Groups {
    /// What was enrolled for a time is to stay.
    pub(super) fn confirm(&mut self, target: &str) -> Result<Reply, String> {
        let target = Target::parse(target)?;
        let nothing = format!(
            "{target} waits for no confirmation; `mantled status` shows how it is enrolled"
        );
        let known = self.commanded_mut(&target).ok_or(nothing.clone())?;
        let revert = known.revert.take().ok_or(nothing)?;
        if let Err(error) = self.save() {
            if let Some(known) = self.commanded_mut(&target) {
                known.revert = Some(revert);
            }
            return Err(format!(
                "that cannot be kept ({error}), so nothing was changed and {target} still reverts; make the state directory writable"
            ));
        }
        tracing::info!(group = %target, "confirmed");
        Ok(Reply::Confirmed {})
    }

    /// What was not confirmed in time is what it was before.
    pub(super) fn revert_due(&mut self) {
        let now = Instant::now();
        for index in (0..self.wanted.len()).rev() {
            let due = self
                .wanted
                .get(index)
                .and_then(|wanted| wanted.revert.as_ref())
                .is_some_and(|(at, _)| *at <= now);
            if !due {
                continue;
            }
            match self.revert(index) {
                Ok(()) => self.save_or_tell(),
                // It is tried again at the next tick.
                Err(trouble) => {
                    if let Some(wanted) = self.wanted.get_mut(index) {
                        wanted.tell(format!("it cannot be made what it was: {trouble}"));
                    }
                }
            }
        }
    }

    fn revert(&mut self, index: usize) -> Result<(), String> {
        let Some(wanted) = self.wanted.get(index) else {
            return Ok(());
        };
        let before = wanted
            .revert
            .as_ref()
            .and_then(|(_, revert)| revert.to.as_deref().cloned())
            .and_then(Saved::now);
        let target = wanted.target.clone();
        let Some(before) = before else {
            self.remove(index).map_err(|error| error.to_string())?;
            tracing::warn!(group = %target, "not confirmed in time; it is not enrolled any more");
            return Ok(());
        };
        let mut earlier = Wanted::saved(&before)?;
        let enrolled = wanted.enrolled;
        let cgroup = wanted
            .find()
            .map_err(|error| error.to_string())?
            .filter(|cgroup| Some(cgroup.id()) == enrolled);
        if let Some(cgroup) = cgroup {
            self.apply(&cgroup, &mut earlier, false)
                .map_err(|error| error.to_string())?;
        }
        if let Some(wanted) = self.wanted.get_mut(index) {
            wanted.settings = earlier.settings;
            wanted.revert = earlier.revert;
        }
        tracing::warn!(
            group = %target,
            mode = before.mode.name(),
            "not confirmed in time; it is enrolled as it was before"
        );
        Ok(())
    }
}

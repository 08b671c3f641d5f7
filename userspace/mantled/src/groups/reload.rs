//! Reading the configuration again: for new connections, for the groups that it enrols, and for
//! the sessions that are open. What cannot be done is found before anything is changed.

use std::path::Path;

use mantled_redirect::cgroup::Cgroup;

use super::{Groups, Origin, Wanted};
use crate::{
    admin::Reply,
    app::resolvers,
    config::{Config, Target},
    policy::Rules,
    tls::Connectors,
};

impl Groups {
    /// Reads the file again.
    ///
    /// # Errors
    /// What is wrong with it; then everything is as it was.
    pub(super) fn reload(&mut self) -> Result<Reply, String> {
        let notes = self.try_reload().inspect_err(|error| {
            tracing::error!(
                "the configuration was not loaded again, and nothing has changed: {error}"
            );
        })?;
        tracing::info!("the configuration was loaded again");
        for note in &notes {
            tracing::warn!("{note}");
        }
        Ok(Reply::Reloaded { notes })
    }

    fn try_reload(&mut self) -> Result<Vec<String>, String> {
        let before = self.live.current();
        let path = before
            .config
            .path()
            .ok_or("mantled runs without a configuration file")?;
        let config = Config::load(path).map_err(|errors| errors.to_string())?;
        let connectors = Connectors::new(&config)?;
        let rules = Rules::load(config.policy().dir.as_deref())?.keyed(Some(config.state_dir()))?;
        for enrollment in config.enrollments() {
            if let Target::Cgroup(path) = enrollment.target() {
                Cgroup::open(Path::new(path.as_str()))
                    .and_then(|cgroup| cgroup.check_enrollable())
                    .map_err(|error| error.to_string())?;
            }
        }
        let mut notes = needs_restart(&before.config, &config);
        let wanted: Vec<Wanted> = config
            .enrollments()
            .iter()
            .map(Wanted::configured)
            .collect();
        let resolvers = resolvers(&config);
        let context = before.with(config, rules, connectors, resolvers);
        if let Err(error) = self.tell_kernel(&context) {
            // What held before is told again: some of the new may have been.
            if let Err(again) = self.tell_kernel(&before) {
                tracing::error!(error = %again, "the kernel programs are not as they should be; restart mantled");
            }
            return Err(error.to_string());
        }
        self.live.replace(context);
        self.end_predecessor();
        self.adopt(wanted);
        notes.extend(self.wanted.iter().filter_map(|wanted| {
            let trouble = wanted.trouble.as_ref()?;
            (wanted.origin == Origin::Configuration)
                .then(|| format!("{} could not be enrolled: {trouble}", wanted.target))
        }));
        Ok(notes)
    }

    /// Makes these the groups that the configuration enrols.
    fn adopt(&mut self, configured: Vec<Wanted>) {
        let is_listed = |target: &Target| configured.iter().any(|new| new.target == *target);
        let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.wanted)
            .into_iter()
            .partition(|wanted| {
                wanted.origin == Origin::Configuration && !is_listed(&wanted.target)
            });
        self.wanted = kept;
        for gone in gone {
            if let Some(id) = gone.enrolled {
                tracing::info!(group = %gone.target, "withdrawn: the configuration does not enrol it any more");
                if let Err(error) = self.interceptor.withdraw(id) {
                    tracing::error!(%error, group = %gone.target, "`mantled detach --all` removes what is left");
                }
            }
            if let Some(id) = gone.counted {
                self.live.current().ledger.forget(id);
            }
        }
        for new in configured {
            let known = self
                .wanted
                .iter_mut()
                .find(|wanted| wanted.target == new.target);
            match known {
                // The next look finds its cgroup.
                None => self.wanted.push(new),
                Some(known) => {
                    known.origin = Origin::Configuration;
                    // What the file says, nobody has to confirm.
                    known.revert = None;
                    if known.settings != new.settings {
                        known.settings = new.settings;
                        self.enroll_again(&new.target);
                    }
                }
            }
        }
        self.follow();
    }

    /// Tells the kernel how a group is enrolled that is enrolled already.
    fn enroll_again(&mut self, target: &Target) {
        let Some(index) = self
            .wanted
            .iter()
            .position(|wanted| wanted.target == *target)
        else {
            return;
        };
        let mut wanted = self.wanted.swap_remove(index);
        match wanted.find() {
            Ok(Some(cgroup)) if Some(cgroup.id()) == wanted.enrolled => {
                match self.enroll_now(&cgroup, wanted.settings, false) {
                    Ok(_) => self.live.current().judge_again(),
                    Err(error) => wanted.tell(error.to_string()),
                }
            }
            // Followed by the next look.
            Ok(_) => {}
            Err(error) => wanted.tell(error.to_string()),
        }
        self.wanted.push(wanted);
    }
}

/// What has changed and only counts after a restart.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let changed = [
        ("[listen] port", old.listen_port() != new.listen_port()),
        (
            "[limits] sessions",
            old.limits().sessions != new.limits().sessions,
        ),
        ("[record]", old.record() != new.record()),
        ("[admin]", old.admin() != new.admin()),
    ];
    changed
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| format!("{key} has changed, which counts after a restart"))
        .collect()
}

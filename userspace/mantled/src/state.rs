//! What commands have enrolled, kept in `enrollments.json` of the state directory.
//!
//! The file is replaced as a whole (written beside, synced, renamed), so that it is either the old
//! or the new one, whenever the power goes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Inbound, Mode, OnDown},
    share::Share,
};

const FILE: &str = "enrollments.json";

/// Version 1 knew neither `canary` nor `revert`; it is read as it is.
const VERSION: u32 = 2;

/// Longest time that a change may wait for its confirmation: what is forgotten for a month is no trial.
const LONGEST: Duration = Duration::from_secs(31 * 86_400);

/// How many changes may wait for their confirmation on top of each other.
const UNCONFIRMED: usize = 8;

/// A group that a command has enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// A unit, or a cgroup's path below the root of the hierarchy.
    pub target: String,
    /// What is done to its connections.
    pub mode: Mode,
    /// Whether servers inside may answer.
    pub inbound: Inbound,
    /// What happens while the daemon is down.
    pub on_daemon_down: OnDown,
    /// The share of its connections that goes through the proxy; None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Share>,
    /// It holds only until then, unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revert: Option<Revert>,
}

/// The end of an enrolment that is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revert {
    /// When, in milliseconds since 1970: it has to mean the same to the next daemon.
    pub at: u64,
    /// How the group was enrolled before; None: it was not.
    pub to: Option<Box<Saved>>,
}

impl Revert {
    /// In this time from now, to what was before. An earlier change that would have reverted by then
    /// has no part in it.
    ///
    /// # Errors
    /// Too many changes wait for their confirmation.
    pub fn after(time: Duration, before: Option<Saved>) -> Result<Self, String> {
        let at = milliseconds(SystemTime::now() + time.min(LONGEST));
        let to = before.and_then(|before| before.settled(at)).map(Box::new);
        let revert = Self { at, to };
        if revert.depth() > UNCONFIRMED {
            return Err(format!(
                "{UNCONFIRMED} changes of it wait for their confirmation already; confirm or withdraw it first"
            ));
        }
        Ok(revert)
    }

    /// How long it is until then.
    pub fn left(&self) -> Duration {
        (UNIX_EPOCH + Duration::from_millis(self.at))
            .duration_since(SystemTime::now())
            .unwrap_or_default()
    }

    fn depth(&self) -> usize {
        let before = self.to.as_ref().and_then(|saved| saved.revert.as_ref());
        1 + before.map_or(0, Self::depth)
    }
}

impl Saved {
    /// What holds at that time, when nobody confirms anything.
    fn settled(self, at: u64) -> Option<Self> {
        match self.revert {
            Some(revert) if revert.at <= at => revert.to.and_then(|before| before.settled(at)),
            _ => Some(self),
        }
    }

    /// The same, now.
    pub fn now(self) -> Option<Self> {
        self.settled(milliseconds(SystemTime::now()))
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    enrollments: Vec<Saved>,
}

/// The file of a state directory.
#[derive(Clone, Debug)]
pub struct StateFile(PathBuf);

impl StateFile {
    /// In this directory.
    pub fn in_directory(directory: &Path) -> Self {
        Self(directory.join(FILE))
    }

    /// What is kept, and holds; nothing where there is no file. What was to be confirmed until now is
    /// what it was before.
    ///
    /// # Errors
    /// A text that says what to do: a file that cannot be read must not pass for an empty one.
    pub fn load(&self) -> Result<Vec<Saved>, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!(
                "{} cannot be read: {error}; mend it, or remove it to forget what `mantled enroll` has enrolled",
                self.0.display()
            )
        };
        let bytes = match fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&error)),
        };
        let document: Document = serde_json::from_slice(&bytes).map_err(|error| failed(&error))?;
        if !(1..=VERSION).contains(&document.version) {
            return Err(failed(&format!(
                "it is of version {}, and this mantled reads up to version {VERSION}",
                document.version
            )));
        }
        let mut holding = Vec::new();
        for saved in &document.enrollments {
            let holds = saved.clone().now();
            if holds.as_ref() != Some(saved) {
                tracing::warn!(
                    group = saved.target,
                    "its enrolment was not confirmed in time; it is {} again",
                    holds
                        .as_ref()
                        .map_or("not enrolled", |saved| saved.mode.name())
                );
            }
            holding.extend(holds);
        }
        if holding != document.enrollments
            && let Err(error) = self.store(holding.clone())
        {
            tracing::warn!(%error, "that could not be kept; the next start does the same again");
        }
        Ok(holding)
    }

    /// Keeps these.
    ///
    /// # Errors
    /// As the file system.
    pub fn store(&self, enrollments: Vec<Saved>) -> io::Result<()> {
        let directory = self.0.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let mut text = serde_json::to_vec_pretty(&Document {
            version: VERSION,
            enrollments,
        })?;
        text.push(b'\n');
        let new = self.0.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.0)?;
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::in_directory(&directory.path().join("made"));
        assert_eq!(state.load(), Ok(Vec::new()));
        let saved = Saved {
            target: "shipper.service".to_owned(),
            mode: Mode::Enforce,
            inbound: Inbound::Refuse,
            on_daemon_down: OnDown::Closed,
            canary: Some("10%".parse().unwrap()),
            revert: Some(Revert::after(Duration::from_secs(60), None).unwrap()),
        };
        state.store(vec![saved.clone()]).unwrap();
        assert_eq!(state.load(), Ok(vec![saved]));
        let old = r#"{"version": 1, "enrollments": [{"target": "a.service", "mode": "observe",
            "inbound": "allow", "on_daemon_down": "open"}]}"#;
        fs::write(&state.0, old).unwrap();
        assert_eq!(state.load().unwrap()[0].canary, None);
        for damaged in ["", "{", r#"{"version": 3, "enrollments": []}"#, "[]"] {
            fs::write(&state.0, damaged).unwrap();
            let error = state.load().unwrap_err();
            assert!(error.contains("mend it, or remove it"), "{error}");
        }
    }

    fn observed() -> Saved {
        Saved {
            target: "shipper.service".to_owned(),
            mode: Mode::Observe,
            inbound: Inbound::Allow,
            on_daemon_down: OnDown::Open,
            canary: None,
            revert: None,
        }
    }

    #[test]
    fn what_is_not_confirmed_is_what_it_was_before() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::in_directory(directory.path());
        let until = |at, to: Option<Saved>| Saved {
            mode: Mode::Enforce,
            revert: Some(Revert {
                at,
                to: to.map(Box::new),
            }),
            ..observed()
        };
        let far = milliseconds(SystemTime::now()) + 1_000_000;
        for (kept, holds) in [
            (until(1, None), None),
            (until(1, Some(observed())), Some(observed())),
            (until(2, Some(until(1, None))), None),
            (until(1, Some(until(far, None))), Some(until(far, None))),
            (until(far, None), Some(until(far, None))),
        ] {
            state.store(vec![kept]).unwrap();
            let expected: Vec<_> = holds.into_iter().collect();
            assert_eq!(state.load().unwrap(), expected);
            // The file says so itself from now on.
            let written = fs::read_to_string(&state.0).unwrap();
            assert_eq!(written.contains("target"), !expected.is_empty());
        }
    }

    #[test]
    fn changes_on_top_of_each_other_are_bounded() {
        let mut saved = observed();
        for round in 1..=UNCONFIRMED as u64 {
            // Each ends before the one below, which therefore still counts.
            let time = Duration::from_secs(10_000 - round);
            saved.revert = Some(Revert::after(time, Some(saved.clone())).unwrap());
        }
        assert!(Revert::after(Duration::from_secs(1), Some(saved.clone())).is_err());
        // The one below has no part in what ends after it.
        let revert = Revert::after(Duration::from_secs(20_000), Some(saved)).unwrap();
        assert_eq!(revert.to, Some(Box::new(observed())));
    }
}

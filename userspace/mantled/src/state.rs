//! What commands have enrolled, kept in `enrollments.json` of the state directory.
//!
//! The file is replaced as a whole (written beside, synced, renamed), so that it is either the old
//! or the new one, whenever the power goes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::config::{Inbound, Mode, OnDown};

const FILE: &str = "enrollments.json";
const VERSION: u32 = 1;

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

    /// What is kept; nothing where there is no file.
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
        if document.version != VERSION {
            return Err(failed(&format!(
                "it is of version {}, and this mantled reads version {VERSION}",
                document.version
            )));
        }
        Ok(document.enrollments)
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
        };
        state.store(vec![saved.clone()]).unwrap();
        assert_eq!(state.load(), Ok(vec![saved]));
        for damaged in ["", "{", r#"{"version": 2, "enrollments": []}"#, "[]"] {
            fs::write(&state.0, damaged).unwrap();
            let error = state.load().unwrap_err();
            assert!(error.contains("mend it, or remove it"), "{error}");
        }
    }
}

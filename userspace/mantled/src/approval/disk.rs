//! The files: `approvals.json` of the state directory, which a restart reads, and
//! `approvals.jsonl`, the evidence, which nothing reads.
//!
//! The first is replaced as a whole (written beside, synced, renamed), so that it is either the old
//! or the new one, whenever the power goes. Lines are appended to the second and synced before what
//! they tell counts.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Answer, Held};

const STATE: &str = "approvals.json";
const EVIDENCE: &str = "approvals.jsonl";
const VERSION: u32 = 1;

/// A question, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptQuestion {
    pub(super) id: String,
    pub(super) held: Held,
    /// When it was asked, and when its time is over, in milliseconds since 1970.
    pub(super) asked: u64,
    pub(super) ends: u64,
    /// What makes the link to it good for one answer.
    pub(super) nonce: String,
    /// The answer, for an agent that has not come back yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<Answer>,
}

/// A standing grant, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptGrant {
    /// That of the question that it was given for.
    pub(super) id: String,
    /// [`Held::standing`].
    pub(super) fingerprint: String,
    /// What was asked, without its values.
    pub(super) held: Held,
    /// Who gave it.
    pub(super) by: String,
    pub(super) uid: u32,
    pub(super) note: Option<String>,
    /// When it was given, and when it ends, in milliseconds since 1970.
    pub(super) given: u64,
    pub(super) until: u64,
}

/// What is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    version: u32,
    pub(super) questions: Vec<KeptQuestion>,
    pub(super) grants: Vec<KeptGrant>,
}

impl Kept {
    pub(super) fn new(questions: Vec<KeptQuestion>, grants: Vec<KeptGrant>) -> Self {
        Self {
            version: VERSION,
            questions,
            grants,
        }
    }
}

/// Where they are.
#[derive(Debug)]
pub(super) struct Disk {
    state: PathBuf,
    evidence: PathBuf,
}

impl Disk {
    /// In these directories.
    pub(super) fn new(state: &Path, records: &Path) -> Self {
        Self {
            state: state.join(STATE),
            evidence: records.join(EVIDENCE),
        }
    }

    /// What is kept; nothing where there is no file.
    ///
    /// # Errors
    /// A text that says what to do: a file that cannot be read must not pass for an empty one.
    pub(super) fn load(&self) -> Result<Kept, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!(
                "{} cannot be read: {error}; mend it, or remove it to forget what waits for approval and what is granted",
                self.state.display()
            )
        };
        let bytes = match fs::read(&self.state) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            Err(error) => return Err(failed(&error)),
        };
        // The error's text would quote what the file holds, bound values among it.
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| {
            failed(&format!(
                "it is damaged in line {}, column {}",
                error.line(),
                error.column()
            ))
        })?;
        if kept.version != VERSION {
            return Err(failed(&format!(
                "it is of version {}, and this mantled reads version {VERSION}",
                kept.version
            )));
        }
        Ok(kept)
    }

    /// Keeps this.
    ///
    /// # Errors
    /// As the file system.
    pub(super) fn store(&mut self, kept: &Kept) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(kept)?;
        text.push(b'\n');
        replace(&self.state, &text)
    }

    /// Adds lines to the evidence.
    ///
    /// # Errors
    /// As the file system; then it may hold a part of them.
    pub(super) fn append(&mut self, lines: &[serde_json::Value]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if let Some(directory) = self.evidence.parent() {
            fs::create_dir_all(directory)?;
        }
        // Opened each time, so that it may be rotated at any.
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&self.evidence)?;
        let mut text = Vec::new();
        if is_cut(&mut file)? {
            text.push(b'\n');
        }
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        file.write_all(&text)?;
        file.sync_data()
    }
}

/// Does the file end in the middle of a line, by a failure before?
fn is_cut(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Puts a whole file in its place, readable for its owner.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // Of an attempt that was cut short; its mode may be another.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

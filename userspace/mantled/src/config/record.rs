//! `[record]`: where session records go.

use std::path::PathBuf;

use super::field::Words;
use super::raw::RawRecord;
use super::reader::Reader;

/// Where session records go, and what if they cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The directory; `None`: standard output.
    pub dir: Option<PathBuf>,
    /// What happens when a record cannot be written.
    pub on_failure: OnFailure,
}

impl Record {
    /// The file that records are appended to; `None`: standard output.
    pub fn file(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("sessions.jsonl"))
    }
}

/// What happens when a record cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnFailure {
    /// New connections are refused.
    #[default]
    Refuse,
    /// They go on without a record, which is counted.
    Continue,
}

impl Words for OnFailure {
    const WORDS: &'static [(&'static str, Self)] =
        &[("refuse", Self::Refuse), ("continue", Self::Continue)];
}

pub(super) fn resolve(reader: &mut Reader, raw: RawRecord) -> Record {
    reader.later(
        "level",
        &raw.level,
        "remove it; the record holds metadata only",
    );
    reader.later(
        "recipients",
        &raw.recipients,
        "remove it; the record holds metadata only",
    );
    Record {
        dir: reader.path("dir", raw.dir).map(|at| at.value),
        on_failure: reader
            .word("on_failure", raw.on_failure)
            .unwrap_or_default(),
    }
}

//! `[policy]`: where policies are.

use std::path::PathBuf;

use super::raw::RawPolicy;
use super::reader::Reader;

/// Where policies are. They are not read here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The directory of `*.cedar`; `None`: nothing is refused by policy.
    pub dir: Option<PathBuf>,
}

pub(super) fn resolve(reader: &mut Reader, raw: RawPolicy) -> Policy {
    Policy {
        dir: reader.path("dir", raw.dir).map(|at| at.value),
    }
}

//! `[ca]`: the authority of this host.

use std::path::PathBuf;

use super::raw::RawCa;
use super::reader::Reader;

/// Where the authority of this host is kept. Whether it is there is not asked here: only routes
/// with `tls = "terminate"` need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ca {
    /// The directory.
    pub dir: PathBuf,
}

impl Default for Ca {
    fn default() -> Self {
        Self {
            dir: "/var/lib/mantled/ca".into(),
        }
    }
}

pub(super) fn resolve(reader: &mut Reader, raw: RawCa) -> Ca {
    let default = Ca::default();
    Ca {
        dir: reader
            .path("dir", raw.dir)
            .map_or(default.dir, |at| at.value),
    }
}

//! `[admin]`: how the daemon is asked and told; and where it keeps what it was told.

use std::path::PathBuf;

use super::field::Field;
use super::raw::RawAdmin;
use super::reader::Reader;

/// Where the admin socket is if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mantled/mantled.sock";

/// How the daemon is asked and told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The socket of `mantled enroll`, `withdraw` and `status`.
    pub socket: PathBuf,
    /// Where the daemon keeps what it was told: the key `state_dir`.
    pub state_dir: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            state_dir: "/var/lib/mantled".into(),
        }
    }
}

pub(super) fn resolve(reader: &mut Reader, raw: RawAdmin, state_dir: Field<String>) -> Admin {
    reader.later("metrics", &raw.metrics, "remove it");
    let default = Admin::default();
    Admin {
        socket: reader
            .path("socket", raw.socket)
            .map_or(default.socket, |at| at.value),
        state_dir: reader
            .path("state_dir", state_dir)
            .map_or(default.state_dir, |at| at.value),
    }
}

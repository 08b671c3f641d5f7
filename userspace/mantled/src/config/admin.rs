//! `[admin]`: how the daemon is asked and told; and where it keeps what it was told.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::error::quoted;
use super::field::{At, Field};
use super::raw::RawAdmin;
use super::reader::Reader;

/// Where the admin socket is if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mantled/mantled.sock";

/// How the daemon is asked and told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The socket of `mantled enroll`, `withdraw` and `status`.
    pub socket: PathBuf,
    /// Where Prometheus finds the metrics; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Where the daemon keeps what it was told: the key `state_dir`.
    pub state_dir: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            metrics: None,
            state_dir: "/var/lib/mantled".into(),
        }
    }
}

pub(super) fn resolve(reader: &mut Reader, raw: RawAdmin, state_dir: Field<String>) -> Admin {
    let default = Admin::default();
    Admin {
        socket: reader
            .path("socket", raw.socket)
            .map_or(default.socket, |at| at.value),
        metrics: metrics(reader, raw.metrics),
        state_dir: reader
            .path("state_dir", state_dir)
            .map_or(default.state_dir, |at| at.value),
    }
}

fn metrics(reader: &mut Reader, field: Field<String>) -> Option<SocketAddr> {
    let At { value, span } = reader.get("metrics", field)?;
    match value.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Some(address),
        _ => {
            let message = format!("{} is no address with a port", quoted(&value));
            let hint = "write `metrics = \"127.0.0.1:9464\"`; who can reach it can read it";
            reader.error(&span, &message, hint);
            None
        }
    }
}

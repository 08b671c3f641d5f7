//! The guard of `mantled exec`: it outlives it.
//!
//! The programs stay attached as long as somebody holds their links. This process holds copies
//! and waits for `exec` to end, in whatever way; then it ends every process of the cgroup,
//! removes the cgroup and lets the links go, in that order: at no time does a process of the
//! cgroup run with the programs detached.

use std::{io, path::PathBuf, time::Duration};

use mantled_redirect::{cgroup::Cgroup, sys};

use super::Exit;

/// How long the cgroup's processes are given to die; they are killed, so only one that hangs in
/// the kernel takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of the guard. Its standard input is a socket to `exec`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The cgroup to clear.
    cgroup: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let cgroup = Cgroup::open(&arguments.cgroup)?;
    let mut links = Vec::new();
    // Until the other end is closed, or says what this guard does not understand: then it is
    // better to end the group than to leave it.
    while let Ok(Some(received)) = sys::receive_descriptors(io::stdin()) {
        links.extend(received);
    }
    let cleared = cgroup.destroy(PATIENCE).map_err(|error| {
        Exit::failed(format!(
            "{} could not be removed: {error}",
            cgroup.path().display()
        ))
    });
    drop(links);
    cleared
}

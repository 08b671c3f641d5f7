//! The bpf file system, in which pinned maps and links outlive the daemon.

use std::path::Path;

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::Error;

/// Where it is mounted by convention.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes sure that a bpf file system is mounted at [`MOUNT_POINT`], or that `directory` is on one:
/// a unit may see no more of it.
///
/// # Errors
/// [`Error::NoBpffs`] where it is not and cannot be mounted.
pub fn ensure(directory: &Path) -> Result<(), Error> {
    let path = Path::new(MOUNT_POINT);
    if is_on(directory) || is_on(path) {
        return Ok(());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|source| Error::NoBpffs {
        path: path.to_owned(),
        source,
    })?;
    tracing::info!(path = MOUNT_POINT, "mounted the bpf file system");
    Ok(())
}

/// Is a bpf file system mounted at [`MOUNT_POINT`]?
pub fn is_mounted() -> bool {
    is_on(Path::new(MOUNT_POINT))
}

fn is_on(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

//! Cgroups for agents.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::Namespace;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A cgroup below the root; its processes are ended and it is removed when it is dropped.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes one.
    ///
    /// # Errors
    /// No cgroup v2 hierarchy, or as mkdir(2).
    pub fn new() -> Result<Self> {
        Self::named(&format!(
            "mantled-test-{}-{}.service",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    /// Makes one of this name.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn named(name: &str) -> Result<Self> {
        let path = hierarchy()?.join(name);
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// One that is there already; it ends likewise.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Its path in the file system.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs in it, in a network namespace. It joins before its program starts.
    pub fn command(&self, namespace: &Namespace, program: impl AsRef<OsStr>) -> Command {
        let mut command = namespace.command("sh");
        command
            .args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#])
            .arg(&self.path)
            .arg(program);
        command
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// As write(2).
    pub fn adopt(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.path.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Where the cgroup v2 hierarchy is mounted.
pub(crate) fn hierarchy() -> Result<PathBuf> {
    mounted(|kind, _| kind == "cgroup2")?.context("no cgroup v2 hierarchy")
}

/// Where systemd's own hierarchy of version 1 is mounted, on hosts that have both versions.
pub(crate) fn systemd_hierarchy() -> Result<Option<PathBuf>> {
    mounted(|kind, options| {
        kind == "cgroup" && options.split(',').any(|option| option == "name=systemd")
    })
}

fn mounted(wanted: impl Fn(&str, &str) -> bool) -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let [_, path, kind, options, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        wanted(kind, options).then(|| PathBuf::from(path))
    }))
}

/// Ends what runs in a group, and removes it with those below it.
pub(crate) fn remove(group: &Path) {
    for _ in 0..200 {
        let _ = fs::write(group.join("cgroup.kill"), "1");
        for child in fs::read_dir(group).into_iter().flatten().flatten() {
            if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&child.path());
            }
        }
        if fs::remove_dir(group).is_ok() || !group.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

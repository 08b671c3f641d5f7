//! What a test run that was killed has left behind: its `Drop`s never ran.
//!
//! Groups, network namespaces and directories carry the process id of the test that made them;
//! those of a process that is no more are removed before a lab is set up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{group, mantled, run, succeed};

/// Removes it.
///
/// # Errors
/// No cgroup v2 hierarchy, no `ip`, or no binary under test.
pub(crate) fn sweep() -> Result<()> {
    let mut groups = orphans(&group::hierarchy()?, &["mantled-test-"]);
    if let Some(systemd) = group::systemd_hierarchy()? {
        groups.extend(orphans(&systemd, &["mantled-test-"]));
    }
    let namespaces = orphans(
        Path::new("/run/netns"),
        &["mantled-host-", "mantled-site-", "mantled-other-"],
    );
    for directory in orphans(&std::env::temp_dir(), &["mantled-lab-"]) {
        let _ = fs::remove_dir_all(directory);
    }
    if groups.is_empty() && namespaces.is_empty() {
        return Ok(());
    }
    for namespace in &namespaces {
        let name = namespace.file_name().unwrap_or_default();
        for pid in succeed(Command::new("ip").args(["netns", "pids"]).arg(name))?.lines() {
            if let Ok(pid) = pid.trim().parse() {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        succeed(Command::new("ip").args(["netns", "delete"]).arg(name))?;
    }
    for group in &groups {
        group::remove(group);
    }
    // Only here: without a trace of a killed test, what is attached belongs to somebody.
    let detach = run(
        Command::new(mantled()?).args(["detach", "--all"]),
        std::time::Duration::from_secs(30),
    )?;
    eprintln!(
        "removed what a killed test run had left: {groups:?}, {namespaces:?}; {}",
        String::from_utf8_lossy(&detach.stdout).trim()
    );
    Ok(())
}

/// Entries named `<prefix><process id>-…` whose process is no more.
fn orphans(directory: &Path, prefixes: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            prefixes
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))
                .and_then(|rest| rest.split_once('-'))
                .and_then(|(pid, _)| pid.parse::<u32>().ok())
                .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
        })
        .map(|entry| entry.path())
        .collect()
}

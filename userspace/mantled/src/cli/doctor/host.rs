//! What has nothing to do with the kernel: the clock, and room for what is written.

use std::{
    fs, io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use mantled_redirect::{
    doctor::{Finding, Level},
    sys,
};
use nix::{
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};

use crate::{config::Config, time::rfc3339};

/// With less room than this, records soon cannot be written: at half a kilobyte each, 200,000.
const ROOM: u64 = 100 << 20;

/// One finding for each.
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        clock(SystemTime::now(), built()),
        synchronised(sys::clock_is_synchronised()),
        directory("state_dir", config.state_dir()),
    ];
    if let Some(file) = config.record().file() {
        findings.push(directory("[record] dir", file.parent().unwrap_or(&file)));
    }
    findings
}

/// When this executable was written, which is not long after it was built.
fn built() -> SystemTime {
    fs::metadata("/proc/self/exe")
        .and_then(|metadata| metadata.modified())
        .unwrap_or(UNIX_EPOCH)
}

fn clock(now: SystemTime, built: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let shown = rfc3339(now);
    if now < built {
        Finding::bad(
            Level::Warn,
            CHECK,
            format!(
                "{shown} is before this mantled was made ({})",
                rfc3339(built)
            ),
            "set it: certificates are judged by it",
        )
    } else {
        Finding::ok(CHECK, shown)
    }
}

fn synchronised(told: io::Result<bool>) -> Finding {
    const CHECK: &str = "clock synchronised";
    match told {
        Ok(true) => Finding::ok(CHECK, "yes"),
        Ok(false) => Finding::bad(
            Level::Warn,
            CHECK,
            "the kernel says that nobody keeps the clock in step",
            "run an NTP client (`timedatectl set-ntp true`)",
        ),
        Err(error) => Finding::ok(CHECK, format!("cannot be told here: {error}")),
    }
}

/// A directory that the daemon writes to, or makes.
fn directory(key: &str, path: &Path) -> Finding {
    let there = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let shown = if there == path {
        path.display().to_string()
    } else {
        format!("{} (to be made)", path.display())
    };
    if let Err(error) = access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Finding::bad(
            Level::Fail,
            key,
            format!("{shown} cannot be written: {}", error.desc()),
            format!(
                "make {} writable for mantled, or set {key}",
                there.display()
            ),
        );
    }
    match statvfs(there) {
        Ok(disk) => {
            // The types differ between architectures.
            #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
            let free = (disk.blocks_available() as u64).saturating_mul(disk.fragment_size() as u64);
            let free_shown = format!("{shown}, {} MiB free", free >> 20);
            if free < ROOM {
                Finding::bad(
                    Level::Warn,
                    key,
                    free_shown,
                    "make room; [record] on_failure says what happens when there is none",
                )
            } else {
                Finding::ok(key, free_shown)
            }
        }
        Err(error) => Finding::bad(
            Level::Warn,
            key,
            format!("{shown}: how much is free cannot be told: {}", error.desc()),
            "look with df",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_before_the_build_is_told() {
        let built = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(clock(built, built).level, Level::Ok);
        let finding = clock(UNIX_EPOCH, built);
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.detail.contains("1970-01-01"), "{finding:?}");
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_told() {
        assert_eq!(synchronised(Ok(true)).level, Level::Ok);
        assert_eq!(synchronised(Ok(false)).level, Level::Warn);
        // No reason to doubt it.
        let unknown = Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(synchronised(unknown).level, Level::Ok);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_told() {
        let directory_here = tempfile::tempdir().unwrap();
        let made_later = directory_here.path().join("a/b");
        let finding = directory("state_dir", &made_later);
        assert_ne!(finding.level, Level::Fail, "{finding:?}");
        assert!(finding.detail.contains("to be made"), "{finding:?}");
        // Not even root can make a directory below a file.
        let file = directory_here.path().join("file");
        fs::write(&file, "").unwrap();
        let finding = directory("state_dir", &file.join("mantled"));
        assert_eq!(finding.level, Level::Fail, "{finding:?}");
        assert!(finding.remedy.unwrap().contains("state_dir"));
    }
}

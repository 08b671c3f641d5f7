//! The Debian that the tests boot: a small one of the same release, below target/lab. It is never
//! written to again; a machine's own files are in memory.

use std::fs;

use anyhow::{Context as _, Result};

use crate::sh::{self, Needs};

const SUITE: &str = "bookworm";

/// dbus, since `systemctl` asks for units over it; ca-certificates, since the package asks for it;
/// the rest is what agents are made of.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,ca-certificates,procps,iproute2,curl";

/// What would wait for a console or a network that a machine does not have.
const MASKED: [&str; 6] = [
    "console-getty.service",
    "getty.target",
    "systemd-logind.service",
    "systemd-networkd-wait-online.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
];

/// The file that makes a directory one that may be booted; it tells how it was made.
const MARK: &str = "etc/mantled-lab";

/// Builds it where it is missing or was made in another way.
pub(crate) fn install() -> Result<()> {
    let lab = sh::root().join("target/lab");
    let root = lab.join("rootfs");
    let recipe = format!("{SUITE} {PACKAGES} {}\n", MASKED.join(" "));
    if fs::read_to_string(root.join(MARK)).is_ok_and(|mark| mark == recipe) {
        println!("setup: the machine in {}: present", root.display());
        return Ok(());
    }
    if sh::read(sh::command("id").arg("-u"))? != "0" {
        return Err(Needs(
            "setup: not root; the tests that boot a machine need `cargo xtask setup lab` as root"
                .to_owned(),
        )
        .into());
    }
    println!("setup: installing a machine into {}", root.display());
    let new = lab.join("rootfs.new");
    for old in [&new, &root] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    fs::create_dir_all(&lab)?;
    sh::run(
        sh::command("mmdebstrap")
            .args(["--quiet", "--variant=essential", "--format=directory"])
            .arg(format!("--include={PACKAGES}"))
            .arg(SUITE)
            .arg(&new),
    )?;
    let units = new.join("etc/systemd/system");
    for unit in MASKED {
        let link = units.join(unit);
        // An enabled unit is a link there already.
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink("/dev/null", &link)?;
    }
    // Each boot makes its own.
    fs::write(new.join("etc/machine-id"), "")?;
    fs::write(new.join(MARK), recipe)?;
    fs::rename(&new, &root)?;
    Ok(())
}

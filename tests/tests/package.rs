//! The Debian package in a machine that systemd has booted: installed, replaced, removed, purged.

use std::path::Path;

use anyhow::Result;
use mantled_tests::{Installed, Machine, Package, lab};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const CONFIGURATION: &str = "/etc/mantled/mantled.toml";

#[test]
fn installed_it_runs_and_touches_nothing() -> Result<()> {
    let installed = Installed::new(lab!(), AGENT)?;
    let machine = &installed.machine;
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    assert_eq!(machine.property("mantled", "UnitFileState")?, "enabled");
    assert_eq!(machine.property("mantled", "NRestarts")?, "0");
    // Nothing is enrolled yet.
    installed.says("7001 served")?;
    assert_eq!(installed.status()?["groups"], serde_json::json!([]));

    for file in [
        "/usr/share/man/man1/mantled.1.gz",
        "/usr/share/man/man1/mantled-run.1.gz",
        "/usr/share/bash-completion/completions/mantled",
        "/usr/share/zsh/vendor-completions/_mantled",
        "/usr/share/fish/vendor_completions.d/mantled.fish",
        "/usr/share/doc/mantled/copyright",
        "/usr/share/doc/mantled/changelog.Debian.gz",
    ] {
        assert!(machine.path(file).exists(), "{file}");
    }
    let shown = machine.exec(&[
        "dpkg-query",
        "--show",
        "--showformat=${Conffiles}",
        "mantled",
    ])?;
    assert!(shown.contains(CONFIGURATION), "{shown}");
    assert!(machine.exec(&["id", "mantled"])?.contains("gid="));
    let mode = machine.exec(&["stat", "--format=%a", "/var/lib/mantled"])?;
    assert_eq!(mode, "700\n");
    // Nothing of the package is missing or was changed by its installation.
    assert_eq!(machine.exec(&["dpkg", "--verify", "mantled"])?, "");
    // The shell finds the subcommands.
    let completed = machine.exec(&[
        "bash",
        "-c",
        "source /usr/share/bash-completion/completions/mantled\n\
         COMP_WORDS=(mantled enr) COMP_CWORD=1; _mantled mantled enr mantled; echo \"${COMPREPLY[@]}\"",
    ])?;
    assert_eq!(completed, "enroll\n");
    Ok(())
}

#[test]
fn a_new_version_takes_over_under_load() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let machine = &installed.machine;
    let kept = machine.read(CONFIGURATION)?;
    let load = installed.start_load(200, &["--on-daemon-down", "closed"])?;
    let before = (installed.daemon()?, load.tally());
    let next = installed.package.with_version(&installed.lab, "0.1.1-1")?;
    let said = installed.install(&next)?;
    load.serves(200)?;
    let tally = load.finish()?;
    eprintln!("{tally:?}");
    assert_eq!(tally.failed, before.1.failed);
    assert!(!said.contains("conffile"), "nobody is asked: {said}");
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    let after = installed.daemon()?;
    assert_ne!(before.0, after);
    let program = machine.exec(&["readlink", &format!("/proc/{after}/exe")])?;
    assert_eq!(program, "/usr/bin/mantled\n", "the new file");
    assert_eq!(machine.read(CONFIGURATION)?, kept);
    installed.says("7000 served")?;
    installed.says_refused()?;

    // What the administrator has disabled stays so.
    machine.exec(&["systemctl", "disable", "--now", "mantled"])?;
    let next = installed.package.with_version(&installed.lab, "0.1.2-1")?;
    installed.install(&next)?;
    assert_eq!(machine.property("mantled", "ActiveState")?, "inactive");
    assert_eq!(machine.property("mantled", "UnitFileState")?, "disabled");
    Ok(())
}

#[test]
fn removal_gives_the_host_back_and_a_purge_keeps_the_records() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let machine = &installed.machine;
    let configuration = machine.read(CONFIGURATION)?;
    assert!(installed.assert_detached().is_err());

    let said = installed.dpkg(&["--remove", "mantled"])?;
    assert!(
        said.contains("kept: configuration in /etc/mantled"),
        "{said}"
    );
    installed.assert_detached()?;
    installed.says("7001 served")?;
    assert_eq!(machine.read(CONFIGURATION)?, configuration);
    let records = installed.records()?.len();
    assert_ne!(records, 0);

    // It comes back as it was.
    installed.install(&installed.package)?;
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    installed.says_refused()?;
    machine.exec(&["mantled", "ca", "init"])?;

    let said = installed.dpkg(&["--purge", "mantled"])?;
    assert!(
        said.contains("kept: the session records in /var/lib/mantled/sessions"),
        "{said}"
    );
    installed.assert_detached()?;
    installed.says("7001 served")?;
    assert!(installed.records()?.len() > records);
    let left = machine.exec(&["find", "/var/lib/mantled", "-mindepth", "1"])?;
    assert_eq!(
        left,
        "/var/lib/mantled/sessions\n/var/lib/mantled/sessions/sessions.jsonl\n"
    );
    let left = machine.exec(&[
        "find",
        "/etc",
        "/run",
        "/usr",
        "/var",
        "/sys/fs/cgroup",
        "-path",
        "/var/lib/dpkg",
        "-prune",
        "-o",
        "-path",
        "/var/lib/mantled",
        "-prune",
        "-o",
        "-name",
        "*mantled*",
        "-print",
    ])?;
    let ours = ["/etc/mantled-lab", "/sys/fs/cgroup/mantled-test.scope"];
    let left: Vec<_> = left.lines().filter(|path| !ours.contains(path)).collect();
    assert_eq!(left, Vec::<&str>::new());

    // And from the start.
    installed.install(&installed.package)?;
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    assert_eq!(machine.property("mantled", "UnitFileState")?, "enabled");
    installed.says("7001 served")
}

#[test]
fn it_installs_where_no_systemd_runs() -> Result<()> {
    let lab = lab!();
    let package = Package::built()?;
    // A purge removes a directory of records as little where it is another.
    let script = format!(
        "set -ex; exec 2>&1; dpkg --install /mnt/{}\n\
         test -L /etc/systemd/system/multi-user.target.wants/mantled.service\n\
         id mantled; stat --format=%U:%a /var/lib/mantled\n\
         mkdir -p /var/lib/mantled/ca '/var/lib/mantled/of ours'\n\
         touch '/var/lib/mantled/of ours/sessions.jsonl' /var/lib/mantled/.hidden\n\
         dpkg --remove mantled; dpkg --purge mantled\n\
         test ! -e /etc/mantled; find /var/lib/mantled; rm -r /var/lib/mantled\n\
         dpkg --install /mnt/{}; dpkg --purge mantled\n\
         test ! -e /var/lib/mantled; echo done",
        package.name(),
        package.name()
    );
    let output = Machine::unbooted(&lab, &[&package.path], &script)?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("mantled:700\n"), "{said}");
    assert!(
        said.contains(
            "\n/var/lib/mantled\n/var/lib/mantled/of ours\n\
             /var/lib/mantled/of ours/sessions.jsonl\n+ rm"
        ),
        "{said}"
    );
    assert!(said.ends_with("done\n"), "{said}");
    Ok(())
}

#[test]
fn a_machine_is_switched_off_and_leaves_nothing() -> Result<()> {
    let lab = lab!();
    Machine::boot(&lab)?.power_off()?;
    drop(Machine::boot(&lab)?);
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let group = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with("/sys/fs/cgroup"))
        .flat_map(|path| std::fs::read_dir(path).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with(&format!("mantled-test-{}-", std::process::id())));
    assert_eq!(group, None);
    assert!(!mounts.contains("rootfs"), "{mounts}");
    Ok(())
}

#[test]
fn this_machines_own_root_is_never_booted() -> Result<()> {
    let lab = lab!();
    for (root, reason) in [
        ("/", "is this machine's own root"),
        ("/proc/self/root", "is this machine's own root"),
        ("/usr", "was not made by `cargo xtask setup`"),
        ("/nowhere", "is missing"),
    ] {
        let error = Machine::boot_from(&lab, Path::new(root))
            .map(drop)
            .unwrap_err();
        assert!(format!("{error:#}").contains(reason), "{error:#}");
    }
    Ok(())
}

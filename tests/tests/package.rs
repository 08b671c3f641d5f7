//! The real package on a machine that systemd has booted: installed, replaced, removed, purged,
//! with an agent as another unit.
//!
//! A test is a [`Scene`] and what is done to it. `Scene::installed` has the package and nothing
//! enrolled; `Scene::enforced` has the agent's unit enrolled by name, and works.

use std::{net::TcpStream, path::Path, time::Duration};

use anyhow::{Result, ensure};
use mantled_tests::{
    Capture, Lab, Machine, Package, SITE_V4, Server, assert_clean, eventually, lab, run,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const SECRET: &str = "the-shippers-secret-words";
const RECORDS: &str = "/var/lib/mantled/sessions/sessions.jsonl";
const PINS: &str = "/sys/fs/bpf/mantled";
const SOON: Duration = Duration::from_secs(10);

/// A server that has TLS, and one that has not.
const TLS: u16 = 7000;
const PLAIN: u16 = 7001;

/// The legacy agent: tries both servers for ever, and says how it went.
const SHIPPER: &str = r#"#!/bin/sh
while :; do
    for port in 7000 7001; do
        if said=$(agent echo 10.99.0.2:$port "$1" 2>&1 >/dev/null); then
            echo "$port served"
        else
            echo "$port $said"
        fi
    done
    sleep 0.1
done
"#;

const UNIT: &str = "[Service]\nExecStart=/usr/local/bin/shipper the-shippers-secret-words\n";

/// As an operator would write it.
const CONFIGURATION: &str = r#"
[tls]
roots = ["site.pem"]

[dns]
resolvers = []

[record]
dir = "/var/lib/mantled/sessions"

[[enroll]]
unit = "shipper.service"
mode = "enforce"
"#;

struct Scene {
    machine: Machine,
    package: Package,
    /// Kernel programs that were there before.
    programs: Vec<u64>,
    tls: Server,
    _plain: Server,
    lab: Lab,
}

impl Scene {
    /// A machine with the agent's unit running in clear, and the package installed.
    fn installed(lab: Lab) -> Result<Self> {
        let package = Package::built()?;
        let leaf = lab.authority.leaf(&["10.99.0.2"])?;
        let tls = Server::start_echo(&lab.site, SITE_V4, TLS, &leaf)?;
        let plain = Server::start(&lab.site, SITE_V4, PLAIN, echo)?;
        let programs = Machine::programs()?;
        let machine = Machine::boot(&lab)?;
        machine.copy(Path::new(AGENT), "/usr/local/bin/agent")?;
        machine.write("/usr/local/bin/shipper", SHIPPER)?;
        machine.exec(&["chmod", "755", "/usr/local/bin/shipper"])?;
        machine.write("/etc/systemd/system/shipper.service", UNIT)?;
        machine.exec(&["systemctl", "start", "shipper"])?;
        let scene = Self {
            machine,
            package,
            programs,
            tls,
            _plain: plain,
            lab,
        };
        scene.says(&format!("{PLAIN} served"))?;
        scene.install(&scene.package)?;
        Ok(scene)
    }

    /// The same with the agent enrolled, and served in TLS alone.
    fn enforced(lab: Lab) -> Result<Self> {
        let scene = Self::installed(lab)?;
        scene.configure(CONFIGURATION)?;
        scene.machine.exec(&["systemctl", "restart", "mantled"])?;
        scene.says(&format!("{TLS} served"))?;
        scene.says(&format!("{PLAIN} echo: Connection reset"))?;
        Ok(scene)
    }

    /// `dpkg -i`, and what it said.
    fn install(&self, package: &Package) -> Result<String> {
        let inside = format!("/root/{}", package.name());
        self.machine.copy(&package.path, &inside)?;
        self.dpkg(&["--install", &inside])
    }

    fn dpkg(&self, arguments: &[&str]) -> Result<String> {
        let output = run(
            self.machine.command("dpkg").args(arguments),
            Duration::from_secs(60),
        )?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(output.status.success(), "dpkg {arguments:?}: {said}");
        eprintln!("{said}");
        Ok(said)
    }

    fn configure(&self, text: &str) -> Result<()> {
        let ca = self.lab.authority.pem();
        self.machine.write("/etc/mantled/site.pem", &ca)?;
        self.machine.write("/etc/mantled/mantled.toml", text)
    }

    /// Waits until the agent says this; what it has said before does not count.
    fn says(&self, what: &str) -> Result<()> {
        let before = self.said()?.len();
        eventually(&format!("the agent to say {what:?}"), SOON, || {
            let said = self.said().ok()?;
            said.iter().skip(before).any(|line| line.starts_with(what)).then_some(())
        })
        .map_err(|error| {
            let said = self.said().unwrap_or_default();
            let daemon = self.machine.journal("mantled").unwrap_or_default();
            error.context(format!("{:#?}\n{daemon}", &said[said.len().saturating_sub(6)..]))
        })
    }

    fn said(&self) -> Result<Vec<String>> {
        let journal = self.machine.journal("shipper")?;
        Ok(journal.lines().map(str::to_owned).collect())
    }

    fn records(&self) -> Vec<Value> {
        let text = self.machine.read(RECORDS).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for a record that is like this.
    fn record(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(&format!("a record of {what}"), SOON, || {
            self.records().into_iter().find(|record| wanted(record))
        })
        .map_err(|error| error.context(format!("{:#?}", self.records().last())))
    }

    fn daemon(&self) -> Result<String> {
        self.machine.property("mantled", "MainPID")
    }

    /// Nothing of mantled's is in the kernel.
    fn assert_detached(&self) -> Result<()> {
        assert!(!self.machine.path(PINS).exists(), "pins are left");
        assert_eq!(self.machine.attached()?, Vec::<String>::new());
        // The kernel frees a program a moment after the last that holds it.
        let left = eventually("the programs to be gone", SOON, || {
            let mut left = Machine::programs().ok()?;
            left.retain(|id| !self.programs.contains(id));
            left.is_empty().then_some(left)
        });
        ensure!(left.is_ok(), "programs are left: {:?}", Machine::programs()?);
        Ok(())
    }
}

fn echo(stream: TcpStream) -> std::io::Result<()> {
    let mut copy = stream.try_clone()?;
    std::io::copy(&mut &stream, &mut copy)?;
    stream.shutdown(std::net::Shutdown::Both)
}

/// One of the agent's that left in TLS. (What mantled reads in /proc is missing in a machine's
/// records: see [`Machine`].)
fn verified(record: &Value) -> bool {
    record["mantled.path"] == "verified" && record["process.executable.name"] == "agent"
}

#[test]
fn installed_it_runs_and_touches_nothing() -> Result<()> {
    let scene = Scene::installed(lab!())?;
    let machine = &scene.machine;
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    assert_eq!(machine.property("mantled", "Type")?, "notify");
    assert_eq!(machine.property("mantled", "UnitFileState")?, "enabled");
    assert_eq!(machine.property("mantled", "NRestarts")?, "0");
    // Nothing is enrolled yet.
    scene.says(&format!("{PLAIN} served"))?;

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
    let status = machine.exec(&["dpkg-query", "--show", "--showformat=${Conffiles}", "mantled"])?;
    assert!(status.contains("/etc/mantled/mantled.toml"), "{status}");
    assert!(machine.exec(&["id", "mantled"])?.contains("gid="));
    let mode = machine.exec(&["stat", "--format=%a", "/var/lib/mantled"])?;
    assert_eq!(mode, "700\n");
    // Nothing of the package is missing or was changed by its installation.
    assert_eq!(machine.exec(&["dpkg", "--verify", "mantled"])?, "");
    Ok(())
}

#[test]
fn a_unit_enrolled_by_name_leaves_in_verified_tls() -> Result<()> {
    let scene = Scene::enforced(lab!())?;
    let capture = Capture::start(&scene.lab)?;
    for _ in 0..3 {
        scene.says(&format!("{TLS} served"))?;
    }
    let wire = capture.finish()?;
    assert_clean(&wire, &[SECRET])?;
    let first = scene.record("the agent in TLS", verified)?;
    assert_eq!(first["server.port"], TLS);
    assert!(scene.tls.accepted() > 3);

    // Restarted it has another cgroup.
    scene.machine.exec(&["systemctl", "restart", "shipper"])?;
    let shell = scene.machine.property("shipper", "MainPID")?;
    eventually("the restarted unit's enrolment", SOON, || {
        let journal = scene.machine.journal("mantled").ok()?;
        (journal.matches("INFO enrolled").count() >= 2).then_some(())
    })?;
    let before = scene.records().len();
    eventually("records of the restarted agent", SOON, || {
        scene.records().iter().skip(before).any(verified).then_some(())
    })?;
    scene.says(&format!("{PLAIN} echo: Connection reset"))?;
    assert_eq!(scene.machine.property("shipper", "MainPID")?, shell);
    Ok(())
}

#[test]
fn stopped_it_refuses_and_started_it_serves() -> Result<()> {
    let scene = Scene::enforced(lab!())?;
    scene.machine.exec(&["systemctl", "stop", "mantled"])?;
    scene.machine.wait_unit("mantled", "inactive")?;
    assert_eq!(scene.machine.property("mantled", "Result")?, "success");
    let capture = Capture::start(&scene.lab)?;
    for port in [TLS, PLAIN] {
        scene.says(&format!("{port} echo: Connection refused"))?;
    }
    // A capture of nothing proves nothing: somebody outside of the unit uses the wire.
    let plain = format!("10.99.0.2:{PLAIN}");
    scene.machine.exec(&["agent", "echo", &plain, "an outsider's words"])?;
    let wire = capture.finish()?;
    assert!(assert_clean(&wire, &["an outsider's words"]).is_err());
    assert_clean(&wire, &[SECRET])?;

    scene.machine.exec(&["systemctl", "start", "mantled"])?;
    scene.says(&format!("{TLS} served"))
}

#[test]
fn a_new_version_takes_over_from_a_running_one() -> Result<()> {
    let scene = Scene::enforced(lab!())?;
    let before = scene.daemon()?;
    let said = scene.install(&scene.package.with_version(&scene.lab, "0.1.1-1")?)?;
    assert!(!said.contains("conffile"), "nobody is asked: {said}");
    assert_eq!(scene.machine.property("mantled", "ActiveState")?, "active");
    let after = scene.daemon()?;
    assert_ne!(before, after);
    let program = scene.machine.exec(&["readlink", &format!("/proc/{after}/exe")])?;
    assert_eq!(program, "/usr/bin/mantled\n", "the new file");
    assert_eq!(scene.machine.read("/etc/mantled/mantled.toml")?, CONFIGURATION);
    scene.says(&format!("{TLS} served"))?;
    scene.says(&format!("{PLAIN} echo: Connection reset"))?;

    // What the administrator has stopped and disabled stays so.
    scene.machine.exec(&["systemctl", "disable", "--now", "mantled"])?;
    scene.install(&scene.package.with_version(&scene.lab, "0.1.2-1")?)?;
    assert_eq!(scene.machine.property("mantled", "ActiveState")?, "inactive");
    assert_eq!(scene.machine.property("mantled", "UnitFileState")?, "disabled");
    Ok(())
}

#[test]
fn removal_gives_the_host_back_and_a_purge_keeps_the_records() -> Result<()> {
    let scene = Scene::enforced(lab!())?;
    let machine = &scene.machine;
    scene.record("the agent in TLS", verified)?;
    assert_ne!(machine.attached()?, Vec::<String>::new());
    assert_ne!(Machine::programs()?, scene.programs);

    let said = scene.dpkg(&["--remove", "mantled"])?;
    assert!(said.contains("kept: configuration in /etc/mantled"), "{said}");
    scene.assert_detached()?;
    scene.says(&format!("{PLAIN} served"))?;
    assert_eq!(machine.read("/etc/mantled/mantled.toml")?, CONFIGURATION);
    let records = scene.records();
    assert!(!records.is_empty());

    // It comes back as it was.
    scene.install(&scene.package)?;
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    scene.says(&format!("{PLAIN} echo: Connection reset"))?;
    machine.exec(&["mantled", "ca", "init"])?;

    let said = scene.dpkg(&["--purge", "mantled"])?;
    assert!(said.contains("kept: the session records in /var/lib/mantled/sessions"), "{said}");
    assert!(said.contains("rm -r /var/lib/mantled"), "{said}");
    scene.assert_detached()?;
    scene.says(&format!("{PLAIN} served"))?;
    assert!(scene.records().len() >= records.len());
    for gone in ["/etc/mantled", "/var/lib/mantled/ca", "/run/mantled"] {
        assert!(!machine.path(gone).exists(), "{gone} is left");
    }
    let links = machine.exec(&["find", "/etc/systemd", "/var/lib/systemd", "-name", "mantled*"])?;
    assert_eq!(links, "");

    // And from the start.
    scene.install(&scene.package)?;
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    assert_eq!(machine.property("mantled", "UnitFileState")?, "enabled");
    scene.says(&format!("{PLAIN} served"))
}

#[test]
fn it_installs_where_no_systemd_runs() -> Result<()> {
    let lab = lab!();
    let package = Package::built()?;
    let script = format!(
        "set -ex; exec 2>&1; dpkg --install /mnt/{}\n\
         test -L /etc/systemd/system/multi-user.target.wants/mantled.service\n\
         id mantled; stat --format=%U:%a /var/lib/mantled\n\
         test ! -e /run/mantled.installing\n\
         dpkg --remove mantled; dpkg --purge mantled\n\
         test ! -e /etc/mantled; test ! -e /var/lib/mantled; echo done",
        package.name()
    );
    let output = Machine::unbooted(&lab, &[&package.path], &script)?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("mantled:700\n"), "{said}");
    assert!(said.ends_with("done\n"), "{said}");
    Ok(())
}

#[test]
fn a_machine_is_switched_off_and_leaves_nothing() -> Result<()> {
    let lab = lab!();
    let machine = Machine::boot(&lab)?;
    machine.power_off()?;
    drop(Machine::boot(&lab)?);
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let groups = std::fs::read_to_string("/proc/self/mounts")?
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
        .filter(|path| path.starts_with("/sys/fs/cgroup"))
        .flat_map(|path| std::fs::read_dir(path).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with(&format!("mantled-test-{}-", std::process::id())));
    assert_eq!(groups, None);
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
        let error = Machine::boot_from(&lab, Path::new(root)).map(drop).unwrap_err();
        assert!(format!("{error:#}").contains(reason), "{error:#}");
    }
    Ok(())
}

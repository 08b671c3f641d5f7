//! A Debian that systemd has booted, in a container on the host's end of a lab's wire.
//!
//! The root file system is the one that `cargo xtask setup` has built below target/lab; what a
//! machine writes goes to memory and is gone with it. It has a bpf file system of its own, so what
//! it pins is seen by nobody else and gone with it as well. Only processes and cgroups are left to
//! be removed, and both hang below one cgroup.
//!
//! A container is not quite a host: it has process ids of its own, while the kernel programs tell
//! those of the host. What mantled reads in /proc (executable, unit) is therefore missing in the
//! records that it writes in a machine; the lab's [`crate::Daemon`] has them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{Lab, eventually, group, run, succeed};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How long a boot may take; it takes about a second.
const BOOT: Duration = Duration::from_secs(60);

/// How long a command in it may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Inside.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Joins the groups named by the first argument, mounts a bpf file system that only the container
/// sees, and becomes the rest.
const ENTER: &str = r#"
for group in $1; do echo $$ >"$group/cgroup.procs"; done
shift
exec unshare --mount sh -ec 'mount -t bpf -o mode=0700 bpf /sys/fs/bpf; exec "$@"' sh "$@"
"#;

/// A booted machine. It is switched off when it is dropped.
#[derive(Debug)]
pub struct Machine {
    groups: Groups,
    container: Child,
    /// Its process 1.
    leader: u32,
    /// The cgroup of commands that are run in it.
    session: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Boots one, with the lab's host as its network, and waits until everything has started.
    ///
    /// # Errors
    /// No root file system, or a unit has failed.
    pub fn boot(lab: &Lab) -> Result<Self> {
        Self::boot_from(lab, &rootfs())
    }

    /// The same from another directory.
    ///
    /// # Errors
    /// As [`Self::boot`]; it is not one that `cargo xtask setup` has made.
    pub fn boot_from(lab: &Lab, root: &Path) -> Result<Self> {
        let groups = Groups::new()?;
        let log = lab.path(&format!("{}.log", groups.name));
        let output = File::create(&log)?;
        let container = nspawn(lab, &groups, root)?
            .arg("--boot")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting systemd-nspawn")?;
        let mut machine = Self {
            session: PathBuf::new(),
            groups,
            container,
            leader: 0,
            log,
        };
        machine
            .wait_booted()
            .with_context(|| fs::read_to_string(&machine.log).unwrap_or_default())?;
        Ok(machine)
    }

    /// Runs a shell script in the same file system where no systemd runs, as in a chroot or while
    /// an image is built. `files` are in its /mnt.
    ///
    /// # Errors
    /// No root file system, or it does not end in time.
    pub fn unbooted(lab: &Lab, files: &[&Path], script: &str) -> Result<Output> {
        let groups = Groups::new()?;
        let mut container = nspawn(lab, &groups, &rootfs())?;
        for file in files {
            let name = file.file_name().context("not a file")?.to_string_lossy();
            container.arg(format!("--bind-ro={}:/mnt/{name}", file.display()));
        }
        run(container.args(["sh", "-c", script]), PATIENCE)
    }

    fn wait_booted(&mut self) -> Result<()> {
        let started = Instant::now();
        self.leader = self.wait_for("systemd-nspawn to start systemd", |machine| {
            machine.groups.leader()
        })?;
        let inside = group::hierarchy()?
            .join(cgroup_of(self.leader)?.trim_start_matches('/'))
            .parent()
            .context("systemd is not in a cgroup of its own")?
            .join("mantled-test.scope");
        fs::create_dir(&inside).with_context(|| format!("making {}", inside.display()))?;
        self.session = inside;
        let state = self.wait_for("the machine to have booted", |machine| {
            let state = machine.systemctl(&["is-system-running"]).ok()?;
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            ["running", "degraded"].contains(&&*state).then_some(state)
        })?;
        if state == "degraded" {
            let failed = self.systemctl(&["--failed", "--no-legend", "--plain"])?;
            bail!("units failed: {}", String::from_utf8_lossy(&failed.stdout));
        }
        eprintln!("the machine booted in {:?}", started.elapsed());
        Ok(())
    }

    /// [`eventually`], but not for a machine that is off.
    fn wait_for<T>(&mut self, what: &str, mut done: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + BOOT;
        loop {
            if let Some(value) = done(self) {
                return Ok(value);
            }
            if let Some(status) = self.container.try_wait()? {
                bail!("systemd-nspawn ended with {status}");
            }
            ensure!(Instant::now() < deadline, "not within {BOOT:?}: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A command inside: in all its namespaces, and in a cgroup of its own there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
            .arg(&self.session)
            .arg("nsenter")
            .arg(format!("--target={}", self.leader))
            .args(["--all", "--"])
            .arg(program)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs a command that must succeed, and returns its standard output.
    ///
    /// # Errors
    /// As [`succeed`].
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no command")?;
        succeed(self.command(program).args(arguments))
    }

    /// Runs `systemctl`, which tells much by its exit code.
    ///
    /// # Errors
    /// As [`run`].
    pub fn systemctl(&self, arguments: &[&str]) -> Result<Output> {
        run(self.command("systemctl").args(arguments), PATIENCE)
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// As `systemctl show`.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.exec(&["systemctl", "show", "--value", "--property", name, unit])?;
        Ok(value.trim().to_owned())
    }

    /// Waits until a unit's `ActiveState` is that.
    ///
    /// # Errors
    /// It does not get there; the unit's journal is told.
    pub fn wait_unit(&self, unit: &str, state: &str) -> Result<()> {
        eventually(
            &format!("{unit} to be {state}"),
            Duration::from_secs(20),
            || {
                let now = self.property(unit, "ActiveState").ok()?;
                (now == state).then_some(())
            },
        )
        .with_context(|| self.journal(unit).unwrap_or_default())
    }

    /// What a unit has said, without times.
    ///
    /// # Errors
    /// As `journalctl`.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.exec(&["journalctl", "--no-pager", "--output=cat", "--unit", unit])
    }

    /// Where a path of the machine's lies for this process.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.leader.to_string())
            .join("root")
            .join(inside.trim_start_matches('/'))
    }

    /// Copies a file in, with its mode.
    ///
    /// # Errors
    /// As copying files.
    pub fn copy(&self, source: &Path, inside: &str) -> Result<()> {
        fs::copy(source, self.path(inside))
            .with_context(|| format!("copying {} to {inside}", source.display()))?;
        Ok(())
    }

    /// Writes a file.
    ///
    /// # Errors
    /// As write(2).
    pub fn write(&self, inside: &str, text: &str) -> Result<()> {
        fs::write(self.path(inside), text).with_context(|| format!("writing {inside}"))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&self, inside: &str) -> Result<String> {
        fs::read_to_string(self.path(inside)).with_context(|| format!("reading {inside}"))
    }

    /// The ids of the kernel programs that are loaded, but for those of systemd's own.
    ///
    /// # Errors
    /// As `bpftool`.
    pub fn programs() -> Result<Vec<u64>> {
        let list = succeed(Command::new("bpftool").args(["--json", "prog", "show"]))?;
        let list: Vec<serde_json::Value> = serde_json::from_str(&list)?;
        Ok(list
            .iter()
            .filter(|program| {
                let name = program["name"].as_str().unwrap_or_default();
                !name.starts_with("sd_")
            })
            .filter_map(|program| program["id"].as_u64())
            .collect())
    }

    /// The programs that are attached to its cgroups or to one above them, by name; but for
    /// systemd's own.
    ///
    /// # Errors
    /// As `bpftool`.
    pub fn attached(&self) -> Result<Vec<String>> {
        let root = self.session.parent().context("not booted")?;
        let list = succeed(
            Command::new("bpftool")
                .args(["--json", "cgroup", "tree"])
                .arg(root),
        )?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        Ok(list
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|group| group["programs"].as_array().into_iter().flatten())
            .filter_map(|program| program["name"].as_str())
            .filter(|name| !name.starts_with("sd_"))
            .map(str::to_owned)
            .collect())
    }

    /// Switches it off as an operator would: units are stopped in order.
    ///
    /// # Errors
    /// It stays on.
    pub fn power_off(mut self) -> Result<()> {
        self.exec(&["systemctl", "poweroff"])?;
        eventually("the machine to be off", PATIENCE, || {
            self.container.try_wait().ok().flatten()
        })?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("the machine's console:\n{log}");
        }
        // By process 1 itself, and without stopping units: it leaves nothing, and takes no time.
        if self.leader != 0 {
            let _ = run(
                self.command("systemctl").args(["poweroff", "-ff"]),
                Duration::from_secs(5),
            );
            let _ = eventually("the machine to be off", Duration::from_secs(3), || {
                self.container.try_wait().ok().flatten()
            });
        }
        self.groups.remove();
        let _ = self.container.wait();
    }
}

/// A group in each hierarchy that systemd wants to see.
#[derive(Debug)]
struct Groups {
    name: String,
    paths: Vec<PathBuf>,
}

impl Groups {
    fn new() -> Result<Self> {
        let name = format!(
            "mantled-test-{}-{}.machine",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut groups = Self {
            paths: Vec::new(),
            name,
        };
        // Version 2 first: what runs is ended by it.
        let hierarchies = [Some(group::hierarchy()?), group::systemd_hierarchy()?];
        for hierarchy in hierarchies.into_iter().flatten() {
            let path = hierarchy.join(&groups.name);
            fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
            groups.paths.push(path);
        }
        Ok(groups)
    }

    /// Process 1 of the container: the systemd that sees itself as number 1.
    fn leader(&self) -> Option<u32> {
        fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find(|pid| {
                let is_here = cgroup_of(*pid).is_ok_and(|group| group.contains(&self.name));
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                is_here
                    && status.starts_with("Name:\tsystemd\n")
                    && status
                        .lines()
                        .any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
                    // It has its own cgroup once it works.
                    && cgroup_of(*pid).is_ok_and(|group| group.ends_with("/init.scope"))
            })
    }

    fn remove(&self) {
        for path in &self.paths {
            group::remove(path);
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.remove();
    }
}

fn cgroup_of(pid: u32) -> io::Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(group.unwrap_or_default().to_owned())
}

/// Where `cargo xtask setup` puts it.
fn rootfs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/rootfs")
}

/// systemd on this machine's own root would take it for a machine that starts, and empty its
/// temporary directory.
fn check_root(root: &Path) -> Result<PathBuf> {
    let root = root.canonicalize().with_context(|| {
        format!(
            "{} is missing; `cargo xtask setup` builds it",
            root.display()
        )
    })?;
    let (here, there) = (fs::metadata("/")?, fs::metadata(&root)?);
    ensure!(
        (here.dev(), here.ino()) != (there.dev(), there.ino()),
        "{} is this machine's own root",
        root.display()
    );
    ensure!(
        root.join("etc/mantled-lab").is_file(),
        "{} was not made by `cargo xtask setup`; nothing is booted from it",
        root.display()
    );
    Ok(root)
}

fn nspawn(lab: &Lab, groups: &Groups, root: &Path) -> Result<Command> {
    let root = check_root(root)?;
    let paths: Vec<_> = groups
        .paths
        .iter()
        .map(|path| path.to_string_lossy())
        .collect();
    let mut command = Command::new("sh");
    command
        .args(["-ec", ENTER, "sh", &paths.join(" ")])
        .args(["systemd-nspawn", "--quiet", "--volatile=overlay"])
        // No systemd of this machine's knows of it.
        .args(["--register=no", "--keep-unit", "--link-journal=no"])
        .args(["--console=pipe", "--resolv-conf=off", "--timezone=off"])
        .arg("--directory")
        .arg(root)
        .arg(format!("--machine={}", groups.name.replace('.', "-")))
        .arg(format!(
            "--network-namespace-path={}",
            lab.host.file().display()
        ))
        // Loading kernel programs needs both.
        .args(["--capability=all", "--system-call-filter=bpf"])
        .arg("--bind=/sys/fs/bpf")
        .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    Ok(command)
}

//! Processes of the benchmark: where they run, what they use, and that they end.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mantled_tests::{Namespace, eventually};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};

/// One CPU for the site (the server), one for the host (the client, and the proxy if there is one).
///
/// A proxy thus takes its time from the same CPU as the client that it serves, as an agent's own
/// TLS would; and a proxy with more threads than another gains nothing by it.
#[derive(Debug)]
pub(crate) struct Cpus {
    pub(crate) site: usize,
    pub(crate) host: usize,
}

impl Cpus {
    /// The first two that this process may use. If there is but one it is both.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut usable = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
        let site = usable.next().context("no CPU")?;
        Ok(Self {
            site,
            host: usable.next().unwrap_or(site),
        })
    }

    /// This process, and what it starts, is now on the host's.
    pub(crate) fn host(&self) -> Result<()> {
        pin(self.host)
    }

    /// Starts something on the site's.
    pub(crate) fn on_site<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        pin(self.site)?;
        let result = start();
        pin(self.host)?;
        result
    }
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// A server that runs until it is dropped, or until this process ends.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
}

impl Service {
    /// Starts it; what it prints goes to a file.
    pub(crate) fn start(
        namespace: &Namespace,
        program: impl AsRef<Path>,
        arguments: &[&str],
        log: &Path,
    ) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(log)?;
        let program = program.as_ref();
        let mut command: Command = namespace.command("setpriv");
        let child = command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child })
    }

    /// Its process id. (nsenter and setpriv become the program that they start.)
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let stopped = eventually("the service to stop", Duration::from_secs(5), || {
            self.child.try_wait().ok().flatten()
        });
        if stopped.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Memory of a process and its descendants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Resident, pages that are shared counted for each process. KiB.
    pub(crate) rss: f64,
    /// Resident, pages that are shared divided among those who share. KiB.
    pub(crate) pss: f64,
    /// Locked by maps and programs of the kernel (eBPF). KiB.
    pub(crate) bpf: f64,
}

/// CPU seconds, user and system, of a process and its living descendants.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let second = sysconf(SysconfVar::CLK_TCK)?.context("CLK_TCK")? as f64;
    tree(pid).into_iter().try_fold(0.0, |sum, pid| {
        let fields = stat(pid)?;
        let ticks = |index: usize| {
            fields
                .get(index)
                .and_then(|field| field.parse::<f64>().ok())
        };
        Ok(sum + (ticks(11).context("utime")? + ticks(12).context("stime")?) / second)
    })
}

/// What memory a process and its descendants have.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    tree(pid)
        .into_iter()
        .try_fold(Memory::default(), |sum, pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let mut bpf = 0.0;
            for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
                let info = fs::read_to_string(entry.path()).unwrap_or_default();
                bpf += kib(&info, "memlock:").unwrap_or_default() / 1024.0; // told in bytes
            }
            Ok(Memory {
                rss: sum.rss + kib(&status, "VmRSS:").context("VmRSS")?,
                pss: sum.pss + kib(&rollup, "Pss:").context("Pss")?,
                bpf: sum.bpf + bpf,
            })
        })
}

fn kib(text: &str, key: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

/// A process and its descendants.
fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid).ok()?.get(1)?.parse().ok()?)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| pid),
        );
        next += 1;
    }
    found
}

/// The fields of /proc/PID/stat that follow the name, which may contain anything.
fn stat(pid: u32) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

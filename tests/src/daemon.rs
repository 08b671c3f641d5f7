//! The daemon under test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Group, Lab, eventually, mantled, patience, succeed};

/// `mantled run` on the lab's host. When it is dropped it is stopped and everything of it is
/// detached.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    records: PathBuf,
    namespace: PathBuf,
}

impl Daemon {
    /// Starts it with this configuration (the lab's authority is `ca.pem` beside it) and the
    /// group enrolled in `mode`; waits until it is ready.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start(lab: &Lab, group: &Group, mode: &str, config: &str) -> Result<Self> {
        Self::start_with(
            lab,
            &format!(
                "{config}\n[[enroll]]\ncgroup = \"{}\"\nmode = \"{mode}\"\n",
                group.path().display()
            ),
        )
    }

    /// Starts it with exactly this configuration, and records in the lab's directory.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_with(lab: &Lab, config: &str) -> Result<Self> {
        Self::start_under(lab, &[], config)
    }

    /// The same, under a program that starts it in its own place (`setpriv` with arguments).
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_under(lab: &Lab, under: &[&str], config: &str) -> Result<Self> {
        let file = lab.path("mantled.toml");
        let mut text = String::new();
        if !config.contains("[tls]") {
            text += "[tls]\nroots = [\"ca.pem\"]\n";
        }
        if !config.contains("[dns]") {
            text += "[dns]\nresolvers = []\n";
        }
        text += "[record]\ndir = \"records\"\n";
        // Keys outside of tables come first.
        let (keys, tables) = config.split_at(config.find('[').unwrap_or(config.len()));
        let keys = format!("{keys}\nstate_dir = \"state\"\n");
        fs::write(&file, format!("{keys}\n{text}\n{tables}"))?;
        let log = lab.path("mantled.log");
        // Of an earlier daemon in this lab.
        for stale in [&log, &lab.path("records/sessions.jsonl")] {
            let _ = fs::remove_file(stale);
        }
        let mut daemon = Self {
            child: Self::spawn(&lab.host.file(), under, &file, &log)?,
            config: file,
            log,
            records: lab.path("records/sessions.jsonl"),
            namespace: lab.host.file(),
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn spawn(namespace: &Path, under: &[&str], config: &Path, log: &Path) -> Result<Child> {
        let log = File::options().create(true).append(true).open(log)?;
        Command::new("nsenter")
            .arg(format!("--net={}", namespace.display()))
            .args(under)
            .arg(mantled()?)
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting mantled")
    }

    fn wait_ready(&mut self) -> Result<()> {
        let before = self.log().matches(" ready").count();
        for _ in 0..500 * patience() {
            if self.log().matches(" ready").count() > before || self.log().ends_with(" ready\n") {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("mantled ended with {status}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("mantled did not get ready:\n{}", self.log())
    }

    /// Its process id. (nsenter becomes the program that it starts.)
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// It is gone.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
            .context("no VmRSS")
    }

    /// The records that are written.
    pub fn records(&self) -> Vec<Value> {
        fs::read_to_string(&self.records)
            .unwrap_or_default()
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of the session log is JSON"))
            .collect()
    }

    /// Waits until there are `count` records, and then for a moment that there are not more.
    ///
    /// # Errors
    /// There are fewer or more.
    pub fn settled_records(&self, count: usize) -> Result<Vec<Value>> {
        eventually(&format!("{count} records"), Duration::from_secs(20), || {
            (self.records().len() >= count).then_some(())
        })
        .with_context(|| {
            format!(
                "{} records: {:#?}\n{}",
                self.records().len(),
                self.records().last(),
                self.log()
            )
        })?;
        std::thread::sleep(Duration::from_millis(100));
        let records = self.records();
        if records.len() != count {
            bail!("{} records instead of {count}: {records:#?}", records.len());
        }
        Ok(records)
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// As kill(2).
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again with the configuration that it had.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn restart(&mut self) -> Result<()> {
        let before = self.log().matches(" ready").count();
        self.child = Self::spawn(&self.namespace, &[], &self.config, &self.log)?;
        eventually("ready again", Duration::from_secs(10), || {
            (self.log().matches(" ready").count() > before).then_some(())
        })
        .with_context(|| self.log())
    }

    /// Stops it as systemd would, and returns its exit code.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        let _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
        let status = eventually("the daemon to stop", Duration::from_secs(40), || {
            self.child.try_wait().ok().flatten()
        })?;
        Ok(status.code())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.stop().is_err() {
            let _ = self.kill();
        }
        if let Ok(mantled) = mantled() {
            let _ = succeed(Command::new(mantled).args(["detach", "--all"]));
        }
    }
}

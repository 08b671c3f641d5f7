//! A machine with the package installed and a legacy agent that runs as a unit.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Lab, Load, Machine, Package, SITE_V4, Server, eventually, netns::PINS, run};

const AGENT: &str = "/usr/local/bin/agent";
const CONFIGURATION: &str = "/etc/mantled/mantled.toml";
const SESSIONS: &str = "/var/lib/mantled/sessions";
const SOON: Duration = Duration::from_secs(15);

/// The legacy agent: tries both servers for ever, and says how it went. ("7000 served", or the
/// port and the error.)
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

/// The machine, and the servers on its site. What it writes is in memory and gone with it.
#[derive(Debug)]
pub struct Installed {
    /// What systemd has booted.
    pub machine: Machine,
    /// The package that is installed.
    pub package: Package,
    /// Echoes in TLS to who asks for it, and in clear to others.
    pub either: Server,
    /// Knows no TLS.
    pub plain: Server,
    /// Kernel programs that were there before.
    programs: Vec<u64>,
    /// Dropped last: the machine is on its wire.
    pub lab: Lab,
}

impl Installed {
    /// The port of [`Self::either`].
    pub const EITHER: u16 = 7000;
    /// The port of [`Self::plain`].
    pub const PLAIN: u16 = 7001;
    /// The unit that tries both servers again and again.
    pub const UNIT: &str = "shipper.service";
    /// The unit of [`Self::start_load`].
    pub const LOAD: &str = "load.service";
    /// What the units say, and must not be on the wire.
    pub const SECRET: &str = "the-shippers-secret-words";
    /// A configuration as an operator would write it, in which nothing is enrolled.
    pub const CONFIGURATION: &str = r#"
[tls]
roots = ["site.pem"]

[dns]
resolvers = []

[record]
dir = "/var/lib/mantled/sessions"
"#;

    /// Boots it, starts the agent's unit in clear, and installs the package, which touches
    /// nothing. `agent` is the binary of the tests' agent.
    ///
    /// # Errors
    /// Any of that fails.
    pub fn new(lab: Lab, agent: &str) -> Result<Self> {
        let package = Package::built()?;
        let leaf = lab.authority.leaf(&["10.99.0.2"])?;
        let either = Server::start_either(&lab.site, SITE_V4, Self::EITHER, &leaf)?;
        let plain = Server::start_plain_echo(&lab.site, SITE_V4, Self::PLAIN)?;
        let programs = Machine::programs()?;
        let machine = Machine::boot(&lab)?;
        machine.copy(Path::new(agent), AGENT)?;
        machine.write("/usr/local/bin/shipper", SHIPPER)?;
        machine.exec(&["chmod", "755", "/usr/local/bin/shipper"])?;
        machine.write(
            &format!("/etc/systemd/system/{}", Self::UNIT),
            &format!(
                "[Service]\nExecStart=/usr/local/bin/shipper {}\n",
                Self::SECRET
            ),
        )?;
        machine.exec(&["systemctl", "start", Self::UNIT])?;
        let installed = Self {
            machine,
            package,
            either,
            plain,
            programs,
            lab,
        };
        installed.says("7001 served")?;
        installed.install(&installed.package)?;
        Ok(installed)
    }

    /// The same with the agent's unit enrolled by name, in enforce mode: nothing of it leaves in
    /// clear from here on.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn enforced(lab: Lab, agent: &str) -> Result<Self> {
        let installed = Self::new(lab, agent)?;
        installed.configure(Self::CONFIGURATION)?;
        installed.enroll(Self::UNIT, &[])?;
        installed.says("7000 served")?;
        installed.says_refused()?;
        Ok(installed)
    }

    /// `dpkg --install`, and what it said.
    ///
    /// # Errors
    /// It fails.
    pub fn install(&self, package: &Package) -> Result<String> {
        let inside = format!("/root/{}", package.name());
        self.machine.copy(&package.path, &inside)?;
        self.dpkg(&["--install", &inside])
    }

    /// `dpkg`, and what it said.
    ///
    /// # Errors
    /// It fails.
    pub fn dpkg(&self, arguments: &[&str]) -> Result<String> {
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

    /// Writes the configuration, with the lab's authority beside it as `site.pem`, and restarts
    /// the daemon.
    ///
    /// # Errors
    /// It does not start.
    pub fn configure(&self, text: &str) -> Result<()> {
        let ca = self.lab.authority.pem();
        self.machine.write("/etc/mantled/site.pem", &ca)?;
        self.machine.write(CONFIGURATION, text)?;
        self.machine.exec(&["systemctl", "restart", "mantled"])?;
        Ok(())
    }

    /// `mantled enroll UNIT --mode enforce`, and what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn enroll(&self, unit: &str, options: &[&str]) -> Result<String> {
        self.machine
            .exec(&[&["mantled", "enroll", unit, "--mode", "enforce"], options].concat())
    }

    /// Starts a load as a unit of its own, [`Self::LOAD`], towards [`Self::either`], and enrols it
    /// in enforce mode. When this returns it is protected, and what it did before has ended.
    ///
    /// # Errors
    /// It does not work.
    pub fn start_load(&self, per_second: u32, options: &[&str]) -> Result<Load> {
        let mut unit = self.machine.command("systemd-run");
        unit.args(["--quiet", "--pipe", "--wait", "--collect"])
            .arg(format!("--unit={}", Self::LOAD))
            .arg(AGENT);
        let load = Load::start(unit, self.either.address, per_second, Self::SECRET)?;
        load.serves(1)?;
        self.enroll(Self::LOAD, options)?;
        load.serves(u64::from(per_second))?;
        Ok(load)
    }

    /// Waits until the agent says this; what it has said before does not count.
    ///
    /// # Errors
    /// It does not.
    pub fn says(&self, what: &str) -> Result<()> {
        let before = self.said()?.len();
        eventually(&format!("the agent to say {what:?}"), SOON, || {
            let said = self.said().ok()?;
            said.iter()
                .skip(before)
                .any(|line| line.starts_with(what))
                .then_some(())
        })
        .with_context(|| {
            let said = self.said().unwrap_or_default();
            let daemon = self.machine.journal("mantled").unwrap_or_default();
            let last = said.iter().rev().take(6).collect::<Vec<_>>();
            format!("the agent said last: {last:#?}\n{daemon}")
        })
    }

    /// Waits until it says that the server without TLS was refused to it, as enforce mode does.
    ///
    /// # Errors
    /// It does not.
    pub fn says_refused(&self) -> Result<()> {
        self.says("7001 echo: Connection reset")
    }

    fn said(&self) -> Result<Vec<String>> {
        let journal = self.machine.journal(Self::UNIT)?;
        Ok(journal.lines().map(str::to_owned).collect())
    }

    /// The records that are written, each a whole line.
    ///
    /// # Errors
    /// There is no file, or a line that is no record.
    pub fn records(&self) -> Result<Vec<Value>> {
        let text = self.machine.read(&format!("{SESSIONS}/sessions.jsonl"))?;
        // The last line may be on its way.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole]
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// Waits for a record that is like this, after the first `skip`.
    ///
    /// # Errors
    /// There is none.
    pub fn record(
        &self,
        what: &str,
        skip: usize,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        eventually(&format!("a record of {what}"), SOON, || {
            let records = self.records().ok()?;
            records.into_iter().skip(skip).find(|record| wanted(record))
        })
    }

    /// What `mantled status --json` tells.
    ///
    /// # Errors
    /// The daemon does not answer, or a group is not protected.
    pub fn status(&self) -> Result<Value> {
        let text = self.machine.exec(&["mantled", "status", "--json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The daemon's process, in the machine.
    ///
    /// # Errors
    /// As `systemctl show`.
    pub fn daemon(&self) -> Result<String> {
        self.machine.property("mantled", "MainPID")
    }

    /// Nothing of mantled's is in the kernel.
    ///
    /// # Errors
    /// Something is, and the error says what.
    pub fn assert_detached(&self) -> Result<()> {
        ensure!(!self.machine.path(PINS).exists(), "pins are left");
        let attached = self.machine.attached()?;
        ensure!(attached.is_empty(), "still attached: {attached:?}");
        // The kernel frees a program a moment after the last that holds it.
        eventually("no programs of mantled's", SOON, || {
            let mut left = Machine::programs().ok()?;
            left.retain(|id| !self.programs.contains(id));
            left.is_empty().then_some(())
        })
    }
}

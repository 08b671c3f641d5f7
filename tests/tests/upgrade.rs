//! A new process takes over from the daemon, and nobody who connects notices.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Container, Daemon, Group, Held, SITE_V4, Server, eventually, lab, mantled, run, succeed, wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

fn status() -> Result<Value> {
    let printed = succeed(Command::new(mantled()?).args(["status", "--json"]))?;
    Ok(serde_json::from_str(&printed)?)
}

fn pid(status: &Value) -> Result<u32> {
    status["pid"]
        .as_u64()
        .and_then(|pid| pid.try_into().ok())
        .context("no pid")
}

fn is_alive(pid: u32) -> bool {
    // A zombie of this process is gone as well.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Ends a daemon that is nobody's child any more.
struct Successor(u32);

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0 as i32), Signal::SIGTERM);
        let gone = eventually("the successor to end", Duration::from_secs(20), || {
            (!is_alive(self.0)).then_some(())
        });
        if gone.is_err() {
            let _ = kill(Pid::from_raw(self.0 as i32), Signal::SIGKILL);
        }
    }
}

#[test]
fn connections_go_on_and_none_is_refused() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    // The hammers take longer.
    let daemon = Daemon::start(&lab, &group, "enforce", "[limits]\ndrain = \"1s\"\n")?;
    let held = Held::open(&lab, &group, AGENT, tls.address, 3)?;
    let before = pid(&status()?)?;
    assert_eq!(before, daemon.pid());

    // Two agents connect without a pause while three daemons follow each other.
    let hammers: Vec<_> = (0..2)
        .map(|_| {
            group
                .command(&lab.host, AGENT)
                .args(["hammer", &tls.address.to_string(), "800"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        })
        .collect::<Result<_, _>>()?;
    let mut successors = Vec::new();
    for _ in 0..2 {
        let told = succeed(Command::new(mantled()?).arg("upgrade"))?;
        assert!(told.contains("go on to their end"), "{told}");
        successors.push(Successor(pid(&status()?)?));
    }
    let running: Vec<u32> = successors.iter().map(|successor| successor.0).collect();
    assert!(!running.contains(&before));
    for hammer in hammers {
        let output = wait(hammer, Duration::from_secs(60))?;
        ensure!(
            output.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            daemon.log()
        );
    }
    // Of the first, which two upgrades have left alone.
    assert!(is_alive(before) && is_alive(running[0]));
    held.finish()?;
    let last = successors.pop().context("no successor")?;
    eventually("the first two to end", Duration::from_secs(20), || {
        (!is_alive(running[0]) && !is_alive(before)).then_some(())
    })?;

    let found = status()?;
    assert_eq!(found["groups"][0]["detached"], serde_json::json!([]));
    assert_eq!(found["groups"][0]["mode"], "enforce");
    let refused = run(
        group
            .command(&lab.host, AGENT)
            .args(["echo", &plain.address.to_string(), "in clear"]),
        Duration::from_secs(10),
    )?;
    assert!(!refused.status.success(), "the successor enforces");
    let records = daemon.settled_records(3 + 2 * 800 + 1)?;
    let verified = records
        .iter()
        .filter(|record| record["mantled.path"] == "verified");
    assert_eq!(verified.count(), 1603);
    assert!(
        !records
            .iter()
            .any(|record| record["mantled.verdict"] == "aborted")
    );
    drop(last);
    Ok(())
}

#[test]
fn a_container_is_served_by_the_successor_as_well() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let mut container = Container::start(&group, &lab.site, 1)?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let held = Held::by(container.command(&group, AGENT), tls.address, 1)?;
    let cut = Held::by(container.command(&group, AGENT), tls.address, 1)?;
    let hammer = container
        .command(&group, AGENT)
        .args(["hammer", &tls.address.to_string(), "200"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    succeed(Command::new(mantled()?).arg("upgrade"))?;
    let successor = Successor(pid(&status()?)?);
    let output = wait(hammer, Duration::from_secs(60))?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        daemon.log()
    );
    // The old process still carries what it had, and both let the namespace go.
    held.finish()?;
    assert!(is_alive(daemon.pid()), "it has a session");
    container.end()?;
    eventually("the end of the namespace", Duration::from_secs(3), || {
        (!container.has_namespace()).then_some(())
    })
    .with_context(|| daemon.log())?;
    eventually("the old process to end", Duration::from_secs(10), || {
        (!is_alive(daemon.pid())).then_some(())
    })?;
    drop(cut);
    let records = daemon.settled_records(202)?;
    let verified = records
        .iter()
        .filter(|record| record["mantled.path"] == "verified");
    assert_eq!(verified.count(), 202);
    drop(successor);
    Ok(())
}

#[test]
fn open_sessions_end_when_they_end_and_what_they_may_is_judged_on() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let name = group.path().file_name().unwrap_or_default();
    let name = format!("/{}", name.to_string_lossy());
    let daemon = Daemon::start_with(&lab, "")?;
    succeed(Command::new(mantled()?).args(["enroll", &name, "--mode", "observe"]))?;
    let verified = Held::open(&lab, &group, AGENT, tls.address, 1)?;
    let exposed = Held::open(&lab, &group, AGENT, plain.address, 1)?;
    let before = daemon.pid();
    succeed(Command::new(mantled()?).arg("upgrade"))?;
    let successor = Successor(pid(&status()?)?);
    assert!(is_alive(before), "it has sessions");
    assert_eq!(status()?["groups"][0]["mode"], "observe");

    // The old process is not told; it finds out.
    succeed(Command::new(mantled()?).args(["enroll", &name, "--mode", "enforce"]))?;
    eventually(
        "the session in clear to end",
        Duration::from_secs(10),
        || {
            daemon
                .records()
                .into_iter()
                .find(|record| record["error.type"] == "mode_changed")
        },
    )?;
    assert!(exposed.finish().is_err());
    verified.finish()?;
    eventually("the old process to end", Duration::from_secs(10), || {
        (!is_alive(before)).then_some(())
    })?;
    daemon.settled_records(2)?;
    drop(successor);
    Ok(())
}

#[test]
fn a_killed_predecessors_sessions_are_recorded_by_its_successor() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let held = Held::open(&lab, &group, AGENT, tls.address, 2)?;
    succeed(Command::new(mantled()?).arg("upgrade"))?;
    let successor = Successor(pid(&status()?)?);
    let other = Held::open(&lab, &group, AGENT, tls.address, 1)?;
    assert!(daemon.records().is_empty());
    daemon.kill()?;
    let records = daemon.settled_records(2)?;
    for record in records {
        assert_eq!(record["mantled.verdict"], "aborted", "{record:#}");
    }
    assert!(held.finish().is_err());
    other.finish()?;
    daemon.settled_records(3)?;
    drop(successor);
    Ok(())
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let held = Held::open(&lab, &group, AGENT, tls.address, 1)?;
    let file = lab.path("mantled.toml");
    let right = fs::read_to_string(&file)?;
    fs::write(&file, format!("{right}\n[[route]]\nport = 70000\n"))?;
    let output = run(
        Command::new(mantled()?).arg("upgrade"),
        Duration::from_secs(30),
    )?;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("nothing has changed"), "{error}");
    assert_eq!(pid(&status()?)?, daemon.pid());
    fs::write(&file, &right)?;

    // One that fails when it has got everything: the old one takes it back.
    fs::write(lab.path("occupied"), "somebody's data")?;
    fs::write(&file, format!("{right}\n[admin]\nsocket = \"occupied\"\n"))?;
    let output = run(
        Command::new(mantled()?).arg("upgrade"),
        Duration::from_secs(30),
    )?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("is not a socket"), "{error}");
    assert!(error.contains("goes on"), "{error}");
    fs::write(&file, right)?;
    let found = status()?;
    assert_eq!(pid(&found)?, daemon.pid());
    assert_eq!(found["groups"][0]["detached"], serde_json::json!([]));
    held.finish()?;
    Held::open(&lab, &group, AGENT, tls.address, 1)?.finish()?;

    // And the next one can.
    succeed(Command::new(mantled()?).arg("upgrade"))?;
    let successor = Successor(pid(&status()?)?);
    Held::open(&lab, &group, AGENT, tls.address, 1)?.finish()?;
    eventually("the old process to end", Duration::from_secs(10), || {
        (!is_alive(daemon.pid())).then_some(())
    })?;
    daemon.settled_records(3)?;
    drop(successor);
    Ok(())
}

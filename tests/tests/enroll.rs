//! Groups that are enrolled, watched and withdrawn while the daemon runs.

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Daemon, Group, Held, Lab, SITE_V4, Server, eventually, lab, mantled, run, succeed,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

fn agent(lab: &Lab, group: &Group, server: &Server) -> Result<bool> {
    let address = server.address.to_string();
    let mut command = group.command(&lab.host, AGENT);
    command.args(["echo", &address, "some words"]);
    Ok(run(&mut command, Duration::from_secs(10))?.status.success())
}

fn ask(arguments: &[&str]) -> Result<Output> {
    run(
        Command::new(mantled()?).args(arguments),
        Duration::from_secs(20),
    )
}

/// Asks for what must be done, and returns what was printed.
fn told(arguments: &[&str]) -> Result<String> {
    succeed(Command::new(mantled()?).args(arguments))
}

/// Asks for what must be refused, and returns the reason.
fn refused(arguments: &[&str]) -> Result<String> {
    let output = ask(arguments)?;
    ensure!(!output.status.success(), "{arguments:?} was done");
    let said = String::from_utf8(output.stderr)?;
    ensure!(said.lines().count() == 1, "one line, not {said}");
    Ok(said)
}

fn status() -> Result<Value> {
    Ok(serde_json::from_str(&told(&["status", "--json"])?)?)
}

/// As it is named on the command line: the path below the hierarchy's root.
fn name(group: &Group) -> String {
    let name = group.path().file_name().unwrap_or_default();
    format!("/{}", name.to_string_lossy())
}

#[test]
fn a_group_is_enrolled_watched_and_withdrawn() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let group_name = name(&group);
    let daemon = Daemon::start_with(&lab, "")?;
    assert!(told(&["status"])?.contains("no group is enrolled"));
    assert!(agent(&lab, &group, &plain)?, "not enrolled, not touched");

    let printed = told(&["enroll", &group_name, "--mode", "observe"])?;
    assert!(printed.contains("is enrolled in observe mode"), "{printed}");
    assert!(agent(&lab, &group, &plain)?, "observe lets clear text out");
    assert!(agent(&lab, &group, &tls)?);

    // Enforcing ends what is open in clear.
    let held = Held::open(&lab, &group, AGENT, plain.address, 1)?;
    let printed = told(&["enroll", &group_name, "--mode", "enforce"])?;
    assert!(printed.contains("is enrolled in enforce mode"), "{printed}");
    assert!(!agent(&lab, &group, &plain)?, "enforce refuses clear text");
    assert!(agent(&lab, &group, &tls)?);
    let records = daemon.settled_records(5)?;
    let cut = records
        .iter()
        .find(|record| record["error.type"] == "mode_changed")
        .ok_or_else(|| anyhow::anyhow!("the session in clear goes on: {records:#?}"))?;
    assert_eq!(cut["mantled.path"], "exposed");
    assert!(held.finish().is_err());
    let mut datagram = group.command(&lab.host, AGENT);
    datagram.args(["datagram", "10.99.0.2:9", "x"]);
    assert!(
        !run(&mut datagram, Duration::from_secs(10))?
            .status
            .success()
    );

    daemon.settled_records(5)?;
    let found = eventually("the attempt to be counted", Duration::from_secs(5), || {
        status()
            .ok()
            .filter(|status| status["groups"][0]["bypass_attempts"] == 1)
    })?;
    let found = &found["groups"][0];
    assert_eq!(found["target"], group_name.as_str());
    assert_eq!(found["origin"], "command");
    assert_eq!(found["mode"], "enforce");
    assert_eq!(found["detached"], serde_json::json!([]));
    assert_eq!(found["cgroup"], group.path().to_string_lossy().as_ref());
    for (count, expected) in [
        ("sessions", 5),
        ("upgraded", 2),
        ("exposed", 1),
        ("refused", 1),
        ("failed", 1),
    ] {
        assert_eq!(found[count], expected, "{count}: {found:#}");
    }
    assert!(told(&["status"])?.contains("attached"));

    let printed = told(&["withdraw", &group_name])?;
    assert!(printed.contains("is not enrolled any more"), "{printed}");
    assert!(agent(&lab, &group, &plain)?, "withdrawn, not touched");
    assert!(refused(&["withdraw", &group_name])?.contains("is not enrolled"));
    daemon.settled_records(5)?;
    Ok(())
}

#[test]
fn what_was_enrolled_by_command_outlives_the_daemon() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let (group, other) = (Group::new()?, Group::new()?);
    let mut daemon = Daemon::start_with(&lab, "")?;
    told(&["enroll", &name(&group), "--mode", "enforce"])?;
    // By a process of it, for which `sleep` stands.
    let mut sleeper = other.command(&lab.host, "sleep").arg("60").spawn()?;
    eventually("the process to join", Duration::from_secs(5), || {
        let members = fs::read_to_string(other.path().join("cgroup.procs")).ok()?;
        (!members.is_empty()).then_some(())
    })?;
    told(&[
        "enroll",
        "--pid",
        &sleeper.id().to_string(),
        "--mode",
        "enforce",
    ])?;
    told(&["withdraw", &name(&other)])?;
    sleeper.kill()?;
    sleeper.wait()?;

    daemon.kill()?;
    assert!(!agent(&lab, &group, &plain)?, "closed without a daemon");
    let said = refused(&["status"])?;
    assert!(said.contains("no daemon answers"), "{said}");
    daemon.restart()?;
    let found = status()?;
    assert_eq!(
        found["groups"].as_array().map(Vec::len),
        Some(1),
        "{found:#}"
    );
    assert_eq!(found["groups"][0]["target"], name(&group).as_str());
    assert!(!agent(&lab, &group, &plain)?);
    assert!(agent(&lab, &other, &plain)?);

    // What is kept must not be read as nothing.
    daemon.stop()?;
    fs::write(lab.path("state/enrollments.json"), "{")?;
    let mut start = lab.host.command(mantled()?);
    start
        .args(["run", "--config"])
        .arg(lab.path("mantled.toml"));
    let output = run(&mut start, Duration::from_secs(10))?;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("enrollments.json cannot be read"), "{said}");
    assert!(!agent(&lab, &group, &plain)?, "and it stays closed");
    Ok(())
}

#[test]
fn a_unit_that_does_not_run_is_enrolled_when_it_starts() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let unit = format!("mantled-test-{}-late.service", std::process::id());
    let daemon = Daemon::start_with(&lab, "")?;
    let printed = told(&["enroll", &unit, "--mode", "enforce"])?;
    assert!(printed.contains("does not run"), "{printed}");
    for round in 1..=2 {
        assert!(told(&["status"])?.contains("not there"));
        let group = Group::named(&unit)?;
        eventually("enrolment", Duration::from_secs(5), || {
            told(&["status"]).ok()?.contains("attached").then_some(())
        })?;
        assert!(agent(&lab, &group, &tls)?);
        let records = daemon.settled_records(round)?;
        assert_eq!(records[round - 1]["mantled.path"], "verified");
        // The counts are the unit's, whatever its cgroup.
        assert_eq!(status()?["groups"][0]["upgraded"], round);
        drop(group);
        eventually("its end", Duration::from_secs(5), || {
            told(&["status"]).ok()?.contains("not there").then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn a_group_below_is_enforced_with_the_sessions_that_it_has() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let outer = Group::new()?;
    let inner = Group::named(&format!("{}/inner", name(&outer).trim_start_matches('/')))?;
    let daemon = Daemon::start(&lab, &outer, "observe", "")?;
    let held = Held::open(&lab, &inner, AGENT, plain.address, 1)?;
    told(&[
        "enroll",
        &format!("{}/inner", name(&outer)),
        "--mode",
        "enforce",
    ])?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["error.type"], "mode_changed", "{records:#?}");
    assert!(held.finish().is_err());
    assert!(!agent(&lab, &inner, &plain)?);
    assert!(agent(&lab, &outer, &plain)?, "the group above is observed");
    Ok(())
}

#[test]
fn a_cgroup_of_the_same_name_takes_no_unit_out_of_its_enrolment() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let unit = format!("mantled-test-{}-unit.service", std::process::id());
    let group = Group::named(&unit)?;
    let mut daemon = Daemon::start_with(
        &lab,
        &format!("[[enroll]]\nunit = \"{unit}\"\nmode = \"enforce\"\n"),
    )?;
    assert!(!agent(&lab, &group, &plain)?);
    // A service that may make cgroups below its own chooses their names.
    let other = Group::new()?;
    let other_name = name(&other).trim_start_matches('/').to_owned();
    let _impostor = Group::named(&format!("{other_name}/{unit}"))?;
    std::thread::sleep(Duration::from_millis(500));
    assert!(!daemon.log().contains("has the same name"));
    // A slice that somebody else may make units in: now it cannot be told which is meant.
    let slice = Group::named(&format!("mantled-test-{}-s.slice", std::process::id()))?;
    let slice_name = name(&slice).trim_start_matches('/').to_owned();
    let twin = Group::named(&format!("{slice_name}/{unit}"))?;
    eventually("the daemon to notice", Duration::from_secs(5), || {
        daemon.log().contains("has the same name").then_some(())
    })?;
    assert!(!agent(&lab, &group, &plain)?, "what is enrolled stays so");
    daemon.kill()?;
    let mut start = lab.host.command(mantled()?);
    start
        .args(["run", "--config"])
        .arg(lab.path("mantled.toml"));
    let output = run(&mut start, Duration::from_secs(10))?;
    assert_eq!(output.status.code(), Some(2), "nothing is guessed at start");
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("has the same name"), "{said}");
    assert!(!agent(&lab, &group, &plain)?, "and it stays closed");
    drop(twin);
    daemon.restart()?;
    assert!(!agent(&lab, &group, &plain)?);
    Ok(())
}

#[test]
fn the_configuration_decides_also_by_another_name() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let unit = format!("mantled-test-{}-unit.service", std::process::id());
    fs::create_dir_all(lab.path("state"))?;
    fs::write(
        lab.path("state/enrollments.json"),
        format!(
            r#"{{"version": 1, "enrollments": [{{"target": "{unit}", "mode": "observe",
            "inbound": "allow", "on_daemon_down": "open"}}]}}"#
        ),
    )?;
    // The other is a resolver, which would be listened to and left alone.
    for (name, told) in [(unit.as_str(), true), ("nscd.service", false)] {
        let group = Group::named(name)?;
        let daemon = Daemon::start(&lab, &group, "enforce", "")?;
        // Twice as long as the daemon takes to look for units.
        std::thread::sleep(Duration::from_millis(500));
        assert!(!agent(&lab, &group, &plain)?, "{name}: {}", daemon.log());
        let log = daemon.log();
        assert_eq!(log.contains("is enrolled already"), told, "{log}");
    }
    Ok(())
}

#[test]
fn a_file_in_place_of_the_socket_is_left_alone() -> Result<()> {
    let lab = lab!();
    fs::write(lab.path("precious"), "data")?;
    let config = lab.path("mantled.toml");
    fs::write(
        &config,
        "state_dir = \"state\"\n[dns]\nresolvers = []\n[admin]\nsocket = \"precious\"\n",
    )?;
    let mut start = lab.host.command(mantled()?);
    start.args(["run", "--config"]).arg(&config);
    let output = run(&mut start, Duration::from_secs(10))?;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("not a socket"), "{said}");
    assert_eq!(fs::read_to_string(lab.path("precious"))?, "data");
    Ok(())
}

#[test]
fn what_the_kernel_does_not_run_is_told() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let _daemon = Daemon::start(&lab, &group, "enforce", "")?;
    assert!(told(&["status"])?.contains("attached"));
    // Somebody else detaches under the daemon.
    let pin = fs::read_dir("/sys/fs/bpf/mantled/v1/groups")?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with("-egress"));
    let pin = pin.ok_or_else(|| anyhow::anyhow!("no pin of egress"))?;
    succeed(
        Command::new("bpftool")
            .args(["link", "detach", "pinned"])
            .arg(pin),
    )?;
    let output = ask(&["status"])?;
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stdout)?;
    assert!(
        printed.contains("DETACHED: the kernel does not run egress"),
        "{printed}"
    );
    Ok(())
}

#[test]
fn who_may_not_is_told_so_and_mistakes_change_nothing() -> Result<()> {
    let lab = lab!();
    let (group, configured) = (Group::new()?, Group::new()?);
    let daemon = Daemon::start(&lab, &configured, "observe", "")?;
    told(&["enroll", &name(&group), "--mode", "enforce"])?;

    // Root inside of an enrolled group is an agent like any other.
    for enrolled in [&group, &configured] {
        let mut inside = enrolled.command(&lab.host, mantled()?);
        inside.args(["withdraw", &name(&group)]);
        let output = run(&mut inside, Duration::from_secs(10))?;
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr)?;
        assert!(said.contains("ask from outside of it"), "{said}");
    }
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid=nobody", "--clear-groups", "--"]);
    stranger.arg(mantled()?).arg("status");
    let output = run(&mut stranger, Duration::from_secs(10))?;
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("is for root"), "{said}");

    for (arguments, reason) in [
        (["enroll", "/", "--mode", "enforce"], "is the whole host"),
        (
            ["enroll", "shipper", "--mode", "enforce"],
            "did you mean `shipper.service`",
        ),
        (
            ["enroll", "/no/such", "--mode", "enforce"],
            "does not exist",
        ),
        (
            ["enroll", "--pid=1000000000", "--mode", "enforce"],
            "process 1000000000",
        ),
    ] {
        let said = refused(&arguments)?;
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    let said = refused(&["enroll", &name(&configured), "--mode", "enforce"])?;
    assert!(said.contains("by the configuration file"), "{said}");
    let said = refused(&["withdraw", &name(&configured)])?;
    assert!(said.contains("by the configuration file"), "{said}");
    // The same cgroup by another name.
    let unit = name(&group).trim_start_matches('/').to_owned();
    let said = refused(&["enroll", &unit, "--mode", "observe"])?;
    assert!(said.contains("enrolled already"), "{said}");
    let daemons_own = daemon.pid().to_string();
    let said = refused(&["enroll", "--pid", &daemons_own, "--mode", "enforce"])?;
    assert!(said.contains("mantled"), "{said}");

    let found = status()?;
    let groups = found["groups"].as_array().map(Vec::len);
    assert_eq!(groups, Some(2), "{found:#}");
    assert_eq!(found["groups"][0]["mode"], "observe");
    assert_eq!(found["groups"][1]["mode"], "enforce");
    Ok(())
}

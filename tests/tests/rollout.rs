//! Rolling out with care: for a time, for a share of the connections, with the connections that were
//! there; and what stands in the way of an enrolment.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Daemon, Group, Lab, SITE_V4, Server, eventually, lab, mantled, pinned, run, succeed, wait,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

fn agent(lab: &Lab, group: &Group, server: &Server) -> Result<bool> {
    let address = server.address.to_string();
    let mut command = group.command(&lab.host, AGENT);
    command.args(["echo", &address, "some words"]);
    Ok(run(&mut command, Duration::from_secs(10))?.status.success())
}

/// An agent with `count` connections that have carried something, until its input ends.
fn hold(lab: &Lab, group: &Group, server: &Server, count: usize) -> Result<Child> {
    let mut held = group
        .command(&lab.host, AGENT)
        .args(["many", &server.address.to_string(), &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut opened = String::new();
    let output = held.stdout.as_mut().context("no pipe")?;
    BufReader::new(output).read_line(&mut opened)?;
    ensure!(opened == "open\n", "{opened}");
    Ok(held)
}

/// Lets it use its connections again; whether they are what they were.
fn goes_on(mut held: Child) -> Result<bool> {
    drop(held.stdin.take());
    Ok(wait(held, Duration::from_secs(10))?.status.success())
}

fn ask(arguments: &[&str]) -> Result<Output> {
    run(
        Command::new(mantled()?).args(arguments),
        Duration::from_secs(20),
    )
}

fn told(arguments: &[&str]) -> Result<String> {
    succeed(Command::new(mantled()?).args(arguments))
}

fn told_json(arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&told(arguments)?)?)
}

/// Asks for what must be refused, and returns the reason.
fn refused(arguments: &[&str]) -> Result<String> {
    let output = ask(arguments)?;
    ensure!(!output.status.success(), "{arguments:?} was done");
    let said = String::from_utf8(output.stderr)?;
    ensure!(said.lines().count() == 1, "one line, not {said}");
    Ok(said)
}

/// How the only enrolled group goes; null where there is none.
fn status() -> Result<Value> {
    let status = told_json(&["status", "--json"])?;
    let groups = status["groups"].as_array().context("no groups")?;
    ensure!(groups.len() <= 1, "{status:#}");
    Ok(groups.first().cloned().unwrap_or_default())
}

fn name(group: &Group) -> String {
    let name = group.path().file_name().unwrap_or_default();
    format!("/{}", name.to_string_lossy())
}

#[test]
fn what_is_not_confirmed_in_time_is_what_it_was_before() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let group_name = name(&group);
    let daemon = Daemon::start_with(&lab, "")?;

    // It was not enrolled.
    let printed = told(&["enroll", &group_name, "--mode", "enforce", "--for", "3s"])?;
    assert!(
        printed.contains("in 3s it is as it was before"),
        "{printed}"
    );
    let begun = Instant::now();
    assert!(!agent(&lab, &group, &plain)?);
    let printed = told(&["status"])?;
    assert!(
        printed.contains("it is withdrawn, unless you confirm it"),
        "{printed}"
    );
    eventually("its end", Duration::from_secs(10), || {
        status().is_ok_and(|group| group.is_null()).then_some(())
    })?;
    assert!(begun.elapsed() > Duration::from_millis(2800));
    assert!(agent(&lab, &group, &plain)?, "not enrolled, not touched");

    // It was in another mode; and a change on top of a change.
    told(&["enroll", &group_name, "--mode", "observe"])?;
    let said = refused(&["enroll", &group_name, "--confirm"])?;
    assert!(said.contains("waits for no confirmation"), "{said}");
    told(&["enroll", &group_name, "--mode", "enforce", "--for", "1h"])?;
    told(&[
        "enroll",
        &group_name,
        "--mode",
        "enforce",
        "--inbound",
        "allow",
        "--for",
        "3s",
    ])?;
    assert_eq!(status()?["reverts_to"], "enforce");
    eventually("the change below", Duration::from_secs(10), || {
        (status().ok()?["inbound"] == "refuse").then_some(())
    })?;
    let found = status()?;
    assert_eq!(
        (&found["mode"], &found["reverts_to"]),
        (&"enforce".into(), &"observe".into()),
        "{found:#}"
    );
    let left = found["reverts_in_s"].as_u64().context("no time left")?;
    assert!((3500..3600).contains(&left), "{left}");
    told(&["enroll", &group_name, "--mode", "enforce", "--for", "3s"])?;
    eventually("the change below", Duration::from_secs(10), || {
        status().ok()?["reverts_in_s"]
            .as_u64()
            .is_some_and(|left| left > 100)
            .then_some(())
    })?;

    // In time.
    told(&["enroll", &group_name, "--mode", "enforce", "--for", "3s"])?;
    let printed = told(&["enroll", &group_name, "--confirm"])?;
    assert!(printed.contains("stays as it is enrolled"), "{printed}");
    std::thread::sleep(Duration::from_millis(3500));
    let found = status()?;
    assert_eq!(found["mode"], "enforce");
    assert!(found["reverts_in_s"].is_null(), "{found:#}");

    // Back to observe mode, with what that lets out.
    told(&["enroll", &group_name, "--mode", "observe"])?;
    told(&["enroll", &group_name, "--mode", "enforce", "--for", "3s"])?;
    assert!(!agent(&lab, &group, &plain)?);
    eventually("observe mode", Duration::from_secs(10), || {
        (status().ok()?["mode"] == "observe").then_some(())
    })?;
    assert!(agent(&lab, &group, &plain)?);
    assert!(
        daemon.log().contains("not confirmed in time"),
        "{}",
        daemon.log()
    );
    Ok(())
}

#[test]
fn a_daemon_that_starts_after_the_deadline_reverts_before_it_serves() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let (fresh, changed) = (Group::new()?, Group::new()?);
    let mut daemon = Daemon::start_with(&lab, "")?;
    told(&["enroll", &name(&changed), "--mode", "observe"])?;
    for group in [&fresh, &changed] {
        told(&["enroll", &name(group), "--mode", "enforce", "--for", "3s"])?;
    }
    daemon.kill()?;
    std::thread::sleep(Duration::from_secs(4));
    // Nobody is there who could do it: the group stays as `on_daemon_down` says.
    assert!(!agent(&lab, &fresh, &plain)?);
    daemon.restart()?;
    let log = daemon.log();
    let started = log.rfind(" ready").context("not ready")?;
    let told_at = log.find("was not confirmed in time");
    assert!(told_at.is_some_and(|at| at < started), "{log}");
    let found = status()?;
    assert_eq!(found["target"], name(&changed).as_str());
    assert_eq!(found["mode"], "observe");
    assert!(agent(&lab, &fresh, &plain)?, "not enrolled, not touched");
    assert!(agent(&lab, &changed, &plain)?, "observed again");
    daemon.settled_records(1)?;

    // One whose time has not come keeps it, by the wall clock.
    told(&[
        "enroll",
        &name(&changed),
        "--mode",
        "enforce",
        "--for",
        "10m",
    ])?;
    daemon.kill()?;
    daemon.restart()?;
    let found = status()?;
    assert_eq!(found["mode"], "enforce");
    let left = found["reverts_in_s"].as_u64().context("no time left")?;
    assert!((580..600).contains(&left), "{left}");
    Ok(())
}

#[test]
fn what_cannot_be_kept_is_not_begun() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let group_name = name(&group);
    let _daemon = Daemon::start_with(&lab, "")?;
    told(&["enroll", &group_name, "--mode", "observe", "--for", "1h"])?;
    // In the way of the file that is written beside the old one; root can write everywhere.
    let beside = lab.path("state/enrollments.json.new");
    fs::create_dir(&beside)?;
    let before = fs::read_to_string(lab.path("state/enrollments.json"))?;
    for arguments in [
        &["enroll", &group_name, "--mode", "enforce", "--for", "1m"][..],
        &["enroll", &group_name, "--mode", "enforce"],
        &["enroll", &group_name, "--confirm"],
    ] {
        let said = refused(arguments)?;
        assert!(said.contains("nothing was changed"), "{said}");
        let found = status()?;
        assert_eq!(found["mode"], "observe");
        assert!(found["reverts_in_s"].as_u64() > Some(3500), "{found:#}");
        assert!(agent(&lab, &group, &plain)?);
    }
    assert_eq!(
        before,
        fs::read_to_string(lab.path("state/enrollments.json"))?
    );
    fs::remove_dir(&beside)?;
    told(&["enroll", &group_name, "--confirm"])?;
    assert!(status()?["reverts_in_s"].is_null());
    Ok(())
}

/// Of so many connections, the share of a canary of 10% is this many: five standard deviations
/// (sqrt(n p q) = 9.5), which it misses once in two million runs.
const CONNECTS: u64 = 1000;
const TENTH: std::ops::RangeInclusive<u64> = 53..=147;

#[test]
fn a_canary_carries_its_share_and_the_others_go_as_before() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let group_name = name(&group);
    let address = plain.address.to_string();
    let mut daemon = Daemon::start_with(&lab, "")?;
    let said = refused(&[
        "enroll",
        &group_name,
        "--mode",
        "enforce",
        "--canary",
        "10%",
    ])?;
    assert!(said.contains("--canary is for observe mode"), "{said}");
    let output = ask(&["enroll", &group_name, "--mode", "observe", "--canary", "10"])?;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("write a share"), "{said}");

    let said = told_json(&[
        "enroll",
        &group_name,
        "--mode",
        "observe",
        "--canary",
        "10%",
        "--json",
    ])?;
    assert_eq!(said["canary"], "10%");
    // Each is whole: a byte goes and comes back on every one.
    let hammer = |count: u64| {
        let mut hammer = group.command(&lab.host, AGENT);
        hammer.args(["hammer", &address, &count.to_string()]);
        run(&mut hammer, Duration::from_secs(60))
    };
    assert!(hammer(CONNECTS)?.status.success());
    let left_out = status()?["left_out"].as_u64().context("no count")?;
    let carried = CONNECTS - left_out;
    assert!(TENTH.contains(&carried), "{carried} of {CONNECTS}");
    daemon.settled_records(carried as usize)?;
    let printed = told(&["status"])?;
    assert!(
        printed.contains(&format!(
            "10% of its connections go through mantled; {left_out} went past"
        )),
        "{printed}"
    );

    // What was left out goes on when its group is changed, and is told.
    let held = hold(&lab, &group, &plain, 50)?;
    let before = status()?["left_out"].as_u64().context("no count")?;
    let staying = before - left_out;
    assert!((30..=50).contains(&staying), "{staying} of 50");
    let said = told_json(&["enroll", &group_name, "--mode", "observe", "--json"])?;
    assert_eq!(said["canary"], "100%");
    assert_eq!(said["staying"], staying, "{said:#}");
    assert_eq!(said["staying_with"][0], address.as_str());
    assert!(goes_on(held)?);

    // All of them, from now on.
    let known = daemon.settled_records((carried + 50 - staying) as usize)?;
    assert!(hammer(100)?.status.success());
    assert_eq!(status()?["left_out"], before);
    let records = daemon.settled_records(known.len() + 100)?;
    assert!(
        records
            .iter()
            .all(|record| record["mantled.path"] == "exposed")
    );

    // Kept, like the counts.
    told(&[
        "enroll",
        &group_name,
        "--mode",
        "observe",
        "--canary",
        "0.01%",
    ])?;
    daemon.kill()?;
    daemon.restart()?;
    let found = status()?;
    assert_eq!(found["canary"], "0.01%");
    assert_eq!(found["left_out"], before);
    daemon.stop()?;
    let log = daemon.log();
    assert!(log.contains("left_out="), "the totals tell: {log}");
    Ok(())
}

#[test]
fn connections_from_before_are_ended_where_that_is_asked() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let other = Server::start_plain_echo(&lab.site, SITE_V4, 7002)?;
    let local = Server::start_plain_echo(&lab.host, "127.0.0.1".parse()?, 7003)?;
    let group = Group::new()?;
    let group_name = name(&group);
    let daemon = Daemon::start_with(&lab, "")?;
    let (one, two) = (
        hold(&lab, &group, &plain, 3)?,
        hold(&lab, &group, &other, 2)?,
    );
    let on_this_host = hold(&lab, &group, &local, 1)?;

    let printed = told(&["enroll", &group_name, "--mode", "observe"])?;
    assert!(
        printed.contains("5 connections from before stay as they are"),
        "{printed}"
    );
    assert!(
        printed.contains("10.99.0.2:7001, 10.99.0.2:7002"),
        "{printed}"
    );
    assert!(goes_on(two)?, "untouched");

    let through = hold(&lab, &group, &other, 1)?;
    let printed = told(&["enroll", &group_name, "--mode", "observe", "--reset"])?;
    assert!(printed.contains("ended 3 connections"), "{printed}");
    assert!(!printed.contains("stay as they are"), "{printed}");
    assert!(!goes_on(one)?, "it was ended");
    assert!(goes_on(through)?, "what goes through the proxy is not");
    assert!(goes_on(on_this_host)?, "what stays on the host is not");
    assert!(agent(&lab, &group, &plain)?);
    daemon.settled_records(2)?;
    Ok(())
}

#[test]
fn every_attempt_to_get_past_is_counted() -> Result<()> {
    let lab = lab!();
    let unit = format!("mantled-test-{}-noisy.service", std::process::id());
    let mut daemon = Daemon::start_with(&lab, "")?;
    told(&["enroll", &unit, "--mode", "enforce"])?;
    let mut expected = 0;
    for round in 0..2 {
        let group = Group::named(&unit)?;
        eventually("enrolment", Duration::from_secs(5), || {
            told(&["status"]).ok()?.contains("attached").then_some(())
        })?;
        // More at once than the ring of events holds while the daemon is held up.
        let daemon_pid = nix::unistd::Pid::from_raw(daemon.pid() as i32);
        nix::sys::signal::kill(daemon_pid, nix::sys::signal::Signal::SIGSTOP)?;
        let mut flood = group.command(&lab.host, AGENT);
        flood.args(["flood", "10.99.0.2:9", "5000"]);
        let output = run(&mut flood, Duration::from_secs(20));
        nix::sys::signal::kill(daemon_pid, nix::sys::signal::Signal::SIGCONT)?;
        assert_eq!(String::from_utf8(output?.stdout)?, "5000\n");
        expected += 5000;
        let found = status()?;
        assert_eq!(found["bypass_attempts"], expected, "{found:#}");
        if round == 0 {
            // Nor do they go with the daemon, or with the cgroup.
            daemon.kill()?;
            daemon.restart()?;
            assert_eq!(status()?["bypass_attempts"], expected);
        }
        drop(group);
        eventually("its end", Duration::from_secs(5), || {
            told(&["status"]).ok()?.contains("not there").then_some(())
        })?;
        assert_eq!(status()?["bypass_attempts"], expected);
    }
    let map = &pinned("maps/GROUP_COUNTS");
    eventually(
        "nothing of groups that went",
        Duration::from_secs(5),
        || {
            let mut dump = Command::new("bpftool");
            dump.args(["-j", "map", "dump", "pinned", map]);
            (succeed(&mut dump).ok()?.trim() == "[]").then_some(())
        },
    )
}

/// A cgroup with a program that suffers no other at `sock_create`, there and below.
fn occupied() -> Result<Group> {
    let group = Group::new()?;
    mantled_redirect::sys::occupy(&File::open(group.path())?)?;
    Ok(group)
}

#[test]
fn a_program_that_suffers_no_other_is_named_and_nothing_is_left() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let outer = occupied()?;
    let inner_name = format!("{}/inner.service", name(&outer));
    let inner = Group::named(inner_name.trim_start_matches('/'))?;
    let daemon = Daemon::start_with(&lab, "")?;
    let said = refused(&["enroll", &inner_name, "--mode", "enforce"])?;
    // The program, the ancestor, and the command to look at it.
    assert!(said.contains("sock_create cannot be attached"), "{said}");
    assert!(said.contains("occupant (program "), "{said}");
    let holder = outer.path().display().to_string();
    assert!(
        said.contains(&format!("`bpftool cgroup show {holder}`")),
        "{said}"
    );
    let shown = succeed(Command::new("bpftool").args(["cgroup", "show", &holder]))?;
    assert!(shown.contains("occupant"), "{shown}");

    // The two hooks before it were attached.
    let shown = succeed(
        Command::new("bpftool")
            .args(["cgroup", "show"])
            .arg(inner.path()),
    )?;
    assert!(!shown.contains("mantled"), "{shown}");
    let pins = fs::read_dir(pinned("groups"))?.count();
    assert_eq!(pins, 0);
    assert!(status()?.is_null());
    assert!(agent(&lab, &inner, &plain)?, "not enrolled, not touched");
    let kept = fs::read_to_string(lab.path("state/enrollments.json"))?;
    assert!(!kept.contains("inner"), "{kept}");
    assert!(!daemon.log().contains("detach --all"), "{}", daemon.log());

    // One that was enrolled before stays so.
    let late = Group::new()?;
    told(&["enroll", &name(&late), "--mode", "enforce"])?;
    assert!(!agent(&lab, &late, &plain)?);
    Ok(())
}

#[test]
fn the_doctor_names_the_programs_of_others() -> Result<()> {
    let lab = lab!();
    let outer = occupied()?;
    // Below that cgroup nothing can be attached.
    let mut doctor = outer.command(&lab.host, mantled()?);
    doctor.arg("doctor");
    let output = run(&mut doctor, Duration::from_secs(20))?;
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8(output.stdout)?;
    let line = said
        .lines()
        .find(|line| line.starts_with("FAIL"))
        .context("no failure")?;
    assert!(line.contains("sock_create"), "{said}");
    assert!(line.contains("occupant (program "), "{said}");
    assert!(line.contains("bpftool cgroup show"), "{said}");

    // Nor can a group there be enrolled, wherever the doctor is.
    let inner_name = format!("{}/inner.service", name(&outer));
    let _inner = Group::named(inner_name.trim_start_matches('/'))?;
    let config = lab.path("doctor.toml");
    fs::write(
        &config,
        format!("[[enroll]]\ncgroup = \"{inner_name}\"\nmode = \"enforce\"\n"),
    )?;
    let output = ask(&["doctor", "--config", &config.display().to_string()])?;
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8(output.stdout)?;
    let failures: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert_eq!(failures.len(), 1, "{said}");
    assert!(failures[0].contains("inner.service: occupant"), "{said}");

    // Elsewhere it is none of mantled's business; in an enrolled group it is told.
    let found = told_json(&["doctor", "--json"])?;
    let checks = found.as_array().context("no list")?;
    for expected in ["CAP_BPF", "clock", "other programs", "state_dir"] {
        assert!(
            checks.iter().any(|check| check["check"] == expected),
            "{expected}: {found:#}"
        );
    }
    assert!(checks.iter().all(|check| check["level"] != "fail"));
    let group = Group::new()?;
    let _daemon = Daemon::start(&lab, &group, "observe", "")?;
    attach_beside(&group)?;
    let found = told_json(&["doctor", "--json"])?;
    let others: Vec<&Value> = found
        .as_array()
        .context("no list")?
        .iter()
        .filter(|check| check["check"] == "other programs")
        .collect();
    let here = group.path().display().to_string();
    assert!(
        others.iter().any(|check| {
            let detail = check["detail"].as_str().unwrap_or_default();
            check["level"] == "ok" && detail.contains("occupant") && detail.contains(&here)
        }),
        "{others:#?}"
    );
    Ok(())
}

/// Attaches a program that suffers others to an enrolled group.
fn attach_beside(group: &Group) -> Result<()> {
    // The occupant of a cgroup that goes again is loaded, and can be attached elsewhere by its id.
    let home = occupied()?;
    let shown = succeed(
        Command::new("bpftool")
            .args(["-j", "cgroup", "show"])
            .arg(home.path()),
    )?;
    let shown: Value = serde_json::from_str(&shown)?;
    let id = shown[0]["id"].as_u64().context("no id")?;
    succeed(
        Command::new("bpftool")
            .args(["cgroup", "attach"])
            .arg(group.path())
            .args(["cgroup_inet_sock_create", "id", &id.to_string(), "multi"]),
    )?;
    Ok(())
}

/// Nothing of an `exec` that has ended is left with the daemon.
fn no_exec() -> Result<()> {
    eventually("the group of exec to go", Duration::from_secs(5), || {
        status().is_ok_and(|group| group.is_null()).then_some(())
    })
}

#[test]
fn exec_asks_the_daemon() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let daemon = Daemon::start_with(&lab, "")?;
    let exec = |options: &[&str], command: &[&str]| -> Result<Command> {
        let mut exec = lab.host.command(mantled()?);
        exec.arg("exec").args(options).arg("--").args(command);
        Ok(exec)
    };
    // The authority is the daemon's configuration's: without the daemon nothing would be verified.
    let log = lab.path("log.jsonl");
    let output = run(
        &mut exec(
            &["--record", &log.display().to_string()],
            &[AGENT, "echo", &tls.address.to_string(), "some words"],
        )?,
        Duration::from_secs(20),
    )?;
    let said = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{said}");
    assert!(said.contains("agent -> 10.99.0.2:7000, TLS 1.3"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let records = daemon.settled_records(1)?;
    let copy: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    assert_eq!(copy, records[0]);
    no_exec()?;

    // Many, of which none is forgotten; and none of another group's.
    let group = Group::new()?;
    told(&["enroll", &name(&group), "--mode", "observe"])?;
    assert!(agent(&lab, &group, &plain)?);
    told(&["withdraw", &name(&group)])?;
    let output = run(
        &mut exec(
            &["--mode", "observe"],
            &[AGENT, "hammer", &plain.address.to_string(), "200"],
        )?,
        Duration::from_secs(30),
    )?;
    let said = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("IN CLEAR").count(), 200, "{said}");

    // Refused, and the exit code is the command's own.
    let output = run(
        &mut exec(&[], &[AGENT, "echo", &plain.address.to_string(), "words"])?,
        Duration::from_secs(20),
    )?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("REFUSED (tls_not_offered)"), "{said}");
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["/no/such/program"], 127),
    ] {
        let output = run(&mut exec(&[], command)?, Duration::from_secs(20))?;
        assert_eq!(output.status.code(), Some(code), "{command:?}");
    }
    let output = run(&mut exec(&[], &["true"])?, Duration::from_secs(20))?;
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("made no connections"), "{said}");
    no_exec()?;
    daemon.settled_records(203)?;
    // In another namespace the daemon's proxy is not to be had: exec is its own.
    let output = run(
        lab.site.command(mantled()?).args(["exec", "--", "true"]),
        Duration::from_secs(20),
    )?;
    assert!(output.status.success());
    Ok(())
}

#[test]
fn an_exec_that_is_killed_takes_its_group_with_it() -> Result<()> {
    let lab = lab!();
    let mut daemon = Daemon::start_with(&lab, "")?;
    let mark = lab.path("children");
    let script = format!(
        "setsid sh -c 'echo $$ >> {0}; exec sleep 300' & echo $$ >> {0}; exec sleep 300",
        mark.display()
    );
    let start = || -> Result<(Child, Vec<String>)> {
        let _ = fs::remove_file(&mark);
        let exec = lab
            .host
            .command(mantled()?)
            .args(["exec", "--", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let pids = eventually("both children", Duration::from_secs(10), || {
            let text = fs::read_to_string(&mark).ok()?;
            let pids: Vec<String> = text.lines().map(str::to_owned).collect();
            (pids.len() == 2).then_some(pids)
        })?;
        assert_eq!(status()?["origin"], "exec");
        Ok((exec, pids))
    };
    let gone = |pids: &[String]| {
        eventually("the children to be gone", Duration::from_secs(5), || {
            pids.iter()
                .all(|pid| !Path::new("/proc").join(pid).exists())
                .then_some(())
        })
    };
    let (mut exec, pids) = start()?;
    exec.kill()?;
    exec.wait()?;
    gone(&pids)?;
    no_exec()?;

    // The daemon ends first: the command must not go on without it.
    let (exec, pids) = start()?;
    daemon.kill()?;
    gone(&pids)?;
    let output = wait(exec, Duration::from_secs(10))?;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains("the daemon has ended"), "{said}");
    daemon.restart()?;
    no_exec()?;

    // Processes that nobody has killed stay enrolled, also with the next daemon.
    let (mut exec, pids) = start()?;
    let guard = succeed(Command::new("pgrep").args(["-P", &exec.id().to_string(), "-f", "guard"]))?;
    for pid in [exec.id().to_string(), guard.trim().to_owned()] {
        let pid = nix::unistd::Pid::from_raw(pid.parse()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    }
    daemon.kill()?;
    daemon.restart()?;
    assert_eq!(status()?["origin"], "exec", "{}", daemon.log());
    for pid in [exec.id().to_string(), guard.trim().to_owned()] {
        let pid = nix::unistd::Pid::from_raw(pid.parse()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    }
    gone(&pids)?;
    exec.wait()?;
    no_exec()
}

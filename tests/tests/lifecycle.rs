//! The daemon dies, comes back, and stops.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Result;
use mantled_tests::{
    Capture, Daemon, Group, SITE_V4, Server, assert_clean, lab, mantled, patience, run, succeed,
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const SECRET: &str = "the-agents-secret-words";

#[test]
fn killed_and_closed_agents_are_refused_until_it_is_back() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "on_daemon_down = \"closed\"\n")?;
    let agent = |address: &str| {
        run(
            group
                .command(&lab.host, AGENT)
                .args(["echo", address, SECRET]),
            Duration::from_secs(10),
        )
    };
    assert!(agent(&tls.address.to_string())?.status.success());
    // A session that is open when the daemon dies.
    let mut held = group
        .command(&lab.host, AGENT)
        .args(["many", &tls.address.to_string(), "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    mantled_tests::eventually("open sessions", Duration::from_secs(5), || {
        (tls.accepted() == 4).then_some(())
    })?;

    let capture = Capture::start(&lab)?;
    succeed(
        lab.host
            .command("ping")
            .args(["-c", "1", "-W", "2", "10.99.0.2"]),
    )
    .ok();
    daemon.kill()?;
    let killed = Instant::now();
    for address in [&tls.address, &plain.address] {
        let output = agent(&address.to_string())?;
        assert!(
            !output.status.success(),
            "{address}: served without a daemon"
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("Connection refused"), "{said}");
    }
    assert!(
        killed.elapsed() < Duration::from_secs(5) * patience(),
        "refused at once, not timed out"
    );
    // A capture of nothing proves nothing: somebody outside of the group uses the wire.
    succeed(lab.host.command(AGENT).args([
        "echo",
        &plain.address.to_string(),
        "an outsider's words",
    ]))?;
    let wire = capture.finish()?;
    assert!(
        wire.windows(19)
            .any(|window| window == b"an outsider's words")
    );
    assert_clean(&wire, &[SECRET])?;

    daemon.restart()?;
    let output = agent(&tls.address.to_string())?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    held.kill()?;
    held.wait()?;
    // One before, one after, and the three that the first daemon owed.
    let records = daemon.settled_records(5)?;
    let aborted: Vec<_> = records
        .iter()
        .filter(|record| record["mantled.verdict"] == "aborted")
        .collect();
    assert_eq!(aborted.len(), 3, "{records:#?}");
    for record in aborted {
        assert_eq!(record["process.executable.name"], "agent");
        assert_eq!(record["server.port"], 7000);
    }
    Ok(())
}

#[test]
fn killed_and_open_agents_pass_and_the_kernel_counts_it() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "on_daemon_down = \"open\"\n")?;
    let agent = || {
        run(
            group.command(&lab.host, AGENT).args([
                "echo",
                &plain.address.to_string(),
                "let through",
            ]),
            Duration::from_secs(10),
        )
    };
    assert!(
        !agent()?.status.success(),
        "with a daemon, a server without TLS is refused"
    );
    // A daemon that is killed between the record and its note of that leaves it to be written twice.
    daemon.settled_records(1)?;
    daemon.kill()?;
    let output = agent()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Only what connect() let pass, passes: a datagram still does not.
    let datagram = run(
        group
            .command(&lab.host, AGENT)
            .args(["datagram", "10.99.0.2:9", "x"]),
        Duration::from_secs(10),
    )?;
    assert!(!datagram.status.success());
    daemon.restart()?;
    assert!(
        !agent()?.status.success(),
        "with a daemon again, it is refused again"
    );
    daemon.settled_records(2)?;
    Ok(())
}

#[test]
fn sessions_are_drained_at_stop_and_cut_ones_are_recorded() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "[limits]\ndrain = \"2s\"\n")?;
    // One that ends within the time, one that does not.
    let slow = group
        .command(&lab.host, AGENT)
        .args(["slow", &server.address.to_string(), "5"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut mute = group
        .command(&lab.host, AGENT)
        .args(["many", &server.address.to_string(), "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    mantled_tests::eventually("both sessions", Duration::from_secs(5), || {
        (server.accepted() == 2).then_some(())
    })?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(daemon.stop()?, Some(0));
    assert!(
        mantled_tests::wait(slow, Duration::from_secs(5))?
            .status
            .success()
    );
    mute.kill()?;
    mute.wait()?;
    let records = daemon.settled_records(2)?;
    assert!(records[0].get("error.type").is_none(), "{:#}", records[0]);
    assert_eq!(records[1]["error.type"], "stopped", "{:#}", records[1]);
    Ok(())
}

#[test]
fn detach_gives_the_host_back_also_from_a_dead_daemon() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "")?;
    daemon.kill()?;
    let printed = succeed(Command::new(mantled()?).args(["detach", "--all"]))?;
    assert!(printed.contains("detached 10 programs"), "{printed}");
    assert!(!std::path::Path::new("/sys/fs/bpf/mantled").exists());
    succeed(group.command(&lab.host, AGENT).args([
        "echo",
        &plain.address.to_string(),
        "free again",
    ]))?;
    let printed = succeed(Command::new(mantled()?).args(["detach", "--all"]))?;
    assert_eq!(printed, "nothing is attached\n");
    Ok(())
}

#[test]
fn a_second_daemon_is_told_so() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let _daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let output = run(
        lab.host
            .command(mantled()?)
            .args(["run", "--config"])
            .arg(lab.path("mantled.toml")),
        Duration::from_secs(10),
    )?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another mantled runs"));
    Ok(())
}

#[test]
fn a_unit_is_followed_from_one_cgroup_to_the_next() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let name = format!("mantled-test-{}-unit.service", std::process::id());
    // It does not run yet.
    let daemon = Daemon::start_with(
        &lab,
        &format!("[[enroll]]\nunit = \"{name}\"\nmode = \"enforce\"\n"),
    )?;
    for round in 1..=2 {
        let unit = Group::named(&name)?;
        mantled_tests::eventually("enrolment", Duration::from_secs(5), || {
            (daemon.log().matches("INFO enrolled").count() == round).then_some(())
        })?;
        succeed(
            unit.command(&lab.host, AGENT)
                .args(["echo", &tls.address.to_string(), SECRET]),
        )?;
        let records = daemon.settled_records(round)?;
        assert_eq!(records[round - 1]["mantled.path"], "verified");
        assert_eq!(records[round - 1]["mantled.systemd.unit"], name);
        drop(unit);
        mantled_tests::eventually("its end", Duration::from_secs(5), || {
            (daemon.log().matches("has stopped").count() == round).then_some(())
        })?;
    }
    Ok(())
}

//! The configuration is read again: for what begins afterwards, and for what is open.

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Daemon, Group, Held, Lab, SITE_V4, Server, eventually, lab, mantled, run, succeed,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

fn agent(lab: &Lab, group: &Group, server: &Server) -> Result<bool> {
    let address = server.address.to_string();
    let mut command = group.command(&lab.host, AGENT);
    command.args(["echo", &address, "some words"]);
    Ok(run(&mut command, Duration::from_secs(10))?.status.success())
}

fn reload() -> Result<Output> {
    run(
        Command::new(mantled()?).arg("reload"),
        Duration::from_secs(20),
    )
}

/// Writes more than `Daemon::start_with` was given, into the same file.
fn change(lab: &Lab, change: impl Fn(String) -> String) -> Result<()> {
    let file = lab.path("mantled.toml");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, change(text))?;
    Ok(())
}

#[test]
fn routes_bypasses_and_groups_are_those_of_the_file_and_sessions_are_judged_again() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let other = Server::start_plain_echo(&lab.site, SITE_V4, 7002)?;
    let (group, second) = (Group::new()?, Group::new()?);
    let exempt = "[[route]]\nport = 7001\ntls = \"exempt\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", exempt)?;
    let verified = Held::open(&lab, &group, AGENT, tls.address, 1)?;
    let exempted = Held::open(&lab, &group, AGENT, plain.address, 1)?;
    assert!(!agent(&lab, &group, &other)?, "enforced");

    // The exemption ends, another destination is bypassed, a second group is enrolled.
    change(&lab, |text| {
        format!(
            "{}\n[[bypass]]\ncidr = \"10.99.0.2\"\nport = 7002\nreason = \"a test\"\n\
             [[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
            text.replace(exempt, ""),
            second.path().display()
        )
    })?;
    let output = reload()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!agent(&lab, &group, &plain)?, "no exemption any more");
    assert!(agent(&lab, &group, &other)?, "bypassed");
    assert!(
        !agent(&lab, &second, &plain)?,
        "the second group is enrolled"
    );
    let cut = eventually(
        "the exempted session to end",
        Duration::from_secs(5),
        || {
            daemon
                .records()
                .into_iter()
                .find(|record| record["error.type"] == "configuration_changed")
        },
    )?;
    assert_eq!(cut["mantled.path"], "exposed", "{cut:#}");
    assert_eq!(cut["server.port"], 7001);
    assert!(exempted.finish().is_err());

    // What is verified in the same way goes on; and ends when its trust is another one.
    assert!(!daemon.records().iter().any(|record| {
        record["mantled.path"] == "verified" && record["error.type"] == "configuration_changed"
    }));
    change(&lab, |text| {
        text.replace("[tls]\n", "[tls]\nmin_version = \"1.3\"\n")
    })?;
    // SIGHUP does the same.
    kill(Pid::from_raw(daemon.pid() as i32), Signal::SIGHUP)?;
    eventually(
        "the verified session to end",
        Duration::from_secs(5),
        || {
            daemon.records().into_iter().find(|record| {
                record["mantled.path"] == "verified"
                    && record["error.type"] == "configuration_changed"
            })
        },
    )?;
    assert!(verified.finish().is_err());
    assert!(agent(&lab, &group, &tls)?);

    // A group that the file enrols no more is let go.
    change(&lab, |text| {
        let listed = text.rfind("[[enroll]]").unwrap_or(text.len());
        text[..listed].to_owned()
    })?;
    succeed(Command::new(mantled()?).arg("reload"))?;
    assert!(agent(&lab, &second, &plain)?, "not enrolled any more");
    assert!(!agent(&lab, &group, &plain)?, "enrolled still");
    daemon.settled_records(7)?;
    Ok(())
}

#[test]
fn a_configuration_with_a_mistake_changes_nothing() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let held = Held::open(&lab, &group, AGENT, tls.address, 1)?;
    let right = fs::read_to_string(lab.path("mantled.toml"))?;
    let bypass = "[[bypass]]\ncidr = \"10.99.0.2\"\nreason = \"a test\"\n";
    for (mistake, said) in [
        ("[[route]]\nport = 70000\n", "port"),
        (
            "[[enroll]]\ncgroup = \"/is/not/there\"\nmode = \"enforce\"\n",
            "/is/not/there",
        ),
        (
            "[[route]]\nport = 7001\nroots = [\"missing.pem\"]\n",
            "missing.pem",
        ),
    ] {
        fs::write(
            lab.path("mantled.toml"),
            format!("{right}\n{bypass}\n{mistake}"),
        )?;
        let output = reload()?;
        assert_eq!(output.status.code(), Some(2), "{mistake}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(said), "{error}");
        assert!(!agent(&lab, &group, &plain)?, "the bypass beside {mistake}");
        assert!(agent(&lab, &group, &tls)?);
    }
    // The open session has not noticed.
    held.finish()?;
    let records = daemon.settled_records(7)?;
    assert!(
        records
            .iter()
            .all(|record| record["error.type"] != "configuration_changed")
    );

    // What only a restart can change is told.
    fs::write(
        lab.path("mantled.toml"),
        format!("{right}\n[limits]\nsessions = 7\n"),
    )?;
    let told = succeed(Command::new(mantled()?).arg("reload"))?;
    assert!(told.contains("[limits] sessions"), "{told}");
    Ok(())
}

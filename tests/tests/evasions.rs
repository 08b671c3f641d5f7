//! What is tried to get around policies: `tests/evasions`.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{Daemon, Group, Lab, PASSWORD, Postgres, Program, lab, mantled, run};

fn evasions() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("evasions")
}

/// Sends every attempt of a file through the daemon; how many there were. None may get through.
fn attempt(lab: &Lab, kind: &str, least: usize) -> Result<()> {
    let group = Group::new()?;
    let dir = lab.path("policies");
    fs::create_dir_all(&dir)?;
    fs::copy(evasions().join("policies.cedar"), dir.join("a.cedar"))?;
    let daemon = Daemon::start(lab, &group, "enforce", "[policy]\ndir = \"policies\"\n")?;
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let output = run(
        group
            .command(&lab.host, here.join("../target/lab/venv/bin/python"))
            .arg(here.join("clients/evasions.py"))
            .args([kind, "10.99.0.2"])
            .arg(evasions().join(format!("{kind}.test.toml")))
            .env("PGPASSWORD", PASSWORD),
        Duration::from_secs(100),
    )?;
    ensure!(
        output.status.success(),
        "{}{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        daemon.log()
    );
    let printed = String::from_utf8(output.stdout)?;
    let (count, rest) = printed.split_once(' ').context("no count")?;
    assert_eq!(rest, "tried\n", "{printed}{:#?}", daemon.records().last());
    assert!(count.parse::<usize>()? >= least, "{printed}");
    Ok(())
}

#[test]
fn every_attempt_is_judged_as_it_should() -> Result<()> {
    let tested = run(
        Command::new(mantled()?)
            .args(["policy", "test", "--dir"])
            .arg(evasions()),
        Duration::from_secs(20),
    )?;
    let said = String::from_utf8(tested.stdout)?;
    assert!(tested.status.success(), "{said}");
    let count = said.split(' ').next().unwrap_or_default();
    assert!(count.parse::<usize>()? >= 300, "{said}");
    Ok(())
}

#[test]
fn no_attempt_reaches_postgresql() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    attempt(&lab, "postgresql", 700)
}

#[test]
fn no_attempt_reaches_mariadb() -> Result<()> {
    let lab = lab!();
    let _server = Program::mariadb(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    attempt(&lab, "mysql", 300)
}

#[test]
fn no_attempt_reaches_redis() -> Result<()> {
    let lab = lab!();
    let _server = Program::redis(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    attempt(&lab, "redis", 200)
}

#[test]
fn no_attempt_reaches_a_web_server() -> Result<()> {
    let lab = lab!();
    let _server = Program::nginx(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    attempt(&lab, "http", 70)
}

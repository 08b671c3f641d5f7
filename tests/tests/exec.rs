//! `mantled exec`, and what is said to bad input. Nothing may stay behind.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mantled_tests::{Lab, SITE_V4, Server, eventually, lab, mantled, run, succeed};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// Programs on the root cgroup, cgroups, pins: what a host without mantled does not have. The
/// lab's own cgroups, `mantled-test-`, are not mantled's.
fn traces() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let programs = succeed(Command::new("bpftool").args(["prog", "show"]))?;
    found.extend(
        programs
            .lines()
            .filter(|line| line.contains("mantled_"))
            .map(str::to_owned),
    );
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for line in mounts.lines().filter(|line| line.contains(" cgroup2 ")) {
        let root = line.split(' ').nth(1).context("no mount point")?;
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("mantled-") && !name.starts_with("mantled-test-") {
                found.push(name);
            }
        }
    }
    if Path::new("/sys/fs/bpf/mantled").exists() {
        found.push("pins".to_owned());
    }
    Ok(found)
}

fn no_traces() -> Result<()> {
    eventually("no trace of mantled", Duration::from_secs(5), || {
        traces().is_ok_and(|found| found.is_empty()).then_some(())
    })
    .with_context(|| format!("{:#?}", traces()))
}

fn configured(lab: &Lab) -> Result<std::path::PathBuf> {
    let path = lab.path("exec.toml");
    fs::write(
        &path,
        "[tls]\nroots = [\"ca.pem\"]\n[dns]\nresolvers = []\n",
    )?;
    Ok(path)
}

fn exec(lab: &Lab, options: &[&str], command: &[&str]) -> Result<Command> {
    let mut exec = lab.host.command(mantled()?);
    exec.arg("exec")
        .arg("--config")
        .arg(configured(lab)?)
        .args(options)
        .arg("--")
        .args(command);
    Ok(exec)
}

#[test]
fn it_protects_reports_and_leaves_nothing() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let address = server.address.to_string();
    let log = lab.path("log.jsonl");
    let output = run(
        &mut exec(
            &lab,
            &["--record", log.to_str().unwrap()],
            &[AGENT, "echo", &address, "some words"],
        )?,
        Duration::from_secs(20),
    )?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "10.99.0.2:7000\nsome words\n"
    );
    assert!(said.contains("agent -> 10.99.0.2:7000, TLS 1.3"), "{said}");
    assert!(said.contains("verified as 10.99.0.2"), "{said}");
    assert_eq!(fs::read_to_string(&log)?.lines().count(), 1);
    no_traces()
}

#[test]
fn exit_codes_are_the_commands_own() -> Result<()> {
    let lab = lab!();
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["/no/such/program"], 127),
    ] {
        let output = run(
            &mut exec(&lab, &["--quiet"], command)?,
            Duration::from_secs(20),
        )?;
        assert_eq!(output.status.code(), Some(code), "{command:?}");
    }
    no_traces()
}

#[test]
fn what_cannot_be_verified_is_refused_or_told() -> Result<()> {
    let lab = lab!();
    let plain = Server::start(&lab.site, SITE_V4, 7001, |mut stream| {
        let mut copy = stream.try_clone()?;
        std::io::copy(&mut stream, &mut copy)?;
        stream.shutdown(std::net::Shutdown::Both)
    })?;
    let command = [AGENT, "echo", &plain.address.to_string(), "words"];
    let refused = run(&mut exec(&lab, &[], &command)?, Duration::from_secs(20))?;
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("REFUSED (tls_not_offered)"), "{said}");
    let observed = run(
        &mut exec(&lab, &["--mode", "observe"], &command)?,
        Duration::from_secs(20),
    )?;
    let said = String::from_utf8_lossy(&observed.stderr).into_owned();
    assert!(observed.status.success(), "{said}");
    assert!(
        said.contains("IN CLEAR (enforce would refuse: tls_not_offered)"),
        "{said}"
    );
    no_traces()
}

#[test]
fn killed_it_takes_the_command_and_its_children_with_it() -> Result<()> {
    let lab = lab!();
    let mark = lab.path("children");
    // A child that has left its parent, which a signal at the parent's death does not reach.
    let script = format!(
        "setsid sh -c 'echo $$ >> {0}; exec sleep 300' & echo $$ >> {0}; exec sleep 300",
        mark.display()
    );
    let mut exec = exec(&lab, &[], &["sh", "-c", &script])?
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pids = eventually("both children", Duration::from_secs(10), || {
        let pids: Vec<String> = fs::read_to_string(&mark)
            .ok()?
            .lines()
            .map(str::to_owned)
            .collect();
        (pids.len() == 2).then_some(pids)
    })?;
    exec.kill()?;
    exec.wait()?;
    eventually("the children to be gone", Duration::from_secs(5), || {
        pids.iter()
            .all(|pid| !Path::new("/proc").join(pid).exists())
            .then_some(())
    })?;
    no_traces()
}

#[test]
fn bad_input_is_one_clear_line_and_leaves_nothing() -> Result<()> {
    let lab = lab!();
    let file = lab.path("bad.toml");
    fs::write(lab.path("empty.pem"), "")?;
    for (text, code, expected) in [
        ("[tls]\nroots = [\"missing.pem\"]\n", 2, "missing.pem"),
        ("[tls]\nroots = [\"empty.pem\"]\n", 2, "empty.pem"),
        ("[tls]\nrotos = \"system\"\n", 2, "did you mean"),
        ("[[route]]\nport = 70000\n", 2, "1..=65535"),
        (
            "[[enroll]]\ncgroup = \"/no/such/group\"\nmode = \"enforce\"\n",
            2,
            "does not exist",
        ),
        ("[listen]\nport = 18475\n", 1, "18475"),
    ] {
        let mut taken = None;
        if code == 1 {
            taken = Some(Server::start(
                &lab.host,
                "127.0.0.1".parse()?,
                18475,
                |_| Ok(()),
            )?);
        }
        let roots = if text.contains("[tls]") {
            ""
        } else {
            "[tls]\nroots = [\"ca.pem\"]\n"
        };
        fs::write(&file, format!("{text}{roots}"))?;
        let output = run(
            lab.host
                .command(mantled()?)
                .args(["run", "--config"])
                .arg(&file),
            Duration::from_secs(10),
        )?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{text}: {said}");
        // Logs may come before it; the error itself is one line, or one with a hint.
        assert!(
            said.lines().filter(|line| !line.contains(" INFO ")).count() <= 2,
            "{text}: {said}"
        );
        if code == 2 {
            assert_eq!(output.status.code(), Some(code), "{text}: {said}");
        } else {
            assert!(!output.status.success());
        }
        drop(taken);
        no_traces().with_context(|| text.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_missing_privilege_is_named_with_exit_code_4() -> Result<()> {
    let lab = lab!();
    let copy = lab.path("mantled");
    fs::copy(mantled()?, &copy)?;
    for arguments in [&["doctor"][..], &["exec", "--", "true"]] {
        let output = run(
            lab.host
                .command("setpriv")
                .args(["--reuid=nobody", "--clear-groups", "--bounding-set=-all"])
                .arg(&copy)
                .args(arguments),
            Duration::from_secs(10),
        )?;
        assert_eq!(output.status.code(), Some(4), "{arguments:?}");
        let said = [output.stdout, output.stderr].concat();
        assert!(
            String::from_utf8_lossy(&said).contains("run as root"),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
    no_traces()
}

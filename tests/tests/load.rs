//! Many sessions, and agents that misbehave: memory stays bounded, the others go on.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mantled_tests::{Daemon, Group, SITE_V4, Server, eventually, lab, run, succeed, wait};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// What a session may cost in the daemon's memory, in KiB: TLS state, task, record. The debug
/// build is what is tested; the benchmark measures the release.
const SESSION_KIB: u64 = 100;

#[test]
fn a_thousand_sessions_at_once() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    succeed(
        group
            .command(&lab.host, AGENT)
            .args(["echo", &server.address.to_string(), "warm"]),
    )?;
    let before = daemon.resident_kib()?;
    let mut agents = Vec::new();
    for _ in 0..4 {
        let mut child = group
            .command(&lab.host, AGENT)
            .args(["many", &server.address.to_string(), "250"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        agents.push((child, output));
    }
    for (_, output) in &mut agents {
        let mut line = String::new();
        output.read_line(&mut line)?;
        assert_eq!(line, "open\n");
    }
    let grown = daemon.resident_kib()?.saturating_sub(before);
    assert!(
        grown < 1000 * SESSION_KIB,
        "{grown} KiB for 1,000 idle sessions"
    );
    assert_eq!(daemon.settled_records(1)?.len(), 1, "no session has ended");
    for (mut child, mut output) in agents {
        drop(child.stdin.take());
        let mut line = String::new();
        output.read_line(&mut line)?;
        assert_eq!(line, "done\n", "every session still works");
        assert!(child.wait()?.success());
    }
    let records = daemon.settled_records(1001)?;
    assert!(
        records
            .iter()
            .all(|record| record["mantled.path"] == "verified")
    );
    Ok(())
}

#[test]
fn agents_that_never_read_never_write_or_dawdle() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let address = server.address.to_string();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "[limits]\ndetect = \"1s\"\n")?;
    succeed(
        group
            .command(&lab.host, AGENT)
            .args(["echo", &address, "warm"]),
    )?;
    let before = daemon.resident_kib()?;

    let start = |kind: &str, argument: &str| {
        group
            .command(&lab.host, AGENT)
            .args([kind, &address, argument])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    };
    // It sends for two seconds to a server that sends everything back, and reads nothing.
    let mut deaf = Vec::new();
    for _ in 0..20 {
        deaf.push(start("deaf", "")?);
    }
    let mut mute = start("mute", "")?;
    let slow = start("slow", "10")?;
    let mut written = 0_u64;
    for child in &mut deaf {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        written += line.trim().parse::<u64>()?;
    }
    assert!(
        written > 1 << 20,
        "the deaf agents wrote only {written} bytes"
    );
    // 256 KiB a session is the limit that the design sets; sockets' own buffers are the kernel's.
    let grown = daemon.resident_kib()?.saturating_sub(before);
    assert!(
        grown < 22 * 256 + 4096,
        "{grown} KiB for 22 sessions under back-pressure"
    );

    // The others go on meanwhile.
    let begun = Instant::now();
    succeed(
        group
            .command(&lab.host, AGENT)
            .args(["echo", &address, "an ordinary exchange"]),
    )?;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    let output = wait(slow, Duration::from_secs(20))?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // An agent that never writes is served: after the time for detection, by TLS.
    assert!(mute.try_wait()?.is_none());
    drop(mute.stdin.take());
    assert!(mute.wait()?.success());
    for mut child in deaf {
        child.kill()?;
        child.wait()?;
    }
    daemon.settled_records(24)?;
    Ok(())
}

#[test]
fn a_hundred_megabytes_each_way_arrive_as_they_were_sent() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    // The echo of an unpredictable stream, compared by its digest.
    let script = r#"head -c 100000000 /dev/urandom > "$1/sent" && "$0" stream "$2" "$1/sent" > "$1/received" && cmp "$1/sent" "$1/received""#;
    let output = run(
        group
            .command(&lab.host, "sh")
            .args(["-c", script, AGENT])
            .arg(lab.dir())
            .arg(server.address.to_string()),
        Duration::from_secs(60),
    )?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.bytes.sent"], 100_000_000);
    assert_eq!(records[0]["mantled.bytes.received"], 100_000_000);
    Ok(())
}

#[test]
fn a_full_disk_refuses_sessions_until_there_is_room() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let records = lab.path("records");
    std::fs::create_dir(&records)?;
    succeed(
        std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "none"])
            .arg(&records),
    )?;
    let result = (|| {
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", "")?;
        let echo = || {
            run(
                group.command(&lab.host, AGENT).args([
                    "echo",
                    &server.address.to_string(),
                    "words",
                ]),
                Duration::from_secs(10),
            )
        };
        assert!(echo()?.status.success());
        let mut ballast = std::fs::File::create(records.join("ballast"))?;
        let _ = std::io::copy(&mut std::io::repeat(0).take(1 << 20), &mut ballast);
        drop(ballast);
        // Lines still fit into the last block of the log; then none do.
        eventually("a refusal", Duration::from_secs(20), || {
            echo()
                .is_ok_and(|output| !output.status.success())
                .then_some(())
        })?;
        std::fs::remove_file(records.join("ballast"))?;
        eventually("service again", Duration::from_secs(10), || {
            echo()
                .is_ok_and(|output| output.status.success())
                .then_some(())
        })?;
        let all = daemon.records();
        assert!(
            all.iter()
                .any(|record| record["error.type"] == "record_failure"),
            "{all:#?}"
        );
        Ok(())
    })();
    succeed(std::process::Command::new("umount").arg(&records))?;
    result
}

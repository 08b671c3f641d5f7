//! The metrics, what is made of them, and whether there is a record for every connection.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Daemon, Group, Held, Lab, SITE_V4, Server, eventually, lab, mantled, pinned, run, succeed,
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const METRICS: &str = "[admin]\nmetrics = \"127.0.0.1:9464\"\n";

fn scrape(lab: &Lab) -> Result<String> {
    succeed(lab.host.command("curl").args([
        "-sS",
        "--fail",
        "--max-time",
        "5",
        "http://127.0.0.1:9464/metrics",
    ]))
}

/// The sample of this name, with these labels (in any order, perhaps with others).
fn sample(text: &str, name: &str, labels: &[&str]) -> Result<f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .find(|(series, _)| {
            series.split('{').next() == Some(name)
                && labels.iter().all(|label| series.contains(label))
        })
        .with_context(|| format!("no {name} with {labels:?} in\n{text}"))?
        .1
        .parse()
        .context("no number")
}

fn agent(lab: &Lab, group: &Group, server: &Server) -> Result<bool> {
    let mut command = group.command(&lab.host, AGENT);
    command.args(["echo", &server.address.to_string(), "some words"]);
    Ok(run(&mut command, Duration::from_secs(10))?.status.success())
}

/// What is settled has one value; until then it may be any.
fn missing(lab: &Lab, expected: f64) -> Result<()> {
    eventually("the sum to be told", Duration::from_secs(10), || {
        let told = sample(&scrape(lab).ok()?, "mantled_records_missing", &[]).ok()?;
        (told == expected).then_some(())
    })
}

#[test]
fn sessions_and_groups_are_counted_and_every_connection_has_its_record() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", METRICS)?;
    let name = group.path().file_name().unwrap_or_default();
    let label = format!("group=\"/{}\"", name.to_string_lossy());
    for _ in 0..3 {
        assert!(agent(&lab, &group, &tls)?);
        assert!(!agent(&lab, &group, &plain)?);
    }
    let held = Held::open(&lab, &group, AGENT, tls.address, 2)?;
    daemon.settled_records(6)?;
    let text = scrape(&lab)?;
    assert!(text.ends_with("# EOF\n"), "{text}");
    for (name, labels, expected) in [
        ("mantled_sessions_open", &[][..], 2.0),
        ("mantled_sessions_opened_total", &[], 8.0),
        ("mantled_group_attached", &[&label, "mode=\"enforce\""], 1.0),
        (
            "mantled_group_sessions_total",
            &[&label, "outcome=\"upgraded\""],
            3.0,
        ),
        (
            "mantled_group_sessions_total",
            &[&label, "outcome=\"refused\""],
            3.0,
        ),
        ("mantled_group_bypass_attempts_total", &[&label], 0.0),
        (
            "mantled_sessions_total",
            &["verdict=\"refused\"", "error_type=\"tls_not_offered\""],
            3.0,
        ),
        ("mantled_records_written_total", &[], 6.0),
        ("mantled_records_failing", &[], 0.0),
        ("mantled_records_missing", &[], 0.0),
        ("mantled_kernel_events_total", &["event=\"published\""], 8.0),
    ] {
        assert_eq!(
            sample(&text, name, labels)?,
            expected,
            "{name} {labels:?} in\n{text}"
        );
    }
    let top = succeed(Command::new(mantled()?).args(["top", "--json"]))?;
    let top: serde_json::Value = serde_json::from_str(&top)?;
    assert_eq!(top["sessions"].as_array().map(Vec::len), Some(2), "{top:#}");
    assert_eq!(top["sessions"][0]["destination"], "10.99.0.2:7000");

    // A crash loses none: its sessions are recorded by the next daemon.
    daemon.kill()?;
    daemon.restart()?;
    drop(held);
    assert!(agent(&lab, &group, &tls)?);
    daemon.settled_records(9)?;
    missing(&lab, 0.0)?;

    // One that is lost shows: what the kernel knows of an open session is taken away.
    let held = Held::open(&lab, &group, AGENT, tls.address, 1)?;
    let sessions = &pinned("maps/SESSIONS");
    let dump = succeed(Command::new("bpftool").args(["-j", "map", "dump", "pinned", sessions]))?;
    let dump: serde_json::Value = serde_json::from_str(&dump)?;
    let entries = dump.as_array().context("no list")?;
    ensure!(entries.len() == 1, "{dump:#}");
    let key: Vec<&str> = entries[0]["key"]
        .as_array()
        .context("no key")?
        .iter()
        .filter_map(serde_json::Value::as_str)
        .collect();
    succeed(
        Command::new("bpftool")
            .args(["map", "delete", "pinned", sessions, "key"])
            .args(&key),
    )?;
    missing(&lab, 1.0)?;
    held.finish()?;
    missing(&lab, 1.0)
}

#[test]
fn the_alerts_and_the_dashboard_use_metrics_that_there_are() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", METRICS)?;
    assert!(agent(&lab, &group, &tls)?);
    daemon.settled_records(1)?;
    let text = scrape(&lab)?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    let documented = fs::read_to_string(shipped.join("../docs/metrics.md"))?;
    let mut used = 0;
    for file in ["prometheus-alerts.yml", "grafana-dashboard.json"] {
        let source = fs::read_to_string(shipped.join(file))?;
        for (at, _) in source.match_indices("mantled_") {
            let name: String = source[at..]
                .chars()
                .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                .collect();
            sample(&text, &name, &[]).with_context(|| format!("{file} uses {name}"))?;
            assert!(
                documented.contains(&name),
                "{name} is not in docs/metrics.md"
            );
            used += 1;
        }
    }
    assert!(used > 20, "{used} uses were found");
    // And what is served is documented.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        assert!(
            documented.contains(name),
            "{name} is not in docs/metrics.md"
        );
    }
    Ok(())
}

#[test]
fn nobody_can_hold_the_endpoint() -> Result<()> {
    let lab = lab!();
    let _daemon = Daemon::start_with(&lab, METRICS)?;
    let elsewhere = run(
        lab.host.command("curl").args([
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://127.0.0.1:9464/",
        ]),
        Duration::from_secs(5),
    )?;
    assert_eq!(String::from_utf8_lossy(&elsewhere.stdout), "404");
    // More than may ask at once, and none of them asks.
    let silent = lab.host.enter(|| {
        (0..8)
            .map(|_| std::net::TcpStream::connect("127.0.0.1:9464"))
            .collect::<Result<Vec<_>, _>>()
    })?;
    eventually(
        "an answer in spite of them",
        Duration::from_secs(20),
        || scrape(&lab).ok(),
    )?;
    drop(silent?);
    Ok(())
}

//! Agents that speak TLS themselves: what passes, to whom, and what mantled can say of it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mantled_tests::{
    Authority, Daemon, Group, Lab, Leaf, PASSWORD, Postgres, Program, SITE_V4, Server, eventually,
    lab, run,
};
use serde_json::Value;

const NAME: &str = "www.site.example";

/// curl as an agent that speaks TLS itself, and does not verify unless it is told to.
fn https(lab: &Lab, group: &Group, port: u16, arguments: &[&str]) -> Command {
    let mut command = group.command(&lab.host, "curl");
    command
        .args(["-sS", "-k", "--max-time", "20", "--resolve"])
        .arg(format!("{NAME}:{port}:10.99.0.2"))
        .args(arguments)
        .arg(format!("https://{NAME}:{port}/"));
    command
}

fn ask(lab: &Lab, group: &Group, port: u16, arguments: &[&str]) -> Result<Output> {
    run(
        &mut https(lab, group, port, arguments),
        Duration::from_secs(30),
    )
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn answered(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn last(daemon: &Daemon, count: usize) -> Result<Value> {
    daemon.settled_records(count)?.pop().context("a record")
}

fn passthrough(keys: &str) -> String {
    format!("[[route]]\ncidr = \"10.99.0.2\"\ntls = \"passthrough\"\n{keys}\n")
}

#[test]
fn the_server_of_an_agent_that_verifies_nothing_is_verified() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let stranger = Authority::new("a stranger")?;
    for (what, leaf, cause) in [
        ("good", lab.authority.leaf(&[NAME])?, None),
        (
            "expired",
            lab.authority.expired_leaf(&[NAME])?,
            Some("certificate_expired"),
        ),
        (
            "of a stranger",
            stranger.leaf(&[NAME])?,
            Some("certificate_untrusted"),
        ),
        (
            "for another name",
            lab.authority.leaf(&["other.example", "10.99.0.2"])?,
            Some("certificate_name_mismatch"),
        ),
    ] {
        let _server = Program::nginx(&lab, &leaf)?;
        for mode in ["enforce", "observe"] {
            let daemon = Daemon::start(&lab, &group, mode, &passthrough(""))?;
            let output = ask(&lab, &group, 443, &[])?;
            let record = last(&daemon, 1)?;
            let served = cause.is_none() || mode == "observe";
            assert_eq!(output.status.success(), served, "{mode} {what}: {record:#}");
            if served {
                assert_eq!(answered(&output), format!("over HTTP/2.0 for {NAME}\n"));
                assert_eq!(record["mantled.path"], "native");
                assert_eq!(record["tls.protocol.version"], "1.3");
            } else {
                assert!(said(&output).contains("access denied"), "{}", said(&output));
                assert!(record.get("mantled.path").is_none());
                assert_eq!(record["mantled.verdict"], "refused");
                assert_eq!(record["mantled.bytes.sent"], 0);
            }
            let told = if mode == "observe" {
                "mantled.enforce.error"
            } else {
                "error.type"
            };
            assert_eq!(record[told].as_str(), cause, "{mode} {what}: {record:#}");
            // Never that the agent's own connection was verified.
            assert!(record.get("mantled.tls.verified_name").is_none());
            if cause.is_none() {
                assert_eq!(record["mantled.tls.server_checked"], NAME);
                assert_eq!(record["tls.server.subject"], format!("CN={NAME}"));
                assert!(record["tls.server.hash.sha256"].is_string());
            } else {
                assert!(record.get("mantled.tls.server_checked").is_none());
            }
        }
    }
    Ok(())
}

#[test]
fn without_a_route_enforce_would_refuse() -> Result<()> {
    let lab = lab!();
    let _server = Program::nginx(&lab, &lab.authority.leaf(&[NAME])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    assert!(ask(&lab, &group, 443, &[])?.status.success());
    let record = last(&daemon, 1)?;
    assert_eq!(record["mantled.enforce.error"], "native_tls", "{record:#}");
    assert_eq!(record["mantled.tls.server_checked"], NAME);
    Ok(())
}

#[test]
fn the_agent_must_ask_for_the_name_of_the_route() -> Result<()> {
    let lab = lab!();
    let _server = Program::nginx(&lab, &lab.authority.leaf(&[NAME, "db.example"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(
        &lab,
        &group,
        "enforce",
        &passthrough("server_name = \"db.example\""),
    )?;
    assert!(!ask(&lab, &group, 443, &[])?.status.success());
    let record = last(&daemon, 1)?;
    assert_eq!(record["error.type"], "certificate_name_mismatch");
    // One that asks for none is held to the route's.
    let output = run(
        group
            .command(&lab.host, "curl")
            .args(["-sSk", "--max-time", "20", "https://10.99.0.2/"]),
        Duration::from_secs(30),
    )?;
    assert!(output.status.success(), "{}", said(&output));
    let record = last(&daemon, 2)?;
    assert_eq!(record["mantled.tls.server_checked"], "db.example");
    assert!(record.get("tls.client.server_name").is_none());
    Ok(())
}

#[test]
fn versions_that_are_too_old_are_refused_with_their_alert() -> Result<()> {
    let lab = lab!();
    let _server = Program::nginx(&lab, &lab.authority.leaf(&[NAME])?)?;
    let group = Group::new()?;
    let newest = passthrough("min_version = \"1.3\"");
    for (config, version, served) in [
        ("", "-tls1_1", false),
        ("", "-tls1_2", true),
        (newest.as_str(), "-tls1_2", false),
        (newest.as_str(), "-tls1_3", true),
    ] {
        let config = if config.is_empty() {
            &passthrough("")
        } else {
            config
        };
        for mode in ["enforce", "observe"] {
            let daemon = Daemon::start(&lab, &group, mode, config)?;
            let output = run(
                group
                    .command(&lab.host, "openssl")
                    .args(["s_client", "-connect", "10.99.0.2:443", "-servername", NAME])
                    .args([version, "-cipher", "DEFAULT@SECLEVEL=0"]),
                Duration::from_secs(20),
            )?;
            let record = last(&daemon, 1)?;
            let told = if mode == "observe" {
                "mantled.enforce.error"
            } else {
                "error.type"
            };
            if served {
                assert!(output.status.success(), "{version}: {}", said(&output));
                assert_eq!(record["mantled.path"], "native", "{record:#}");
                assert!(record.get(told).is_none(), "{record:#}");
            } else {
                assert_eq!(record[told], "tls_version", "{mode}: {record:#}");
            }
            if !served && mode == "enforce" {
                assert!(
                    said(&output).contains("alert protocol version"),
                    "{version}: {}",
                    said(&output)
                );
                assert!(record.get("mantled.path").is_none());
            }
        }
    }
    Ok(())
}

/// Answers one request.
fn web(lab: &Lab, port: u16, leaf: &Leaf) -> Result<Server> {
    Server::start_tls(&lab.site, SITE_V4, port, leaf, |stream| {
        let mut request = [0; 1024];
        if stream.read(&mut request)? > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes")?;
        }
        stream.flush()
    })
}

#[test]
fn one_handshake_verifies_a_server_for_all_until_the_trust_changes() -> Result<()> {
    const AGENTS: usize = 12;
    let lab = lab!();
    let server = web(&lab, 7443, &lab.authority.leaf(&[NAME])?)?;
    let roots = lab.path("roots.pem");
    fs::write(&roots, lab.authority.pem())?;
    let config = format!("[tls]\nroots = [\"roots.pem\"]\n{}", passthrough(""));
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &config)?;
    let agents: Vec<_> = (0..AGENTS)
        .map(|_| https(&lab, &group, 7443, &["--http1.1"]).spawn())
        .collect::<Result<_, _>>()?;
    for mut agent in agents {
        assert!(agent.wait()?.success());
    }
    let records = daemon.settled_records(AGENTS)?;
    for record in &records {
        assert_eq!(record["mantled.tls.server_checked"], NAME, "{record:#}");
    }
    assert_eq!(server.accepted(), AGENTS + 1, "the agents' and one more");

    fs::write(lab.path("roots.new"), Authority::new("a stranger")?.pem())?;
    fs::rename(lab.path("roots.new"), &roots)?;
    eventually(
        "the server is verified anew",
        Duration::from_secs(10),
        || {
            let output = ask(&lab, &group, 7443, &[]).ok()?;
            (!output.status.success()).then_some(())
        },
    )?;
    std::thread::sleep(Duration::from_millis(300));
    let record = daemon.records().pop().context("a record")?;
    assert_eq!(record["error.type"], "certificate_untrusted", "{record:#}");
    Ok(())
}

#[test]
fn a_server_that_stalls_delays_an_agent_no_longer_than_a_handshake_may_take() -> Result<()> {
    let lab = lab!();
    let _server = Server::start(&lab.site, SITE_V4, 7443, |mut stream: TcpStream| {
        std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
    })?;
    let group = Group::new()?;
    let config = format!("[limits]\nhandshake = \"1s\"\n{}", passthrough(""));
    let daemon = Daemon::start(&lab, &group, "enforce", &config)?;
    for n in 1..=2 {
        let begun = Instant::now();
        assert!(!ask(&lab, &group, 7443, &[])?.status.success());
        assert!(begun.elapsed() < Duration::from_secs(3));
        let record = last(&daemon, n)?;
        assert_eq!(record["error.type"], "upgrade_timeout", "{record:#}");
    }
    Ok(())
}

/// The agent shows a certificate of its own, which the daemon does not have.
#[test]
fn a_server_that_asks_for_the_agents_certificate_is_verified_without() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&[NAME])?;
    let identity = lab.authority.leaf(&["agent.example"])?;
    for (file, text) in [
        ("server.pem", &leaf.certificate),
        ("server.key", &leaf.key),
        ("agent.pem", &identity.certificate),
        ("agent.key", &identity.key),
    ] {
        fs::write(lab.path(file), text)?;
    }
    let (certificate, key) = (lab.path("agent.pem"), lab.path("agent.key"));
    let identity = [
        "--cert",
        &certificate.to_string_lossy(),
        "--key",
        &key.to_string_lossy(),
    ]
    .map(str::to_owned);
    let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
    for (port, version) in [(7442, "-tls1_2"), (7443, "-tls1_3")] {
        let mut command = lab.site.command("openssl");
        command
            .args([
                "s_server",
                "-quiet",
                "-www",
                "-Verify",
                "1",
                "-verify_return_error",
            ])
            .args([version, "-accept", &format!("10.99.0.2:{port}"), "-CAfile"])
            .arg(lab.path("ca.pem"))
            .arg("-cert")
            .arg(lab.path("server.pem"))
            .arg("-key")
            .arg(lab.path("server.key"));
        let _server = Program::start(&lab, command, port)?;
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", &passthrough(""))?;
        let output = ask(&lab, &group, port, &identity)?;
        let record = last(&daemon, 1)?;
        assert!(output.status.success(), "{}: {record:#}", said(&output));
        assert!(answered(&output).contains("agent.example"), "{version}");
        assert_eq!(record["mantled.path"], "native");
        assert_eq!(record["mantled.tls.server_checked"], NAME);
    }
    Ok(())
}

#[test]
fn the_servers_of_postgresql_clients_are_verified_too() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.expired_leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let psql = || {
        run(
            group
                .command(&lab.host, "psql")
                .args(["host=10.99.0.2 user=postgres sslmode=require", "-Atc"])
                .arg("select 'served'")
                .env("PGPASSWORD", PASSWORD),
            Duration::from_secs(20),
        )
    };
    let daemon = Daemon::start(&lab, &group, "enforce", &passthrough(""))?;
    let refused = psql()?;
    assert!(
        said(&refused).contains("access denied"),
        "it waits for a handshake, so it is told by an alert: {}",
        said(&refused)
    );
    let record = last(&daemon, 1)?;
    assert_eq!(record["error.type"], "certificate_expired", "{record:#}");
    assert_eq!(record["network.protocol.name"], "postgresql");
    drop(daemon);
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    assert_eq!(answered(&psql()?), "served\n");
    let record = last(&daemon, 1)?;
    assert_eq!(record["mantled.path"], "native");
    assert_eq!(record["mantled.enforce.error"], "certificate_expired");
    Ok(())
}

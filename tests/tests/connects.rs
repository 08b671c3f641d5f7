//! Every way to call connect() ends at the proxy, and the agent sees the server.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use mantled_tests::{Daemon, Group, Lab, SITE_V4, SITE_V6, Server, lab, run, succeed};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// Runs the agent in the group; what it printed.
fn agent(
    lab: &Lab,
    group: &Group,
    kind: &str,
    address: SocketAddr,
    argument: &str,
) -> Result<String> {
    succeed(
        group
            .command(&lab.host, AGENT)
            .args([kind, &address.to_string(), argument]),
    )
}

#[test]
fn every_kind_of_connect_is_redirected() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2", "fd99::2"])?;
    let v4 = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let v6 = Server::start_echo(&lab.site, SITE_V6, 7000, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let words = "ordinary words";
    let mapped = "[::ffff:10.99.0.2]:7000";
    for (kind, address, argument, peer) in [
        ("echo", v4.address, words, "10.99.0.2:7000"),
        ("echo", v6.address, words, "[fd99::2]:7000"),
        ("mapped", v4.address, words, mapped),
        ("nonblocking", v4.address, words, "10.99.0.2:7000"),
        ("nonblocking", v6.address, words, "[fd99::2]:7000"),
        ("fastopen", v4.address, words, "10.99.0.2:7000"),
        ("fastopen", v6.address, words, "[fd99::2]:7000"),
        (
            "bound",
            v4.address,
            "10.99.0.1 ordinary words",
            "10.99.0.2:7000",
        ),
        (
            "bound",
            v6.address,
            "fd99::1 ordinary words",
            "[fd99::2]:7000",
        ),
        (
            "device",
            v4.address,
            "wire ordinary words",
            "10.99.0.2:7000",
        ),
    ] {
        let printed = agent(&lab, &group, kind, address, argument)?;
        assert_eq!(printed, format!("{peer}\n{words}\n"), "{kind} {address}");
    }
    let records = daemon.settled_records(10)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["server.port"], 7000);
        assert_eq!(record["mantled.bytes.sent"], words.len());
        assert_eq!(record["mantled.bytes.received"], words.len());
        assert_eq!(record["process.executable.path"], AGENT);
    }
    assert_eq!(v4.accepted() + v6.accepted(), 10);
    Ok(())
}

#[test]
fn the_proxy_dials_from_the_address_that_the_agent_had_bound() -> Result<()> {
    let lab = lab!();
    lab.host
        .ip(&["addr", "add", "10.99.0.77/24", "dev", "wire"])?;
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_tls(&lab.site, SITE_V4, 7000, &leaf, |stream| {
        use std::io::{Read as _, Write as _};
        let peer = stream.sock.peer_addr()?.ip().to_string();
        stream.read_exact(&mut [0; 10])?;
        stream.write_all(format!("{peer:>10.10}").as_bytes())
    })?;
    let group = Group::new()?;
    let _daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let printed = agent(
        &lab,
        &group,
        "bound",
        server.address,
        "10.99.0.77 0123456789",
    )?;
    assert_eq!(printed, "10.99.0.2:7000\n10.99.0.77\n");
    Ok(())
}

#[test]
fn twenty_thousand_connects_find_their_origin() -> Result<()> {
    let lab = lab!();
    // The agent's and the proxy's closed connections hold a port for a minute each.
    succeed(
        lab.host
            .command("sysctl")
            .args(["-qw", "net.ipv4.ip_local_port_range=1024 65535"]),
    )?;
    let server = Server::start(&lab.site, SITE_V4, 7000, |mut stream| {
        use std::io::{Read as _, Write as _};
        stream.read_exact(&mut [0])?;
        stream.write_all(b"x")
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(
        &lab,
        &group,
        "enforce",
        "[[route]]\ncidr = \"10.99.0.2\"\ntls = \"exempt\"\n",
    )?;
    let children: Vec<_> = (0..4)
        .map(|_| {
            group
                .command(&lab.host, AGENT)
                .args(["hammer", &server.address.to_string(), "5000"])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
        })
        .collect::<std::io::Result<_>>()?;
    for child in children {
        let output = mantled_tests::wait(child, Duration::from_secs(120))?;
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "5000\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let records = daemon.settled_records(20_000)?;
    let found = records
        .iter()
        .filter(|record| {
            record["server.address"] == "10.99.0.2"
                && record["mantled.path"] == "exposed"
                && record.get("error.type").is_none()
        })
        .count();
    assert_eq!(found, 20_000);
    Ok(())
}

#[test]
fn a_server_that_is_down_gives_the_agent_its_errno_at_the_second_attempt() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let attempt = || {
        run(
            group
                .command(&lab.host, AGENT)
                .args(["echo", "10.99.0.2:7009", "words"]),
            Duration::from_secs(20),
        )
    };
    // connect() has succeeded at the proxy already, so the first answer is a reset.
    let first = attempt()?;
    assert!(!first.status.success());
    let second = attempt()?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("Connection refused"), "{said}");
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.verdict"], "failed");
    assert_eq!(records[0]["error.type"], "dial_failed");
    Ok(())
}

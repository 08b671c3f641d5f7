//! curl and redis-cli in clear, against servers that speak TLS alone.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Program, SITE_V4, Server, assert_clean, eventually, lab, run,
    succeed,
};

fn curl(lab: &Lab, group: &Group, arguments: &[&str]) -> Command {
    let mut command = group.command(&lab.host, "curl");
    command.args(["-sS", "--max-time", "20"]).args(arguments);
    command
}

#[test]
fn curl_reaches_a_tls_server_by_a_route() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["www.site.example"])?;
    let _server = Program::nginx(&lab, &leaf)?;
    let group = Group::new()?;
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nport = 8000\nupstream_port = 443\nserver_name = \"www.site.example\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let capture = Capture::start(&lab)?;
    let base = "http://10.99.0.2:8000";
    // Two requests on one connection.
    let printed = succeed(&mut curl(
        &lab,
        &group,
        &[
            &format!("{base}/?needle-one"),
            &format!("{base}/?needle-two"),
        ],
    ))?;
    assert_eq!(printed, "over HTTP/1.1 for 10.99.0.2\n".repeat(2));
    let body = lab.path("posted");
    fs::write(&body, vec![b'p'; 10_000_000])?;
    let posted = format!("@{}", body.display());
    let printed = succeed(&mut curl(
        &lab,
        &group,
        &["--data-binary", &posted, &format!("{base}/length")],
    ))?;
    assert_eq!(printed, "10000000\n");
    let printed = succeed(&mut curl(
        &lab,
        &group,
        &["--http2-prior-knowledge", &format!("{base}/")],
    ))?;
    assert_eq!(printed, "over HTTP/2.0 for 10.99.0.2\n");
    let big = lab.path("big");
    succeed(curl(&lab, &group, &[&format!("{base}/big"), "-o"]).arg(&big))?;
    assert!(fs::read(&big)? == vec![b'b'; 16 << 20], "another body");
    let wire = capture.finish()?;
    ensure!(
        wire.len() > 26_000_000,
        "the bodies were captured: {} bytes",
        wire.len()
    );
    assert_clean(
        &wire,
        &[
            "needle-one",
            "needle-two",
            "HTTP/1.1",
            &"p".repeat(40),
            &"b".repeat(40),
        ],
    )?;
    let records = daemon.settled_records(4)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["mantled.tls.verified_name"], "www.site.example");
        assert_eq!(record["server.port"], 8000);
        assert_eq!(record["network.peer.port"], 443);
        assert_eq!(record["mantled.route"], 1);
        assert_eq!(record["process.executable.name"], "curl");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    // What was carried, with headers of less than a kilobyte.
    let carried = |n: usize, direction: &str| records[n][direction].as_u64().unwrap_or_default();
    let sent = carried(1, "mantled.bytes.sent");
    assert!((10_000_000..10_001_000).contains(&sent), "{sent}");
    let received = carried(3, "mantled.bytes.received");
    assert!(
        (16 << 20..(16 << 20) + 1000).contains(&received),
        "{received}"
    );
    assert_eq!(records[0]["tls.next_protocol"], "http/1.1");
    assert_eq!(records[2]["network.protocol.name"], "http2");
    assert_eq!(records[2]["tls.next_protocol"], "h2");
    Ok(())
}

#[test]
fn port_80_without_a_route_is_port_443_where_that_verifies() -> Result<()> {
    let lab = lab!();
    let server = Program::nginx(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let _plain = Server::start(&lab.site, SITE_V4, 80, move |mut stream| {
        let mut words = Vec::new();
        stream.read_to_end(&mut words)?;
        noted.lock().unwrap().extend(words);
        Ok(())
    })?;
    // It does hear who speaks to it.
    lab.site.enter(|| {
        TcpStream::connect((SITE_V4, 80)).and_then(|mut stream| stream.write_all(b"control"))
    })??;
    eventually("the control", Duration::from_secs(5), || {
        (*heard.lock().unwrap() == b"control").then_some(())
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let printed = succeed(&mut curl(&lab, &group, &["http://10.99.0.2/"]))?;
    assert_eq!(printed, "over HTTP/1.1 for 10.99.0.2\n");
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "verified", "{:#}", records[0]);
    assert_eq!(records[0]["server.port"], 80);
    assert_eq!(records[0]["network.peer.port"], 443);
    assert!(records[0].get("mantled.route").is_none());
    drop(server);
    // And where it is gone, the agent is told in its own protocol.
    let printed = succeed(&mut curl(
        &lab,
        &group,
        &["-w", "%{http_code}", "http://10.99.0.2/"],
    ))?;
    assert!(
        printed.contains("mantled refused") && printed.ends_with("502"),
        "{printed}"
    );
    assert_eq!(
        daemon.settled_records(2)?[1]["error.type"],
        "tls_not_offered"
    );
    // The server in clear was there, and was told nothing by the agent.
    assert_eq!(*heard.lock().unwrap(), b"control");
    Ok(())
}

#[test]
fn port_80_of_a_server_that_has_port_443_alone() -> Result<()> {
    let lab = lab!();
    let server = Program::nginx(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    // Often, since the refused dial races the agent's first words.
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        let printed = succeed(&mut curl(&lab, &group, &["http://10.99.0.2/"]))?;
        assert_eq!(printed, "over HTTP/1.1 for 10.99.0.2\n");
    }
    for record in daemon.settled_records(ATTEMPTS)? {
        assert_eq!(record["mantled.path"], "verified");
        assert_eq!(record["server.port"], 80);
        assert_eq!(record["network.peer.port"], 443);
    }
    // Where neither port answers, the server is not there, and the next connect() says so.
    drop(server);
    let attempt = || {
        run(
            &mut curl(&lab, &group, &["http://10.99.0.2/"]),
            Duration::from_secs(20),
        )
    };
    assert!(!attempt()?.status.success());
    let said = String::from_utf8_lossy(&attempt()?.stderr).into_owned();
    assert!(
        said.contains("connect to"),
        "the errno of connect() is the dial's: {said}"
    );
    let records = daemon.settled_records(ATTEMPTS + 1)?;
    assert_eq!(records[ATTEMPTS]["error.type"], "dial_failed");
    Ok(())
}

#[test]
fn redis_cli_reaches_a_tls_server() -> Result<()> {
    let lab = lab!();
    let _server = Program::redis(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let cli = |arguments: &[&str]| {
        let mut command = group.command(&lab.host, "redis-cli");
        command.args(["-h", "10.99.0.2"]).args(arguments);
        command
    };
    assert_eq!(
        succeed(&mut cli(&["set", "needle-key", "needle-value"]))?,
        "OK\n"
    );
    assert_eq!(succeed(&mut cli(&["get", "needle-key"]))?, "needle-value\n");
    let commands = lab.path("commands");
    let text: String = (0..10_000)
        .map(|n| format!("SET key:{n} {n}\r\n"))
        .collect();
    fs::write(&commands, text)?;
    let printed = succeed(
        group
            .command(&lab.host, "sh")
            .args(["-c", "redis-cli -h 10.99.0.2 --pipe < \"$0\""])
            .arg(&commands),
    )?;
    assert!(printed.contains("errors: 0, replies: 10000"), "{printed}");
    let value = lab.path("value");
    fs::write(&value, vec![b'v'; 5_000_000])?;
    succeed(
        group
            .command(&lab.host, "sh")
            .args(["-c", "redis-cli -h 10.99.0.2 -x set large < \"$0\""])
            .arg(&value),
    )?;
    let large = "v".repeat(5_000_000);
    assert!(
        succeed(&mut cli(&["get", "large"]))? == format!("{large}\n"),
        "another value"
    );
    // The pipeline's keys, and the two.
    assert_eq!(succeed(&mut cli(&["dbsize"]))?, "10002\n");
    assert_eq!(succeed(&mut cli(&["get", "key:9999"]))?, "9999\n");
    let wire = capture.finish()?;
    ensure!(
        wire.len() > 10_000_000,
        "the value was captured: {} bytes",
        wire.len()
    );
    assert_clean(
        &wire,
        &["needle-key", "needle-value", "key:77", &"v".repeat(40)],
    )?;
    let records = daemon.settled_records(7)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        // What the mass insertion sends are inline commands, plain words that prove nothing.
        let protocol = record["network.protocol.name"].as_str();
        assert!(protocol.is_none_or(|name| name == "redis"), "{record:#}");
        assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
        assert_eq!(record["process.executable.name"], "redis-cli");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    assert_eq!(records[0]["network.protocol.name"], "redis");
    // To the byte.
    for (n, words, answer) in [
        (0, &["set", "needle-key", "needle-value"][..], 5),
        (1, &["get", "needle-key"], 5 + 14),
        (3, &["set", "large", &large], 5),
        (4, &["get", "large"], 10 + 5_000_002),
    ] {
        assert_eq!(records[n]["mantled.bytes.sent"], resp(words).len());
        assert_eq!(records[n]["mantled.bytes.received"], answer);
    }
    Ok(())
}

/// A command as it crosses the wire.
fn resp(words: &[&str]) -> String {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    text
}

#[test]
fn refusals_are_in_the_clients_own_protocol() -> Result<()> {
    let lab = lab!();
    let expired = lab.authority.expired_leaf(&["10.99.0.2"])?;
    let _web = Program::nginx(&lab, &expired)?;
    let _redis = Program::redis(&lab, &expired)?;
    let group = Group::new()?;
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nport = 80\nupstream_port = 443\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let printed = succeed(&mut curl(
        &lab,
        &group,
        &["-w", "%{http_code}", "http://10.99.0.2/"],
    ))?;
    assert!(
        printed.contains("expired") && printed.ends_with("502"),
        "{printed}"
    );
    let output = run(
        group
            .command(&lab.host, "redis-cli")
            .args(["-h", "10.99.0.2", "get", "x"]),
        Duration::from_secs(10),
    )?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        printed.starts_with("ERR mantled refused") && printed.contains("expired"),
        "{printed}"
    );
    for record in daemon.settled_records(2)? {
        assert_eq!(record["error.type"], "certificate_expired");
    }
    Ok(())
}

#[test]
fn an_agents_own_tls_is_seen_and_passes_only_where_it_may() -> Result<()> {
    let lab = lab!();
    let _server = Program::nginx(&lab, &lab.authority.leaf(&["www.site.example"])?)?;
    let group = Group::new()?;
    let authority = lab.path("ca.pem");
    let https = |maximum: &str| {
        run(
            curl(
                &lab,
                &group,
                &["--resolve", "www.site.example:443:10.99.0.2"],
            )
            .args(["--tls-max", maximum])
            .arg("--cacert")
            .arg(&authority)
            .arg("https://www.site.example/"),
            Duration::from_secs(20),
        )
    };
    let passthrough = "[[route]]\ncidr = \"10.99.0.2\"\ntls = \"passthrough\"\n";
    for (mode, config, served) in [
        ("enforce", "", false),
        ("enforce", passthrough, true),
        ("observe", "", true),
    ] {
        let daemon = Daemon::start(&lab, &group, mode, config)?;
        for (n, version) in ["1.3", "1.2"].into_iter().enumerate() {
            let output = https(version)?;
            assert_eq!(
                output.status.success(),
                served,
                "{mode}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let records = daemon.settled_records(n + 1)?;
            let record = &records[n];
            assert_eq!(
                record["tls.client.server_name"], "www.site.example",
                "{record:#}"
            );
            assert_eq!(record["mantled.tls.client.versions"][0], version);
            assert_eq!(record["tls.client.supported_protocols"][0], "h2");
            if served {
                assert_eq!(
                    String::from_utf8_lossy(&output.stdout),
                    "over HTTP/2.0 for www.site.example\n"
                );
                assert_eq!(record["mantled.path"], "native");
                assert_eq!(record["tls.protocol.version"], version);
                assert!(record["tls.cipher"].is_string());
                assert_eq!(record["mantled.tls.server_checked"], "www.site.example");
            } else {
                assert_eq!(record["error.type"], "native_tls");
                assert_eq!(record["mantled.verdict"], "refused");
                assert!(record.get("mantled.path").is_none());
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(
                    said.contains("access denied"),
                    "the alert's own words: {said}"
                );
            }
        }
    }
    Ok(())
}

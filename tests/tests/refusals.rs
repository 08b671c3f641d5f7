//! Enforce mode: what cannot be verified is refused, the record says why, and nothing that the
//! agent said has left.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Leaf, PASSWORD, Postgres, SITE_V4, Server, assert_clean, lab,
    patience, run,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const SECRET: &str = "the-agents-secret-words";

/// Lets the agent say its secret to the server; it must not get an echo. Returns the one record.
fn refused(lab: &Lab, address: &str) -> Result<Value> {
    let group = Group::new()?;
    let daemon = Daemon::start(
        lab,
        &group,
        "enforce",
        "[limits]\nhandshake = \"2s\"\ndetect = \"1s\"\n",
    )?;
    let capture = Capture::start(lab)?;
    let output = run(
        group
            .command(&lab.host, AGENT)
            .args(["echo", address, SECRET]),
        Duration::from_secs(20),
    )?;
    ensure!(!output.status.success(), "the agent was answered");
    let wire = capture.finish()?;
    assert_clean(&wire, &[SECRET])?;
    let mut records = daemon.settled_records(1)?;
    let record = records.remove(0);
    assert_eq!(record["mantled.verdict"], "refused", "{record:#}");
    assert!(record.get("mantled.path").is_none(), "{record:#}");
    assert_eq!(record["mantled.bytes.sent"], 0);
    assert!(
        record["mantled.reason"]
            .as_str()
            .is_some_and(|reason| reason.len() > 10)
    );
    Ok(record)
}

/// A TLS server that notes whatever it is told after the handshake.
fn listening_tls(lab: &Lab, leaf: &Leaf) -> Result<(Server, Arc<Mutex<Vec<u8>>>)> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let server = Server::start_tls(&lab.site, SITE_V4, 7000, leaf, move |stream| {
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                length => noted.lock().unwrap().extend_from_slice(&buffer[..length]),
            }
        }
    })?;
    Ok((server, heard))
}

#[test]
fn bad_certificates() -> Result<()> {
    let lab = lab!();
    let stranger = mantled_tests::Authority::new("a stranger")?;
    for (what, leaf, cause) in [
        (
            "expired",
            lab.authority.expired_leaf(&["10.99.0.2"])?,
            "certificate_expired",
        ),
        (
            "self-signed",
            Leaf::self_signed(&["10.99.0.2"])?,
            "certificate_untrusted",
        ),
        (
            "of a stranger",
            stranger.leaf(&["10.99.0.2"])?,
            "certificate_untrusted",
        ),
        (
            "for another name",
            lab.authority.leaf(&["other.example", "10.99.0.3"])?,
            "certificate_name_mismatch",
        ),
    ] {
        let (server, heard) = listening_tls(&lab, &leaf)?;
        let record = refused(&lab, &server.address.to_string())?;
        assert_eq!(record["error.type"], cause, "{what}: {record:#}");
        assert!(
            heard.lock().unwrap().is_empty(),
            "{what}: the server was told something"
        );
        drop(server);
        std::thread::sleep(Duration::from_millis(50)); // its listener closes
    }
    Ok(())
}

#[test]
fn a_route_names_what_the_certificate_must_prove() -> Result<()> {
    let lab = lab!();
    let server = Server::start_echo(
        &lab.site,
        SITE_V4,
        7000,
        &lab.authority.leaf(&["db.example"])?,
    )?;
    let group = Group::new()?;
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nserver_name = \"db.example\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    mantled_tests::succeed(group.command(&lab.host, AGENT).args([
        "echo",
        &server.address.to_string(),
        SECRET,
    ]))?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.tls.verified_name"], "db.example");
    Ok(())
}

#[test]
fn a_server_without_tls() -> Result<()> {
    let lab = lab!();
    for (what, greeting, answer) in [
        (
            "that answers the ClientHello with its own words",
            &b""[..],
            &b"what?\r\n"[..],
        ),
        ("that says nothing", b"", b""),
        ("that speaks first", b"220 ready\r\n", b""),
    ] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        let server = Server::start(&lab.site, SITE_V4, 7000, move |mut stream: TcpStream| {
            stream.write_all(greeting)?;
            let mut buffer = [0; 4096];
            loop {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                noted.lock().unwrap().extend_from_slice(&buffer[..length]);
                stream.write_all(answer)?;
            }
        })?;
        let record = refused(&lab, &server.address.to_string())?;
        let cause = record["error.type"].as_str().unwrap_or_default().to_owned();
        assert!(
            ["tls_not_offered", "upgrade_timeout", "no_upgrade"].contains(&cause.as_str()),
            "{what}: {record:#}"
        );
        let heard = heard.lock().unwrap();
        assert!(!contains(&heard, SECRET.as_bytes()), "{what}");
        assert!(
            heard.is_empty() || heard.starts_with(&[0x16, 3, 1]),
            "{what}: more than a ClientHello"
        );
        drop(heard);
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_silent_agent_before_a_server_without_tls_is_refused_in_time() -> Result<()> {
    let lab = lab!();
    let server = Server::start(&lab.site, SITE_V4, 7000, |mut stream: TcpStream| {
        std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
    })?;
    let group = Group::new()?;
    let limits = "[limits]\ndetect = \"500ms\"\nhandshake = \"1s\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
    let mut agent = group
        .command(&lab.host, AGENT)
        .args(["mute", &server.address.to_string()])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    let records = daemon.settled_records(1)?;
    assert!(
        begun.elapsed() < Duration::from_secs(4) * patience(),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(records[0]["error.type"], "upgrade_timeout");
    agent.kill()?;
    agent.wait()?;
    Ok(())
}

/// A PostgreSQL server that answers SSLRequest in its own way; what it was told is noted.
fn false_postgres(
    lab: &Lab,
    answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<(Server, Arc<Mutex<Vec<u8>>>)> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let server = Server::start(&lab.site, SITE_V4, 5432, move |mut stream| {
        let mut request = [0; 8];
        stream.read_exact(&mut request)?;
        noted.lock().unwrap().extend_from_slice(&request);
        answer(&mut stream)?;
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                length => noted.lock().unwrap().extend_from_slice(&buffer[..length]),
            }
        }
    })?;
    Ok((server, heard))
}

fn psql(lab: &Lab, group: &Group) -> Result<String> {
    let output = run(
        group
            .command(&lab.host, "psql")
            .args([
                "-v",
                "VERBOSITY=verbose",
                "host=10.99.0.2 user=alice_the_agent sslmode=disable",
                "-c",
                "select 1",
            ])
            .env("PGPASSWORD", PASSWORD),
        Duration::from_secs(20),
    )?;
    ensure!(!output.status.success(), "psql was served");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn hostile_answers_to_the_postgresql_upgrade() -> Result<()> {
    let lab = lab!();
    let limits = "[limits]\nstarttls = \"1s\"\nhandshake = \"1s\"\n";
    type Answer = Box<dyn Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync>;
    let cases: [(&str, Answer, &str); 7] = [
        (
            "declines",
            Box::new(|stream| stream.write_all(b"N")),
            "upgrade_declined",
        ),
        (
            "injects before the handshake",
            Box::new(|stream| stream.write_all(b"SR\0\0\0\x08\0\0\0\0")),
            "upgrade_injected",
        ),
        (
            "talks nonsense",
            Box::new(|stream| stream.write_all(b"HTTP/1.1 400")),
            "upgrade_protocol",
        ),
        (
            "answers with an error",
            Box::new(|stream| stream.write_all(b"E\0\0\0\x0fMtoo many\0\0")),
            "upgrade_declined",
        ),
        ("stalls", Box::new(|_| Ok(())), "upgrade_timeout"),
        (
            "goes ahead and stalls",
            Box::new(|stream| stream.write_all(b"S")),
            "upgrade_timeout",
        ),
        (
            "goes ahead in clear",
            Box::new(|stream| {
                stream.write_all(b"S")?;
                std::thread::sleep(Duration::from_millis(100));
                stream.write_all(b"R\0\0\0\x08\0\0\0\0")
            }),
            "tls_not_offered",
        ),
    ];
    for (what, answer, cause) in cases {
        let (server, heard) = false_postgres(&lab, answer)?;
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
        let said = psql(&lab, &group)?;
        assert!(
            said.contains("mantled refused this connection"),
            "{what}: {said}"
        );
        assert!(said.contains(cause), "{what}: {said}");
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], cause, "{what}: {:#}", records[0]);
        assert_eq!(records[0]["mantled.verdict"], "refused");
        let heard = heard.lock().unwrap();
        assert!(!contains(&heard, b"alice_the_agent"), "{what}");
        assert!(
            heard.len() == 8 || heard[8..].starts_with(&[0x16, 3]),
            "{what}: {heard:x?}"
        );
        drop(heard);
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn observe_lets_clear_text_pass_and_says_what_enforce_would_do() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start_with(&lab, None, "host all all all scram-sha-256\n")?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    mantled_tests::succeed(
        group
            .command(&lab.host, "psql")
            .args([
                "host=10.99.0.2 user=postgres sslmode=disable",
                "-c",
                "select 1",
            ])
            .env("PGPASSWORD", PASSWORD),
    )?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "exposed");
    assert_eq!(records[0]["mantled.enforce.error"], "upgrade_declined");
    // The same for a server that never heard of TLS, and for one with a bad certificate.
    let plain = Server::start(&lab.site, SITE_V4, 7001, |mut stream| {
        let mut copy = stream.try_clone()?;
        std::io::copy(&mut stream, &mut copy)?;
        stream.shutdown(std::net::Shutdown::Both)
    })?;
    mantled_tests::succeed(group.command(&lab.host, AGENT).args([
        "echo",
        &plain.address.to_string(),
        "hello",
    ]))?;
    let records = daemon.settled_records(2)?;
    assert_eq!(records[1]["mantled.path"], "exposed", "{:#}", records[1]);
    assert_eq!(records[1]["mantled.enforce.error"], "tls_not_offered");
    // And where the attempt was made on another port, the record names the one that was used.
    let web = Server::start(&lab.site, SITE_V4, 80, |mut stream| {
        let mut request = [0; 4];
        stream.read_exact(&mut request)?;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
    })?;
    run(
        group.command(&lab.host, AGENT).args([
            "ask",
            &web.address.to_string(),
            "GET / HTTP/1.1\r\n\r\n",
        ]),
        Duration::from_secs(10),
    )?;
    let records = daemon.settled_records(3)?;
    assert_eq!(records[2]["mantled.path"], "exposed", "{:#}", records[2]);
    assert!(
        records[2].get("network.peer.port").is_none(),
        "{:#}",
        records[2]
    );
    Ok(())
}

#[test]
fn a_truncated_answer_is_not_passed_off_as_whole() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_tls(&lab.site, SITE_V4, 7000, &leaf, |stream| {
        stream.read_exact(&mut [0; 5])?;
        stream.write_all(b"half of the ans")?;
        // Ends TCP under TLS, as somebody on the path could.
        stream.sock.shutdown(std::net::Shutdown::Both)
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let output = run(
        group
            .command(&lab.host, AGENT)
            .args(["ask", &server.address.to_string(), "words"]),
        Duration::from_secs(10),
    )?;
    // It gets what came, and an error where the rest should be.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "half of the ans\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("reset"));
    let records = daemon.settled_records(1)?;
    assert_eq!(
        records[0]["error.type"], "upstream_truncated",
        "{:#}",
        records[0]
    );
    assert_eq!(records[0]["mantled.bytes.received"], 15);
    Ok(())
}

//! TDS: FreeTDS in clear against a peer that was written from the specification and wants
//! encryption; and peers that would rather not.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mantled_tests::{
    Capture, Daemon, Group, Lab, PASSWORD, SITE_V4, Server, TdsPeer, TdsVersion, assert_clean, lab,
    wait,
};

/// What a batch looks like on a wire without encryption.
const NEEDLE_UTF16: &str = "n\0e\0e\0d\0l\0e\0";

/// tsql with this word for `encryption`, which is given these lines.
fn tsql(lab: &Lab, group: &Group, encryption: &str, lines: &str) -> Result<Output> {
    let configuration = lab.path("freetds.conf");
    fs::write(
        &configuration,
        format!(
            "[global]\ntds version = 7.4\nencryption = {encryption}\nclient charset = UTF-8\n\
             [peer]\nhost = 10.99.0.2\nport = 1433\n"
        ),
    )?;
    let mut child = group
        .command(&lab.host, "tsql")
        .args(["-S", "peer", "-U", "needle-user", "-P", PASSWORD, "-o", "q"])
        .env("FREETDSCONF", &configuration)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(lines.as_bytes())?;
    drop(stdin);
    wait(child, Duration::from_secs(30))
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat()
}

/// Lets FreeTDS work with the peer, by a route.
fn works(version: TdsVersion, route: &str) -> Result<()> {
    let lab = lab!();
    let peer = TdsPeer::start(&lab, &lab.authority.leaf(&["10.99.0.2"])?, version)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let capture = Capture::start(&lab)?;
    // One that never encrypts, and one that does where the server can.
    for encryption in ["off", "request"] {
        let output = tsql(
            &lab,
            &group,
            encryption,
            "select needle\ngo\nselect many needles\ngo\n",
        )?;
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        assert_eq!(
            said.matches("answer to select needle\n").count(),
            1,
            "{said}"
        );
        assert_eq!(
            said.matches("answer to select many needles\n").count(),
            20_000
        );
    }
    assert_eq!(
        peer.heard(),
        ["needle-user", "select needle", "select many needles"].repeat(2)
    );
    let wire = capture.finish()?;
    assert!(wire.len() > 2_000_000, "it was captured: {}", wire.len());
    assert_clean(&wire, &["needle", NEEDLE_UTF16])?;
    for record in daemon.settled_records(2)? {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "tds");
        assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
        match version {
            TdsVersion::Seven => assert_eq!(record["tls.protocol.version"], "1.2"),
            TdsVersion::Eight => assert_eq!(record["tls.next_protocol"], "tds/8.0"),
        }
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    Ok(())
}

#[test]
fn freetds_reaches_a_peer_written_from_the_specification_of_tds_7() -> Result<()> {
    works(TdsVersion::Seven, "")
}

#[test]
fn freetds_reaches_a_peer_written_from_the_specification_of_tds_8() -> Result<()> {
    works(
        TdsVersion::Eight,
        "[[route]]\nport = 1433\nprotocol = \"tds\"\ntls = \"implicit\"\n",
    )
}

#[test]
fn an_agent_that_insists_on_tls_inside_tds_is_refused() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let peer = TdsPeer::start(&lab, &leaf, TdsVersion::Seven)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let output = tsql(&lab, &group, "require", "select needle\ngo\n")?;
    assert!(!output.status.success(), "{}", said(&output));
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["error.type"], "native_tls", "{:#}", records[0]);
    drop(daemon);
    assert!(peer.heard().is_empty());
    // Observing lets it be.
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    let output = tsql(&lab, &group, "require", "select needle\ngo\n")?;
    assert!(
        said(&output).contains("answer to select needle"),
        "{}",
        said(&output)
    );
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "exposed", "{:#}", records[0]);
    assert_eq!(records[0]["mantled.enforce.error"], "native_tls");
    Ok(())
}

#[test]
fn a_peer_of_tds_with_another_name_is_refused() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["other.example"])?;
    let peer = TdsPeer::start(&lab, &leaf, TdsVersion::Seven)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let output = tsql(&lab, &group, "off", "select needle\ngo\n")?;
    assert!(
        said(&output).contains("does not prove 10.99.0.2"),
        "{}",
        said(&output)
    );
    let records = daemon.settled_records(1)?;
    assert_eq!(
        records[0]["error.type"], "certificate_name_mismatch",
        "{:#}",
        records[0]
    );
    assert!(peer.heard().is_empty());
    Ok(())
}

/// An answer to PRELOGIN.
fn answer(encryption: u8) -> Vec<u8> {
    let mut answer =
        b"\x04\x01\0\x1a\0\0\x01\0\0\0\x0b\0\x06\x01\0\x11\0\x01\xff\x10\0\0\0\0\0".to_vec();
    answer.push(encryption);
    answer
}

#[test]
fn hostile_answers_to_prelogin() -> Result<()> {
    let lab = lab!();
    let limits = "[limits]\nstarttls = \"1s\"\nhandshake = \"1s\"\n";
    let injected = [answer(1), b"\x12\x01\0\x09".to_vec()].concat();
    // What it says at first, and what after the ClientHello.
    for (what, first, second, cause) in [
        ("strips", answer(2), &b""[..], "upgrade_declined"),
        (
            "would encrypt the login only",
            answer(0),
            b"",
            "upgrade_declined",
        ),
        ("injects", injected, b"", "upgrade_injected"),
        (
            "talks nonsense",
            b"220 ready\r\n".to_vec(),
            b"",
            "upgrade_protocol",
        ),
        ("stalls", Vec::new(), b"", "upgrade_timeout"),
        ("goes ahead and stalls", answer(1), b"", "upgrade_timeout"),
        (
            "answers in clear",
            answer(1),
            b"\x04\x01\0\x0chello",
            "tls_not_offered",
        ),
        (
            "answers bare",
            answer(1),
            b"\x16\x03\x03\0\x04\x0e\0\0\0",
            "tls_not_offered",
        ),
    ] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        let server = Server::start(&lab.site, SITE_V4, 1433, move |mut stream: TcpStream| {
            let mut buffer = [0; 4096];
            for words in [&first[..], second, b""] {
                let length = stream.read(&mut buffer)?;
                noted.lock().unwrap().extend_from_slice(&buffer[..length]);
                stream.write_all(words)?;
            }
            std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
        })?;
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
        let capture = Capture::start(&lab)?;
        let output = tsql(&lab, &group, "request", "select needle\ngo\n")?;
        assert!(
            said(&output).contains("mantled refused this connection"),
            "{what}: {}",
            said(&output)
        );
        assert_clean(&capture.finish()?, &["needle", NEEDLE_UTF16])?;
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], cause, "{what}: {:#}", records[0]);
        assert_eq!(records[0]["mantled.bytes.sent"], 0);
        // A PRELOGIN of the proxy's own, and at most a ClientHello in a packet.
        let heard = heard.lock().unwrap();
        let (request, rest) = heard.split_at(usize::from(heard[3]));
        assert_eq!(request[..2], [0x12, 1], "{what}");
        assert!(
            rest.is_empty() || (rest[..2] == [0x12, 1] && rest[8..].starts_with(&[0x16, 3])),
            "{what}: {rest:x?}"
        );
        drop(heard);
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

//! XMPP: slixmpp in clear against a Prosody that wants encryption; and servers that would rather
//! not.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use mantled_tests::{
    Capture, Daemon, Group, Lab, PASSWORD, Program, SITE_V4, Server, assert_clean, lab, run,
};

const ROUTE: &str = "[[route]]\nport = 5222\nserver_name = \"site.example\"\n";

/// Two clients that talk with each other.
fn slixmpp(lab: &Lab, group: &Group) -> Result<Output> {
    // Its path is not resolved: a virtual environment is found by the path of its interpreter.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    run(
        group
            .command(&lab.host, root.join("../target/lab/venv/bin/python"))
            .arg(root.join("clients/slixmpp_client.py"))
            .arg(PASSWORD),
        Duration::from_secs(40),
    )
}

#[test]
fn slixmpp_reaches_a_server_that_wants_encryption() -> Result<()> {
    let lab = lab!();
    let _server = Program::prosody(&lab, &lab.authority.leaf(&["site.example"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", ROUTE)?;
    let capture = Capture::start(&lab)?;
    let output = slixmpp(&lab, &group)?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "50 heard, 250490 letters\n50 answered, 250990 letters\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let wire = capture.finish()?;
    // The domain is told to the server before it has proven anything, and nothing else.
    assert_clean(
        &wire,
        &[
            "needle",
            "alice",
            "bob@site",
            "long long",
            "<auth",
            "<message",
        ],
    )?;
    for record in daemon.settled_records(2)? {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "xmpp");
        assert_eq!(record["mantled.tls.verified_name"], "site.example");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    Ok(())
}

#[test]
fn the_agents_domain_is_not_what_the_certificate_proves() -> Result<()> {
    let lab = lab!();
    let _server = Program::prosody(&lab, &lab.authority.leaf(&["site.example"])?)?;
    let group = Group::new()?;
    // No route names it.
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let said = ask(&lab, &group, 5222)?;
    assert!(said.contains("<policy-violation"), "{said}");
    let records = daemon.settled_records(1)?;
    assert_eq!(
        records[0]["error.type"], "certificate_name_mismatch",
        "{:#}",
        records[0]
    );
    Ok(())
}

/// What an agent hears that opens a stream and waits.
fn ask(lab: &Lab, group: &Group, port: u16) -> Result<String> {
    let header = "<?xml version='1.0'?><stream:stream to='site.example' version='1.0' \
                  from='needle@site.example' xmlns='jabber:client' \
                  xmlns:stream='http://etherx.jabber.org/streams'>";
    let output = run(
        group.command(&lab.host, env!("CARGO_BIN_EXE_agent")).args([
            "ask",
            &format!("10.99.0.2:{port}"),
            header,
        ]),
        Duration::from_secs(20),
    )?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const HEADER: &str = "<?xml version='1.0'?><stream:stream id='1' from='site.example' version='1.0' \
    xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
const OFFER: &str =
    "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>";
const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

#[test]
fn hostile_answers_to_starttls() -> Result<()> {
    let lab = lab!();
    let limits = "[limits]\nstarttls = \"1s\"\nhandshake = \"1s\"\n";
    let stripped = "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
                    <mechanism>PLAIN</mechanism></mechanisms></stream:features>";
    let error = "<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
                 </stream:error></stream:stream>";
    let failure = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>";
    let injected = format!("{PROCEED}<stream:features/>");
    // What it says at first, and what after <starttls/>.
    for (what, first, second, cause) in [
        ("strips", [HEADER, stripped], "", "upgrade_declined"),
        ("errs", [HEADER, error], "", "upgrade_declined"),
        ("fails", [HEADER, OFFER], failure, "upgrade_declined"),
        ("injects", [HEADER, OFFER], &injected, "upgrade_injected"),
        (
            "talks nonsense",
            ["220 ready\r\n", "<a>"],
            "",
            "upgrade_protocol",
        ),
        ("stalls", [HEADER, ""], "", "upgrade_timeout"),
        (
            "goes ahead and stalls",
            [HEADER, OFFER],
            PROCEED,
            "upgrade_timeout",
        ),
    ] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        let offers = first[1] == OFFER;
        let (first, second) = (first.concat(), second.to_owned());
        let server = Server::start(&lab.site, SITE_V4, 5222, move |mut stream: TcpStream| {
            let mut buffer = [0; 4096];
            for words in [&first[..], &second, ""] {
                let length = stream.read(&mut buffer)?;
                noted.lock().unwrap().extend_from_slice(&buffer[..length]);
                stream.write_all(words.as_bytes())?;
            }
            std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
        })?;
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
        let capture = Capture::start(&lab)?;
        let said = ask(&lab, &group, 5222)?;
        assert!(
            said.contains("mantled refused this connection")
                && said.ends_with("</stream:stream>\n"),
            "{what}: {said}"
        );
        assert_clean(&capture.finish()?, &["needle"])?;
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], cause, "{what}: {:#}", records[0]);
        assert_eq!(records[0]["mantled.bytes.sent"], 0);
        let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
        let asked = heard.contains("<starttls");
        assert_eq!(asked, offers, "{what}: {heard}");
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

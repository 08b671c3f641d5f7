//! What does not go through the proxy does not leave.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpStream,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mantled_tests::{
    Capture, Daemon, Group, SITE_V4, Server, assert_clean, eventually, lab, run, succeed, wait,
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const SECRET: &str = "the-agents-secret-words";

/// An agent that says a line and then waits for its input to end.
struct Waiting {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Waiting {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the agent ended at once");
        Ok(Self { child, output })
    }

    /// Lets it go on; whether it succeeded, and what it said on standard error.
    fn go_on(mut self) -> Result<(bool, String)> {
        drop(self.child.stdin.take());
        let output = wait(self.child, Duration::from_secs(10))?;
        drop(self.output);
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

#[test]
fn other_protocols_do_not_leave() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    // So that the capture proves that it captures.
    succeed(lab.host.command(AGENT).args([
        "datagram",
        "10.99.0.2:9",
        "from outside of the group",
    ]))?;
    for (kind, address) in [
        ("datagram", "10.99.0.2:9"),
        ("datagram", "10.99.0.2:443"),
        ("datagram", "10.99.0.2:53"),
        ("datagram", "[fd99::2]:9"),
        ("connected-datagram", "10.99.0.2:9"),
        ("device-datagram", "127.0.0.2:9"),
        ("device-datagram", "10.99.0.2:9"),
        ("pktinfo-datagram", "127.0.0.2:9"),
        ("udplite", "10.99.0.2:9"),
        ("raw", "10.99.0.2:0"),
        ("ping", "10.99.0.2:0"),
    ] {
        let output = run(
            group
                .command(&lab.host, AGENT)
                .args([kind, address, SECRET]),
            Duration::from_secs(10),
        )?;
        assert!(!output.status.success(), "{kind} {address} was sent");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("not permitted"), "{kind} {address}: {said}");
    }
    let wire = capture.finish()?;
    assert!(
        wire.windows(25)
            .any(|window| window == b"from outside of the group")
    );
    assert_clean(&wire, &[SECRET])?;
    let log = eventually("the events", Duration::from_secs(5), || {
        let log = daemon.log();
        (log.matches("refused by the kernel").count() >= 8).then_some(log)
    })?;
    // Told with process and destination, also where the packet and not the call was stopped.
    let raw = log
        .lines()
        .find(|line| line.contains("protocol=253"))
        .context("no event of the raw socket")?;
    assert!(
        raw.contains("\"agent\"") && raw.contains("10.99.0.2"),
        "{raw}"
    );
    Ok(())
}

#[test]
fn sockets_from_before_enrolment_do_not_leave() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start(&lab.site, SITE_V4, 7001, |mut stream: TcpStream| {
        std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
    })?;
    let group = Group::new()?;
    // In the group before it is enrolled: a connection and a datagram socket, both connected.
    let in_group = |kind: &str, address: &str| {
        let mut command = group.command(&lab.host, AGENT);
        command.args([kind, address, SECRET]);
        Waiting::start(command)
    };
    let connection = in_group("early-connection", &plain.address.to_string())?;
    let datagram = in_group("early-datagram", "10.99.0.2:9")?;
    // Outside, and moved in later: its socket stays the other cgroup's, which its connect() is not.
    let mut outside = lab.host.command(AGENT);
    outside.args(["early-socket", &server.address.to_string(), SECRET]);
    let moved = Waiting::start(outside)?;

    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    group.adopt(moved.child.id())?;

    let (served, said) = connection.go_on()?;
    assert!(!served, "the old connection still works");
    assert!(
        said.contains("abort") || said.contains("reset"),
        "the agent is told at once: {said}"
    );
    let (sent, said) = datagram.go_on()?;
    assert!(!sent, "the old datagram socket still sends: {said}");
    let (served, said) = moved.go_on()?;
    assert!(served, "a connect() after the move works: {said}");

    let wire = capture.finish()?;
    assert_clean(&wire, &[SECRET])?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "verified", "{:#}", records[0]);
    assert!(
        daemon
            .log()
            .contains("ended connections from before enrolment"),
        "{}",
        daemon.log()
    );
    Ok(())
}

/// The interpreter that `cargo xtask setup` makes.
fn python() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/venv/bin/python")
}

fn unspec() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/unspec.py")
}

#[test]
fn a_redirected_socket_cannot_be_used_again_to_reach_the_proxy() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "[listen]\nport = 18474\n")?;
    let output = run(
        group.command(&lab.host, python()).arg(unspec()).args([
            "replay",
            "10.99.0.2",
            "7000",
            "18474",
        ]),
        Duration::from_secs(20),
    )?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "honest\n");
    assert!(!output.status.success());
    let records = daemon.settled_records(2)?;
    assert_eq!(
        records
            .iter()
            .filter(|record| record["error.type"] == "not_redirected")
            .count(),
        1,
        "{records:#?}"
    );
    assert_eq!(server.accepted(), 1);
    Ok(())
}

#[test]
fn a_datagram_socket_from_outside_cannot_hide_its_address_family() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let _daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    succeed(lab.host.command(AGENT).args([
        "datagram",
        "10.99.0.2:9",
        "from outside of the group",
    ]))?;
    let mut outside = lab.host.command(python());
    outside
        .arg(unspec())
        .args(["sendto", "10.99.0.2", "9", SECRET]);
    let moved = Waiting::start(outside)?;
    group.adopt(moved.child.id())?;
    let (sent, said) = moved.go_on()?;
    assert!(!sent && said.contains("not permitted"), "{said}");
    assert_clean(&capture.finish()?, &[SECRET])
}

#[test]
fn the_proxy_is_no_open_relay() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "[listen]\nport = 18474\n")?;
    for (command, who) in [
        (lab.host.command(AGENT), "outside"),
        (group.command(&lab.host, AGENT), "inside"),
    ] {
        let mut command = command;
        let output = run(
            command.args(["echo", "127.0.0.1:18474", SECRET]),
            Duration::from_secs(10),
        )?;
        assert!(
            !output.status.success(),
            "{who}: the proxy served a stranger"
        );
    }
    // Nor are datagrams taken of anybody whom the kernel has not sent there.
    for (mut command, who) in [
        (lab.host.command(AGENT), "outside"),
        (group.command(&lab.host, AGENT), "inside"),
    ] {
        let output = run(
            command.args(["datagram", "127.0.0.1:18474", "<13>forged"]),
            Duration::from_secs(10),
        )?;
        assert!(!output.status.success(), "{who}: it could be sent");
    }
    let records = daemon.settled_records(2)?;
    for record in records {
        assert_eq!(record["error.type"], "not_redirected", "{record:#}");
        assert_eq!(record["mantled.verdict"], "refused");
        assert!(record.get("process.pid").is_none());
    }
    Ok(())
}

#[test]
fn listed_exceptions_pass_and_nothing_beside_them() -> Result<()> {
    let lab = lab!();
    let plain = Server::start(&lab.site, SITE_V4, 7001, |mut stream| {
        let mut copy = stream.try_clone()?;
        std::io::copy(&mut stream, &mut copy)?;
        stream.shutdown(std::net::Shutdown::Both)
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(
        &lab,
        &group,
        "enforce",
        "[[bypass]]\ncidr = \"10.99.0.0/24\"\nport = 7001\nreason = \"a test\"\n\
         [dns]\nresolvers = [\"10.99.0.2\"]\n",
    )?;
    let agent = |arguments: &[&str]| {
        run(
            group.command(&lab.host, AGENT).args(arguments),
            Duration::from_secs(10),
        )
    };
    let bypassed = agent(&["echo", &plain.address.to_string(), "by the side"])?;
    assert!(
        bypassed.status.success(),
        "{}",
        String::from_utf8_lossy(&bypassed.stderr)
    );
    assert!(
        agent(&["datagram", "10.99.0.2:7001", "x"])?
            .status
            .success()
    );
    assert!(
        !agent(&["datagram", "10.99.0.2:53", "x"])?.status.success(),
        "what is no DNS, to the resolver"
    );
    assert!(
        !agent(&["datagram", "10.99.0.2:7002", "x"])?
            .status
            .success(),
        "another port"
    );
    assert!(
        !agent(&["datagram", "10.99.0.3:53", "x"])?.status.success(),
        "another resolver"
    );
    // Bypassed connections are not the proxy's, so they have no record.
    daemon.settled_records(0)?;
    Ok(())
}

#[test]
fn a_server_in_the_group_answers_only_where_the_operator_said_so() -> Result<()> {
    let lab = lab!();
    for (inbound, answered) in [("refuse", false), ("allow", true)] {
        let group = Group::new()?;
        let _daemon = Daemon::start_with(
            &lab,
            &format!(
                "[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\ninbound = \"{inbound}\"\n",
                group.path().display()
            ),
        )?;
        let mut command = group.command(&lab.host, AGENT);
        command.args(["serve", "10.99.0.1:7100", "an answer from inside"]);
        let mut serving = Waiting::start(command)?;
        let got = lab.site.enter(|| {
            use std::io::Read as _;
            let address = "10.99.0.1:7100".parse().unwrap();
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
            let mut text = String::new();
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })?;
        assert_eq!(
            got.as_deref(),
            answered.then_some("an answer from inside"),
            "{inbound}"
        );
        serving.child.kill()?;
        serving.child.wait()?;
    }
    Ok(())
}

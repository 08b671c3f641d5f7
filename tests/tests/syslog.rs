//! Syslog in clear, to rsyslog that takes TLS alone and is killed in the middle.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Program, assert_clean, eventually, lab, succeed, wait,
};

const MESSAGES: usize = 10_000;

/// The numbers of the messages that the server has, each once, in the order in which they came
/// first; and how often any came.
fn stored(lab: &Lab) -> (Vec<usize>, usize) {
    let text = fs::read(Program::rsyslog_file(lab)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let numbers = text.split("n=").skip(1).filter_map(|rest| {
        let number = rest.get(..5)?.parse().ok()?;
        rest[5..].starts_with('.').then_some(number)
    });
    let (mut first, mut seen, mut all) = (Vec::new(), vec![false; MESSAGES], 0);
    for number in numbers {
        all += 1;
        if !std::mem::replace(&mut seen[number], true) {
            first.push(number);
        }
    }
    (first, all)
}

/// Every message is there, in its order.
fn assert_all_stored(lab: &Lab) -> Result<()> {
    let count = || stored(lab).0.len();
    eventually("every message", Duration::from_secs(30), || {
        (count() == MESSAGES).then_some(())
    })
    .with_context(|| format!("{} messages", count()))?;
    let (first, all) = stored(lab);
    ensure!(first.is_sorted(), "the messages are in another order");
    println!("{} messages came twice", all - MESSAGES);
    Ok(())
}

fn client(lab: &Lab, group: &Group, framing: &str) -> Command {
    let mut command = group.command(&lab.host, "/usr/bin/python3");
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/syslog_client.py"))
        .args(["10.99.0.2", framing, &MESSAGES.to_string()]);
    command
}

/// Waits until the server has stored so many, then kills it.
fn kill_at(lab: &Lab, server: Program, messages: usize) -> Result<()> {
    eventually("messages", Duration::from_secs(20), || {
        (stored(lab).0.len() >= messages).then_some(())
    })?;
    server.kill()
}

fn killed_in_the_middle(framing: &str) -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Program::rsyslog(&lab, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let agent = client(&lab, &group, framing)
        .stderr(Stdio::piped())
        .spawn()?;
    kill_at(&lab, server, MESSAGES / 4)?;
    // Somebody else has its address for a while; nothing is sent to them.
    let impostor = Program::rsyslog(&lab, &mantled_tests::Leaf::self_signed(&["10.99.0.2"])?)?;
    let before = stored(&lab).1;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stored(&lab).1, before);
    impostor.kill()?;
    let server = Program::rsyslog(&lab, &leaf)?;
    kill_at(&lab, server, MESSAGES * 3 / 4)?;
    let _server = Program::rsyslog(&lab, &leaf)?;
    let output = wait(agent, Duration::from_secs(60))?;
    ensure!(output.status.success(), "{output:?}");
    assert_all_stored(&lab)?;
    assert_clean(&capture.finish()?, &["needle", "<13>1"])?;
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.verdict"], "allowed", "{record:#}");
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert_eq!(record["network.protocol.name"], "syslog");
    assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
    assert_eq!(record["network.peer.port"], 6514);
    assert!(record.get("error.type").is_none(), "{record:#}");
    // Each message once, whatever was sent again.
    let length = "<13>1 2024-05-06T07:08:09Z host needle-app - - - n=00000. ".len() + 60;
    let framed = MESSAGES * (length + format!("{length} ").len());
    assert_eq!(record["mantled.bytes.sent"], framed, "{record:#}");
    Ok(())
}

#[test]
fn lines_survive_a_killed_server() -> Result<()> {
    killed_in_the_middle("lines")
}

#[test]
fn counted_messages_survive_a_killed_server() -> Result<()> {
    killed_in_the_middle("counted")
}

#[test]
fn both_kinds_by_turns_survive_a_killed_server() -> Result<()> {
    killed_in_the_middle("both")
}

#[test]
fn logger_survives_a_killed_server() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let file = lab.path("lines");
    let lines: String = (0..MESSAGES)
        .map(|n| format!("n={n:05}. needle\n"))
        .collect();
    fs::write(&file, lines)?;
    for (n, arguments) in [&[][..], &["--octet-count"]].into_iter().enumerate() {
        let _ = fs::remove_file(Program::rsyslog_file(&lab));
        let server = Program::rsyslog(&lab, &leaf)?;
        // Half of the messages, and the others when the server has gone.
        let script = r#"(head -n 5000 "$0"; sleep 2; tail -n +5001 "$0") | exec logger "$@""#;
        let agent = group
            .command(&lab.host, "sh")
            .args(["-c", script])
            .arg(&file)
            .args(["-T", "-n", "10.99.0.2", "-P", "514"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()?;
        kill_at(&lab, server, MESSAGES / 4)?;
        let _server = Program::rsyslog(&lab, &leaf)?;
        let output = wait(agent, Duration::from_secs(60))?;
        ensure!(output.status.success(), "{output:?}");
        assert_all_stored(&lab)?;
        let record = &daemon.settled_records(n + 1)?[n];
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "syslog");
        assert_eq!(record["process.executable.name"], "logger");
    }
    Ok(())
}

#[test]
fn the_last_messages_of_an_agent_that_closes_while_the_server_is_away() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Program::rsyslog(&lab, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    // It has nothing to say at first; the port tells that it will be syslog.
    let script = r#"
exec 3<>/dev/tcp/10.99.0.2/514
sleep 4
echo '<13>n=00000. first' >&3
read go
for n in 1 2 3; do echo "<13>n=0000$n. last" >&3; done
printf '<13>n=00004. without an end' >&3
"#;
    let mut agent = group
        .command(&lab.host, "bash")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .spawn()?;
    kill_at(&lab, server, 1)?;
    drop(agent.stdin.take()); // go
    ensure!(agent.wait()?.success());
    std::thread::sleep(Duration::from_secs(1));
    assert!(daemon.records().is_empty(), "the session goes on");
    let _server = Program::rsyslog(&lab, &leaf)?;
    eventually("the last messages", Duration::from_secs(20), || {
        (stored(&lab).0 == [0, 1, 2, 3, 4]).then_some(())
    })?;
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["network.protocol.name"], "syslog", "{record:#}");
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    Ok(())
}

#[test]
fn a_server_without_tls_gets_nothing() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = std::sync::Arc::clone(&heard);
    let _server =
        mantled_tests::Server::start(&lab.site, mantled_tests::SITE_V4, 514, move |mut stream| {
            std::io::Read::read_to_end(&mut stream, &mut noted.lock().unwrap()).map(drop)
        })?;
    // It does not notice: that is what makes a record necessary.
    let _ = succeed(&mut client(&lab, &group, "lines"));
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["error.type"], "tls_not_offered", "{record:#}");
    assert_eq!(record["network.protocol.name"], "syslog");
    assert_eq!(record["mantled.bytes.sent"], 0);
    assert!(heard.lock().unwrap().is_empty());
    Ok(())
}

#[test]
fn datagrams_are_carried_over_tls() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Program::rsyslog(&lab, &leaf)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    succeed(&mut client(&lab, &group, "datagrams"))?;
    assert_all_stored(&lab)?;
    // A stock client, whose socket is connected.
    succeed(group.command(&lab.host, "logger").args([
        "--udp",
        "--server",
        "10.99.0.2",
        "--port",
        "514",
        "needle of logger",
    ]))?;
    eventually("logger's message", Duration::from_secs(10), || {
        let text = fs::read(Program::rsyslog_file(&lab)).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .contains("needle of logger")
            .then_some(())
    })?;
    assert_clean(&capture.finish()?, &["needle", "<13>1"])?;
    // Datagrams have no end; the daemon's makes one.
    daemon.stop()?;
    let records = daemon.settled_records(2)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.transport"], "udp");
        assert_eq!(record["network.protocol.name"], "syslog");
        assert_eq!(record["server.port"], 514);
        assert_eq!(record["network.peer.port"], 6514);
    }
    let users: Vec<_> = records
        .iter()
        .filter_map(|record| record["process.executable.name"].as_str())
        .collect();
    assert!(users.contains(&"logger"), "{users:?}");
    Ok(())
}

#[test]
fn datagrams_that_cannot_be_verified_do_not_leave() -> Result<()> {
    let lab = lab!();
    let _server = Program::rsyslog(&lab, &mantled_tests::Leaf::self_signed(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    succeed(&mut client(&lab, &group, "datagrams"))?;
    assert_clean(&capture.finish()?, &["needle", "<13>1"])?;
    assert_eq!(stored(&lab).1, 0);
    let records = daemon.settled_records(1)?;
    assert_eq!(
        records[0]["error.type"], "certificate_untrusted",
        "{:#}",
        records[0]
    );
    Ok(())
}

//! Mail and news: protocols in which the server speaks first, in clear, and goes over to TLS when
//! it is asked to. Agents in clear against servers that insist on TLS, and against hostile ones.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Leaf, MAIL_PASSWORD, Program, SITE_V4, Server, assert_clean,
    delivered, eventually, lab, run, succeed,
};
use serde_json::Value;

/// Debian's, whatever else the path offers: its library still has nntplib.
const PYTHON: &str = "/usr/bin/python3";

/// What Python's own clients saw; they are given a message.
fn python(lab: &Lab, group: &Group, words: &[&str], message: &str) -> Command {
    let file = lab.path("message");
    fs::write(&file, message).expect("the lab's directory can be written to");
    let mut command = group.command(&lab.host, "sh");
    command
        .args(["-c", "exec \"$@\" < \"$0\""])
        .arg(file)
        .arg(PYTHON)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/clients/mail_client.py"
        ))
        .args(words);
    command
}

/// A message whose lines look like what the proxy changes in the servers' replies.
fn message(subject: &str) -> String {
    let lines = [
        "250-AUTH PLAIN SCRAM-SHA-256-PLUS",
        "250 STARTTLS",
        "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED AUTH=SCRAM-SHA-256-PLUS",
        "a1 OK [CAPABILITY STARTTLS] done {7}",
        "+OK",
        "STLS",
        "SASL SCRAM-SHA-256-PLUS",
        "101 capabilities",
        "STARTTLS",
        ".",
        "..two dots",
        "\"SASL\" \"SCRAM-SHA-256-PLUS\"",
        "needle-in-the-body",
    ];
    let body = format!("{}\r\n", lines.join("\r\n")).repeat(500);
    format!(
        "From: agent@host.example\r\nTo: box@site.example\r\nNewsgroups: site.test\r\n\
         Subject: {subject}\r\nMessage-ID: <{subject}@host.example>\r\n\r\n{body}"
    )
}

fn assert_verified(record: &Value, protocol: &str) {
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert_eq!(record["network.protocol.name"], protocol, "{record:#}");
    assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
    assert!(record.get("error.type").is_none(), "{record:#}");
}

#[test]
fn swaks_and_smtplib_submit_mail_to_postfix() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _accounts = Program::dovecot(&lab, &leaf)?;
    let _server = Program::postfix(&lab, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(group.command(&lab.host, "swaks").args([
        "--server",
        "10.99.0.2",
        "--from",
        "agent@host.example",
        "--to",
        "box@site.example",
        "--auth",
        "PLAIN",
        "--auth-user",
        "box",
        "--auth-password",
        MAIL_PASSWORD,
        "--body",
        "needle-of-swaks",
    ]))?;
    assert!(printed.contains("220 mail.site.example ESMTP"), "{printed}");
    assert!(printed.contains("235 2.7.0"), "{printed}");
    assert!(!printed.contains("STARTTLS"), "{printed}");
    let sent = message("smtp");
    let words = ["smtp", "10.99.0.2", "25", "box", MAIL_PASSWORD];
    let printed = succeed(&mut python(&lab, &group, &words, &sent))?;
    assert_eq!(
        printed,
        "offers ['auth', 'pipelining']\n\
         starttls 554 b'5.5.1 Error: TLS already active'\n\
         login 235\nsent {}\n"
    );
    // Without authentication nothing is taken, so it has worked above.
    let words = ["smtp", "10.99.0.2", "25", "box"];
    let output = run(
        &mut python(&lab, &group, &words, &sent),
        Duration::from_secs(20),
    )?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("Access denied"));
    let messages = eventually("two messages", Duration::from_secs(20), || {
        delivered(&lab).ok().filter(|messages| messages.len() == 2)
    })?;
    assert!(messages.iter().any(|one| one.contains("needle-of-swaks")));
    let arrived = sent.replace("\r\n", "\n");
    assert!(
        messages.iter().any(|one| one.ends_with(&arrived)),
        "another message"
    );
    let wire = capture.finish()?;
    ensure!(wire.len() > sent.len(), "the message was captured");
    assert_clean(
        &wire,
        &[
            "needle-of-swaks",
            "needle-in-the-body",
            "MAIL FROM",
            "AUTH PLAIN",
            "@host.example",
        ],
    )?;
    let records = daemon.settled_records(3)?;
    for record in &records {
        assert_verified(record, "smtp");
    }
    Ok(())
}

#[test]
fn imaplib_poplib_curl_and_lmtplib_work_with_dovecot() -> Result<()> {
    let lab = lab!();
    let _server = Program::dovecot(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let client = |protocol: &str, port: &str, text: &str| {
        let words = [protocol, "10.99.0.2", port, "box", MAIL_PASSWORD];
        succeed(&mut python(&lab, &group, &words, text))
    };
    let sent = message("imap");
    assert_eq!(
        client("imap", "143", &sent)?,
        "greeting b'* OK Dovecot (Debian) ready.'\n\
         offers ['AUTH=PLAIN']\n\
         starttls STARTTLS command error: BAD [b'TLS is already active.']\n\
         login OK\nappend OK\nselect OK\nsame True\n"
    );
    let printed = client("pop3", "110", &sent)?;
    assert!(printed.starts_with("greeting b'+OK"), "{printed}");
    assert!(
        printed.contains("offers ['USER']\nstls b'-ERR TLS is already active.'\nsame True\n"),
        "{printed}"
    );
    // curl asks for the capabilities and chooses among the mechanisms.
    let curl = |url: &str| {
        succeed(
            group
                .command(&lab.host, "curl")
                .args(["-sS", "--max-time", "20", "--user"])
                .arg(format!("box:{MAIL_PASSWORD}"))
                .arg(url),
        )
    };
    assert_eq!(curl("pop3://10.99.0.2/1")?, sent);
    assert_eq!(curl("imap://10.99.0.2/INBOX;UID=1")?, sent);
    let mail = message("lmtp");
    assert_eq!(client("lmtp", "24", &mail)?, "sent {}\n");
    let delivered = curl("pop3://10.99.0.2/2")?;
    assert!(delivered.ends_with(&mail), "another message");
    let wire = capture.finish()?;
    ensure!(wire.len() > 5 * sent.len(), "the messages were captured");
    assert_clean(
        &wire,
        &[
            MAIL_PASSWORD,
            "needle-in-the-body",
            "LOGIN box",
            "USER box",
            "MAIL FROM",
        ],
    )?;
    let records = daemon.settled_records(6)?;
    for (record, protocol) in records
        .iter()
        .zip(["imap", "pop3", "pop3", "imap", "lmtp", "pop3"])
    {
        assert_verified(record, protocol);
    }
    Ok(())
}

#[test]
fn sieve_connect_manages_scripts_with_dovecot() -> Result<()> {
    let lab = lab!();
    let _server = Program::dovecot(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let password = lab.path("password");
    fs::write(&password, MAIL_PASSWORD)?;
    let sieve = |arguments: &[&str]| {
        let mut command = group.command(&lab.host, "sh");
        command
            .args(["-c", "exec \"$@\" 3< \"$0\""])
            .arg(&password)
            .args(["sieve-connect", "--server", "10.99.0.2", "--nosrv"])
            .args(["--user", "box"])
            .args(["--passwordfd", "3", "--authmech", "PLAIN", "--clearchan"])
            .args(arguments);
        command
    };
    let script = lab.path("script");
    let text = "require \"fileinto\";\r\n# needle-in-the-script\r\n# \"SASL\" \"X-PLUS\"\r\n\
                fileinto \"INBOX\";\r\n";
    fs::write(&script, text)?;
    let local = script.display().to_string();
    succeed(&mut sieve(&[
        "--localsieve",
        &local,
        "--remotesieve",
        // A name that a filter of capabilities could take for one.
        "STARTTLS",
        "--upload",
    ]))?;
    let printed = succeed(&mut sieve(&["--list"]))?;
    assert!(printed.contains("STARTTLS"), "{printed}");
    let copy = lab.path("copy").display().to_string();
    succeed(&mut sieve(&[
        "--remotesieve",
        "STARTTLS",
        "--localsieve",
        &copy,
        "--download",
    ]))?;
    let unix = |text: &str| text.replace("\r\n", "\n");
    assert_eq!(unix(&fs::read_to_string(copy)?), unix(text));
    assert_clean(
        &capture.finish()?,
        &["needle-in-the-script", "AUTHENTICATE", "PUTSCRIPT"],
    )?;
    for record in daemon.settled_records(3)? {
        assert_verified(&record, "managesieve");
    }
    Ok(())
}

#[test]
fn nntplib_posts_to_and_reads_from_a_peer_written_from_the_rfc() -> Result<()> {
    let lab = lab!();
    let _server = news_peer(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(&mut python(
        &lab,
        &group,
        &["nntp", "10.99.0.2", "119"],
        &message("nntp"),
    ))?;
    assert_eq!(
        printed,
        "offers ['POST']\nstarttls 502 Already using a security layer\nposted 240\nsame True\n"
    );
    assert_clean(
        &capture.finish()?,
        &["needle-in-the-body", "GROUP site", "ARTICLE"],
    )?;
    assert_verified(&daemon.settled_records(1)?[0], "nntp");
    Ok(())
}

/// A protocol, and what a server says in its dialogue before TLS.
struct Dialogue {
    protocol: &'static str,
    port: u16,
    /// With a line for each thing that it says.
    greeting: &'static str,
    /// What the proxy asks.
    questions: &'static [&'static str],
    /// Its answers, the last of which is the go-ahead.
    answers: &'static [&'static str],
    /// The answer or greeting with the capabilities, without TLS.
    stripped: &'static str,
    /// Declines the last question.
    declines: &'static str,
    /// Greets with a refusal.
    unwilling: &'static str,
    /// How a refusal begins that the agent is told.
    refusal: &'static str,
}

const DIALOGUES: [Dialogue; 6] = [
    Dialogue {
        protocol: "smtp",
        port: 25,
        greeting: "220-mx ESMTP\r\n220 ready\r\n",
        questions: &["EHLO [127.0.0.1]\r\n", "STARTTLS\r\n"],
        answers: &["250-mx\r\n250 STARTTLS\r\n", "220 go\r\n"],
        stripped: "250-mx\r\n250 AUTH PLAIN\r\n",
        declines: "454 not now\r\n",
        unwilling: "554 no service for you\r\n",
        refusal: "554 mantled refused this connection: ",
    },
    Dialogue {
        protocol: "lmtp",
        port: 24,
        greeting: "220 box ready\r\n",
        questions: &["LHLO [127.0.0.1]\r\n", "STARTTLS\r\n"],
        answers: &["250-box\r\n250 STARTTLS\r\n", "220 go\r\n"],
        stripped: "250-box\r\n250 PIPELINING\r\n",
        declines: "454 not now\r\n",
        unwilling: "421 no service for you\r\n",
        refusal: "554 mantled refused this connection: ",
    },
    Dialogue {
        protocol: "imap",
        port: 143,
        greeting: "* OK ready\r\n",
        questions: &["mantled1 CAPABILITY\r\n", "mantled2 STARTTLS\r\n"],
        answers: &[
            "* CAPABILITY IMAP4rev1 STARTTLS\r\nmantled1 OK\r\n",
            "mantled2 OK go\r\n",
        ],
        stripped: "* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nmantled1 OK\r\n",
        declines: "mantled2 NO not now\r\n",
        unwilling: "* BYE no service for you\r\n",
        refusal: "* BYE mantled refused this connection: ",
    },
    Dialogue {
        protocol: "pop3",
        port: 110,
        greeting: "+OK ready\r\n",
        questions: &["CAPA\r\n", "STLS\r\n"],
        answers: &["+OK\r\nSTLS\r\n.\r\n", "+OK go\r\n"],
        stripped: "+OK\r\nUSER\r\n.\r\n",
        declines: "-ERR not now\r\n",
        unwilling: "-ERR no service for you\r\n",
        refusal: "-ERR mantled refused this connection: ",
    },
    Dialogue {
        protocol: "nntp",
        port: 119,
        greeting: "200 ready\r\n",
        questions: &["CAPABILITIES\r\n", "STARTTLS\r\n"],
        answers: &["101 list\r\nVERSION 2\r\nSTARTTLS\r\n.\r\n", "382 go\r\n"],
        stripped: "101 list\r\nVERSION 2\r\nREADER\r\n.\r\n",
        declines: "580 not now\r\n",
        unwilling: "400 no service for you\r\n",
        refusal: "400 mantled refused this connection: ",
    },
    Dialogue {
        protocol: "managesieve",
        port: 4190,
        greeting: "\"IMPLEMENTATION\" \"x\"\r\n\"STARTTLS\"\r\nOK\r\n",
        questions: &["STARTTLS\r\n"],
        answers: &["OK \"go\"\r\n"],
        stripped: "\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"PLAIN\"\r\nOK\r\n",
        declines: "NO \"not now\"\r\n",
        unwilling: "BYE \"no service for you\"\r\n",
        refusal: "BYE \"mantled refused this connection: ",
    },
];

/// What a server says, each after another line that it is told; what it hears is noted.
fn scripted(lab: &Lab, port: u16, speeches: Vec<String>) -> Result<(Server, Arc<Mutex<Vec<u8>>>)> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let server = Server::start(&lab.site, SITE_V4, port, move |stream: TcpStream| {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        for (n, speech) in speeches.iter().enumerate() {
            if n > 0 {
                let mut line = Vec::new();
                reader.read_until(b'\n', &mut line)?;
                noted.lock().unwrap().extend_from_slice(&line);
            }
            stream.write_all(speech.as_bytes())?;
        }
        let mut buffer = [0; 4096];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(()),
                length => noted.lock().unwrap().extend_from_slice(&buffer[..length]),
            }
        }
    })?;
    Ok((server, heard))
}

#[test]
fn hostile_servers_are_refused_in_the_protocols_own_words() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let limits = "[limits]\ndetect = \"1s\"\nstarttls = \"500ms\"\nhandshake = \"500ms\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
    let mut count = 0;
    for dialogue in &DIALOGUES {
        let mut whole = vec![dialogue.greeting.to_owned()];
        whole.extend(dialogue.answers.iter().map(|answer| (*answer).to_owned()));
        let go_ahead = whole.len() - 1;
        let with = |n: usize, speech: String| {
            let mut speeches = whole.clone();
            speeches.truncate(n);
            speeches.push(speech);
            speeches
        };
        let mut cases = vec![
            (
                "strips the capability",
                with(go_ahead - 1, dialogue.stripped.to_owned()),
                "upgrade_declined",
            ),
            (
                "declines",
                with(go_ahead, dialogue.declines.to_owned()),
                "upgrade_declined",
            ),
            (
                "injects before the handshake",
                with(go_ahead, format!("{}injected\r\n", whole[go_ahead])),
                "upgrade_injected",
            ),
            (
                "talks nonsense",
                with(go_ahead, "HTTP/1.1 400 Bad Request\r\nOK\r\n".to_owned()),
                "upgrade_protocol",
            ),
            ("stalls", with(go_ahead, String::new()), "upgrade_timeout"),
            ("goes ahead and stalls", whole.clone(), "upgrade_timeout"),
            (
                "talks on and on",
                with(go_ahead, "x".repeat(100_000)),
                "upgrade_protocol",
            ),
            (
                "does not want to",
                vec![dialogue.unwilling.to_owned()],
                "upgrade_declined",
            ),
        ];
        if dialogue.protocol == "imap" {
            cases.push((
                "greets with PREAUTH",
                vec!["* PREAUTH [CAPABILITY STARTTLS] welcome\r\n".to_owned()],
                "upgrade_declined",
            ));
        }
        if dialogue.protocol == "managesieve" {
            // Lines of a response may be anything until it ends.
            cases.retain(|(what, ..)| *what != "talks nonsense");
        }
        for (what, speeches, cause) in cases {
            let what = format!("a {} server that {what}", dialogue.protocol);
            let (server, heard) = scripted(&lab, dialogue.port, speeches)?;
            let port = dialogue.port.to_string();
            let words = ["greeting", "10.99.0.2", &port];
            let told = succeed(&mut python(&lab, &group, &words, ""))?;
            assert!(told.starts_with(dialogue.refusal), "{what}: {told:?}");
            assert_eq!(told.matches('\n').count(), 1, "{what}: {told:?}");
            count += 1;
            let records = daemon.settled_records(count)?;
            let record = &records[count - 1];
            assert_eq!(record["error.type"], cause, "{what}: {record:#}");
            assert_eq!(record["mantled.verdict"], "refused", "{what}");
            assert_eq!(record["network.protocol.name"], dialogue.protocol, "{what}");
            let heard = heard.lock().unwrap();
            let mut rest = &heard[..];
            for question in dialogue.questions {
                rest = rest.strip_prefix(question.as_bytes()).unwrap_or(rest);
            }
            assert!(
                rest.is_empty() || rest.starts_with(&[0x16, 3]),
                "{what} heard {}",
                rest.escape_ascii()
            );
            drop(server);
            std::thread::sleep(Duration::from_millis(50)); // its listener closes
        }
    }
    Ok(())
}

#[test]
fn stock_clients_are_told_why() -> Result<()> {
    let lab = lab!();
    let expired = lab.authority.expired_leaf(&["10.99.0.2"])?;
    let _mailboxes = Program::dovecot(&lab, &expired)?;
    let _mail = Program::postfix(&lab, &expired)?;
    let _news = news_peer(&lab, &expired)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let clients = [
        ("smtp", "25", "SMTPConnectError: (554, "),
        ("lmtp", "24", "SMTPConnectError: (554, "),
        ("imap", "143", "error: "),
        ("pop3", "110", "error_proto: "),
        ("nntp", "119", "NNTPTemporaryError: 400 "),
    ];
    for (protocol, port, expected) in clients {
        let words = [protocol, "10.99.0.2", port, "box", MAIL_PASSWORD];
        let output = run(
            &mut python(&lab, &group, &words, "text"),
            Duration::from_secs(20),
        )?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.starts_with(expected)
                && said.contains("mantled refused this connection")
                && said.contains("expired"),
            "{protocol}: {said}"
        );
    }
    for (record, (protocol, ..)) in daemon.settled_records(clients.len())?.iter().zip(clients) {
        assert_eq!(record["error.type"], "certificate_expired", "{record:#}");
        assert_eq!(record["network.protocol.name"], protocol);
    }
    Ok(())
}

/// A server of news (RFC 3977, RFC 4642) that takes articles and gives back the last one. It
/// insists on TLS, and goes on offering STARTTLS inside.
fn news_peer(lab: &Lab, leaf: &Leaf) -> Result<Server> {
    let article = Mutex::new(String::new());
    Server::start_upgrading(
        &lab.site,
        SITE_V4,
        119,
        leaf,
        |stream| {
            stream.write_all(b"200 ready\r\n")?;
            loop {
                let answer: &[u8] = match line(stream)?.trim_end() {
                    "STARTTLS" => return stream.write_all(b"382 go on\r\n"),
                    "CAPABILITIES" => {
                        b"101 capabilities\r\nVERSION 2\r\nREADER\r\nSTARTTLS\r\n.\r\n"
                    }
                    _ => b"483 not without TLS\r\n",
                };
                stream.write_all(answer)?;
            }
        },
        move |stream| {
            loop {
                let command = line(stream)?;
                let answer = match command.split_whitespace().next() {
                    Some("CAPABILITIES") => {
                        "101 capabilities\r\nVERSION 2\r\nREADER\r\nPOST\r\nSTARTTLS\r\n.\r\n"
                            .to_owned()
                    }
                    Some("STARTTLS") => "502 Already using a security layer\r\n".to_owned(),
                    Some("GROUP") => "211 1 1 1 site.test\r\n".to_owned(),
                    Some("ARTICLE") => {
                        let text = article.lock().unwrap();
                        format!("220 1 <nntp@host.example>\r\n{text}.\r\n")
                    }
                    Some("POST") => {
                        stream.write_all(b"340 go on\r\n")?;
                        // Lines that begin with a dot have one more on the wire, both ways.
                        let mut text = String::new();
                        loop {
                            match line(stream)? {
                                end if end == ".\r\n" => break,
                                words => text += &words,
                            }
                        }
                        *article.lock().unwrap() = text;
                        "240 taken\r\n".to_owned()
                    }
                    Some("QUIT") => return stream.write_all(b"205 bye\r\n"),
                    _ => "500 what?\r\n".to_owned(),
                };
                stream.write_all(answer.as_bytes())?;
            }
        },
    )
}

/// Reads a line, byte by byte, so that nothing behind it is taken.
fn line(stream: &mut impl std::io::Read) -> std::io::Result<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[test]
fn a_late_greeting_and_what_a_peer_written_from_the_rfc_still_offers_inside_tls() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    // A server that greets late, and inside TLS names what it should not (RFC 3207 §4.2).
    let _server = Server::start_upgrading(
        &lab.site,
        SITE_V4,
        25,
        &leaf,
        |stream| {
            std::thread::sleep(Duration::from_millis(1500));
            stream.write_all(b"220 mx ready\r\n")?;
            line(stream)?;
            stream.write_all(b"250-mx\r\n250 STARTTLS\r\n")?;
            line(stream)?;
            stream.write_all(b"220 go\r\n")
        },
        |stream| {
            loop {
                let said = line(stream)?;
                let answer: &[u8] = match said.get(..4).unwrap_or_default() {
                    "EHLO" | "ehlo" => {
                        b"250-mx\r\n250-PIPELINING\r\n250-AUTH PLAIN SCRAM-SHA-256-PLUS\r\n250 STARTTLS\r\n"
                    }
                    "QUIT" | "quit" => return stream.write_all(b"221 bye\r\n"),
                    "STAR" => b"503 in TLS\r\n",
                    "DATA" | "data" => {
                        stream.write_all(b"354 go\r\n")?;
                        while line(stream)? != ".\r\n" {}
                        b"250 taken\r\n"
                    }
                    _ => b"250 ok\r\n",
                };
                stream.write_all(answer)?;
            }
        },
    )?;
    let group = Group::new()?;
    let limits = "[limits]\ndetect = \"500ms\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
    let words = ["smtp", "10.99.0.2", "25", "box"];
    let printed = succeed(&mut python(&lab, &group, &words, "text\r\n"))?;
    assert_eq!(
        printed,
        "offers ['auth', 'pipelining']\nstarttls 503 b'in TLS'\nsent {}\n"
    );
    assert_verified(&daemon.settled_records(1)?[0], "smtp");
    Ok(())
}

#[test]
fn observe_lets_mail_pass_to_a_server_without_tls() -> Result<()> {
    let lab = lab!();
    let serve = |mut stream: TcpStream| {
        stream.write_all(b"220 mx ESMTP\r\n")?;
        loop {
            let said = line(&mut stream)?;
            let answer: &[u8] = match said.get(..4).unwrap_or_default() {
                "EHLO" | "ehlo" => b"250-mx\r\n250 PIPELINING\r\n",
                "QUIT" | "quit" => return stream.write_all(b"221 bye\r\n"),
                "STAR" => b"502 what\r\n",
                "DATA" | "data" => {
                    stream.write_all(b"354 go\r\n")?;
                    while line(&mut stream)? != ".\r\n" {}
                    b"250 taken\r\n"
                }
                _ => b"250 ok\r\n",
            };
            stream.write_all(answer)?;
        }
    };
    let _server = Server::start(&lab.site, SITE_V4, 25, serve)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    let words = ["smtp", "10.99.0.2", "25", "box"];
    let printed = succeed(&mut python(&lab, &group, &words, "text\r\n"))?;
    assert_eq!(
        printed,
        "offers ['pipelining']\nstarttls 502 b'what'\nsent {}\n"
    );
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.path"], "exposed", "{record:#}");
    assert_eq!(record["mantled.enforce.error"], "upgrade_declined");
    Ok(())
}

//! MySQL clients without TLS, against servers that let nobody in without.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::TcpStream,
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use aws_lc_rs::digest::{Context, SHA256};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Leaf, PASSWORD, Program, SITE_V4, Server, assert_clean, lab,
    python_client, run,
};
use serde_json::Value;

const LIMITS: &str = "[limits]\nstarttls = \"1s\"\nhandshake = \"1s\"\n";

/// MariaDB's own client, as an account.
fn mariadb(lab: &Lab, group: &Group, user: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = group.command(&lab.host, "mariadb");
    command
        .args(["--no-defaults", "-h", "10.99.0.2", "-u", user])
        .args(["--batch", "--skip-column-names", "--connect-timeout=20"])
        .args(arguments);
    if user != "nobody" {
        command.env("MYSQL_PWD", PASSWORD);
    }
    run(&mut command, Duration::from_secs(60))
}

fn python(lab: &Lab, group: &Group, password: &str, words: &[&str]) -> Result<String> {
    let (name, arguments) = words.split_first().expect("the name of a program");
    let client = python_client(name)?;
    let mut command: Command = group.command(&lab.host, &client[0]);
    command
        .args(&client[1..])
        .args(arguments)
        .env("MYSQL_PWD", password);
    let output = run(&mut command, Duration::from_secs(100))?;
    ensure!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn printed(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn assert_verified(record: &Value) {
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert_eq!(record["network.protocol.name"], "mysql", "{record:#}");
    assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
    assert!(record.get("error.type").is_none(), "{record:#}");
}

/// What `pymysql_client.py` prints; `tls` is what the server says of its side.
fn work(user: &str, tls: &str) -> String {
    format!(
        "user ('{user}', 'shop')\nserver sees {tls}\nprepared (42, 'aneedle-prepared')\n\
         rows (1000, 'needle-row-0', Decimal('499500'))\nloaded 20000\nstored True True\n\
         fetched True\nerror 1146\nstill here 1\n"
    )
}

#[test]
fn pymysql_works_with_a_mariadb_that_requires_tls() -> Result<()> {
    const BLOB: usize = 50 << 20;
    let lab = lab!();
    let _server = Program::mariadb(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let words = ["pymysql_client.py", "10.99.0.2", "alice", "50"];
    let said = python(&lab, &group, PASSWORD, &words)?;
    assert_eq!(said, work("alice", "TLSv1.3"));
    let wire = capture.finish()?;
    ensure!(
        wire.len() > 2 * BLOB,
        "the blob was captured twice: {} bytes",
        wire.len()
    );
    assert_clean(
        &wire,
        &[
            "alice",
            "mysql_native_password\0_",
            "needle-prepared",
            "needle-row-",
            "needle-loaded-",
            "needle-blob-",
            "6E6565646C652D626C6F622D",
            "6e6565646c652d626c6f622d",
            "load data local",
        ],
    )?;
    let records = daemon.settled_records(1)?;
    assert_verified(&records[0]);
    assert_eq!(records[0]["db.user"], "alice");
    assert_eq!(records[0]["db.namespace"], "shop");
    // It sends the blob in hexadecimal, and gets it as it is.
    for (direction, blob) in [
        ("mantled.bytes.sent", 2 * BLOB),
        ("mantled.bytes.received", BLOB),
    ] {
        let carried = records[0][direction].as_u64().unwrap_or_default() as usize;
        assert!(
            (blob - 24..blob + (4 << 20)).contains(&carried),
            "{direction}: {carried}"
        );
    }
    Ok(())
}

#[test]
fn mariadbs_client_works_with_a_mariadb_that_requires_tls() -> Result<()> {
    let lab = lab!();
    let _server = Program::mariadb(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let query = "select substring_index(user(), '@', 1), 'needle-answer'; \
                 show status like 'Ssl_version'; show status like 'Compression'";
    for (user, arguments, compressed) in [
        ("alice", &["--skip-ssl"][..], "OFF"),
        // By another plugin than the server's default, so that it asks to switch.
        ("edward", &["--skip-ssl"], "OFF"),
        ("nobody", &["--skip-ssl"], "OFF"),
        ("alice", &["--skip-ssl", "--compress"], "ON"),
        // It would speak TLS by itself where it is offered, whoever the server is.
        ("alice", &[], "OFF"),
    ] {
        let output = mariadb(&lab, &group, user, &[arguments, &["-e", query]].concat())?;
        assert_eq!(
            printed(&output),
            format!("{user}\tneedle-answer\nSsl_version\tTLSv1.3\nCompression\t{compressed}\n")
        );
    }
    // The server's own errors.
    let mut wrong = group.command(&lab.host, "mariadb");
    wrong
        .args(["--no-defaults", "-h", "10.99.0.2", "-ualice", "--skip-ssl"])
        .args(["-e", "select 1"])
        .env("MYSQL_PWD", "wrong");
    let output = run(&mut wrong, Duration::from_secs(20))?;
    assert_eq!(
        printed(&output),
        "ERROR 1045 (28000): Access denied for user 'alice'@'10.99.0.1' (using password: YES)\n"
    );
    let output = mariadb(&lab, &group, "alice", &["missing", "-e", "select 1"])?;
    assert_eq!(
        printed(&output),
        "ERROR 1049 (42000): Unknown database 'missing'\n"
    );
    // A client that insists on TLS of its own is not offered any, and says so itself.
    let output = mariadb(
        &lab,
        &group,
        "alice",
        &["--ssl-verify-server-cert", "-e", "select 1"],
    )?;
    assert!(
        printed(&output).contains("SSL is required, but the server does not support it"),
        "{}",
        printed(&output)
    );
    let wire = capture.finish()?;
    assert_clean(
        &wire,
        &["alice", "edward", "needle-answer", "Access denied"],
    )?;
    let records = daemon.settled_records(8)?;
    for record in &records[..7] {
        assert_verified(record);
    }
    let users: Vec<_> = records.iter().map(|record| &record["db.user"]).collect();
    assert_eq!(users[1], "edward");
    assert_eq!(records[6]["db.namespace"], "missing");
    assert_eq!(records[7]["error.type"], "agent_closed", "{:#}", records[7]);
    assert_eq!(records[7]["mantled.bytes.sent"], 0);
    Ok(())
}

#[test]
fn a_bad_certificate_is_told_in_the_clients_own_protocol() -> Result<()> {
    let lab = lab!();
    let _server = Program::mariadb(&lab, &lab.authority.leaf(&["other.example"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let output = mariadb(&lab, &group, "alice", &["-e", "select 1"])?;
    let said = printed(&output);
    assert!(
        said.starts_with("ERROR 1045 (08004): mantled refused this connection: ")
            && said.contains("certificate"),
        "{said}"
    );
    let words = ["pymysql_login.py", "10.99.0.2", "alice"];
    let said = python(&lab, &group, PASSWORD, &words)?;
    assert!(
        said.starts_with("error 1045 mantled refused this connection: "),
        "{said}"
    );
    assert_clean(&capture.finish()?, &["alice"])?;
    for record in daemon.settled_records(2)? {
        assert_eq!(record["error.type"], "certificate_name_mismatch");
        assert_eq!(record["mantled.verdict"], "refused");
        assert_eq!(record["mantled.bytes.sent"], 0);
    }
    Ok(())
}

#[test]
fn observe_breaks_nobody() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let good = lab.authority.leaf(&["10.99.0.2"])?;
    // What MySQL's servers make for themselves.
    let own = Leaf::self_signed(&["10.99.0.2"])?;
    for (leaf, options, path, would) in [
        (&good, &[][..], "verified", Value::Null),
        (&own, &[], "exposed", "certificate_untrusted".into()),
        (&good, &["--skip-ssl"], "exposed", "upgrade_declined".into()),
    ] {
        let _server = Program::mariadb_with(&lab, leaf, options)?;
        let daemon = Daemon::start(&lab, &group, "observe", "")?;
        let tls = if path == "verified" { "TLSv1.3" } else { "" };
        let words = ["pymysql_client.py", "10.99.0.2", "alice", "1"];
        let said = python(&lab, &group, PASSWORD, &words)?;
        assert_eq!(said, work("alice", tls), "{options:?}");
        // Another client, so that the first attempt with a server is each client's once.
        drop(daemon);
        let daemon = Daemon::start(&lab, &group, "observe", "")?;
        for user in ["alice", "edward", "nobody"] {
            let clear = ["--skip-ssl", "-e", "select user()"];
            let output = mariadb(&lab, &group, user, &clear)?;
            assert_eq!(
                printed(&output),
                format!("{user}@10.99.0.1\n"),
                "{options:?}"
            );
        }
        for record in daemon.settled_records(3)? {
            assert_eq!(record["mantled.path"], path, "{record:#}");
            assert_eq!(record["mantled.enforce.error"], would, "{record:#}");
        }
    }
    Ok(())
}

#[test]
fn an_agents_own_tls_passes_where_it_may() -> Result<()> {
    let lab = lab!();
    let _server = Program::mariadb(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let passthrough = "[[route]]\ncidr = \"10.99.0.2\"\ntls = \"passthrough\"\n";
    let query = ["-e", "show status like 'Ssl_version'"];
    for (mode, config) in [("observe", ""), ("enforce", passthrough)] {
        let daemon = Daemon::start(&lab, &group, mode, config)?;
        let output = mariadb(&lab, &group, "alice", &[&["--ssl"][..], &query].concat())?;
        assert_eq!(printed(&output), "Ssl_version\tTLSv1.3\n", "{mode}");
        let clear = [&["--skip-ssl"][..], &query].concat();
        let output = mariadb(&lab, &group, "alice", &clear)?;
        assert_eq!(printed(&output), "Ssl_version\tTLSv1.3\n", "{mode}");
        let records = daemon.settled_records(2)?;
        assert_eq!(records[0]["mantled.path"], "native", "{:#}", records[0]);
        assert_verified(&records[1]);
    }
    Ok(())
}

// ---- A peer from the specification, for what MariaDB does not have

const NONCE: &[u8; 20] = b"a nonce of 20 bytes.";

fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = (payload.len() as u32).to_le_bytes();
    packet[3] = sequence;
    [&packet, payload].concat()
}

fn read_packet(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let sequence = header[3];
    header[3] = 0;
    let mut payload = vec![0; u32::from_le_bytes(header) as usize];
    stream.read_exact(&mut payload)?;
    Ok((sequence, payload))
}

/// HandshakeV10 of a MySQL 8 whose default is `plugin`, with CLIENT_SSL where `tls`.
fn greeting(plugin: &str, tls: bool) -> Vec<u8> {
    // LONG_PASSWORD, LONG_FLAG, CONNECT_WITH_DB, PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION,
    // MULTI_RESULTS, PLUGIN_AUTH, CONNECT_ATTRS, PLUGIN_AUTH_LENENC_CLIENT_DATA.
    let capabilities: u32 = 0x003a_a20d | if tls { 0x800 } else { 0 };
    let [a, b, c, d] = capabilities.to_le_bytes();
    let payload = [
        b"\x0a8.0.36\0",
        &7_u32.to_le_bytes()[..],
        &NONCE[..8],
        &[0, a, b, 255, 2, 0, c, d, 21],
        &[0; 10],
        &NONCE[8..],
        b"\0",
        plugin.as_bytes(),
        b"\0",
    ]
    .concat();
    packet(0, &payload)
}

fn sha256(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().to_vec()
}

/// How a client of caching_sha2_password proves that it knows the password.
fn proof(password: &[u8]) -> Vec<u8> {
    let stage1 = sha256(&[password]);
    let mask = sha256(&[&sha256(&[&stage1]), NONCE]);
    stage1.iter().zip(mask).map(|(a, b)| a ^ b).collect()
}

/// What of an answer to the greeting proves the password.
fn proof_of_response(response: &[u8]) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::other("a malformed answer");
    // Capabilities: CLIENT_SSL is among them inside TLS.
    if response.get(1).is_none_or(|byte| byte & 8 == 0) {
        return Err(wrong());
    }
    let rest = response.get(32..).ok_or_else(wrong)?;
    let user = rest.iter().position(|byte| *byte == 0).ok_or_else(wrong)?;
    let length: usize = (*rest.get(user + 1).ok_or_else(wrong)?).into();
    let proof = rest.get(user + 2..user + 2 + length).ok_or_else(wrong)?;
    Ok(proof.to_vec())
}

/// Does the server know the password, so that its hash is enough?
#[derive(Clone, Copy, PartialEq)]
enum Cache {
    Hit,
    Miss,
}

/// A MySQL 8 from the specification: an account whose method is `plugin`, a server whose default
/// is `default`.
fn mysql8(lab: &Lab, default: &'static str, plugin: &'static str, cache: Cache) -> Result<Server> {
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    Server::start_upgrading(
        &lab.site,
        SITE_V4,
        3306,
        &leaf,
        move |stream| {
            stream.write_all(&greeting(default, true))?;
            let (sequence, request) = read_packet(stream)?;
            if sequence != 1 || request.len() != 32 || request[1] & 8 == 0 {
                return Err(io::Error::other("no SSLRequest"));
            }
            Ok(())
        },
        move |stream| {
            let mut next = 2;
            let hear = |stream: &mut _, next: &mut u8| {
                let (sequence, payload) = read_packet(stream)?;
                if sequence != *next {
                    return Err(io::Error::other(format!("{sequence} instead of {next}")));
                }
                *next += 1;
                Ok(payload)
            };
            let mut said = proof_of_response(&hear(stream, &mut next)?)?;
            let say = |stream: &mut dyn Write, next: &mut u8, payload: &[u8]| {
                *next += 1;
                stream.write_all(&packet(*next - 1, payload))
            };
            if default != plugin {
                let switch = [b"\xfe", plugin.as_bytes(), b"\0", NONCE, b"\0"].concat();
                say(stream, &mut next, &switch)?;
                said = hear(stream, &mut next)?;
            }
            let password = [PASSWORD.as_bytes(), b"\0"].concat();
            let known = match (plugin, cache) {
                ("caching_sha2_password", Cache::Hit) => {
                    let known = said == proof(PASSWORD.as_bytes());
                    if known {
                        say(stream, &mut next, &[1, 3])?;
                    }
                    known
                }
                ("caching_sha2_password", Cache::Miss) => {
                    say(stream, &mut next, &[1, 4])?;
                    hear(stream, &mut next)? == password
                }
                _ => said == password,
            };
            if !known {
                return say(stream, &mut next, b"\xff\x15\x04#28000Access denied");
            }
            say(stream, &mut next, &[0, 0, 0, 2, 0, 0, 0])?;
            serve_queries(stream)
        },
    )
}

/// Answers `select 1` with 1, and everything else with OK.
fn serve_queries(stream: &mut (impl Read + Write)) -> io::Result<()> {
    loop {
        let (sequence, command) = read_packet(stream)?;
        if sequence != 0 {
            return Err(io::Error::other("a command that is not numbered 0"));
        }
        match command.as_slice() {
            [1] => return Ok(()),
            b"\x03select 1" => {
                let column = b"\x03def\0\0\0\x011\0\x0c\x3f\0\x01\0\0\0\x08\x81\0\0\0\0";
                let end = [0xfe, 0, 0, 2, 0];
                for (n, payload) in [&[1][..], column, &end, b"\x011", &end].iter().enumerate() {
                    stream.write_all(&packet(n as u8 + 1, payload))?;
                }
            }
            _ => stream.write_all(&packet(1, &[0, 0, 0, 2, 0, 0, 0]))?,
        }
        stream.flush()?;
    }
}

#[test]
fn passwords_reach_a_mysql_8_written_from_the_specification() -> Result<()> {
    const CACHING: &str = "caching_sha2_password";
    const SHA: &str = "sha256_password";
    const NATIVE: &str = "mysql_native_password";
    let lab = lab!();
    let group = Group::new()?;
    for (default, plugin, cache) in [
        (CACHING, CACHING, Cache::Hit),
        (CACHING, CACHING, Cache::Miss),
        (NATIVE, CACHING, Cache::Hit),
        (NATIVE, CACHING, Cache::Miss),
        (SHA, SHA, Cache::Miss),
        (CACHING, SHA, Cache::Miss),
    ] {
        let what = format!("{default}, {plugin}, hit: {}", cache == Cache::Hit);
        let server = mysql8(&lab, default, plugin, cache)?;
        let daemon = Daemon::start(&lab, &group, "enforce", "")?;
        let capture = Capture::start(&lab)?;
        let words = ["pymysql_login.py", "10.99.0.2", "alice"];
        assert_eq!(
            python(&lab, &group, PASSWORD, &words)?,
            "answer 1\n",
            "{what}"
        );
        // The second time with the key that is there already.
        assert_eq!(
            python(&lab, &group, PASSWORD, &words)?,
            "answer 1\n",
            "{what}"
        );
        let said = python(&lab, &group, "wrong", &words)?;
        assert_eq!(said, "error 1045 Access denied\n", "{what}");
        assert_clean(&capture.finish()?, &["alice", PASSWORD, "select 1"])?;
        for record in daemon.settled_records(3)? {
            assert_verified(&record);
        }
        assert!(!daemon.log().contains(PASSWORD), "{what}");
        drop(server);
        std::thread::sleep(Duration::from_millis(50)); // its listener closes
    }
    Ok(())
}

#[test]
fn a_pinned_key_of_a_mysql_8_written_from_the_specification_is_told() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let key = lab.path("server.pem");
    let made = run(
        Command::new("sh").arg("-c").arg(format!(
            "openssl genrsa 2048 2>/dev/null | openssl rsa -pubout -out {} 2>/dev/null",
            key.display()
        )),
        Duration::from_secs(20),
    )?;
    ensure!(made.status.success() && key.exists(), "no key");
    for plugin in ["caching_sha2_password", "sha256_password"] {
        let server = mysql8(&lab, "mysql_native_password", plugin, Cache::Miss)?;
        let daemon = Daemon::start(&lab, &group, "enforce", "")?;
        let key = key.display().to_string();
        let words = ["pymysql_login.py", "10.99.0.2", "alice", &key];
        let said = python(&lab, &group, PASSWORD, &words)?;
        assert!(
            said.starts_with("error 1045 mantled refused") && said.contains("public key"),
            "{plugin}: {said}"
        );
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], "protocol", "{:#}", records[0]);
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A server that goes wrong in its own way; what it was told is noted.
fn false_mysql(
    lab: &Lab,
    play: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> Result<(Server, Arc<Mutex<Vec<u8>>>)> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let server = Server::start(&lab.site, SITE_V4, 3306, move |mut stream| {
        play(&mut stream)?;
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

#[test]
fn hostile_servers() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let named =
        format!("{LIMITS}detect = \"500ms\"\n[[route]]\nport = 3306\nprotocol = \"mysql\"\n");
    type Play = Box<dyn Fn(&mut TcpStream) -> io::Result<()> + Send + Sync>;
    let native = "mysql_native_password";
    let cases: [(&str, Play, &str, &str); 9] = [
        (
            "strips CLIENT_SSL",
            Box::new(move |stream| stream.write_all(&greeting(native, false))),
            "upgrade_declined",
            "error 1045 mantled refused",
        ),
        (
            "answers SSLRequest with an error",
            Box::new(move |stream| {
                stream.write_all(&greeting(native, true))?;
                read_packet(stream)?;
                stream.write_all(&packet(2, b"\xff\x15\x04#28000Access denied"))
            }),
            "tls_not_offered",
            "error 1045 mantled refused",
        ),
        (
            "injects behind the greeting",
            Box::new(move |stream| {
                let injected = packet(2, &[0, 0, 0, 2, 0, 0, 0]);
                stream.write_all(&[greeting(native, true), injected].concat())
            }),
            "upgrade_injected",
            "error 1045 mantled refused",
        ),
        (
            "goes on in clear",
            Box::new(move |stream| {
                stream.write_all(&greeting(native, true))?;
                read_packet(stream)?;
                stream.write_all(&packet(2, &[0, 0, 0, 2, 0, 0, 0]))
            }),
            "tls_not_offered",
            "error 1045 mantled refused",
        ),
        (
            "stalls",
            Box::new(|_| Ok(())),
            "upgrade_timeout",
            "error 1045 mantled refused",
        ),
        (
            "stalls in the greeting",
            Box::new(move |stream| stream.write_all(&greeting(native, true)[..30])),
            "upgrade_timeout",
            "error 1045 mantled refused",
        ),
        (
            "stalls behind the greeting",
            Box::new(move |stream| stream.write_all(&greeting(native, true))),
            "upgrade_timeout",
            "error 1045 mantled refused",
        ),
        (
            "closes behind the greeting",
            Box::new(move |stream| {
                stream.write_all(&greeting(native, true))?;
                stream.shutdown(std::net::Shutdown::Both)
            }),
            "tls_not_offered",
            "error 1045 mantled refused",
        ),
        (
            "has no place",
            Box::new(|stream| stream.write_all(&packet(0, b"\xff\x10\x04Too many connections"))),
            "upgrade_declined",
            "error 1040 Too many connections (said before TLS",
        ),
    ];
    for (what, play, cause, told) in cases {
        let (server, heard) = false_mysql(&lab, play)?;
        let daemon = Daemon::start(&lab, &group, "enforce", &named)?;
        let begun = Instant::now();
        let words = ["pymysql_login.py", "10.99.0.2", "alice_the_agent"];
        let said = python(&lab, &group, PASSWORD, &words)?;
        assert!(begun.elapsed() < Duration::from_secs(6), "{what}");
        assert!(said.starts_with(told), "{what}: {said}");
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], cause, "{what}: {:#}", records[0]);
        assert_eq!(records[0]["mantled.verdict"], "refused", "{what}");
        assert_eq!(records[0]["mantled.bytes.sent"], 0, "{what}");
        let heard = heard.lock().unwrap();
        assert!(!heard.windows(5).any(|words| words == b"alice"), "{what}");
        // At most SSLRequest, and a ClientHello.
        let hello = heard.strip_prefix(b"\x20\0\0\x01").map(|rest| &rest[32..]);
        let hello = hello.unwrap_or(&heard);
        assert!(
            hello.is_empty() || hello.starts_with(&[0x16, 3]),
            "{what}: {heard:x?}"
        );
        drop(heard);
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn many_sessions_at_once() -> Result<()> {
    let lab = lab!();
    let _server = Program::mariadb(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let output = std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..20)
            .map(|n| {
                let (lab, group) = (&lab, &group);
                let query = format!("select repeat('{}', 100000)", n % 10);
                scope.spawn(move || mariadb(lab, group, "alice", &["-e", &query]))
            })
            .collect();
        let ended = sessions.into_iter().map(|session| session.join().unwrap());
        ended.collect::<Result<Vec<_>>>()
    })?;
    let mut counted = BTreeMap::new();
    for output in output {
        let text = printed(&output);
        assert_eq!(text.len(), 100_001, "{}", &text[..text.len().min(200)]);
        *counted.entry(text.chars().next()).or_insert(0) += 1;
    }
    assert!(
        counted.len() == 10 && counted.values().all(|n| *n == 2),
        "{counted:?}"
    );
    for record in daemon.settled_records(20)? {
        assert_verified(&record);
    }
    Ok(())
}

//! NATS clients without TLS, against servers that let nobody in without.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Leaf, Program, SITE_V4, Server, assert_clean, lab, python_client,
    run,
};

/// What `nats_client.py` prints when all is well.
const WORK: &str = "told of TLS []\nmessages True\ntrap True True {'needle-header': 'one'}\n\
                    reply b're: question'\nmegabyte True\nproblems []\n";

fn client(lab: &Lab, group: &Group) -> Result<String> {
    let words = python_client("nats_client.py")?;
    let mut command = group.command(&lab.host, &words[0]);
    command.args(&words[1..]).arg("nats://10.99.0.2:4222");
    let output = run(&mut command, Duration::from_secs(60))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn nats_py_works_with_a_server_that_requires_tls() -> Result<()> {
    let lab = lab!();
    let _server = Program::nats(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    assert_eq!(client(&lab, &group)?, WORK);
    let wire = capture.finish()?;
    ensure!(wire.len() > 2 << 20, "the megabyte was captured");
    assert_clean(
        &wire,
        &[
            "needle-payload-",
            "needle.subject",
            "needle-megabyte-",
            "needle-header",
            "CONNECT {",
        ],
    )?;
    for record in daemon.settled_records(2)? {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "nats");
        assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    Ok(())
}

#[test]
fn observe_breaks_nobody() -> Result<()> {
    let lab = lab!();
    let _server = Program::nats_without_tls(&lab)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    assert_eq!(client(&lab, &group)?, WORK);
    for record in daemon.settled_records(2)? {
        assert_eq!(record["mantled.path"], "exposed", "{record:#}");
        assert_eq!(record["mantled.enforce.error"], "upgrade_declined");
    }
    Ok(())
}

/// nats-server 2.9 knows no TLS before INFO, so this peer is written from the documentation of
/// `handshake_first`.
#[test]
fn tls_before_the_greeting_of_a_server_written_from_the_documentation() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Server::start_tls(&lab.site, SITE_V4, 4222, &leaf, |stream| {
        stream.write_all(b"INFO {\"server_id\":\"X\",\"version\":\"2.10.3\",\"proto\":1,\"headers\":true,\"max_payload\":1048576,\"tls_required\":true,\"tls_available\":true}\r\n")?;
        stream.flush()?;
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.starts_with("PING") {
                // Another INFO, as a server sends when its cluster changes.
                stream.get_mut().write_all(
                    b"PONG\r\nINFO {\"server_id\":\"X\",\"tls_required\":true,\"ldm\":true}\r\n",
                )?;
                stream.get_mut().flush()?;
            }
        }
    })?;
    let group = Group::new()?;
    let route = "[[route]]\nport = 4222\nprotocol = \"nats\"\ntls = \"implicit\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let python = python_client("nats_client.py")?.remove(0);
    let script = "import asyncio, nats\n\
                  async def main():\n \
                  lame = asyncio.Event()\n \
                  async def leave(): lame.set()\n \
                  nc = await nats.connect('nats://10.99.0.2:4222', allow_reconnect=False, \
                  lame_duck_mode_cb=leave)\n \
                  await nc.flush()\n \
                  await asyncio.wait_for(lame.wait(), 5)\n \
                  print([key for key in nc._server_info if 'tls' in key])\n \
                  await nc.close()\n\
                  asyncio.run(main())";
    let mut command = group.command(&lab.host, &python);
    let output = run(command.args(["-c", script]), Duration::from_secs(30))?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "[]\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let script = "import socket\n\
                  s = socket.create_connection(('10.99.0.2', 4222))\n\
                  s.sendall(b'PING\\r\\n')\n\
                  lines = s.makefile()\n\
                  print(*[next(lines) for _ in range(3)], sep='', end='')";
    let mut command = group.command(&lab.host, &python);
    let output = run(command.args(["-c", script]), Duration::from_secs(30))?;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "INFO {\"server_id\":\"X\",\"version\":\"2.10.3\",\"proto\":1,\"headers\":true,\
         \"max_payload\":1048576}\nPONG\nINFO {\"server_id\":\"X\",\"ldm\":true}\n",
    );
    for record in daemon.settled_records(2)? {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "nats");
    }
    Ok(())
}

#[test]
fn hostile_servers() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let config = "[limits]\nstarttls = \"1s\"\nhandshake = \"1s\"\ndetect = \"500ms\"\n\
                  [[route]]\nport = 4222\nprotocol = \"nats\"\n";
    for (what, greeting, cause) in [
        (
            "strips tls_required",
            &b"INFO {\"server_id\":\"X\",\"max_payload\":1048576}\r\n"[..],
            "upgrade_declined",
        ),
        (
            "greets with an error",
            b"-ERR 'maximum connections exceeded'\r\n",
            "upgrade_declined",
        ),
        (
            "injects behind the greeting",
            b"INFO {\"server_id\":\"X\",\"tls_required\":true}\r\nPING\r\n",
            "upgrade_injected",
        ),
        ("stalls", b"", "upgrade_timeout"),
        (
            "stalls in the greeting",
            b"INFO {\"server_id\"",
            "upgrade_timeout",
        ),
        (
            "stalls behind the greeting",
            b"INFO {\"server_id\":\"X\",\"tls_required\":true}\r\n",
            "upgrade_timeout",
        ),
        (
            "speaks another language",
            b"220 ready\r\n",
            "upgrade_protocol",
        ),
    ] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        let server = Server::start(&lab.site, SITE_V4, 4222, move |mut stream: TcpStream| {
            stream.write_all(greeting)?;
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return io::Result::Ok(()),
                    length => noted.lock().unwrap().extend_from_slice(&buffer[..length]),
                }
            }
        })?;
        let daemon = Daemon::start(&lab, &group, "enforce", config)?;
        let begun = Instant::now();
        let said = client(&lab, &group)?;
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}");
        assert!(said.starts_with("refused"), "{what}: {said}");
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], cause, "{what}: {:#}", records[0]);
        assert_eq!(records[0]["mantled.verdict"], "refused", "{what}");
        let heard = heard.lock().unwrap();
        assert!(
            heard.is_empty() || heard.starts_with(&[0x16, 3]),
            "{what}: {}",
            heard.escape_ascii()
        );
        drop(heard);
        drop(server);
        std::thread::sleep(Duration::from_millis(50)); // its listener closes
    }
    Ok(())
}

#[test]
fn a_bad_certificate_is_told_in_the_clients_own_protocol() -> Result<()> {
    let lab = lab!();
    let _server = Program::nats(&lab, &Leaf::self_signed(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let words = "import socket\n\
                 s = socket.create_connection(('10.99.0.2', 4222))\n\
                 print(s.makefile().read())";
    let mut command = group.command(&lab.host, "python3");
    let output = run(command.args(["-c", words]), Duration::from_secs(20))?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.starts_with("-ERR 'mantled refused this connection: ") && said.contains("certificate"),
        "{said}"
    );
    assert!(client(&lab, &group)?.starts_with("refused"));
    for record in daemon.settled_records(2)? {
        assert_eq!(record["error.type"], "certificate_untrusted");
    }
    Ok(())
}

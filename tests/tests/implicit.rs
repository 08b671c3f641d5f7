//! Protocols that are TLS from the first byte: stock clients in clear, against servers that speak
//! TLS alone.

use std::{
    fs,
    io::{Read as _, Write as _},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Program, SITE_V4, Server, assert_clean, eventually, lab,
    python_program, run, succeed, wait,
};
use serde_json::Value;

/// What no wire may carry.
const NEEDLE: &str = "needle-in-the-hay";

/// A client of `tests/clients` in the group.
fn client(lab: &Lab, group: &Group, name: &str, arguments: &[&str]) -> Result<Command> {
    let [python, program] = python_program(name)?;
    let mut command = group.command(&lab.host, python);
    command.arg(program).args(arguments);
    Ok(command)
}

/// Every record is of a verified session of this protocol that ended well.
fn assert_verified(records: &[Value], protocol: &str) {
    assert_verified_to(records, protocol, None);
}

/// The same where one side may end the connection in this way, whoever is between.
fn assert_verified_to(records: &[Value], protocol: &str, end: Option<&str>) {
    for record in records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["mantled.verdict"], "allowed", "{record:#}");
        assert_eq!(record["network.protocol.name"], protocol, "{record:#}");
        assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
        let error = record["error.type"].as_str();
        assert!(error.is_none() || error == end, "{record:#}");
    }
}

#[test]
fn mqtt_in_three_versions() -> Result<()> {
    let lab = lab!();
    let _broker = Program::mosquitto(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let large = lab.path("large");
    fs::write(&large, vec![b'q'; 3_000_000])?;
    let mosquitto = |program: &str, version: &str| {
        let mut command = group.command(&lab.host, program);
        command.args(["-h", "10.99.0.2", "-V", version, "-q", "1", "-t", NEEDLE]);
        command
    };
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        // The message is retained, so the order of the two does not matter.
        succeed(mosquitto("mosquitto_pub", version).args(["-r", "-m", NEEDLE]))?;
        let printed = succeed(mosquitto("mosquitto_sub", version).args(["-C", "1", "-W", "20"]))?;
        assert_eq!(printed, format!("{NEEDLE}\n"));
    }
    succeed(
        mosquitto("mosquitto_pub", "mqttv5")
            .arg("-r")
            .arg("-f")
            .arg(&large),
    )?;
    let printed = succeed(mosquitto("mosquitto_sub", "mqttv5").args(["-C", "1", "-W", "20"]))?;
    assert!(printed == "q".repeat(3_000_000) + "\n", "another message");
    let wire = capture.finish()?;
    ensure!(wire.len() > 6_000_000, "captured: {} bytes", wire.len());
    assert_clean(&wire, &[NEEDLE, "\0\u{4}MQTT", "MQIsdp", &"q".repeat(40)])?;
    let records = daemon.settled_records(8)?;
    assert_verified(&records, "mqtt");
    for record in &records {
        assert_eq!(record["server.port"], 1883);
        assert_eq!(record["network.peer.port"], 8883);
    }
    Ok(())
}

#[test]
fn amqp_with_rabbitmq() -> Result<()> {
    let lab = lab!();
    let _broker = Program::rabbitmq(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(&mut client(
        &lab,
        &group,
        "amqp_client.py",
        &["10.99.0.2", "5672", NEEDLE, "5"],
    )?)?;
    assert_eq!(
        printed,
        format!("got one {NEEDLE}\nconsumed 5242880 True\nclosed\n")
    );
    let wire = capture.finish()?;
    ensure!(wire.len() > 10_000_000, "captured: {} bytes", wire.len());
    assert_clean(
        &wire,
        &[NEEDLE, "AMQP\0\0\t\u{1}", "PLAIN", &"m".repeat(40)],
    )?;
    let records = daemon.settled_records(1)?;
    assert_verified(&records, "amqp");
    assert_eq!(records[0]["network.peer.port"], 5671);
    Ok(())
}

#[test]
fn memcached_in_both_protocols() -> Result<()> {
    let lab = lab!();
    let _server = Program::memcached(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(&mut client(
        &lab,
        &group,
        "memcached_client.py",
        &["10.99.0.2", "11211", NEEDLE],
    )?)?;
    assert_eq!(
        printed,
        format!(
            "set True\nget {NEEDLE}\nmany ['key']\nlarge True True\nincr True 42\n\
             binary get 0 b'{NEEDLE}'\n"
        )
    );
    let wire = capture.finish()?;
    ensure!(wire.len() > 1_800_000, "captured: {} bytes", wire.len());
    assert_clean(&wire, &[NEEDLE, "STORED", &"v".repeat(40)])?;
    assert_verified(&daemon.settled_records(2)?, "memcached");
    Ok(())
}

#[test]
fn etcd_over_http2() -> Result<()> {
    let lab = lab!();
    let _server = Program::etcd(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let etcdctl = |arguments: &[&str]| {
        let mut command = group.command(&lab.host, "etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", "http://10.99.0.2:2379"])
            .args(arguments);
        command
    };
    assert_eq!(succeed(&mut etcdctl(&["put", "key", NEEDLE]))?, "OK\n");
    let printed = succeed(&mut etcdctl(&["get", "key"]))?;
    assert_eq!(printed, format!("key\n{NEEDLE}\n"));
    assert_clean(&capture.finish()?, &[NEEDLE, "etcdserverpb"])?;
    let records = daemon.settled_records(2)?;
    // Go's client closes with something unread, which resets the connection.
    assert_verified_to(&records, "http2", Some("agent_closed"));
    assert_eq!(records[0]["tls.next_protocol"], "h2");
    Ok(())
}

#[test]
fn grpc_over_http2() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Program::python(&lab, &leaf, "grpc_server.py", 50051, &[])?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let call = || {
        client(
            &lab,
            &group,
            "grpc_client.py",
            &["10.99.0.2", "50051", NEEDLE, "6"],
        )
    };
    let printed = succeed(&mut call()?)?;
    assert_eq!(
        printed,
        format!("echo {NEEDLE}\nlarge True\nstream 100\nmetadata {NEEDLE} 17\n")
    );
    let wire = capture.finish()?;
    ensure!(wire.len() > 12_000_000, "captured: {} bytes", wire.len());
    assert_clean(&wire, &[NEEDLE, "lab.Lab", &"g".repeat(40)])?;
    let records = daemon.settled_records(1)?;
    // gRPC's C core says no goodbye in TLS: HTTP/2 has one of its own.
    assert_verified_to(&records, "http2", Some("upstream_truncated"));
    assert_eq!(records[0]["tls.next_protocol"], "h2");
    Ok(())
}

#[test]
fn websockets_pass_behind_their_handshake() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    // It serves https://10.99.0.2:8765 only, and the client is of http://10.99.0.2:8765.
    let _server = Program::python(&lab, &leaf, "websocket_server.py", 8765, &[])?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(&mut client(
        &lab,
        &group,
        "websocket_client.py",
        &["10.99.0.2", "8765", NEEDLE, "4"],
    )?)?;
    assert_eq!(
        printed,
        format!("text {NEEDLE}\nlarge True\nunchanged True\npong True\n")
    );
    let wire = capture.finish()?;
    ensure!(wire.len() > 8_000_000, "captured: {} bytes", wire.len());
    assert_clean(&wire, &[NEEDLE, "Sec-WebSocket"])?;
    // Python's server says no goodbye in TLS: WebSocket has one of its own.
    let records = daemon.settled_records(1)?;
    assert_verified_to(&records, "http", Some("upstream_truncated"));
    Ok(())
}

#[test]
fn fluentd_against_a_peer_written_from_the_specification() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let group = Group::new()?;
    // With a key the server speaks first, inside TLS, and the agent is silent until then.
    let limits = "[limits]\ndetect = \"500ms\"\n";
    for (port, key) in [("24224", &[][..]), ("24225", &["shared"])] {
        let _peer = Program::python(&lab, &leaf, "fluentd_peer.py", port.parse()?, key)?;
        let route = format!("[[route]]\nport = {port}\nprotocol = \"fluentd\"\n{limits}");
        let config = if key.is_empty() { "" } else { &route };
        let daemon = Daemon::start(&lab, &group, "enforce", config)?;
        let capture = Capture::start(&lab)?;
        let arguments = [&["10.99.0.2", port, NEEDLE], key].concat();
        let printed = succeed(&mut client(&lab, &group, "fluentd_client.py", &arguments)?)?;
        let (said, connections) = match key {
            [] => ("logged True None\n{'ack': 'c1'}\n", 2),
            _ => ("HELO PONG True \n{'ack': 'c1'}\n", 1),
        };
        assert_eq!(printed, said);
        assert_clean(&capture.finish()?, &[NEEDLE, "app.packed", "keepalive"])?;
        assert_verified(&daemon.settled_records(connections)?, "fluentd");
        let heard = Program::printed(&lab, port.parse()?);
        let packed = format!("app.packed {{'packed': '{NEEDLE}'}}\n");
        assert!(heard.contains(&packed), "{heard}");
        assert_eq!(heard.contains("app.test"), key.is_empty(), "{heard}");
    }
    Ok(())
}

#[test]
fn lumberjack_against_a_peer_written_from_the_specification() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _peer = Program::python(&lab, &leaf, "lumberjack_peer.py", 5044, &[])?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(&mut client(
        &lab,
        &group,
        "lumberjack_client.py",
        &["10.99.0.2", "5044", NEEDLE],
    )?)?;
    assert_eq!(printed, "1A 1\n2A 2\n2A 502\n");
    assert_clean(&capture.finish()?, &[NEEDLE])?;
    assert_verified(&daemon.settled_records(2)?, "lumberjack");
    let heard = Program::printed(&lab, 5044);
    assert!(heard.matches(NEEDLE).count() >= 503, "{heard}");
    assert_eq!(heard.lines().count(), 503);
    Ok(())
}

#[test]
fn graphite_by_a_route() -> Result<()> {
    let lab = lab!();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _peer = Server::start_tls(&lab.site, SITE_V4, 2004, &leaf, move |stream| {
        let mut metrics = Vec::new();
        stream.read_to_end(&mut metrics)?;
        noted.lock().unwrap().extend(metrics);
        Ok(())
    })?;
    let group = Group::new()?;
    let route =
        "[[route]]\nport = 2003\nupstream_port = 2004\nprotocol = \"opaque\"\ntls = \"implicit\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let capture = Capture::start(&lab)?;
    let metrics: String = (0..5000)
        .map(|n| format!("{NEEDLE}.count {n} 1700000000\n"))
        .collect();
    fs::write(lab.path("metrics"), &metrics)?;
    succeed(
        group
            .command(&lab.host, "bash")
            .args(["-c", "cat \"$0\" > /dev/tcp/10.99.0.2/2003"])
            .arg(lab.path("metrics")),
    )?;
    eventually("the metrics", Duration::from_secs(10), || {
        (heard.lock().unwrap().len() >= metrics.len()).then_some(())
    })?;
    assert!(
        *heard.lock().unwrap() == metrics.as_bytes(),
        "other metrics"
    );
    assert_clean(&capture.finish()?, &[NEEDLE])?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "verified", "{:#}", records[0]);
    assert!(records[0].get("network.protocol.name").is_none());
    assert!(records[0].get("error.type").is_none());
    Ok(())
}

fn curl(lab: &Lab, group: &Group, arguments: &[&str]) -> Command {
    let mut command = group.command(&lab.host, "curl");
    command
        .args(["-sS", "--max-time", "20", "--max-redirs", "5"])
        .args(arguments);
    command
}

#[test]
fn redirects_to_https_lead_back_to_the_agents_port() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2", "www.site.example"])?;
    let _server = Program::web_application(&lab, &leaf)?;
    let group = Group::new()?;
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nport = 8000\nupstream_port = 443\nserver_name = \"www.site.example\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let capture = Capture::start(&lab)?;
    let mut connections = 0;
    for (base, paths) in [
        (
            "http://10.99.0.2",
            &["/old", "/old-port", "/old-upstream"][..],
        ),
        (
            "http://10.99.0.2:8000",
            &["/old", "/old-port", "/old-upstream"],
        ),
        ("http://www.site.example", &["/old"]),
        ("http://www.site.example:8000", &["/old-port"]),
    ] {
        for path in paths {
            let printed = succeed(&mut curl(
                &lab,
                &group,
                &[
                    "--resolve",
                    "www.site.example:80:10.99.0.2",
                    "--resolve",
                    "www.site.example:8000:10.99.0.2",
                    "-L",
                    "-w",
                    "%{url_effective} %{num_redirects}",
                    &format!("{base}{path}?{NEEDLE}"),
                ],
            ))?;
            assert_eq!(printed, format!("new over https\n{base}/new 1"));
            connections += 1;
        }
    }
    // What points elsewhere does so still, and promises of https are gone.
    for (path, expected) in [
        ("/elsewhere", "Location: https://other.example/new\r\n"),
        ("/refresh", "Refresh: 0; url=http://10.99.0.2/new\r\n"),
        ("/missing", "404 Not Found\r\n"),
    ] {
        let url = format!("http://10.99.0.2{path}");
        let head = succeed(&mut curl(&lab, &group, &["-i", &url]))?;
        assert!(head.contains(expected), "{head}");
        assert!(
            !head.contains("Strict-Transport") && !head.contains("Alt-Svc"),
            "{head}"
        );
        connections += 1;
    }
    assert_clean(&capture.finish()?, &[NEEDLE, "HTTP/1.1"])?;
    let records = daemon.settled_records(connections)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "http");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    // The server does say so to others.
    let control = lab
        .site
        .command("curl")
        .args(["-ksi", "https://10.99.0.2/old"])
        .output()?;
    let control = String::from_utf8_lossy(&control.stdout).into_owned();
    assert!(
        control.contains("Location: https://10.99.0.2/new\r\n"),
        "{control}"
    );
    assert!(control.contains("Strict-Transport-Security") && control.contains("Alt-Svc"));
    Ok(())
}

#[test]
fn cookies_and_origins_of_https_work_for_an_agent_in_clear() -> Result<()> {
    let lab = lab!();
    let _server = Program::web_application(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let route = "[[route]]\nport = 8000\nupstream_port = 443\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let capture = Capture::start(&lab)?;
    let jar = lab.path("jar");
    let jar = jar.to_string_lossy();
    for base in ["http://10.99.0.2", "http://10.99.0.2:8000"] {
        let _ = fs::remove_file(&*jar);
        let login = format!("{base}/login");
        let printed = succeed(&mut curl(
            &lab,
            &group,
            &["-L", "-c", &jar, "-b", &jar, &login],
        ))?;
        assert_eq!(printed, "welcome back\n");
        let form = format!("{base}/form");
        let post = |origin: &str| {
            let (origin, referer) = (format!("Origin: {origin}"), format!("{origin}/page"));
            succeed(&mut curl(
                &lab,
                &group,
                &["-d", "a=b", "-H", &origin, "-e", &referer, &form],
            ))
        };
        assert_eq!(post(base)?, "accepted\n");
        let forged = post("http://evil.example")?;
        assert_eq!(forged, "forged from http://evil.example\n");
    }
    // Prefixes that http may not have stay with the server's word.
    assert!(!fs::read_to_string(&*jar)?.contains("__Host-"));
    assert_clean(&capture.finish()?, &["needle-cookie"])?;
    assert_verified(&daemon.settled_records(6)?, "http");
    Ok(())
}

#[test]
fn framing_of_every_kind_passes() -> Result<()> {
    let lab = lab!();
    let _server = Program::web_application(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(&mut client(
        &lab,
        &group,
        "http_client.py",
        &["10.99.0.2", "80", NEEDLE],
    )?)?;
    assert_eq!(
        printed,
        format!(
            "old 301 http://10.99.0.2/new\nhead 200 15\necho 200 {NEEDLE}\n\
             trailer X-Sum: needle-trailer\nchunked 200 chunked 100000 True\n\
             new 304\nnothing 404\nkept new over https\nclosed True\n"
        )
    );
    // As clients of Elasticsearch do: keep-alive, a body of lines, `Expect: 100-continue`.
    let bulk = lab.path("bulk");
    fs::write(&bulk, "{\"index\":{}}\n{\"needle\":1}\n".repeat(100_000))?;
    let body = format!("@{}", bulk.display());
    let url = "http://10.99.0.2:9200/_bulk";
    let printed = succeed(&mut curl(
        &lab,
        &group,
        &[
            "-H",
            "Expect: 100-continue",
            "-H",
            "Content-Type: application/x-ndjson",
            "--data-binary",
            &body,
            url,
            url,
        ],
    ))?;
    assert_eq!(printed, "{\"took\":2600000}".repeat(2));
    assert_clean(
        &capture.finish()?,
        &[NEEDLE, "needle-trailer", "\"needle\""],
    )?;
    assert_verified(&daemon.settled_records(2)?, "http");
    Ok(())
}

#[test]
fn an_agent_that_is_slow_to_speak_http_is_rewritten_as_well() -> Result<()> {
    let lab = lab!();
    let _server = Program::web_application(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let route = "[[route]]\nport = 80\nupstream_port = 443\ntls = \"implicit\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let printed = succeed(group.command(&lab.host, "bash").args([
        "-c",
        "exec 3<>/dev/tcp/10.99.0.2/80; sleep 1; \
         printf 'GET /old HTTP/1.1\\r\\nHost: 10.99.0.2\\r\\nConnection: close\\r\\n\\r\\n' >&3; \
         cat <&3",
    ]))?;
    assert!(
        printed.contains("\r\nLocation: http://10.99.0.2/new\r\n"),
        "{printed}"
    );
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "verified");
    Ok(())
}

/// An HTTP server with TLS that notes what it hears and gives every connection this answer.
fn answering(lab: &Lab, port: u16, answer: &'static str) -> Result<(Server, Arc<Mutex<Vec<u8>>>)> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_tls(&lab.site, SITE_V4, port, &leaf, move |stream| {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer)?;
        noted.lock().unwrap().extend_from_slice(&buffer[..length]);
        if length > 0 {
            stream.write_all(answer.as_bytes())?;
        }
        Ok(())
    })?;
    Ok((server, heard))
}

#[test]
fn ambiguous_messages_end_the_session() -> Result<()> {
    let lab = lab!();
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let (_honest, heard) = answering(&lab, 7000, ok)?;
    let mut count = 0;
    let smuggled = "GET /smuggled HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n";
    for head in [
        "Content-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n",
        "Content-Length: 4\\r\\nContent-Length: 5\\r\\n\\r\\n",
        "Transfer-Encoding : chunked\\r\\n\\r\\n",
        "A: b\\n\\r\\n",
    ] {
        let script = format!(
            "exec 3<>/dev/tcp/10.99.0.2/7000; \
             printf 'POST / HTTP/1.1\\r\\nHost: h\\r\\n{head}0\\r\\n\\r\\n{smuggled}' >&3; cat <&3"
        );
        let printed = succeed(group.command(&lab.host, "bash").args(["-c", &script]))?;
        assert!(
            printed.starts_with("HTTP/1.1 502 ") && printed.contains("mantled refused"),
            "{printed}"
        );
        count += 1;
    }
    assert!(
        heard.lock().unwrap().is_empty(),
        "the server was told something"
    );
    for (n, answer) in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nanother",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let port = 7001 + n as u16;
        let (_server, _) = answering(&lab, port, answer)?;
        let url = format!("http://10.99.0.2:{port}/");
        let output = run(
            &mut curl(&lab, &group, &["-i", &url]),
            Duration::from_secs(20),
        )?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            printed.contains("mantled refused") && !printed.contains("200 OK"),
            "{answer}: {printed}"
        );
        count += 1;
    }
    for record in daemon.settled_records(count)? {
        assert_eq!(record["error.type"], "protocol", "{record:#}");
        assert_eq!(record["mantled.verdict"], "refused");
        assert_eq!(record["network.protocol.name"], "http");
    }
    Ok(())
}

#[test]
fn refusals_are_in_the_clients_own_protocol() -> Result<()> {
    let lab = lab!();
    let expired = lab.authority.expired_leaf(&["10.99.0.2"])?;
    let _broker = Program::mosquitto(&lab, &expired)?;
    let _cache = Program::memcached(&lab, &expired)?;
    let _amqp = Server::start_echo(&lab.site, SITE_V4, 5671, &expired)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    for (version, said) in [
        ("mqttv31", "broker unavailable"),
        ("mqttv311", "broker unavailable"),
        ("mqttv5", "erver unavailable"),
    ] {
        let output = run(
            group.command(&lab.host, "mosquitto_pub").args([
                "-h",
                "10.99.0.2",
                "-V",
                version,
                "-t",
                "t",
                "-m",
                NEEDLE,
            ]),
            Duration::from_secs(20),
        )?;
        assert!(!output.status.success());
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(printed.contains(said), "{version}: {printed}");
    }
    let mut said = Vec::new();
    for (name, arguments) in [
        ("memcached_client.py", &["10.99.0.2", "11211", NEEDLE][..]),
        ("amqp_client.py", &["10.99.0.2", "5672", NEEDLE, "0"]),
    ] {
        let child = client(&lab, &group, name, arguments)?
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        let output = wait(child, Duration::from_secs(30))?;
        assert!(!output.status.success());
        said.push(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    assert!(
        said[0].contains("MemcacheServerError") && said[0].contains("expired"),
        "{}",
        said[0]
    );
    assert!(
        said[1].contains("AMQPConnectionError") || said[1].contains("reset"),
        "{}",
        said[1]
    );
    let records = daemon.settled_records(5)?;
    for (record, name) in records
        .iter()
        .zip(["mqtt", "mqtt", "mqtt", "memcached", "amqp"])
    {
        assert_eq!(record["network.protocol.name"], name);
        assert_eq!(record["error.type"], "certificate_expired", "{record:#}");
    }
    Ok(())
}

#[test]
fn a_redis_cluster_sends_the_agent_from_node_to_node() -> Result<()> {
    const PORTS: [u16; 3] = [7001, 7002, 7003];
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _nodes = Program::redis_cluster(&lab, &leaf, PORTS)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let cli = |arguments: &[&str]| {
        let mut command = group.command(&lab.host, "redis-cli");
        command
            .args(["-c", "-h", "10.99.0.2", "-p", "7001"])
            .args(arguments);
        command
    };
    // Keys of all nodes, asked of one.
    let commands = lab.path("commands");
    let text: String = (0..60)
        .map(|n| format!("SET key:{n} {NEEDLE}-{n}\nGET key:{n}\n"))
        .collect();
    fs::write(&commands, text)?;
    let printed = succeed(
        group
            .command(&lab.host, "sh")
            .args(["-c", "redis-cli -c -h 10.99.0.2 -p 7001 < \"$0\""])
            .arg(&commands),
    )?;
    for n in 0..60 {
        assert!(printed.contains(&format!("{NEEDLE}-{n}\n")), "{printed}");
    }
    for command in [
        &["cluster", "slots"][..],
        &["cluster", "nodes"],
        &["cluster", "shards"],
    ] {
        let printed = succeed(&mut cli(command))?;
        for port in PORTS {
            assert!(
                printed.contains(&port.to_string()),
                "{command:?}: {printed}"
            );
        }
    }
    assert_clean(&capture.finish()?, &[NEEDLE, "MOVED"])?;
    eventually("a session with each node", Duration::from_secs(10), || {
        let records = daemon.records();
        let reached = |port: u16| records.iter().any(|record| record["server.port"] == port);
        PORTS.into_iter().all(reached).then_some(())
    })?;
    assert_verified(&daemon.records(), "redis");
    Ok(())
}

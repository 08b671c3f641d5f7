//! What a server must prove beyond a chain and a name: pins, revocation; and that the files of
//! trust are followed while the daemon runs.

use std::{
    fs::{self, rename},
    io::Read as _,
    net::TcpStream,
    os::unix::fs::symlink,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Authority, Capture, Daemon, Group, Lab, Leaf, Program, SITE_V4, Server, assert_clean,
    eventually, lab, run, succeed,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// Long enough for a change to be seen, to stand for a second look, and to be read.
const NOTICED: Duration = Duration::from_secs(10);

/// The pin of a certificate, by the command that the configuration's hint names.
fn pin(certificate: &str) -> Result<String> {
    let file = tempfile(certificate)?;
    let digest = succeed(Command::new("sh").args([
        "-c",
        "openssl x509 -noout -pubkey -in \"$0\" | openssl pkey -pubin -outform der \
         | openssl dgst -sha256 -binary | base64",
        &file,
    ]))?;
    fs::remove_file(file)?;
    Ok(format!("sha256/{}", digest.trim()))
}

fn tempfile(text: &str) -> Result<String> {
    let path = std::env::temp_dir().join(format!("mantled-pin-{}.pem", std::process::id()));
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

fn get(lab: &Lab, group: &Group, port: u16) -> Result<String> {
    let output = run(
        group
            .command(&lab.host, "curl")
            .args(["-sS", "--max-time", "20"])
            .arg(format!("http://10.99.0.2:{port}/needle-of-the-agent")),
        Duration::from_secs(30),
    )?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks through the daemon and returns the record, whatever came of it.
fn record_of(lab: &Lab, group: &Group, daemon: &Daemon, port: u16) -> Result<Value> {
    let before = daemon.records().len();
    get(lab, group, port)?;
    let mut records = daemon.settled_records(before + 1)?;
    records.pop().context("a record")
}

/// One route a port, all to the site's port 443 unless the keys say otherwise.
fn route(port: u16, keys: &str) -> String {
    let upstream = if keys.contains("upstream_port") {
        ""
    } else {
        "upstream_port = 443\n"
    };
    format!("[[route]]\ncidr = \"10.99.0.2\"\nport = {port}\n{upstream}{keys}\n")
}

#[test]
fn pins_are_looked_for_on_the_verified_path() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["www.site.example"])?;
    let stranger = Authority::new("a stranger")?;
    // The server sends a certificate along that has nothing to do with its own.
    let chain = Leaf {
        certificate: leaf.certificate.clone() + &stranger.pem(),
        key: leaf.key.clone(),
    };
    let _server = Program::nginx(&lab, &chain)?;
    let alone = Leaf::self_signed(&["www.site.example"])?;
    fs::write(lab.path("alone.pem"), &alone.certificate)?;
    let _alone = Server::start_tls(&lab.site, SITE_V4, 7443, &alone, |stream| {
        stream.read_exact(&mut [0; 16])?;
        io_write(stream, b"HTTP/1.0 200 OK\r\n\r\nalone\n")
    })?;
    let (own, root) = (pin(&leaf.certificate)?, pin(&lab.authority.pem())?);
    let (stranger, alone) = (pin(&stranger.pem())?, pin(&alone.certificate)?);
    let name = "server_name = \"www.site.example\"";
    let config: String = [
        route(8001, &format!("{name}\npins = [\"{own}\"]")),
        route(8002, &format!("{name}\npins = [\"{alone}\", \"{root}\"]")),
        route(8003, &format!("{name}\npins = [\"{stranger}\"]")),
        route(8004, &format!("pins = [\"{own}\"]")),
        route(8005, &format!("pins = [\"{root}\"]")),
        route(
            8006,
            &format!("server_name = \"other.example\"\npins = [\"{own}\"]"),
        ),
        route(
            8007,
            &format!("{name}\npins = [\"{alone}\"]\nupstream_port = 7443"),
        ),
        route(
            8008,
            &format!("{name}\npins = [\"{alone}\"]\nroots = [\"alone.pem\"]\nupstream_port = 7443"),
        ),
        // What [tls] pins, a route can take back.
        route(8009, &format!("{name}\npins = []")),
        "[tls]\nroots = [\"ca.pem\"]\n".to_owned(),
        format!("pins = [\"{stranger}\"]\n"),
    ]
    .concat();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &config)?;
    let capture = Capture::start(&lab)?;
    for (port, proven, pinned) in [
        (8001, Some("www.site.example"), Some(&own)),
        (8002, Some("www.site.example"), Some(&root)),
        // Nobody knows a name: its own key proves the server.
        (8004, None, Some(&own)),
        (8008, Some("www.site.example"), Some(&alone)),
        (8009, Some("www.site.example"), None),
    ] {
        let record = record_of(&lab, &group, &daemon, port)?;
        assert_eq!(record["mantled.path"], "verified", "{port}: {record:#}");
        assert_eq!(record["mantled.tls.verified_name"].as_str(), proven);
        assert_eq!(
            record["mantled.tls.pin"].as_str(),
            pinned.map(String::as_str),
            "{port}"
        );
        assert!(record["mantled.bytes.received"].as_u64() > Some(10));
    }
    for (port, cause) in [
        (8003, "certificate_pin_mismatch"),
        // A pinned root alone does not say which of its servers this is.
        (8005, "certificate_name_mismatch"),
        // A name that is known must be proven.
        (8006, "certificate_name_mismatch"),
        // A pin never replaces the chain.
        (8007, "certificate_untrusted"),
        // The pins of [tls] count without a route, too.
        (7443, "certificate_untrusted"),
    ] {
        let record = record_of(&lab, &group, &daemon, port)?;
        assert_eq!(record["error.type"], cause, "{port}: {record:#}");
        assert_eq!(record["mantled.bytes.sent"], 0);
    }
    assert_clean(&capture.finish()?, &["needle-of-the-agent"])
}

fn io_write(stream: &mut impl std::io::Write, words: &[u8]) -> std::io::Result<()> {
    stream.write_all(words)?;
    stream.flush()
}

#[test]
fn revoked_and_unknown_certificates_are_refused() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf_with_serial(&["10.99.0.2"], 7)?;
    let _server = Program::nginx(&lab, &leaf)?;
    let stranger = Authority::new("a stranger")?;
    let day = time::Duration::DAY;
    for (file, list) in [
        ("clean.crl", lab.authority.revocations(&[8, 9], day)?),
        ("revoked.crl", lab.authority.revocations(&[7], day)?),
        ("expired.crl", lab.authority.revocations(&[8], -day)?),
        ("strange.crl", stranger.revocations(&[7], day)?),
    ] {
        fs::write(lab.path(file), list)?;
    }
    // A list for the certificate's issuer that somebody else has signed.
    let impostor = Authority::new("mantled lab")?;
    fs::write(lab.path("forged.crl"), impostor.revocations(&[], day)?)?;
    let own = pin(&leaf.certificate)?;
    let config: String = [
        route(8001, "crls = [\"clean.crl\"]"),
        route(8002, "crls = [\"strange.crl\", \"clean.crl\"]"),
        route(8003, "crls = []"),
        route(8004, "crls = [\"revoked.crl\"]"),
        route(8005, "crls = [\"expired.crl\"]"),
        route(8006, "crls = [\"strange.crl\"]"),
        route(8007, "crls = [\"forged.crl\"]"),
        route(8008, ""),
        // A pin is no excuse.
        route(8009, &format!("pins = [\"{own}\"]")),
        "[tls]\nroots = [\"ca.pem\"]\ncrls = [\"revoked.crl\"]\n".to_owned(),
    ]
    .concat();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &config)?;
    for port in [8001, 8002, 8003] {
        let record = record_of(&lab, &group, &daemon, port)?;
        assert_eq!(record["mantled.path"], "verified", "{port}: {record:#}");
    }
    for (port, cause) in [
        (8004, "certificate_revoked"),
        (8005, "revocation_unknown"),
        (8006, "revocation_unknown"),
        (8008, "certificate_revoked"),
        (8009, "certificate_revoked"),
    ] {
        let record = record_of(&lab, &group, &daemon, port)?;
        assert_eq!(record["error.type"], cause, "{port}: {record:#}");
        assert_eq!(record["mantled.verdict"], "refused");
        assert_eq!(record["mantled.bytes.sent"], 0);
    }
    let record = record_of(&lab, &group, &daemon, 8007)?;
    assert_eq!(record["mantled.verdict"], "refused", "{record:#}");
    Ok(())
}

#[test]
fn the_hybrid_key_exchange_is_offered_first_and_used() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    // rustls has it, Debian's OpenSSL does not.
    let hybrid = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let _classical = Program::nginx(&lab, &leaf)?;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let mute = Server::start(&lab.site, SITE_V4, 7001, move |mut stream: TcpStream| {
        let mut hello = [0; 4096];
        let length = stream.read(&mut hello)?;
        noted.lock().unwrap().extend_from_slice(&hello[..length]);
        Ok(())
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &route(80, ""))?;
    let echo = |server: &Server| {
        run(
            group
                .command(&lab.host, AGENT)
                .args(["echo", &server.address.to_string(), "words"]),
            Duration::from_secs(20),
        )
    };
    assert!(echo(&hybrid)?.status.success());
    get(&lab, &group, 80)?;
    assert!(!echo(&mute)?.status.success());
    let records = daemon.settled_records(3)?;
    assert_eq!(
        records[0]["tls.curve"], "X25519MLKEM768",
        "{:#}",
        records[0]
    );
    assert_eq!(records[1]["tls.curve"], "X25519", "{:#}", records[1]);
    assert_eq!(records[1]["mantled.path"], "verified");

    let hello = heard.lock().unwrap();
    const HYBRID: &[u8] = &[0x11, 0xec];
    // supported_groups: a list of groups behind its length.
    assert!(extension(&hello, 10).context("groups")?[2..].starts_with(HYBRID));
    // key_share: group, length, share; that of the hybrid is longer than a kilobyte.
    let shares = extension(&hello, 51).context("shares")?;
    assert!(shares[2..].starts_with(HYBRID));
    assert_eq!(u16::from_be_bytes([shares[4], shares[5]]), 1184 + 32);
    Ok(())
}

/// The extension of a ClientHello in one record (RFC 8446 §4.1.2).
fn extension(record: &[u8], kind: u16) -> Option<&[u8]> {
    let number = |at: usize| Some(u16::from_be_bytes([*record.get(at)?, *record.get(at + 1)?]));
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(*record.get(at)?); // session id
    at += 2 + usize::from(number(at)?); // cipher suites
    at += 1 + usize::from(*record.get(at)?); // compression
    at += 2;
    loop {
        let length = usize::from(number(at + 2)?);
        if number(at)? == kind {
            return record.get(at + 4..at + 4 + length);
        }
        at += 4 + length;
    }
}

#[test]
fn files_that_change_are_followed() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf_with_serial(&["10.99.0.2"], 7)?;
    let _server = Program::nginx(&lab, &leaf)?;
    let stranger = Authority::new("a stranger")?;
    let day = time::Duration::DAY;
    // As Kubernetes mounts a secret: links into a directory that is a link.
    let volume = lab.path("volume");
    let publish = |version: &str, roots: &str, list: &str| -> Result<()> {
        fs::create_dir_all(volume.join(version))?;
        fs::write(volume.join(version).join("roots.pem"), roots)?;
        fs::write(volume.join(version).join("list.crl"), list)?;
        symlink(version, volume.join("data.new"))?;
        Ok(rename(volume.join("data.new"), volume.join("data"))?)
    };
    let clean = lab.authority.revocations(&[8], day)?;
    publish("v1", &stranger.pem(), &clean)?;
    symlink("data/roots.pem", volume.join("roots.pem"))?;
    symlink("data/list.crl", volume.join("list.crl"))?;
    let config = format!(
        "[tls]\nroots = [\"volume/roots.pem\"]\ncrls = [\"volume/list.crl\"]\n{}",
        route(8001, "")
    );
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &config)?;
    let becomes = |what: &str, key: &str, value: Value| {
        eventually(what, NOTICED, || {
            let record = record_of(&lab, &group, &daemon, 8001).ok()?;
            (record[key] == value).then_some(record)
        })
    };
    let record = record_of(&lab, &group, &daemon, 8001)?;
    assert_eq!(record["error.type"], "certificate_untrusted", "{record:#}");

    publish("v2", &lab.authority.pem(), &clean)?;
    becomes("new roots", "mantled.path", "verified".into())?;
    becomes("a resumed session", "tls.resumed", true.into())?;

    // A file that is damaged changes nothing, and is told once.
    let damaged = clean.replace("-----END", "-----");
    publish("v3", &lab.authority.pem(), &damaged)?;
    eventually("the damage is told", NOTICED, || {
        daemon.log().contains("still counts").then_some(())
    })?;
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.log().matches("still counts").count(), 1);
    assert!(daemon.log().contains("list.crl, whose PEM is damaged"));
    let record = record_of(&lab, &group, &daemon, 8001)?;
    assert_eq!(record["mantled.path"], "verified");
    assert_eq!(record["tls.resumed"], true, "the same connectors as before");

    // A file that is replaced by one that says the same changes nothing either.
    publish("v4", &lab.authority.pem(), &clean)?;
    std::thread::sleep(Duration::from_secs(4));
    let record = record_of(&lab, &group, &daemon, 8001)?;
    assert_eq!(record["tls.resumed"], true, "{record:#}");

    // Revoked: a session that could be resumed does not help.
    publish(
        "v5",
        &lab.authority.pem(),
        &lab.authority.revocations(&[7], day)?,
    )?;
    becomes("revoked", "error.type", "certificate_revoked".into())?;

    // In place, and back again. What was resumable before proves nothing now.
    fs::write(volume.join("v5/list.crl"), &clean)?;
    let record = becomes("clean again", "mantled.path", "verified".into())?;
    assert_eq!(record["tls.resumed"], false, "{record:#}");
    assert_eq!(daemon.log().matches("still counts").count(), 1);
    Ok(())
}

#[test]
fn the_hosts_roots_and_client_certificates_are_followed() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = mutual_nginx(&lab, &leaf)?;
    let stranger = Authority::new("a stranger")?;
    fs::write(lab.path("host-roots.pem"), stranger.pem())?;
    // Certificate and key are written one after the other; in between they do not fit.
    let enrol = |name: &str| -> Result<()> {
        let identity = lab.authority.leaf(&[name])?;
        fs::write(lab.path("client.pem"), identity.certificate)?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(fs::write(lab.path("client.key"), identity.key)?)
    };
    enrol("first.example")?;
    let config = format!(
        "[tls]\nroots = \"system\"\nclient_certificate = \"client.pem\"\n\
         client_key = \"client.key\"\n[dns]\nresolvers = []\n\
         [[enroll]]\ncgroup = \"{{}}\"\nmode = \"enforce\"\n{}",
        route(8001, "upstream_port = 8443")
    );
    let group = Group::new()?;
    let config = config.replace("{}", &group.path().to_string_lossy());
    let roots = format!("SSL_CERT_FILE={}", lab.path("host-roots.pem").display());
    let daemon = Daemon::start_under(&lab, &["env", &roots], &config)?;
    let record = record_of(&lab, &group, &daemon, 8001)?;
    assert_eq!(record["error.type"], "certificate_untrusted", "{record:#}");

    // As update-ca-certificates does it.
    fs::write(
        lab.path("host-roots.new"),
        stranger.pem() + &lab.authority.pem(),
    )?;
    rename(lab.path("host-roots.new"), lab.path("host-roots.pem"))?;
    let asked = |name: &str| {
        eventually(name, NOTICED, || {
            get(&lab, &group, 8001).ok()?.contains(name).then_some(())
        })
    };
    asked("CN=first.example")?;
    enrol("second.example")?;
    asked("CN=second.example")?;
    assert!(
        !daemon.log().contains("still counts"),
        "between the two files nothing was read: {}",
        daemon.log()
    );
    Ok(())
}

#[test]
fn a_resumed_session_is_judged_by_the_certificate_that_began_it() -> Result<()> {
    let lab = lab!();
    const REMAINING: Duration = Duration::from_secs(6);
    let begun = std::time::Instant::now();
    let leaf = lab
        .authority
        .leaf_expiring_in(&["10.99.0.2"], REMAINING.try_into()?)?;
    let _server = Program::nginx(&lab, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &route(8001, ""))?;
    for resumed in [false, true] {
        let record = record_of(&lab, &group, &daemon, 8001)?;
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["tls.resumed"], resumed);
    }
    std::thread::sleep((REMAINING + Duration::from_secs(1)).saturating_sub(begun.elapsed()));
    let record = record_of(&lab, &group, &daemon, 8001)?;
    assert_eq!(record["error.type"], "certificate_expired", "{record:#}");
    assert_eq!(record["mantled.bytes.sent"], 0);
    Ok(())
}

/// nginx on port 8443 that asks for a certificate of the lab's authority and answers whose it is.
fn mutual_nginx(lab: &Lab, leaf: &Leaf) -> Result<Program> {
    fs::write(lab.path("mutual.pem"), &leaf.certificate)?;
    fs::write(lab.path("mutual.key"), &leaf.key)?;
    let directory = lab.dir().display();
    fs::write(
        lab.path("mutual.conf"),
        format!(
            "daemon off; master_process off; user root; pid {directory}/mutual.pid; error_log stderr;\n\
             events {{ }}\n\
             http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;\n\
             fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n\
             server {{ listen 8443 ssl; ssl_certificate {directory}/mutual.pem;\n\
             ssl_certificate_key {directory}/mutual.key; ssl_verify_client on;\n\
             ssl_client_certificate {directory}/ca.pem; location / {{ return 200 \"$ssl_client_s_dn\\n\"; }} }} }}\n"
        ),
    )?;
    let mut command = lab.site.command("nginx");
    command
        .arg("-c")
        .arg(lab.path("mutual.conf"))
        .arg("-p")
        .arg(lab.dir());
    let program = Program::start(lab, command, 8443)?;
    ensure!(lab.path("mutual.pid").exists(), "nginx runs");
    Ok(program)
}

//! Agents whose own TLS is ended by the host's authority: what they see, what the server sees, and
//! what happens to those that do not trust it.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use mantled_tests::{
    Authority, Capture, Daemon, Group, Lab, PASSWORD, Postgres, Program, SITE_V4, Server,
    assert_clean, eventually, lab, mantled, run, succeed,
};
use serde_json::Value;

const NAME: &str = "www.site.example";

fn route() -> String {
    "[ca]\ndir = \"authority\"\n[[route]]\ncidr = \"10.99.0.2\"\ntls = \"terminate\"\n".to_owned()
}

/// Makes the host's authority; its certificate's file.
fn authority(lab: &Lab, arguments: &[&str]) -> Result<PathBuf> {
    let directory = lab.path("authority");
    succeed(
        Command::new(mantled()?)
            .args(["ca", "init", "--dir"])
            .arg(&directory)
            .args(arguments),
    )?;
    Ok(directory.join("ca.pem"))
}

/// curl as an agent that speaks TLS and verifies by these roots.
fn curl(lab: &Lab, group: &Group, roots: &Path, arguments: &[&str]) -> Result<Output> {
    run(
        group
            .command(&lab.host, "curl")
            .args(["-sS", "--max-time", "20", "--resolve"])
            .arg(format!("{NAME}:443:10.99.0.2"))
            .arg("--cacert")
            .arg(roots)
            .args(arguments),
        Duration::from_secs(30),
    )
}

fn answered(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last(daemon: &Daemon, count: usize) -> Result<Value> {
    daemon.settled_records(count)?.pop().context("a record")
}

#[test]
fn an_agent_sees_the_server_and_the_daemon_verifies_it() -> Result<()> {
    let lab = lab!();
    let trusted = authority(&lab, &[])?;
    let _server = Program::nginx(&lab, &lab.authority.leaf(&[NAME])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &route())?;
    let capture = Capture::start(&lab)?;
    let url = format!("https://{NAME}/");
    for (arguments, version) in [
        (&["--http2"][..], "HTTP/2.0"),
        (&["--http1.1"], "HTTP/1.1"),
        (&["--http1.1", "--tls-max", "1.2"], "HTTP/1.1"),
        // It offers no application protocol, so neither does the daemon.
        (&["--no-alpn"], "HTTP/1.1"),
    ] {
        let output = curl(
            &lab,
            &group,
            &trusted,
            &[arguments, &[&format!("{url}?needle")]].concat(),
        )?;
        assert_eq!(
            answered(&output),
            format!("over {version} for {NAME}\n"),
            "{}",
            said(&output)
        );
    }
    let body = lab.path("posted");
    fs::write(&body, vec![b'p'; 10_000_000])?;
    let posted = format!("@{}", body.display());
    let output = curl(
        &lab,
        &group,
        &trusted,
        &["--data-binary", &posted, &format!("{url}length")],
    )?;
    assert_eq!(answered(&output), "10000000\n", "{}", said(&output));
    let big = curl(&lab, &group, &trusted, &[&format!("{url}big")])?;
    assert!(big.stdout == vec![b'b'; 16 << 20], "another body");
    let wire = capture.finish()?;
    assert!(wire.len() > 26_000_000);
    assert_clean(
        &wire,
        &["needle", "HTTP/1.1", &"p".repeat(40), &"b".repeat(40)],
    )?;
    let records = daemon.settled_records(6)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["mantled.tls.terminated"], true);
        assert_eq!(record["mantled.tls.verified_name"], NAME);
        assert_eq!(record["tls.client.server_name"], NAME);
        assert_eq!(record["tls.server.issuer"], "CN=mantled lab");
        assert_eq!(record["network.protocol.name"], "tls");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    assert_eq!(records[0]["tls.next_protocol"], "h2");
    assert_eq!(records[1]["tls.next_protocol"], "http/1.1");
    assert_eq!(records[2]["mantled.tls.client.versions"][0], "1.2");
    assert_eq!(records[2]["tls.protocol.version"], "1.3", "the server's");
    assert!(records[3].get("tls.next_protocol").is_none());
    Ok(())
}

#[test]
fn an_address_is_vouched_for_where_no_name_is_asked_for() -> Result<()> {
    let lab = lab!();
    let trusted = authority(&lab, &[])?;
    let _server = Program::nginx(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &route())?;
    let output = curl(&lab, &group, &trusted, &["https://10.99.0.2/"])?;
    assert_eq!(
        answered(&output),
        "over HTTP/2.0 for 10.99.0.2\n",
        "{}",
        said(&output)
    );
    assert_eq!(last(&daemon, 1)?["mantled.tls.verified_name"], "10.99.0.2");
    // An agent of the same route that speaks in clear is upgraded as on any other.
    let output = curl(&lab, &group, &trusted, &["http://10.99.0.2:443/"])?;
    assert_eq!(answered(&output), "over HTTP/1.1 for 10.99.0.2\n");
    let record = last(&daemon, 2)?;
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert!(record.get("mantled.tls.terminated").is_none());
    Ok(())
}

#[test]
fn nobody_vouches_for_a_server_that_does_not_verify() -> Result<()> {
    let lab = lab!();
    let trusted = authority(&lab, &[])?;
    let url = format!("https://{NAME}/");
    let group = Group::new()?;
    let stranger = Authority::new("a stranger")?;
    for (leaf, cause) in [
        (lab.authority.expired_leaf(&[NAME])?, "certificate_expired"),
        (stranger.leaf(&[NAME])?, "certificate_untrusted"),
        (
            lab.authority.leaf(&["other.example"])?,
            "certificate_name_mismatch",
        ),
    ] {
        let _server = Program::nginx(&lab, &leaf)?;
        let daemon = Daemon::start(&lab, &group, "enforce", &route())?;
        // Not even to one that verifies nothing.
        let output = curl(&lab, &group, &trusted, &["-k", &url])?;
        assert!(!output.status.success());
        assert!(said(&output).contains("access denied"), "{}", said(&output));
        let record = last(&daemon, 1)?;
        assert_eq!(record["error.type"], cause, "{record:#}");
        assert!(record.get("mantled.path").is_none());
        drop(daemon);
        // Observing leaves the agent's TLS as it is.
        let daemon = Daemon::start(&lab, &group, "observe", &route())?;
        let output = curl(&lab, &group, &trusted, &["-k", &url])?;
        assert_eq!(answered(&output), format!("over HTTP/2.0 for {NAME}\n"));
        let record = last(&daemon, 1)?;
        assert_eq!(record["mantled.path"], "native", "{record:#}");
        assert_eq!(record["mantled.enforce.error"], cause);
    }
    Ok(())
}

#[test]
fn an_agent_that_does_not_trust_the_authority_is_told_apart() -> Result<()> {
    let lab = lab!();
    authority(&lab, &[])?;
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    let leaf = lab.authority.leaf(&[NAME])?;
    let _server = Server::start_tls(&lab.site, SITE_V4, 443, &leaf, move |stream| {
        let length = stream.read(&mut [0; 4096])?;
        count.fetch_add(length, Ordering::Relaxed);
        std::io::Write::write_all(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes")
    })?;
    let group = Group::new()?;
    let url = format!("https://{NAME}/");
    // It trusts the server's authority, as it should without mantled.
    let roots = lab.path("ca.pem");
    for version in ["1.3", "1.2"] {
        let daemon = Daemon::start(&lab, &group, "enforce", &route())?;
        let output = curl(&lab, &group, &roots, &["--tls-max", version, &url])?;
        assert!(!output.status.success());
        let record = last(&daemon, 1)?;
        assert_eq!(record["error.type"], "agent_distrusts_ca", "{record:#}");
        assert_eq!(record["mantled.verdict"], "refused");
        assert!(record.get("mantled.path").is_none());
        let reason = record["mantled.reason"].as_str().unwrap_or_default();
        assert!(
            reason.contains("mantled ca install") && reason.contains("UnknownCA"),
            "{reason}"
        );
        assert_eq!(heard.load(Ordering::Relaxed), 0, "the server heard of it");
    }
    // Observing breaks it once; then the agent is left alone for a while.
    let daemon = Daemon::start(&lab, &group, "observe", &route())?;
    assert!(!curl(&lab, &group, &roots, &[&url])?.status.success());
    assert_eq!(answered(&curl(&lab, &group, &roots, &[&url])?), "yes");
    let record = last(&daemon, 2)?;
    assert_eq!(record["mantled.path"], "native", "{record:#}");
    assert_eq!(record["mantled.enforce.error"], "agent_distrusts_ca");
    Ok(())
}

#[test]
fn an_agent_that_leaves_without_goodbye_has_said_everything() -> Result<()> {
    let lab = lab!();
    let trusted = authority(&lab, &[])?;
    let (heard, goodbyes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, bye) = (Arc::clone(&heard), Arc::clone(&goodbyes));
    let leaf = lab.authority.leaf(&[NAME])?;
    let _server = Server::start_tls(&lab.site, SITE_V4, 7443, &leaf, move |stream| {
        let mut buffer = [0; 65536];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    bye.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(length) => count.fetch_add(length, Ordering::Relaxed),
                Err(error) => return Err(error),
            };
        }
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &route())?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/tls_leaver.py");
    let output = run(
        group
            .command(&lab.host, "python3")
            .arg(script)
            .args(["10.99.0.2", "7443", NAME])
            .arg(trusted),
        Duration::from_secs(30),
    )?;
    assert_eq!(answered(&output), "sent\n", "{}", said(&output));
    let record = last(&daemon, 1)?;
    assert_eq!(record["mantled.bytes.sent"], 1 << 20, "{record:#}");
    assert_eq!(record["mantled.verdict"], "allowed");
    eventually("the server has it all", Duration::from_secs(5), || {
        (heard.load(Ordering::Relaxed) == 1 << 20).then_some(())
    })?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        goodbyes.load(Ordering::Relaxed),
        0,
        "nobody says goodbye for the agent"
    );
    Ok(())
}

#[test]
fn postgresql_clients_with_tls_of_their_own() -> Result<()> {
    let lab = lab!();
    let trusted = authority(&lab, &[])?;
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["db.site.example"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", &route())?;
    let conninfo = format!(
        "host=db.site.example hostaddr=10.99.0.2 user=postgres sslmode=verify-full \
         channel_binding=disable sslrootcert={}",
        trusted.display()
    );
    let printed = succeed(
        group
            .command(&lab.host, "psql")
            .args(["-XAt", &conninfo, "-c", "select 'served'"])
            .env("PGPASSWORD", PASSWORD),
    )?;
    assert_eq!(printed, "served\n");
    let record = last(&daemon, 1)?;
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert_eq!(record["mantled.tls.verified_name"], "db.site.example");
    assert_eq!(record["mantled.tls.terminated"], true);
    assert_eq!(record["network.protocol.name"], "postgresql");
    Ok(())
}

#[test]
fn a_daemon_without_the_authority_that_it_needs_does_not_start() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let refused = Daemon::start(&lab, &group, "enforce", &route()).unwrap_err();
    let told = format!("{refused:#}");
    assert!(
        told.contains("route 1 says tls = \"terminate\"") && told.contains("mantled ca init"),
        "{told}"
    );
    let checked = run(
        Command::new(mantled()?)
            .args(["check", "--config"])
            .arg(lab.path("mantled.toml")),
        Duration::from_secs(10),
    )?;
    assert_eq!(checked.status.code(), Some(2));
    assert!(said(&checked).contains("mantled ca init"));
    authority(&lab, &[])?;
    Daemon::start(&lab, &group, "enforce", &route())?;
    Ok(())
}

#[test]
fn the_authority_proves_no_server_and_can_be_replaced() -> Result<()> {
    let lab = lab!();
    let trusted = authority(&lab, &[])?;
    let first = fs::read_to_string(&trusted)?;
    // Somebody has the authority's key, and this host trusts the authority.
    let forged = forge(&lab)?;
    let server = Server::start_tls(&lab.site, SITE_V4, 7443, &forged, |stream| {
        stream.read(&mut [0; 16]).map(drop)
    })?;
    let _web = Program::nginx(&lab, &lab.authority.leaf(&[NAME])?)?;
    fs::write(
        lab.path("host-roots.pem"),
        first.clone() + &lab.authority.pem(),
    )?;
    let group = Group::new()?;
    let config = format!(
        "[tls]\nroots = \"system\"\n[dns]\nresolvers = []\n{}\
         [[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
        route(),
        group.path().display()
    );
    let roots = format!("SSL_CERT_FILE={}", lab.path("host-roots.pem").display());
    let daemon = Daemon::start_under(&lab, &["env", &roots], &config)?;
    run(
        group.command(&lab.host, env!("CARGO_BIN_EXE_agent")).args([
            "echo",
            &server.address.to_string(),
            "words",
        ]),
        Duration::from_secs(20),
    )?;
    let record = last(&daemon, 1)?;
    assert_eq!(record["error.type"], "certificate_untrusted", "{record:#}");

    let url = format!("https://{NAME}/");
    assert!(curl(&lab, &group, &trusted, &[&url])?.status.success());
    authority(&lab, &["--force"])?;
    assert_ne!(fs::read_to_string(&trusted)?, first);
    eventually("leaves of the new one", Duration::from_secs(10), || {
        let output = curl(&lab, &group, &trusted, &[&url]).ok()?;
        output.status.success().then_some(())
    })?;
    assert!(!daemon.log().contains("still counts"), "{}", daemon.log());
    Ok(())
}

/// A certificate of the host's authority, for the site's address.
fn forge(lab: &Lab) -> Result<mantled_tests::Leaf> {
    let directory = lab.path("authority");
    let path = |name: &str| lab.path(name).display().to_string();
    succeed(Command::new("openssl").args([
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        &path("forged.key"),
        "-out",
        &path("forged.csr"),
    ]))?;
    fs::write(lab.path("forged.ext"), "subjectAltName=IP:10.99.0.2\n")?;
    succeed(
        Command::new("openssl")
            .args(["x509", "-req", "-days", "2", "-in", &path("forged.csr")])
            .args(["-extfile", &path("forged.ext"), "-out", &path("forged.pem")])
            .arg("-CA")
            .arg(directory.join("ca.pem"))
            .arg("-CAkey")
            .arg(directory.join("ca-key.pem")),
    )?;
    Ok(mantled_tests::Leaf {
        certificate: fs::read_to_string(lab.path("forged.pem"))?,
        key: fs::read_to_string(lab.path("forged.key"))?,
    })
}

#[test]
fn the_authority_is_shown_and_not_replaced_by_accident() -> Result<()> {
    let lab = lab!();
    let file = authority(&lab, &["--permit", "site.example"])?;
    let ca = |arguments: &[&str]| {
        run(
            Command::new(mantled()?)
                .arg("ca")
                .args(arguments)
                .arg("--dir")
                .arg(lab.path("authority")),
            Duration::from_secs(20),
        )
    };
    assert_eq!(answered(&ca(&["show"])?), fs::read_to_string(&file)?);
    let facts: Value = serde_json::from_slice(&ca(&["show", "--json"])?.stdout)?;
    let subject = facts["subject"].as_str().unwrap_or_default();
    assert!(subject.contains("CN=mantled authority of"), "{facts:#}");
    assert!(
        facts["not_after"]
            .as_str()
            .unwrap_or_default()
            .ends_with('Z')
    );
    let printed = succeed(
        Command::new("openssl")
            .args(["x509", "-noout", "-text", "-fingerprint", "-sha256", "-in"])
            .arg(&file),
    )?;
    let fingerprint = printed
        .lines()
        .find_map(|line| line.split_once("Fingerprint=").map(|(_, hex)| hex))
        .context("a fingerprint")?
        .replace(':', "")
        .to_lowercase();
    assert_eq!(facts["sha256"], fingerprint);
    for words in [
        "CA:TRUE, pathlen:0",
        "X509v3 Name Constraints: critical",
        "DNS:site.example",
        "prime256v1",
    ] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    let again = ca(&["init"])?;
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("--force"), "{}", said(&again));
    assert!(ca(&["init", "--force"])?.status.success());
    assert_ne!(answered(&ca(&["show"])?), printed);
    Ok(())
}

/// In a mount namespace of its own, with copies of the host's directories, so that the machine's
/// trust stays as it is.
#[test]
fn installed_the_authority_is_trusted_by_the_hosts_programs() -> Result<()> {
    let lab = lab!();
    let trusted = authority(&lab, &[])?;
    let _server = Program::nginx(&lab, &lab.authority.leaf(&[NAME])?)?;
    let group = Group::new()?;
    let _daemon = Daemon::start(&lab, &group, "enforce", &route())?;
    let script = format!(
        "set -e\n\
         mount --make-rprivate /\n\
         for directory in /usr/local/share/ca-certificates /etc/ssl/certs; do\n\
           copy={}/copy$directory; mkdir -p \"$copy\" \"$directory\"\n\
           cp -a \"$directory/.\" \"$copy\"; mount --bind \"$copy\" \"$directory\"\n\
         done\n\
         \"$0\" ca install --print --dir \"$1\" >/dev/null\n\
         test ! -e /usr/local/share/ca-certificates/mantled.crt\n\
         \"$0\" ca install --dir \"$1\"\n\
         cmp /usr/local/share/ca-certificates/mantled.crt \"$1/ca.pem\"\n\
         stat -c %a /usr/local/share/ca-certificates/mantled.crt\n\
         echo $$ > \"$2/cgroup.procs\"\n\
         exec curl -sS --max-time 20 --resolve {NAME}:443:10.99.0.2 https://{NAME}/\n",
        lab.dir().display()
    );
    let output = run(
        lab.host
            .command("unshare")
            .args(["-m", "sh", "-c", &script])
            .arg(mantled()?)
            .arg(trusted.parent().context("a directory")?)
            .arg(group.path()),
        Duration::from_secs(60),
    )?;
    let printed = answered(&output);
    assert!(output.status.success(), "{printed}{}", said(&output));
    for words in [
        "is trusted by this host: written to /usr/local/share/ca-certificates/mantled.crt",
        "keytool -importcert",
        "REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt",
        "\n644\n",
    ] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    assert!(
        printed.ends_with(&format!("over HTTP/2.0 for {NAME}\n")),
        "{printed}"
    );
    Ok(())
}

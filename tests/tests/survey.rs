//! The survey touches nothing, sees everything, and says what enforcing would do.

use std::{
    io::{Read as _, Write as _},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use mantled_tests::{
    Authority, Group, Lab, PASSWORD, Postgres, Program, SITE_V4, Server, eventually, lab, mantled,
    run, succeed, wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

struct Survey(Option<Child>);

impl Survey {
    fn start(lab: &Lab, group: &Group, more: &[&str]) -> Result<Self> {
        let config = lab.path("survey.toml");
        std::fs::write(
            &config,
            "[tls]\nroots = [\"ca.pem\"]\n[dns]\nresolvers = [\"10.99.0.2\"]\n[limits]\nhandshake = \"2s\"\n",
        )?;
        let mut child = lab
            .host
            .command(mantled()?)
            .args(["survey", "--json", "--config"])
            .arg(&config)
            .args(more)
            .arg(group.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut first = [0; 18];
        let said = child.stderr.as_mut().context("piped")?;
        said.read_exact(&mut first)?;
        if &first != b"mantled: looking a" {
            let mut rest = String::new();
            said.read_to_string(&mut rest)?;
            bail!("{}{rest}", String::from_utf8_lossy(&first));
        }
        Ok(Self(Some(child)))
    }

    /// Ends it; what it has seen.
    fn finish(mut self) -> Result<Vec<Value>> {
        let child = self.0.take().context("once")?;
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
        let output = wait(child, Duration::from_secs(30))?;
        assert!(output.status.success());
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn find<'a>(seen: &'a [Value], transport: &str, port: u16) -> Result<&'a Value> {
    seen.iter()
        .find(|entry| entry["server.port"] == port && entry["network.transport"] == transport)
        .with_context(|| format!("{transport} {port} in {seen:#?}"))
}

#[test]
fn it_tells_who_speaks_in_clear_and_what_enforcing_would_do() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2", "www.site.example"])?;
    let _postgres = Postgres::start_with(&lab, Some(&leaf), "host all all all scram-sha-256\n")?;
    let _web = Program::nginx(&lab, &leaf)?;
    let _resolver = Program::dnsmasq(&lab, "host-record=www.site.example,10.99.0.2\n")?;
    let answer = |mut stream: std::net::TcpStream| {
        stream.read_exact(&mut [0; 4])?;
        stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    };
    let _plain = Server::start(&lab.site, SITE_V4, 80, answer)?;
    // TLS where nobody can verify it, beside clear text.
    let stranger = Authority::new("a stranger")?.leaf(&["10.99.0.2"])?;
    let mixed = Server::start_echo(&lab.site, SITE_V4, 7000, &stranger)?;
    let group = Group::new()?;
    let survey = Survey::start(&lab, &group, &[])?;

    let agent = |arguments: &[&str]| {
        run(
            group.command(&lab.host, AGENT).args(arguments),
            Duration::from_secs(10),
        )
    };
    let mut curl = group.resolving(&lab, SITE_V4, "curl")?;
    curl.args(["-sS", "-w", "%{http_code}", "http://www.site.example/"]);
    assert_eq!(succeed(&mut curl)?, "204");
    let mut https = group.command(&lab.host, "curl");
    https
        .args(["-sS", "--cacert"])
        .arg(lab.path("ca.pem"))
        .arg("https://10.99.0.2/");
    succeed(&mut https)?;
    succeed(
        group
            .command(&lab.host, "psql")
            .args([
                "host=10.99.0.2 user=postgres sslmode=disable",
                "-Atc",
                "select 'in clear'",
            ])
            .env("PGPASSWORD", PASSWORD),
    )?;
    let _ = agent(&["echo", "10.99.0.2:7000", "opaque words"])?;
    assert!(
        agent(&["datagram", "10.99.0.2:9999", "x"])?
            .status
            .success()
    );
    eventually("the echo server's end", Duration::from_secs(5), || {
        (mixed.accepted() == 1).then_some(())
    })?;

    let seen = survey.finish()?;
    let web = find(&seen, "tcp", 80)?;
    assert_eq!(web["network.protocol.name"], "http", "{web:#}");
    assert_eq!(web["process.executable.name"], "curl");
    assert_eq!(web["mantled.names"][0], "www.site.example");
    assert_eq!(web["mantled.connections.clear"], 1);
    assert_eq!(web["mantled.connections.tls"], 0);
    // Its port 443 proves the name.
    assert_eq!(web["mantled.enforce"], "upgrade", "{web:#}");
    let database = find(&seen, "tcp", 5432)?;
    assert_eq!(database["network.protocol.name"], "postgresql");
    assert_eq!(database["mantled.enforce"], "upgrade", "{database:#}");
    assert!(database["mantled.bytes.received"].as_u64() > Some(100));
    let own = find(&seen, "tcp", 443)?;
    assert_eq!(own["mantled.enforce"], "native_tls", "{own:#}");
    assert_eq!(own["mantled.connections.clear"], 0);
    let mixed = find(&seen, "tcp", 7000)?;
    assert_eq!(
        mixed["mantled.enforce"], "certificate_untrusted",
        "{mixed:#}"
    );
    assert!(
        mixed["mantled.reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("needs a CA"))
    );
    assert_eq!(mixed["mantled.bytes.sent"], "opaque words".len());
    let datagram = find(&seen, "udp", 9999)?;
    assert_eq!(datagram["mantled.enforce"], "dropped");
    assert_eq!(datagram["mantled.bytes.sent"], 1);
    Ok(())
}

#[test]
fn without_probes_no_server_is_asked() -> Result<()> {
    let lab = lab!();
    let server = Server::start(&lab.site, SITE_V4, 7000, |mut stream| {
        let mut copy = stream.try_clone()?;
        std::io::copy(&mut stream, &mut copy)?;
        Ok(())
    })?;
    let group = Group::new()?;
    let survey = Survey::start(&lab, &group, &["--no-probe", "--for", "60s"])?;
    succeed(
        group
            .command(&lab.host, AGENT)
            .args(["echo", "10.99.0.2:7000", "words"]),
    )?;
    let seen = survey.finish()?;
    assert_eq!(find(&seen, "tcp", 7000)?["mantled.enforce"], "not_asked");
    assert_eq!(server.accepted(), 1);
    Ok(())
}

#[test]
fn a_survey_of_nothing_says_what_to_write() -> Result<()> {
    let lab = lab!();
    let config = lab.path("empty.toml");
    std::fs::write(&config, "[tls]\nroots = [\"ca.pem\"]\n")?;
    let output = run(
        std::process::Command::new(mantled()?)
            .args(["survey", "--config"])
            .arg(&config),
        Duration::from_secs(10),
    )?;
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("mantled survey --for 60s"), "{said}");
    Ok(())
}

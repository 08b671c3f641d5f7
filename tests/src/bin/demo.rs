//! The demonstration: a PostgreSQL server that accepts TLS alone, and a psql that knows none.
//!
//! It makes two network namespaces, "the host" and "the site", and removes them at its end, also
//! after Ctrl-C.

use std::{
    fs,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use mantled_tests::{Capture, Lab, PASSWORD, Postgres, mantled, run};
use serde_json::Value;

const QUERY: &str = "select 'jane@example.com' as email, '4111 1111 1111 1111' as card";
const NEEDLES: [&str; 3] = ["jane@example.com", "4111 1111 1111 1111", "select"];

fn main() -> ExitCode {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [nix::libc::SIGINT, nix::libc::SIGTERM] {
        // With the handler the process goes on, and everything is removed on its way out.
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&interrupted)) {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    }
    match demonstrate(&interrupted) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(interrupted: &AtomicBool) -> Result<()> {
    let go_on = || {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted; cleaned up")
        } else {
            Ok(())
        }
    };
    let lab = Lab::new()?;
    let leaf = lab.authority.leaf(&["db.site.example", "10.99.0.2"])?;
    println!("# A PostgreSQL server at 10.99.0.2 that accepts TLS alone");
    let _server = Postgres::start(&lab, &leaf)?;
    go_on()?;
    let config = lab.path("demo.toml");
    fs::write(
        &config,
        "[tls]\nroots = [\"ca.pem\"]\n\n[dns]\nresolvers = []\n\n\
         [[route]]\ncidr = \"10.99.0.2\"\nport = 5432\nserver_name = \"db.site.example\"\n",
    )?;
    let connection = "host=10.99.0.2 user=postgres sslmode=disable";

    println!("\n# psql without TLS, alone:");
    println!("$ psql \"{connection}\" -c \"{QUERY}\"");
    let alone = run(
        lab.host
            .command("psql")
            .args([connection, "-c", QUERY])
            .env("PGPASSWORD", PASSWORD),
        Duration::from_secs(20),
    )?;
    print!("{}", String::from_utf8_lossy(&alone.stderr));
    go_on()?;
    anyhow::ensure!(
        !alone.status.success(),
        "the server has accepted clear text"
    );

    println!("\n# The same psql, under mantled:");
    println!("$ mantled exec -- psql \"{connection}\" -c \"{QUERY}\"");
    let capture = Capture::start(&lab)?;
    let log = lab.path("sessions.jsonl");
    let protected = run(
        lab.host
            .command(mantled()?)
            .args(["exec", "--config"])
            .arg(&config)
            .arg("--record")
            .arg(&log)
            .args(["--", "psql", connection, "-c", QUERY])
            .env("PGPASSWORD", PASSWORD)
            .env("MANTLED_LOG", "warn"),
        Duration::from_secs(30),
    )?;
    print!("{}", String::from_utf8_lossy(&protected.stdout));
    print!("{}", String::from_utf8_lossy(&protected.stderr));
    go_on()?;
    anyhow::ensure!(protected.status.success(), "psql failed under mantled");

    let wire = capture.finish()?;
    println!(
        "\n# What crossed the wire ({} bytes captured on the site's end):",
        wire.len()
    );
    for needle in NEEDLES {
        let found = wire
            .windows(needle.len())
            .filter(|bytes| *bytes == needle.as_bytes())
            .count();
        println!("{found} times {needle:?} in clear");
        anyhow::ensure!(found == 0, "clear text crossed the wire");
    }

    let text = fs::read_to_string(&log)?;
    let record: Value = serde_json::from_str(text.lines().next().context("no record")?)?;
    println!("\n# The session's record:");
    print(&record);
    Ok(())
}

/// A record as a person would like to read it.
fn print(record: &Value) {
    let text = |name: &str| match &record[name] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    println!(
        "when        {} for {} ms",
        text("timestamp"),
        text("mantled.duration_ms")
    );
    println!(
        "who         {} (pid {}, uid {}, {})",
        text("process.executable.name"),
        text("process.pid"),
        text("process.user.id"),
        text("process.executable.path")
    );
    println!("in          cgroup {}", text("process.linux.cgroup"));
    println!(
        "to          {}:{}, {} as {} on {}",
        text("server.address"),
        text("server.port"),
        text("network.protocol.name"),
        text("db.user"),
        text("db.namespace")
    );
    println!(
        "verdict     {} ({} mode)",
        text("mantled.verdict"),
        text("mantled.mode")
    );
    println!(
        "encryption  TLS {}, {}, {}",
        text("tls.protocol.version"),
        text("tls.cipher"),
        text("tls.curve")
    );
    println!(
        "proven      {} ({}, issued by {}, until {})",
        text("mantled.tls.verified_name"),
        text("tls.server.subject"),
        text("tls.server.issuer"),
        text("tls.server.not_after")
    );
    println!(
        "carried     {} bytes out, {} bytes in",
        text("mantled.bytes.sent"),
        text("mantled.bytes.received")
    );
}

//! PostgreSQL clients with TLS off, against a server that takes TLS alone.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, PASSWORD, Postgres, assert_clean, lab, run, succeed,
};

/// What each client copies in, and out again.
const MEGABYTES: &str = "100";

/// A program of `tests/clients`.
fn client(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(name)
}

/// The interpreter with psycopg and asyncpg.
fn python() -> Result<PathBuf> {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../target/lab/venv/bin/python")
        .canonicalize_parent()
}

/// Canonicalises the directory, not the link: a virtual environment is found by its path.
trait CanonicalizeParent {
    fn canonicalize_parent(&self) -> Result<PathBuf>;
}

impl CanonicalizeParent for PathBuf {
    fn canonicalize_parent(&self) -> Result<PathBuf> {
        let missing = || {
            format!(
                "{} is missing; `cargo xtask setup` makes it",
                self.display()
            )
        };
        let directory = self
            .parent()
            .with_context(missing)?
            .canonicalize()
            .with_context(missing)?;
        Ok(directory.join(self.file_name().with_context(missing)?))
    }
}

/// Runs a client directly over its own verified TLS, and in the enrolled group without; what it
/// prints must be the same. `count` is how many connections it makes.
fn compare(
    count: usize,
    command: impl Fn(&Lab, bool) -> Result<Vec<std::ffi::OsString>>,
) -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Postgres::start(&lab, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;

    let words = command(&lab, true)?;
    let direct = finish(lab.host.command(&words[0]).args(&words[1..]))?;
    daemon.settled_records(0)?;

    let words = command(&lab, false)?;
    let through = finish(group.command(&lab.host, &words[0]).args(&words[1..]))?;
    assert_eq!(through, direct);
    for part in ["copy", "cancel", "after"] {
        assert!(direct.to_lowercase().contains(part), "no {part}: {direct}");
    }
    let records = daemon.settled_records(count)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "postgresql");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    let most = records
        .iter()
        .filter_map(|record| record["mantled.bytes.sent"].as_u64())
        .max();
    assert!(most > Some(100_000_000), "{most:?}");
    Ok(())
}

fn finish(command: &mut Command) -> Result<String> {
    let output = run(
        command.env("PGPASSWORD", PASSWORD),
        Duration::from_secs(100),
    )?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn conninfo(lab: &Lab, direct: bool) -> String {
    let base = "host=10.99.0.2 user=postgres dbname=postgres";
    if direct {
        format!(
            "{base} sslmode=verify-full sslrootcert={}",
            lab.path("ca.pem").display()
        )
    } else {
        format!("{base} sslmode=disable")
    }
}

#[test]
fn psql_works_as_it_does_over_tls_of_its_own() -> Result<()> {
    // The work, the query that is cancelled, and the cancelling.
    compare(3, |lab, direct| {
        Ok(vec![
            "sh".into(),
            client("psql.sh").into(),
            conninfo(lab, direct).into(),
            MEGABYTES.into(),
            lab.dir().into(),
        ])
    })
}

#[test]
fn psycopg_works_as_it_does_over_tls_of_its_own() -> Result<()> {
    compare(3, |lab, direct| {
        Ok(vec![
            python()?.into(),
            client("psycopg_client.py").into(),
            conninfo(lab, direct).into(),
            MEGABYTES.into(),
        ])
    })
}

#[test]
fn asyncpg_works_as_it_does_over_tls_of_its_own() -> Result<()> {
    compare(3, |lab, direct| {
        let trust = if direct {
            lab.path("ca.pem").into()
        } else {
            "disable".into()
        };
        Ok(vec![
            python()?.into(),
            client("asyncpg_client.py").into(),
            "10.99.0.2".into(),
            MEGABYTES.into(),
            trust,
        ])
    })
}

#[test]
fn jdbc_works_as_it_does_over_tls_of_its_own() -> Result<()> {
    compare(3, |lab, direct| {
        let url = if direct {
            format!(
                "jdbc:postgresql://10.99.0.2/postgres?sslmode=verify-full&sslrootcert={}",
                lab.path("ca.pem").display()
            )
        } else {
            "jdbc:postgresql://10.99.0.2/postgres?sslmode=disable".to_owned()
        };
        Ok(vec![
            "java".into(),
            "-cp".into(),
            "/usr/share/java/postgresql.jar".into(),
            client("JdbcClient.java").into(),
            url.into(),
            MEGABYTES.into(),
        ])
    })
}

#[test]
fn nothing_crosses_the_wire_in_clear() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Postgres::start(&lab, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(
        group
            .command(&lab.host, "psql")
            .args(["-At", "host=10.99.0.2 user=postgres sslmode=disable", "-c"])
            .arg("select 'a needle in clear', inet_server_addr(), ssl from pg_stat_ssl where pid = pg_backend_pid()")
            .env("PGPASSWORD", PASSWORD),
    )?;
    assert_eq!(printed.trim(), "a needle in clear|10.99.0.2|t");
    for (program, arguments) in [
        (
            "psycopg_client.py",
            vec![conninfo(&lab, false), "1".to_owned()],
        ),
        (
            "asyncpg_client.py",
            vec!["10.99.0.2".to_owned(), "1".to_owned(), "disable".to_owned()],
        ),
    ] {
        finish(
            group
                .command(&lab.host, python()?)
                .arg(client(program))
                .args(arguments),
        )?;
    }
    let wire = capture.finish()?;
    assert!(
        wire.len() > 4_000_000,
        "the copies were captured: {} bytes",
        wire.len()
    );
    let row = "x".repeat(32);
    assert_clean(
        &wire,
        &[
            "a needle in clear",
            "pg_stat_ssl",
            "application_name",
            "SCRAM-SHA-256",
            "generate_series",
            "copy t from",
            &row,
        ],
    )?;
    let records = daemon.settled_records(7)?;
    let record = &records[0];
    assert_eq!(record["mantled.verdict"], "allowed", "{record:#}");
    assert_eq!(record["process.executable.name"], "psql");
    assert_eq!(record["db.user"], "postgres");
    assert_eq!(
        record["mantled.systemd.unit"].as_str(),
        group.path().file_name().and_then(std::ffi::OsStr::to_str)
    );
    Ok(())
}

#[test]
fn clients_that_prefer_tls_are_verified_and_those_that_require_it_need_a_route() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Postgres::start(&lab, &leaf)?;
    let group = Group::new()?;
    let psql = |mode: &str| {
        run(
            group
                .command(&lab.host, "psql")
                .args([
                    "-At",
                    &format!("host=10.99.0.2 user=postgres sslmode={mode}"),
                    "-c",
                    "select 'served'",
                ])
                .env("PGPASSWORD", PASSWORD),
            Duration::from_secs(20),
        )
    };
    {
        let daemon = Daemon::start(&lab, &group, "enforce", "")?;
        let preferred = psql("prefer")?;
        assert_eq!(String::from_utf8_lossy(&preferred.stdout), "served\n");
        assert_eq!(daemon.settled_records(1)?[0]["mantled.path"], "verified");
        let required = psql("require")?;
        assert!(!required.status.success());
        let said = String::from_utf8_lossy(&required.stderr).into_owned();
        assert!(said.contains("SSL"), "{said}");
        let records = daemon.settled_records(2)?;
        assert_eq!(records[1]["mantled.verdict"], "refused");
        assert!(
            records[1]["mantled.reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("passthrough"))
        );
    }
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nport = 5432\ntls = \"passthrough\"\n";
    for (mode, config) in [("enforce", route), ("observe", "")] {
        let daemon = Daemon::start(&lab, &group, mode, config)?;
        let required = psql("require")?;
        assert_eq!(
            String::from_utf8_lossy(&required.stdout),
            "served\n",
            "{mode}"
        );
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["mantled.path"], "native", "{:#}", records[0]);
        assert_eq!(records[0]["tls.protocol.version"], "1.3");
        assert_eq!(records[0]["mantled.tls.client.versions"][0], "1.3");
    }
    Ok(())
}

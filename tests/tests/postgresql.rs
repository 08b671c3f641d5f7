//! PostgreSQL clients with TLS off, against a server that takes TLS alone.

use anyhow::Result;
use mantled_tests::{Capture, Daemon, Group, PASSWORD, Postgres, assert_clean, lab, succeed};

#[test]
fn psql_works_and_nothing_crosses_the_wire_in_clear() -> Result<()> {
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
    let wire = capture.finish()?;
    assert_clean(
        &wire,
        &["a needle in clear", "pg_stat_ssl", "application_name"],
    )?;
    let records = daemon.settled_records(1)?;
    let record = &records[0];
    assert_eq!(record["mantled.verdict"], "allowed", "{record:#}");
    assert_eq!(record["mantled.path"], "verified");
    assert_eq!(record["network.protocol.name"], "postgresql");
    assert_eq!(record["process.executable.name"], "psql");
    assert_eq!(record["db.user"], "postgres");
    assert_eq!(
        record["mantled.systemd.unit"],
        group.path().file_name().unwrap().to_str().unwrap()
    );
    Ok(())
}

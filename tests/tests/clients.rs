//! psql, psycopg, asyncpg and JDBC: whoever encrypts, or is refused, each works or is told.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, PASSWORD, Postgres, PostgresClient, SslMode, assert_clean, lab,
    run, succeed,
};
use serde_json::Value;

/// Connections of each client.
const CONNECTIONS: usize = 3;

/// Bytes of a CancelRequest of protocol 3.0.
const CANCEL_REQUEST: u64 = 16;

/// What a client printed, and how it ended.
struct Ended {
    well: bool,
    printed: String,
    errors: String,
}

/// Runs a client: in the group, or beside it.
fn client(
    lab: &Lab,
    group: Option<&Group>,
    client: PostgresClient,
    mode: SslMode,
    megabytes: u32,
) -> Result<Ended> {
    let words = client.command(lab, mode, megabytes)?;
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command = match group {
        Some(group) => group.command(&lab.host, program),
        None => lab.host.command(program),
    };
    let output = run(
        command.args(arguments).env("PGPASSWORD", PASSWORD),
        Duration::from_secs(50),
    )?;
    Ok(Ended {
        well: output.status.success(),
        printed: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// What it printed at its work, which must have gone well.
fn work(
    lab: &Lab,
    group: Option<&Group>,
    who: PostgresClient,
    mode: SslMode,
    megabytes: u32,
) -> Result<String> {
    let ended = client(lab, group, who, mode, megabytes)?;
    ensure!(
        ended.well,
        "{who:?} {mode:?}: {}{}",
        ended.printed,
        ended.errors
    );
    Ok(ended.printed)
}

/// The records that came after the first `before`, of one run of a client; the connection that
/// cancelled is the last of the three.
fn records_of_run(daemon: &Daemon, before: usize) -> Result<(Vec<Value>, Value)> {
    let mut records = daemon
        .settled_records(before + CONNECTIONS)?
        .split_off(before);
    let cancels: Vec<_> = (0..records.len())
        .filter(|n| records[*n]["mantled.bytes.sent"] == CANCEL_REQUEST)
        .collect();
    ensure!(cancels.len() == 1, "not one has cancelled: {records:#?}");
    let cancel = records.remove(cancels[0]);
    Ok((records, cancel))
}

fn process(client: PostgresClient) -> &'static str {
    match client {
        PostgresClient::Psql => "psql",
        PostgresClient::Psycopg | PostgresClient::Asyncpg => "python3",
        PostgresClient::Jdbc => "java",
    }
}

#[test]
fn clients_that_say_nothing_about_tls_are_verified() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    for (n, who) in PostgresClient::ALL.into_iter().enumerate() {
        let direct = work(&lab, None, who, SslMode::VerifyFull, 1)?;
        let through = work(&lab, Some(&group), who, SslMode::Default, 1)?;
        assert_eq!(through, direct, "{who:?}");
        let (records, cancel) = records_of_run(&daemon, n * CONNECTIONS)?;
        for record in records.iter().chain([&cancel]) {
            assert_eq!(record["mantled.path"], "verified", "{who:?}: {record:#}");
            assert_eq!(record["network.protocol.name"], "postgresql", "{record:#}");
            assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
            assert!(record.get("error.type").is_none(), "{who:?}: {record:#}");
            // Not the task's name, which is the thread's: Java cancels on another one.
            let executable = record["process.executable.path"].as_str();
            assert!(
                executable
                    .and_then(|path| path.rsplit('/').next())
                    .is_some_and(|name| name.starts_with(process(who))),
                "{record:#}"
            );
        }
        for record in records {
            assert_eq!(record["db.user"], "postgres", "{record:#}");
            assert_eq!(record["db.namespace"], "postgres");
        }
        // It names no user.
        assert!(cancel.get("db.user").is_none(), "{who:?}: {cancel:#}");
        assert_eq!(cancel["mantled.bytes.received"], 0);
    }
    Ok(())
}

/// Words that a client says, and those that it is told; each is long enough that no encryption
/// comes to it by accident.
fn needles(client: PostgresClient) -> Vec<&'static str> {
    let own: &[_] = match client {
        PostgresClient::Psql => &[
            "prepare p (int, text)",
            "create temp table t",
            "000000000000000000000000000000000000",
            "listen news",
        ],
        PostgresClient::Psycopg => &[
            "select $1::int + 1",
            "create temp table t",
            "copy t from stdin",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "select 'still here'",
            "listen news",
        ],
        PostgresClient::Asyncpg => &[
            "select $1::int + 1",
            "create temp table t",
            "COPY \"t\" FROM STDIN",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "select 'still here'",
            "LISTEN \"news\"",
        ],
        PostgresClient::Jdbc => &[
            "decode(md5(g::text), 'hex')",
            "create temp table t",
            "copy t from stdin",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "select 'still here'",
            "listen news",
        ],
    };
    let all = [
        "user\0postgres\0",
        "SCRAM-SHA-256",
        "client_encoding",
        "server_version",
        "pg_sleep(30)",
        "canceling statement due to user request",
        "notify news, 'hello'",
    ];
    [own, &all].concat()
}

/// Without this the next test would prove nothing.
#[test]
fn the_words_to_look_for_are_those_that_the_clients_say() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start_with(&lab, None, "host all all all scram-sha-256\n")?;
    for who in PostgresClient::ALL {
        let capture = Capture::start(&lab)?;
        work(&lab, None, who, SslMode::Disable, 1)?;
        let wire = capture.finish()?;
        for needle in needles(who) {
            assert!(
                assert_clean(&wire, &[needle]).is_err(),
                "{who:?} never said {needle:?}"
            );
        }
    }
    Ok(())
}

/// A copy of a hundred megabytes each way, and everything else that the client says.
fn nothing_crosses_in_clear(who: PostgresClient) -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;
    work(&lab, Some(&group), who, SslMode::Disable, 100)?;
    let wire = capture.finish()?;
    ensure!(
        wire.len() > 200_000_000,
        "the copies were captured: {} bytes",
        wire.len()
    );
    assert_clean(&wire, &needles(who))?;
    let (records, cancel) = records_of_run(&daemon, 0)?;
    for record in records.iter().chain([&cancel]) {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
    }
    for direction in ["mantled.bytes.sent", "mantled.bytes.received"] {
        let most = records
            .iter()
            .filter_map(|record| record[direction].as_u64())
            .max();
        assert!(most > Some(100_000_000), "{direction}: {most:?}");
    }
    Ok(())
}

#[test]
fn nothing_of_psql_crosses_the_wire_in_clear() -> Result<()> {
    nothing_crosses_in_clear(PostgresClient::Psql)
}

#[test]
fn nothing_of_psycopg_crosses_the_wire_in_clear() -> Result<()> {
    nothing_crosses_in_clear(PostgresClient::Psycopg)
}

#[test]
fn nothing_of_asyncpg_crosses_the_wire_in_clear() -> Result<()> {
    nothing_crosses_in_clear(PostgresClient::Asyncpg)
}

#[test]
fn nothing_of_jdbc_crosses_the_wire_in_clear() -> Result<()> {
    nothing_crosses_in_clear(PostgresClient::Jdbc)
}

#[test]
fn clients_that_insist_on_tls_of_their_own_are_told_no() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    for (n, who) in PostgresClient::ALL.into_iter().enumerate() {
        let ended = client(&lab, Some(&group), who, SslMode::Require, 1)?;
        assert!(!ended.well, "{who:?}: {}", ended.printed);
        // What each says to a server that answers N.
        let words = match who {
            PostgresClient::Psql | PostgresClient::Psycopg => {
                "server does not support SSL, but SSL was required"
            }
            PostgresClient::Asyncpg => "rejected SSL upgrade",
            PostgresClient::Jdbc => "The server does not support SSL",
        };
        assert!(ended.errors.contains(words), "{who:?}: {}", ended.errors);
        let records = daemon.settled_records(n + 1)?;
        let record = &records[n];
        assert_eq!(record["mantled.verdict"], "refused", "{who:?}: {record:#}");
        assert!(record.get("mantled.path").is_none(), "{who:?}: {record:#}");
        assert_eq!(record["network.protocol.name"], "postgresql");
        let reason = record["mantled.reason"].as_str().unwrap_or_default();
        assert!(reason.contains("tls = \"passthrough\""), "{reason}");
    }
    Ok(())
}

#[test]
fn tls_of_the_clients_own_passes_where_it_may() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nport = 5432\ntls = \"passthrough\"\n";
    for (mode, config) in [("enforce", route), ("observe", "")] {
        let daemon = Daemon::start(&lab, &group, mode, config)?;
        for (n, who) in PostgresClient::ALL.into_iter().enumerate() {
            let direct = work(&lab, None, who, SslMode::VerifyFull, 1)?;
            let through = work(&lab, Some(&group), who, SslMode::VerifyFull, 1)?;
            assert_eq!(through, direct, "{mode} {who:?}");
            let records = daemon
                .settled_records((n + 1) * CONNECTIONS)?
                .split_off(n * CONNECTIONS);
            let is_native = |record: &&Value| record["mantled.path"] == "native";
            for record in records.iter().filter(is_native) {
                assert_eq!(record["tls.protocol.version"], "1.3", "{record:#}");
                assert!(record["tls.cipher"].is_string(), "{record:#}");
                assert_eq!(record["mantled.tls.client.versions"][0], "1.3");
                assert!(record.get("mantled.tls.verified_name").is_none());
                // RFC 6066 has no server name for an address.
                assert!(record.get("tls.client.server_name").is_none());
                assert_eq!(record["mantled.verdict"], "allowed");
            }
            // Before version 17 of libpq, and in this version of the JDBC driver, a CancelRequest
            // is sent in clear; mantled encrypts and verifies it.
            let native = records.iter().filter(is_native).count();
            let expected = match who {
                PostgresClient::Psycopg | PostgresClient::Asyncpg => CONNECTIONS,
                PostgresClient::Psql | PostgresClient::Jdbc => CONNECTIONS - 1,
            };
            assert_eq!(native, expected, "{mode} {who:?}: {records:#?}");
            for record in records.iter().filter(|record| !is_native(record)) {
                assert_eq!(record["mantled.path"], "verified", "{record:#}");
                assert_eq!(record["mantled.bytes.sent"], CANCEL_REQUEST, "{record:#}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_name_that_a_client_asks_for_is_recorded() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.leaf(&["db.site.example"])?)?;
    let group = Group::new()?;
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nport = 5432\ntls = \"passthrough\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let conninfo = format!(
        "host=db.site.example hostaddr=10.99.0.2 user=postgres sslmode=verify-full sslrootcert={}",
        lab.path("ca.pem").display()
    );
    let psql = |maximum: &str| -> Result<String> {
        let mut command: Command = group.command(&lab.host, "psql");
        succeed(
            command
                .arg("-XAt")
                .arg(format!("{conninfo} ssl_max_protocol_version={maximum}"))
                .args([
                    "-c",
                    "select version from pg_stat_ssl where pid = pg_backend_pid()",
                ])
                .env("PGPASSWORD", PASSWORD),
        )
    };
    assert_eq!(psql("TLSv1.3")?, "TLSv1.3\n");
    assert_eq!(psql("TLSv1.2")?, "TLSv1.2\n");
    let records = daemon.settled_records(2)?;
    for (record, version) in records.iter().zip(["1.3", "1.2"]) {
        assert_eq!(record["mantled.path"], "native", "{record:#}");
        assert_eq!(record["tls.client.server_name"], "db.site.example");
        assert_eq!(record["mantled.tls.client.versions"][0], version);
        assert_eq!(record["tls.protocol.version"], version);
    }
    Ok(())
}

#[test]
fn a_refusal_is_an_error_of_the_database() -> Result<()> {
    let lab = lab!();
    let _server = Postgres::start(&lab, &lab.authority.expired_leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    for (n, who) in PostgresClient::ALL.into_iter().enumerate() {
        let ended = client(&lab, Some(&group), who, SslMode::Disable, 1)?;
        assert!(!ended.well, "{who:?}: {}", ended.printed);
        let words = match who {
            // libpq has no SQLSTATE for a connection that never was.
            PostgresClient::Psql | PostgresClient::Psycopg => {
                "FATAL:  mantled refused this connection: "
            }
            PostgresClient::Asyncpg => "08004 mantled refused this connection: ",
            PostgresClient::Jdbc => "08004 FATAL: mantled refused this connection: ",
        };
        assert!(ended.errors.contains(words), "{who:?}: {}", ended.errors);
        assert!(
            ended.errors.contains("expired"),
            "{who:?}: {}",
            ended.errors
        );
        assert!(
            ended.errors.contains("certificate_expired"),
            "{who:?}: {}",
            ended.errors
        );
        let records = daemon.settled_records(n + 1)?;
        let record = &records[n];
        assert_eq!(record["error.type"], "certificate_expired", "{record:#}");
        assert_eq!(record["mantled.verdict"], "refused");
        assert_eq!(record["mantled.bytes.sent"], 0);
    }
    Ok(())
}

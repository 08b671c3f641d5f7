//! Policies decide about commands.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{Daemon, Group, Lab, PASSWORD, Postgres, lab, run, succeed};

const POLICY: &str = "[policy]\ndir = \"policies\"\n";

/// Everybody may open sessions; the rest is what is said.
fn permit(lab: &Lab, commands: &str) -> Result<()> {
    let dir = lab.path("policies");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let access = "@id(\"access\") permit(principal, action in Action::\"access\", resource);\n";
    fs::write(dir.join("a.cedar"), format!("{access}{commands}"))?;
    Ok(())
}

/// Reads, and writes to `t` that are bounded.
const READS: &str = r#"
@id("reads") permit(principal, action == Action::"sql.read", resource)
when { !context.statement.tables.contains("salaries") };
@id("t") permit(principal, action == Action::"sql.write", resource)
when { ["t"].containsAll(context.statement.tables) && !context.statement.unbounded };
"#;

fn direct(lab: &Lab, statements: &str) -> Result<String> {
    succeed(
        lab.host
            .command("psql")
            .args([
                "-At",
                "host=10.99.0.2 user=postgres sslmode=require",
                "-c",
                statements,
            ])
            .env("PGPASSWORD", PASSWORD),
    )
}

/// Runs a program of `tests/clients` with the interpreter that has psycopg and asyncpg.
fn python(lab: &Lab, group: &Group, name: &str, arguments: &[&str]) -> Result<String> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let interpreter = here.join("../target/lab/venv/bin/python");
    let output = run(
        group
            .command(&lab.host, interpreter)
            .arg(here.join("clients").join(name))
            .args(arguments)
            .env("PGPASSWORD", PASSWORD),
        Duration::from_secs(100),
    )?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs psql in the group with a script; what it prints, errors among the answers.
fn psql(lab: &Lab, group: &Group, script: &str) -> Result<String> {
    let arguments: Vec<OsString> = ["-At", "host=10.99.0.2 user=postgres sslmode=disable"]
        .map(Into::into)
        .to_vec();
    let mut child = group
        .command(&lab.host, "psql")
        .args(arguments)
        .env("PGPASSWORD", PASSWORD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(format!("\\o | cat\n\\o\n{script}").as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(format!(
        "{}----\n{}",
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?
    ))
}

#[test]
fn postgresql_refuses_in_its_own_words_and_goes_on() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Postgres::start(&lab, &leaf)?;
    direct(
        &lab,
        "create table t (a int); create table salaries (a int)",
    )?;
    let group = Group::new()?;
    permit(&lab, READS)?;
    let daemon = Daemon::start(&lab, &group, "enforce", POLICY)?;
    let said = psql(
        &lab,
        &group,
        "select 'one';
insert into t values (1), (2);
delete from t;
select 'two', count(*) from t;
drop table t;
select * from salaries;
begin;
insert into t values (3);
update t set a = 5;
select 'in a failed transaction';
rollback;
select 'three', count(*) from t;
insert into t values (4) \\; delete from t;
do $$ begin delete from t; end $$;
copy t from stdin;
5
6
\\.
copy t to stdout;
copy t to program 'cat';
select pg_read_file('/etc/passwd');
prepare gone as delete from t;
prepare kept as select count(*) from t where a > $1;
execute kept(1);
execute gone;
select 'last';
",
    )?;
    let refused = |what: &str| format!("ERROR:  refused by mantled: {what}");
    let (answers, errors) = said.split_once("----\n").context("no errors")?;
    assert_eq!(
        answers,
        "one\nINSERT 0 2\ntwo|2\nBEGIN\nINSERT 0 1\nROLLBACK\nthree|2\nCOPY 2\n1\n2\n5\n6\nPREPARE\n3\nlast\n",
        "{errors}"
    );
    let errors: Vec<&str> = errors
        .lines()
        .filter(|line| line.starts_with("ERROR"))
        .collect();
    let none = "no policy permits it";
    assert_eq!(
        errors,
        [
            refused(&format!("delete is sql.write: {none}")),
            refused(&format!("drop table is sql.ddl: {none}")),
            refused(&format!("select is sql.read: {none}")),
            refused(&format!("update is sql.write: {none}")),
            "ERROR:  current transaction is aborted, commands ignored until end of transaction block"
                .to_owned(),
            refused(&format!("delete is sql.write: {none}")),
            refused(&format!("unparsed is sql.unparsed: {none}")),
            refused(&format!("copy is sql.admin: {none}")),
            refused(&format!("select is sql.admin: {none}")),
            refused(&format!("prepare is sql.write: {none}")),
            refused(&format!("unparsed is sql.unparsed: {none}")),
        ]
    );
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.verdict"], "allowed");
    assert_eq!(record["mantled.commands.refused"], 10, "{record:#}");
    let refusals = record["mantled.commands.refusals"].to_string();
    assert!(
        refusals.contains("delete from t: delete is sql.write"),
        "{refusals}"
    );
    assert!(!refusals.contains("passwd"), "{refusals}");
    let policies = record["mantled.policy.ids"].to_string();
    assert_eq!(policies, r#"["access","reads","t"]"#);
    assert_eq!(direct(&lab, "select count(*) from t")?, "4\n");
    Ok(())
}

#[test]
fn psycopg_meets_refusals_in_pipelines_cursors_and_prepared_statements() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Postgres::start(&lab, &leaf)?;
    direct(
        &lab,
        "create table t (a int); create table salaries (a int)",
    )?;
    let group = Group::new()?;
    permit(&lab, READS)?;
    let _daemon = Daemon::start(&lab, &group, "enforce", POLICY)?;
    let said = python(
        &lab,
        &group,
        "psycopg_commands.py",
        &["host=10.99.0.2 user=postgres dbname=postgres sslmode=disable"],
    )?;
    assert_eq!(
        said,
        "simple: 1
refused: InsufficientPrivilege INTRANS->INERROR
autocommit refused: InsufficientPrivilege IDLE
pipeline: InsufficientPrivilege, first 1, INERROR
rows after the pipeline: 0
pipeline of syncs: [(1,), 'InsufficientPrivilege', (2,)]
server-side cursor: 1000 rows
binary: (7, b'\\x00\\xff', 1.5)
prepared: 20 executions, refused InsufficientPrivilege
copy in: 1000
copy out: 1000
function call: InsufficientPrivilege
end: 1
"
    );
    let said = python(&lab, &group, "asyncpg_commands.py", &["10.99.0.2"])?;
    assert_eq!(
        said,
        "select: 7
refused: InsufficientPrivilegeError
executemany: 1500
cursor: 100
transaction: InsufficientPrivilegeError then InFailedSQLTransactionError
copy: 100
end: 1
"
    );
    Ok(())
}

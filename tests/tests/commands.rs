//! Policies decide about commands.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Daemon, Group, Lab, PASSWORD, Postgres, Program, eventually, lab, mantled, run, succeed,
};

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
    assert!(
        daemon
            .log()
            .contains("a command was refused by policy: drop table t: ")
    );
    let status = succeed(Command::new(mantled()?).args(["status", "--json"]))?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    assert_eq!(status["commands_refused"], 10, "{status:#}");
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

#[test]
fn http_requests_are_judged_by_method_and_path() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Program::nginx(&lab, &leaf)?;
    let group = Group::new()?;
    permit(
        &lab,
        r#"@id("gets") permit(principal, action == Action::"http.read", resource);
           @id("secret") forbid(principal, action in Action::"http", resource)
           when { context.request.path like "/secret*" };
           @id("posts") permit(principal, action == Action::"http.write", resource)
           when { context.request.method == "POST" && context.request.path == "/length" };"#,
    )?;
    let daemon = Daemon::start(&lab, &group, "enforce", POLICY)?;
    let base = "http://10.99.0.2";
    let big = lab.path("posted");
    fs::write(&big, vec![b'p'; 3_000_000])?;
    let posted = format!("@{}", big.display());
    // One connection: what is refused takes nothing from what comes behind it.
    let printed = succeed(
        group
            .command(&lab.host, "curl")
            .args(["-sS", "--max-time", "20", "-H", "Expect:"])
            .args(["--data-binary", &posted, &format!("{base}/length")])
            .args(["--next", "-sS", "-d", "some", &format!("{base}/other")])
            .args([
                "--next",
                "-sS",
                "-H",
                "Transfer-Encoding: chunked",
                "-d",
                "some",
                &format!("{base}/other"),
            ])
            .args(["--next", "-sS", "-d", "words", &format!("{base}/length")])
            .args(["--next", "-sS", &format!("{base}/")])
            .args(["--next", "-sS", &format!("{base}/secret?token=needle")])
            .args([
                "--next",
                "-sS",
                "--path-as-is",
                &format!("{base}/x/../%73ecret"),
            ])
            .args([
                "--next",
                "-sS",
                "--path-as-is",
                &format!("{base}/%2e%2e/secret"),
            ])
            .args([
                "--next",
                "-sS",
                "-X",
                "DELETE",
                &format!("{base}/api/v1/namespaces/a/pods/b"),
            ])
            .args([
                "--next",
                "-sS",
                "-H",
                "Connection: Upgrade",
                "-H",
                "Upgrade: h2c",
            ])
            .args(["-d", "some", &format!("{base}/length")])
            .args([
                "--next",
                "-sS",
                "-d",
                "some",
                &format!("{base}/other/s3cret"),
            ])
            .args([
                "--next",
                "-sS",
                "-H",
                "X-HTTP-Method-Override: DELETE",
                &format!("{base}/"),
            ])
            .args([
                "--next",
                "-sS",
                "-I",
                "-w",
                "%{http_code}\n",
                "-o",
                "/dev/null",
                &format!("{base}/secret"),
            ])
            .args([
                "--next",
                "-sS",
                "-w",
                "%{num_connects}\n",
                &format!("{base}/"),
            ]),
    )?;
    let lines: Vec<&str> = printed.lines().collect();
    let none = "no policy permits it";
    assert_eq!(
        lines,
        [
            "3000000",
            &format!("refused by mantled: POST is http.write: {none}"),
            &format!("refused by mantled: POST is http.write: {none}"),
            "5",
            "over HTTP/1.1 for 10.99.0.2",
            "refused by mantled: GET is http.read: forbidden by policy secret",
            "refused by mantled: GET is http.read: forbidden by policy secret",
            "refused by mantled: GET is http.read: forbidden by policy secret",
            &format!(
                "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"refused by mantled: DELETE is http.write: {none}\",\"reason\":\"Forbidden\",\"code\":403}}"
            ),
            &format!("refused by mantled: POST is http.unparsed: {none}"),
            &format!("refused by mantled: POST is http.write: {none}"),
            &format!("refused by mantled: GET is http.write: {none}"),
            "403",
            "over HTTP/1.1 for 10.99.0.2",
            "0",
        ],
        "{printed}"
    );
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.commands"], 14, "{record:#}");
    assert_eq!(record["mantled.commands.refused"], 10);
    assert!(!record.to_string().contains("needle"), "{record:#}");
    let refusals = record["mantled.commands.refusals"].to_string();
    assert!(refusals.contains("POST /other/*: "), "{refusals}");
    for told in [record.to_string(), daemon.log()] {
        assert!(!told.contains("s3cret"), "{told}");
    }

    // A client that waits for leave to send its body is told, and is not waited for.
    let told = succeed(
        group
            .command(&lab.host, "curl")
            .args([
                "-sS",
                "--max-time",
                "20",
                "-H",
                "Expect: 100-continue",
                "--expect100-timeout",
                "10",
            ])
            .args(["-w", "%{http_code} %{time_total}", "-o", "/dev/null"])
            .args(["--data-binary", &posted, &format!("{base}/other")]),
    )?;
    let (code, seconds) = told.split_once(' ').context("no time")?;
    assert_eq!(code, "403");
    assert!(seconds.parse::<f64>()? < 5.0, "{told}");
    // HTTP/2 hides its requests from who does not follow it.
    let refused = run(
        group.command(&lab.host, "curl").args([
            "-sS",
            "--max-time",
            "20",
            "--http2-prior-knowledge",
            &format!("{base}/"),
        ]),
        Duration::from_secs(30),
    )?;
    assert!(!refused.status.success());
    let records = daemon.settled_records(3)?;
    assert_eq!(records[2]["error.type"], "policy_denied");
    let reason = records[2]["mantled.reason"].as_str().unwrap_or_default();
    assert!(reason.contains("cannot read the commands"), "{reason}");
    Ok(())
}

#[test]
fn redis_commands_are_judged_by_what_they_do_and_their_keys() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Program::redis(&lab, &leaf)?;
    let group = Group::new()?;
    permit(
        &lab,
        r#"@id("reads") permit(principal, action == Action::"redis.read", resource)
           unless { context.keys.contains("secret") };
           @id("mine") permit(principal, action == Action::"redis.write", resource)
           when { ["a", "b"].containsAll(context.keys) && context.command != "publish" };"#,
    )?;
    let daemon = Daemon::start(&lab, &group, "enforce", POLICY)?;
    let mut child = group
        .command(&lab.host, "redis-cli")
        .args(["-h", "10.99.0.2", "-p", "6379"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no standard input")?.write_all(
        b"set a 1\nset c 1\nget a\nget secret\nmget a b secret\nconfig get *\neval 'return 1' 0\nflushall\nmulti\nset b 2\nset c 3\nexec\nget b\nmulti\nset b 4\nexec\nhello 3\nget c\nmset a 5 b 6\nget b\npublish x y\nclient kill 1\n",
    )?;
    let output = child.wait_with_output()?;
    let printed = String::from_utf8(output.stdout)?;
    let none = "no policy permits it";
    let refused = |what: &str| format!("NOPERM refused by mantled: {what}: {none}");
    let lines: Vec<&str> = printed
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let expected = [
        "OK".to_owned(),
        refused("set is redis.write"),
        "1".to_owned(),
        refused("get is redis.read"),
        refused("mget is redis.read"),
        refused("config get is redis.admin"),
        refused("eval is redis.admin"),
        refused("flushall is redis.admin"),
        "OK".to_owned(),
        "QUEUED".to_owned(),
        refused("set is redis.write"),
        "EXECABORT Transaction discarded because of previous errors.".to_owned(),
        "OK".to_owned(),
        "QUEUED".to_owned(),
        "OK".to_owned(),
    ];
    assert_eq!(
        lines.get(..expected.len()),
        Some(&expected.iter().map(String::as_str).collect::<Vec<_>>()[..]),
        "{printed}"
    );
    let rest = lines.get(expected.len()..).unwrap_or_default();
    assert!(rest.iter().any(|line| line.contains("proto")), "{printed}");
    let rest = rest.join("\n");
    assert!(
        rest.ends_with(&format!(
            "OK\n6\n{}\n{}",
            refused("publish is redis.write"),
            refused("client kill is redis.admin")
        )),
        "{printed}"
    );
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.commands.refused"], 9, "{record:#}");
    // A long value is carried as it comes, and a long command whose keys nobody can tell is not.
    let long = "v".repeat(3_000_000);
    let said = |command: String| -> Result<String> {
        let mut child = group
            .command(&lab.host, "redis-cli")
            .args(["-h", "10.99.0.2", "-p", "6379"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(command.as_bytes())?;
        Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
    };
    assert_eq!(
        said(format!("set a {}\nstrlen a\n", &long[..200_000]))?,
        "OK\n200000\n"
    );
    let told = said(format!("set a {long}\nstrlen a\n"))?;
    assert_eq!(
        told.trim(),
        format!("{}\n\n200000", refused("set is redis.admin")),
        "{told}"
    );
    Ok(())
}

#[test]
fn other_policies_judge_the_next_command_and_observing_only_tells() -> Result<()> {
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
    // The statement is prepared under policies that permit it, and executed under others.
    let go = lab.path("go");
    let ready = lab.path("ready");
    let script = format!(
        "prepare p as insert into t values (1);\nexecute p;\n\\! touch {}\n\\! while [ ! -e {} ]; do sleep 0.05; done\nexecute p;\nselect count(*) from t;\n",
        ready.display(),
        go.display()
    );
    let mut said = Ok(String::new());
    std::thread::scope(|scope| -> Result<()> {
        let client = scope.spawn(|| psql(&lab, &group, &script));
        eventually("the first execution", Duration::from_secs(20), || {
            ready.exists().then_some(())
        })?;
        permit(
            &lab,
            r#"permit(principal, action == Action::"sql.read", resource);"#,
        )?;
        succeed(Command::new(mantled()?).arg("reload"))?;
        fs::write(&go, "")?;
        said = client.join().expect("the thread of psql");
        Ok(())
    })?;
    let said = said?;
    assert!(said.starts_with("PREPARE\nINSERT 0 1\n1\n----\n"), "{said}");
    assert!(
        said.contains("execute is sql.read")
            || said.contains("refused by mantled: prepare is sql.write"),
        "{said}"
    );
    // What cannot be read any more is ended: policies did not judge its commands when it began.
    permit(&lab, "")?;
    succeed(Command::new(mantled()?).arg("reload"))?;
    let mut held = group
        .command(&lab.host, "psql")
        .args([
            "-At",
            "host=10.99.0.2 user=postgres sslmode=disable",
            "-c",
            "select pg_sleep(60)",
        ])
        .env("PGPASSWORD", PASSWORD)
        .stderr(Stdio::piped())
        .spawn()?;
    // It is there when the server runs its statement.
    eventually("the statement", Duration::from_secs(10), || {
        let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)' and state = 'active'";
        (direct(&lab, running).ok()?.trim() == "1").then_some(())
    })?;
    permit(&lab, READS)?;
    succeed(Command::new(mantled()?).arg("reload"))?;
    let ended = eventually("the end", Duration::from_secs(5), || {
        held.try_wait().ok()?
    });
    assert!(!ended.with_context(|| daemon.log())?.success());
    let records = daemon.settled_records(2)?;
    assert_eq!(
        records[1]["error.type"], "configuration_changed",
        "{:#}",
        records[1]
    );
    drop(daemon);

    let daemon = Daemon::start(&lab, &group, "observe", POLICY)?;
    let said = psql(&lab, &group, "delete from t;\nselect count(*) from t;\n")?;
    assert_eq!(said, "DELETE 1\n0\n----\n");
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.commands.refused"], 1, "{record:#}");
    assert_eq!(record["mantled.verdict"], "allowed");

    // What nobody has refused while it was observed ends when the group is enforced.
    let mut held = group
        .command(&lab.host, "psql")
        .args(["-At", "host=10.99.0.2 user=postgres sslmode=disable"])
        .args(["-c", "select pg_sleep(61)"])
        .env("PGPASSWORD", PASSWORD)
        .stderr(Stdio::piped())
        .spawn()?;
    eventually("the statement", Duration::from_secs(10), || {
        let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(61)' and state = 'active'";
        (direct(&lab, running).ok()?.trim() == "1").then_some(())
    })?;
    let file = lab.path("mantled.toml");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("\"observe\"", "\"enforce\""))?;
    succeed(Command::new(mantled()?).arg("reload"))?;
    let ended = eventually("the end", Duration::from_secs(5), || {
        held.try_wait().ok()?
    });
    assert!(!ended.with_context(|| daemon.log())?.success());
    let records = daemon.settled_records(2)?;
    assert_eq!(records[1]["error.type"], "mode_changed", "{:#}", records[1]);
    Ok(())
}

#[test]
fn ten_thousand_random_statements_give_what_they_give_directly() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Postgres::start(&lab, &leaf)?;
    let group = Group::new()?;
    permit(
        &lab,
        r#"permit(principal, action in [Action::"sql.read", Action::"sql.write", Action::"sql.ddl"], resource)
           unless { context.statement.tables.contains("salaries") };"#,
    )?;
    let _daemon = Daemon::start(&lab, &group, "enforce", POLICY)?;
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let client = here.join("clients/random_statements.py");
    let interpreter = here.join("../target/lab/venv/bin/python");
    let printed = |mut command: std::process::Command| -> Result<String> {
        let output = run(
            command.env("PGPASSWORD", PASSWORD),
            Duration::from_secs(200),
        )?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    let mut alone = lab.host.command(&interpreter);
    alone
        .arg(&client)
        .args(["host=10.99.0.2 user=postgres dbname=postgres sslmode=require"]);
    let alone = printed(alone)?;
    let mut through = group.command(&lab.host, &interpreter);
    through
        .arg(&client)
        .args(["host=10.99.0.2 user=postgres dbname=postgres sslmode=disable"]);
    let through = printed(through)?;
    let (mut refused, mut same) = (0, 0);
    for (direct, through) in alone.lines().zip(through.lines()) {
        // number, whether it is kept back, statement, outcome
        let mut parts = direct.split('\t');
        let is_refused = parts.nth(1) == Some("kept");
        if is_refused {
            assert!(
                through.ends_with("\tInsufficientPrivilege refused"),
                "{through}"
            );
            refused += 1;
        } else {
            assert_eq!(direct, through);
            same += 1;
        }
    }
    assert_eq!(refused + same, 10_000);
    assert!(refused > 500 && same > 5000, "{refused} {same}");
    Ok(())
}

#[test]
fn mysql_refuses_in_its_own_words_and_goes_on() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Program::mariadb(&lab, &leaf)?;
    let mut made = lab.host.command("mariadb");
    made.args(["--host=10.99.0.2", "--user=alice", "--ssl", "shop", "-e"])
        .arg("create table t (a int); create table salaries (a int)")
        .env("MYSQL_PWD", PASSWORD);
    succeed(&mut made)?;
    let group = Group::new()?;
    permit(&lab, READS)?;
    let daemon = Daemon::start(&lab, &group, "enforce", POLICY)?;
    let said = python(&lab, &group, "pymysql_commands.py", &["10.99.0.2"])?;
    assert_eq!(
        said,
        "simple: 1
refused: 1227 refused by mantled: delete is sql.write: no policy permits it
goes on: 3
several: 1227
transaction: 1 row before the refusal and 1 behind it
prepared: 7, refused 1227
a string with escapes: it's \\\\ 5
another database: None
kill: 1227
change user: 1227
sql_mode: 1227
long: 1227
load data: 5000
load data into another table: 1227
end: 1
a packet of another number: closed
"
    );
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert_eq!(record["network.protocol.name"], "mysql");
    Ok(())
}

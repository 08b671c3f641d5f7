//! Policies decide who may connect where.

use std::{fs, process::Command, time::Duration};

use anyhow::Result;
use mantled_tests::{
    Daemon, Group, Held, Lab, SITE_V4, Server, eventually, lab, mantled, run, succeed,
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// Writes the policies, each file by its name.
fn write(lab: &Lab, files: &[(&str, &str)]) -> Result<()> {
    let dir = lab.path("policies");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    for (name, text) in files {
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}

const POLICY: &str = "[policy]\ndir = \"policies\"\n";

fn echo(lab: &Lab, group: &Group, server: &Server) -> Result<bool> {
    let mut agent = group.command(&lab.host, AGENT);
    agent.args(["echo", &server.address.to_string(), "words"]);
    Ok(run(&mut agent, Duration::from_secs(10))?.status.success())
}

#[test]
fn what_no_policy_permits_is_refused_and_open_sessions_are_judged_again() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let one = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let other = Server::start_echo(&lab.site, SITE_V4, 7002, &leaf)?;
    let group = Group::new()?;
    let unit = group
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let permit = format!(
        "@id(\"one\") permit(principal in Unit::\"{unit}\", action in Action::\"access\", resource)\n\
         when {{ resource.port == 7000 && resource.address == ip(\"10.99.0.2\") }};\n"
    );
    write(&lab, &[("a.cedar", &permit)])?;
    let daemon = Daemon::start(&lab, &group, "enforce", POLICY)?;
    assert!(echo(&lab, &group, &one)?, "{}", daemon.log());
    assert!(!echo(&lab, &group, &other)?);
    let records = daemon.settled_records(2)?;
    assert_eq!(records[0]["mantled.policy.ids"][0], "one");
    assert_eq!(records[0]["mantled.path"], "verified");
    assert_eq!(records[1]["error.type"], "policy_denied");
    assert_eq!(records[1]["mantled.reason"], "no policy permits it");
    assert_eq!(records[1]["mantled.path"], serde_json::Value::Null);

    // A mistake changes nothing.
    let held = Held::open(&lab, &group, AGENT, one.address, 1)?;
    write(
        &lab,
        &[(
            "a.cedar",
            "permit(principal, action, resource) when { principal.unti };",
        )],
    )?;
    let refused = run(
        Command::new(mantled()?).arg("reload"),
        Duration::from_secs(20),
    )?;
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("a.cedar:1: "), "{said}");
    assert!(echo(&lab, &group, &one)?);

    // Another policy ends what is open, and names itself.
    let forbid = format!(
        "{permit}@id(\"tls\") forbid(principal, action == Action::\"open\", resource)\n\
         when {{ context has tls && context.tls has version && context.tls.version == \"1.3\" }};\n"
    );
    write(&lab, &[("a.cedar", &forbid)])?;
    succeed(Command::new(mantled()?).arg("reload"))?;
    eventually("the end of the session", Duration::from_secs(5), || {
        daemon
            .records()
            .into_iter()
            .find(|record| record["error.type"] == "configuration_changed")
    })?;
    assert!(held.finish().is_err());
    assert!(!echo(&lab, &group, &one)?);
    let records = daemon.settled_records(5)?;
    let last = &records[4];
    assert_eq!(last["error.type"], "policy_denied");
    assert_eq!(last["mantled.reason"], "forbidden by policy tls");

    // What is said of a session afterwards.
    let config = lab.path("mantled.toml");
    let file = lab.path("records/sessions.jsonl");
    let explained = run(
        Command::new(mantled()?)
            .args(["policy", "explain", "--config"])
            .arg(&config)
            .arg("--records")
            .arg(&file)
            .arg(records[0]["session.id"].as_str().unwrap_or_default()),
        Duration::from_secs(10),
    )?;
    assert_eq!(explained.status.code(), Some(3));
    let said = String::from_utf8(explained.stdout)?;
    assert!(said.contains("connect: permitted by policy one"), "{said}");
    assert!(said.contains("open: forbidden by policy tls"), "{said}");

    // And of all of them: those that were permitted then, and would not be now.
    let replayed = run(
        Command::new(mantled()?)
            .args(["policy", "replay", "--config"])
            .arg(&config)
            .arg("--records")
            .arg(&file),
        Duration::from_secs(10),
    )?;
    let said = String::from_utf8(replayed.stdout)?;
    let changed: u64 = said
        .lines()
        .filter(|line| line.ends_with(": permitted -> forbidden by policy tls"))
        .filter_map(|line| line.split(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(changed, 3, "{said}");
    assert!(
        said.ends_with("3 change, 2 stay, 0 were refused for other reasons, 0 tell too little\n"),
        "{said}"
    );
    Ok(())
}

#[test]
fn observing_refuses_nothing_and_says_what_enforcing_would() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    write(
        &lab,
        &[(
            "a.cedar",
            "permit(principal in User::\"12345\", action, resource);",
        )],
    )?;
    let daemon = Daemon::start(&lab, &group, "observe", POLICY)?;
    assert!(echo(&lab, &group, &server)?);
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.verdict"], "allowed");
    assert_eq!(record["mantled.enforce.error"], "policy_denied");
    Ok(())
}

#[test]
fn policies_are_checked_and_tested_without_a_daemon() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let policy = |action: &str| {
        run(
            Command::new(mantled()?)
                .args(["policy", action, "--dir"])
                .arg(dir.path()),
            Duration::from_secs(10),
        )
    };
    let empty = policy("check")?;
    assert_eq!(empty.status.code(), Some(2));
    fs::write(
        dir.path().join("logs.cedar"),
        "@id(\"logs\") permit(principal in Unit::\"shipper.service\", action, resource in Host::\"logs.example.com\");",
    )?;
    assert!(policy("check")?.status.success());
    let cases = r#"
[[case]]
name = "the shipper ships"
unit = "shipper.service"
host = "logs.example.com"
address = "192.0.2.7"
port = 514
expect = "allow"
policy = "logs"

[[case]]
name = "nobody else does"
unit = "other.service"
host = "logs.example.com"
address = "192.0.2.7"
port = 514
expect = "deny"
"#;
    fs::write(dir.path().join("logs.test.toml"), cases)?;
    let tested = policy("test")?;
    assert_eq!(
        String::from_utf8_lossy(&tested.stdout),
        "2 as expected, 0 not\n",
        "{tested:?}"
    );
    fs::write(
        dir.path().join("logs.test.toml"),
        cases.replace("\"deny\"", "\"allow\""),
    )?;
    let tested = policy("test")?;
    assert_eq!(tested.status.code(), Some(1));
    let said = String::from_utf8_lossy(&tested.stdout).into_owned();
    assert!(
        said.contains("nobody else does: no policy permits it"),
        "{said}"
    );
    Ok(())
}

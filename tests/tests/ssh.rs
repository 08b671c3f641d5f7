//! SSH encrypts by itself: it is recognised, and passes where a route says so.

use std::{
    io::{Read as _, Write as _},
    path::Path,
    process::Output,
    time::Duration,
};

use anyhow::Result;
use mantled_tests::{Daemon, Group, Lab, Program, SITE_V4, Server, lab, run};

const PASSTHROUGH: &str = "[[route]]\ncidr = \"10.99.0.2\"\ntls = \"passthrough\"\n";

/// OpenSSH's client, with a command of which the server prints the words.
fn ssh(lab: &Lab, group: &Group, key: &Path) -> Result<Output> {
    let mut command = group.command(&lab.host, "ssh");
    command
        .args(["-F", "none", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"])
        .args(["-o", "ConnectTimeout=5", "-i"])
        .arg(key)
        .args(["root@10.99.0.2", "echo the words"]);
    run(&mut command, Duration::from_secs(20))
}

#[test]
fn openssh_passes_only_where_it_may() -> Result<()> {
    let lab = lab!();
    let (_server, key) = Program::sshd(&lab)?;
    let group = Group::new()?;
    for (mode, config, served) in [
        ("enforce", "", false),
        ("enforce", PASSTHROUGH, true),
        ("observe", "", true),
    ] {
        let daemon = Daemon::start(&lab, &group, mode, config)?;
        let output = ssh(&lab, &group, &key)?;
        let record = &daemon.settled_records(1)?[0];
        assert_eq!(record["network.protocol.name"], "ssh", "{record:#}");
        assert_eq!(
            output.status.success(),
            served,
            "{mode}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        if served {
            assert_eq!(output.stdout, b"the words\n");
            assert_eq!(record["mantled.path"], "native", "{record:#}");
            let banner = record["mantled.ssh.server.banner"].as_str();
            assert!(
                banner.is_some_and(|banner| banner.starts_with("SSH-2.0-OpenSSH")),
                "{record:#}"
            );
            let refused = (mode == "observe").then_some("native_ssh");
            assert_eq!(record["mantled.enforce.error"].as_str(), refused);
        } else {
            assert_eq!(record["error.type"], "native_ssh", "{record:#}");
            assert!(record.get("mantled.path").is_none());
        }
    }
    Ok(())
}

#[test]
fn nothing_else_passes_behind_a_banner() -> Result<()> {
    let lab = lab!();
    let _server = Server::start(&lab.site, SITE_V4, 22, |mut stream| {
        stream.write_all(b"SSH-2.0-x\r\nthis is no key exchange\r\n")?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", PASSTHROUGH)?;
    let output = ssh(&lab, &group, Path::new("/nonexistent"))?;
    assert!(!output.status.success());
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["error.type"], "protocol", "{record:#}");
    Ok(())
}

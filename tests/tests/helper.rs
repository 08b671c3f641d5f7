//! The daemon without most of root's powers, and the helper that has some of them.

use std::{
    fs,
    io::{BufRead as _, BufReader, IoSlice},
    os::fd::{AsRawFd as _, OwnedFd},
    os::unix::fs::MetadataExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Container, DAEMON_USER, Daemon, Group, Held, Helper, Lab, SITE_V4, Server, as_unit,
    capabilities, eventually, lab, mantled, run, succeed,
};
use nix::sys::{
    socket::{ControlMessage, MsgFlags, recv, sendmsg, setsockopt, sockopt},
    time::{TimeVal, TimeValLike as _},
};
use serde_json::{Value, json};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const DAEMON_UNIT: &str = include_str!("../../systemd/mantled.service");
const HELPER_UNIT: &str = include_str!("../../systemd/mantled-helper.service");
const CONTAINERS: &str = include_str!("../../systemd/containers.conf");

/// Another user than any other here.
const NOBODY: [&str; 2] = ["--reuid=nobody", "--clear-groups"];

/// A connection of an agent's that is older than every enrolment.
struct Old(Child);

impl Old {
    fn open(lab: &Lab, group: &Group, server: &Server) -> Result<Self> {
        let mut child = group
            .command(&lab.host, "setpriv")
            .args(NOBODY)
            .args([AGENT, "many", &server.address.to_string(), "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut opened = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut opened)?;
        ensure!(opened == "open\n", "{opened}");
        Ok(Self(child))
    }
}

impl Drop for Old {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(lab: &Lab, group: &Group, capabilities: &[String]) -> Result<Daemon> {
    let under = as_unit(lab, capabilities)?;
    let under: Vec<&str> = under.iter().map(String::as_str).collect();
    let config = format!(
        "[admin]\nsocket = \"state/mantled.sock\"\n[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
        group.path().display()
    );
    Daemon::start_under(lab, &under, &config)
}

/// An agent of another user's says something to a server.
fn speak(lab: &Lab, group: &Group, server: &Server) -> Result<()> {
    let mut agent = group.command(&lab.host, "setpriv");
    agent
        .args(NOBODY)
        .args([AGENT, "echo", &server.address.to_string(), "words"]);
    succeed(&mut agent).map(drop)
}

fn status(lab: &Lab) -> Result<std::process::Output> {
    let mut command = Command::new(mantled()?);
    command.args(["status", "--json", "--socket"]);
    command.arg(lab.path("state/mantled.sock"));
    run(&mut command, Duration::from_secs(20))
}

#[test]
fn an_unprivileged_daemon_has_its_helper_look() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let _old = Old::open(&lab, &group, &plain)?;
    let mut helper = Helper::start(&lab, &capabilities(HELPER_UNIT)?, DAEMON_USER)?;
    let daemon = start(&lab, &group, &capabilities(DAEMON_UNIT)?)?;
    let log = daemon.log();
    assert!(
        log.contains("ended connections from before enrolment"),
        "{log}"
    );
    assert_eq!(
        fs::metadata(format!("/proc/{}", daemon.pid()))?.uid(),
        DAEMON_USER
    );

    speak(&lab, &group, &tls)?;
    let cgroup = format!(
        "/{}",
        group.path().file_name().unwrap_or_default().display()
    );
    let record = &daemon.settled_records(1)?[0];
    assert_eq!(record["mantled.path"], "verified");
    assert_eq!(record["process.executable.path"], AGENT);
    assert_eq!(record["process.linux.cgroup"], cgroup.as_str());
    assert_eq!(record["process.user.id"], 65534);
    assert_eq!(record["mantled.process.known_by"], Value::Null);
    let told = status(&lab)?;
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );

    // Without it sessions go on with what the kernel has told.
    helper.kill()?;
    speak(&lab, &group, &tls)?;
    let record = &daemon.settled_records(2)?[1];
    assert_eq!(record["mantled.path"], "verified");
    assert_eq!(record["mantled.process.known_by"], "kernel");
    assert_eq!(record["process.executable.name"], "agent");
    assert_eq!(record["process.executable.path"], Value::Null);
    assert_eq!(record["process.linux.cgroup"], cgroup.as_str());
    assert_eq!(record["process.user.id"], 65534);
    let told = status(&lab)?;
    assert!(!told.status.success(), "who asks could not be told");
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(said.contains("cgroup cannot be told"), "{said}");
    let mut refused = group.command(&lab.host, AGENT);
    refused.args(["echo", &plain.address.to_string(), "words"]);
    let refused = run(&mut refused, Duration::from_secs(10))?;
    assert!(!refused.status.success(), "enforced all the same");
    daemon.settled_records(3)?;

    helper.restart()?;
    eventually(
        "the helper to be asked again",
        Duration::from_secs(10),
        || {
            speak(&lab, &group, &tls).ok()?;
            let records = daemon.records();
            (records.last()?["process.executable.path"] == AGENT).then_some(())
        },
    )?;
    assert!(
        daemon.log().contains("the helper answers again"),
        "{}",
        daemon.log()
    );
    Ok(())
}

/// What the helper has where it may enter network namespaces.
fn with_containers() -> Result<Vec<String>> {
    Ok([capabilities(HELPER_UNIT)?, capabilities(CONTAINERS)?].concat())
}

#[test]
fn containers_are_served_by_way_of_the_helper() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let mut before = Container::start(&group, &lab.site, 1)?;
    let mut old = before
        .command(&group, AGENT)
        .args(["many", &plain.address.to_string(), "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut opened = String::new();
    BufReader::new(old.stdout.take().context("no pipe")?).read_line(&mut opened)?;
    let _old = Old(old);
    assert_eq!(opened, "open\n");
    let mut helper = Helper::start(&lab, &with_containers()?, DAEMON_USER)?;
    let daemon = start(&lab, &group, &capabilities(DAEMON_UNIT)?)?;
    let log = daemon.log();
    assert!(
        log.contains("ended connections from before enrolment"),
        "{log}"
    );
    let echo = |container: &Container, server: &Server| {
        let mut agent = container.command(&group, AGENT);
        agent.args(["echo", &server.address.to_string(), "0123456789"]);
        run(&mut agent, Duration::from_secs(10))
    };
    let served = echo(&before, &tls)?;
    assert!(served.status.success(), "{served:?}\n{}", daemon.log());
    assert!(!echo(&before, &plain)?.status.success(), "it enforces");
    let record = &daemon.settled_records(2)?[0];
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert_eq!(record["process.executable.path"], AGENT, "{record:#}");
    let after = Container::start(&group, &lab.site, 2)?;
    eventually("the new one to be served", Duration::from_secs(5), || {
        echo(&after, &tls).ok()?.status.success().then_some(())
    })
    .with_context(|| daemon.log())?;

    // Without it nothing passes, and when it is back all is as before.
    helper.kill()?;
    assert!(!echo(&before, &tls)?.status.success());
    assert!(!echo(&before, &plain)?.status.success());
    speak(&lab, &group, &tls)?;
    helper.restart()?;
    eventually("them to be served again", Duration::from_secs(10), || {
        let both = [echo(&before, &tls).ok()?, echo(&after, &tls).ok()?];
        both.iter().all(|said| said.status.success()).then_some(())
    })
    .with_context(|| daemon.log())?;

    before.end()?;
    eventually("the end of the namespace", Duration::from_secs(5), || {
        (!before.has_namespace()).then_some(())
    })
    .with_context(|| daemon.log())?;
    assert!(echo(&after, &tls)?.status.success());
    Ok(())
}

#[test]
fn a_container_that_is_withdrawn_keeps_its_sessions_and_then_goes() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let mut container = Container::start(&group, &lab.site, 1)?;
    let _helper = Helper::start(&lab, &with_containers()?, DAEMON_USER)?;
    let daemon = start(&lab, &group, &capabilities(DAEMON_UNIT)?)?;
    // Many at once: the helper takes few connections.
    let agents: Vec<Child> = (0..40)
        .map(|_| {
            container
                .command(&group, AGENT)
                .args(["echo", &tls.address.to_string(), "0123456789"])
                .stdout(Stdio::null())
                .spawn()
        })
        .collect::<std::io::Result<_>>()?;
    for agent in agents {
        let output = mantled_tests::wait(agent, Duration::from_secs(20))?;
        ensure!(output.status.success(), "{}", daemon.log());
    }

    let held = Held::by(container.command(&group, AGENT), tls.address, 1)?;
    let file = lab.path("mantled.toml");
    let text = fs::read_to_string(&file)?;
    let (before, _) = text.split_once("[[enroll]]").context("not enrolled")?;
    fs::write(&file, before)?;
    succeed(
        Command::new(mantled()?)
            .args(["reload", "--socket"])
            .arg(lab.path("state/mantled.sock")),
    )?;
    std::thread::sleep(Duration::from_secs(4));
    held.finish()
        .with_context(|| format!("it may go on\n{}", daemon.log()))?;
    container.end()?;
    eventually("the end of the namespace", Duration::from_secs(6), || {
        (!container.has_namespace()).then_some(())
    })
    .with_context(|| daemon.log())?;
    let log = daemon.log();
    assert!(!log.contains("AGENTS ARE NOT SERVED"), "{log}");
    daemon.settled_records(41)?;
    Ok(())
}

#[test]
fn a_helper_that_may_not_enter_namespaces_is_told_of() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    let _helper = Helper::start(&lab, &capabilities(HELPER_UNIT)?, DAEMON_USER)?;
    let daemon = start(&lab, &group, &capabilities(DAEMON_UNIT)?)?;
    speak(&lab, &group, &tls)?;
    let mut agent = container.command(&group, AGENT);
    agent.args(["echo", &tls.address.to_string(), "words"]);
    let refused = run(&mut agent, Duration::from_secs(10))?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("Connection refused"), "{said}");
    eventually("a word about it", Duration::from_secs(5), || {
        daemon.log().contains("CAP_SYS_ADMIN").then_some(())
    })
    .with_context(|| daemon.log())?;
    Ok(())
}

/// What is missing without a capability is what the tables in systemd/README.md say.
#[test]
fn no_capability_of_the_units_can_be_spared() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let tls = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let daemon_has = capabilities(DAEMON_UNIT)?;
    let helper_has = capabilities(HELPER_UNIT)?;
    let without = |all: &[String], name: &str| -> Vec<String> {
        let rest = all.iter().filter(|other| *other != name);
        rest.cloned().collect()
    };
    let helper = Helper::start(&lab, &helper_has, DAEMON_USER)?;
    for name in &daemon_has {
        let Err(error) = start(&lab, &group, &without(&daemon_has, name)) else {
            anyhow::bail!("the daemon does without {name}");
        };
        let said = format!("{error:#}");
        println!("daemon without {name}: {said}");
        assert!(said.contains("exit status: 4"), "{said}");
        assert!(said.contains("not permitted"), "{said}");
    }
    drop(helper);

    for name in &helper_has {
        let _old = Old::open(&lab, &group, &plain)?;
        let _helper = Helper::start(&lab, &without(&helper_has, name), DAEMON_USER)?;
        let daemon = start(&lab, &group, &daemon_has)?;
        speak(&lab, &group, &tls)?;
        let record = daemon.settled_records(1)?.remove(0);
        let log = daemon.log();
        println!("helper without {name}: {record}\n{log}");
        let ended = log.contains("ended connections from before enrolment");
        let knows = record["process.executable.path"] == AGENT;
        assert!(!ended || !knows, "the helper does without {name}");
        // Never without a word.
        assert!(ended || log.contains("from before enrolment"), "{log}");
    }
    Ok(())
}

/// One who asks as somebody who has taken over the proxy would.
struct Attacker(OwnedFd);

impl Attacker {
    fn new(helper: &Helper) -> Result<Self> {
        let connection = helper.connect()?;
        setsockopt(&connection, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        Ok(Self(connection))
    }

    fn send(&self, packet: &[u8], controls: &[ControlMessage<'_>]) -> Result<()> {
        let packet = [IoSlice::new(packet)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), &packet, controls, flags, None)?;
        Ok(())
    }

    /// None: it hung up.
    fn receive(&self) -> Result<Option<Value>> {
        let mut buffer = vec![0; 1 << 16];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => Ok(None),
            Ok(length) => Ok(Some(serde_json::from_slice(&buffer[..length])?)),
            Err(error) => Err(error.into()),
        }
    }

    fn ask(&self, request: &Value) -> Result<Option<Value>> {
        self.send(request.to_string().as_bytes(), &[])?;
        self.receive()
    }
}

fn id_of(path: &std::path::Path) -> Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

#[test]
fn the_helper_gives_nothing_away() -> Result<()> {
    let lab = lab!();
    let plain = Server::start_plain_echo(&lab.site, SITE_V4, 7001)?;
    let group = Group::new()?;
    let other = Group::new()?;
    let (held, others) = (
        Old::open(&lab, &group, &plain)?,
        Old::open(&lab, &other, &plain)?,
    );
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    let all = capabilities(HELPER_UNIT)?;

    // The test itself is root, and root is not the client.
    let helper = Helper::start(&lab, &all, DAEMON_USER)?;
    let answer = Attacker::new(&helper)?.receive()?;
    let reason = answer.context("hung up without a word")?["refused"]["reason"].to_string();
    assert!(reason.contains("user 0 may not ask"), "{reason}");
    drop(helper);

    let helper = Helper::start(&lab, &all, 0)?;
    let attacker = Attacker::new(&helper)?;
    let (pid, stranger) = (held.0.id(), others.0.id());
    let (id, foreign) = (id_of(group.path())?, id_of(other.path())?);
    let root = id_of(group.path().parent().context("no root")?)?;
    let process = |pid: u32, cgroup: u64| json!({"process": {"pid": pid, "cgroup": cgroup}});
    let seen = attacker.ask(&process(pid, id))?.context("hung up")?;
    assert_eq!(seen["process"]["executable"], AGENT);
    let gone = Some(json!({"gone": {}}));
    for (pid, cgroup) in [
        (stranger, foreign),
        (stranger, id),
        (pid, foreign),
        (1, root),
        (1, id),
        (0, id),
        (u32::MAX, id),
        (helper.pid(), id),
    ] {
        assert_eq!(attacker.ask(&process(pid, cgroup))?, gone, "{pid} {cgroup}");
    }

    // Nothing is ended but what was listed, and nothing is listed but of enrolled groups.
    let refused =
        |answer: Option<Value>| answer.is_some_and(|answer| answer["refused"].is_object());
    assert!(refused(attacker.ask(&json!({"end": {"places": [0]}}))?));
    for cgroup in [foreign, root, 0, u64::MAX] {
        assert!(refused(
            attacker.ask(&json!({"sockets": {"cgroup": cgroup}}))?
        ));
    }
    let listed = attacker.ask(&json!({"sockets": {"cgroup": id}}))?;
    let listed = listed.context("hung up")?["sockets"].clone();
    assert_eq!(
        listed["sockets"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    let peer = &listed["sockets"][0]["connection"]["peer"];
    assert!(
        peer.as_str().is_some_and(|peer| peer.ends_with(":7001")),
        "{listed}"
    );
    let many: Vec<usize> = vec![0; 1000];
    assert!(refused(attacker.ask(&json!({"end": {"places": many}}))?));
    let einval = nix::errno::Errno::EINVAL as i32;
    assert_eq!(
        attacker.ask(&json!({"end": {"places": [1, usize::MAX]}}))?,
        Some(json!({"ended": {"results": [einval, einval]}}))
    );
    // A list is the connection's own.
    assert!(refused(
        Attacker::new(&helper)?.ask(&json!({"end": {"places": [0]}}))?
    ));
    // One that is refused takes the last list with it.
    assert!(refused(
        attacker.ask(&json!({"sockets": {"cgroup": foreign}}))?
    ));
    assert!(refused(attacker.ask(&json!({"end": {"places": [0]}}))?));

    // No socket but in a namespace that a task of an enrolled group uses, and that by its number.
    let inode =
        |pid: u32| -> Result<u64> { Ok(fs::metadata(format!("/proc/{pid}/ns/net"))?.ino()) };
    let site = fs::metadata(lab.site.file())?.ino();
    for (inode, task) in [
        (inode(stranger)?, stranger),
        (inode(stranger)?, 1),
        (inode(helper.pid())?, helper.pid()),
        (site, pid),
        (0, pid),
        (inode(pid)?, 0),
        (inode(pid)?, u32::MAX),
    ] {
        let namespace = json!({"inode": inode, "task": task});
        for request in [
            json!({"listen": {"namespace": namespace}}),
            json!({"socket": {"namespace": namespace, "kind": "stream4"}}),
        ] {
            assert_eq!(attacker.ask(&request)?, gone, "{request}");
        }
    }
    let namespace = json!({"inode": inode(pid)?, "task": pid});
    assert_eq!(
        attacker.ask(&json!({"socket": {"namespace": namespace, "kind": "stream4"}}))?,
        Some(json!({"failed": {"errno": nix::errno::Errno::EPERM as i32}})),
        "as the unit is installed, it enters none"
    );
    for cgroup in [foreign, root, 0] {
        let request = json!({"namespaces": {"cgroup": cgroup}});
        assert_eq!(attacker.ask(&request)?, gone, "{request}");
    }

    // What is not understood closes the connection, and leaves no descriptor behind.
    let descriptors =
        || Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{}/fd", helper.pid()))?.count());
    let before = descriptors()?;
    let long = vec![b' '; 100_000];
    let own = fs::File::open("/dev/null")?;
    let passed = [own.as_raw_fd()];
    for packet in [
        b"{}".as_slice(),
        b"\0",
        b"{\"process\":{\"pid\":-1,\"cgroup\":1}}",
        b"{\"process\":{\"pid\":1,\"cgroup\":1,\"path\":\"/etc\"}}",
        b"{\"end\":{\"places\":[-1]}}",
        b"{\"exec\":{\"path\":\"/bin/sh\"}}",
        b"{\"socket\":{\"namespace\":{\"inode\":1,\"task\":1},\"kind\":\"raw4\"}}",
        b"{\"listen\":{\"namespace\":{\"inode\":1,\"task\":1,\"path\":\"/run/netns/a\"}}}",
        &long,
        "[".repeat(60_000).as_bytes(),
    ] {
        let attacker = Attacker::new(&helper)?;
        attacker.send(packet, &[ControlMessage::ScmRights(&passed)])?;
        assert_eq!(attacker.receive()?, None, "{} bytes", packet.len());
    }
    eventually(
        "the connections to be closed",
        Duration::from_secs(5),
        || (descriptors().ok()? == before).then_some(()),
    )?;

    // Many connections, and one that asks and never reads.
    let idle: Vec<Attacker> = (0..15)
        .map(|_| Attacker::new(&helper))
        .collect::<Result<_>>()?;
    for attacker in &idle {
        assert_eq!(attacker.ask(&process(pid, foreign))?, gone);
    }
    assert!(
        refused(Attacker::new(&helper)?.receive()?),
        "the seventeenth"
    );
    drop(idle);
    let deaf = Attacker::new(&helper)?;
    setsockopt(&deaf.0, sockopt::SendTimeout, &TimeVal::milliseconds(200))?;
    let request = process(pid, id).to_string();
    while deaf.send(request.as_bytes(), &[]).is_ok() {}
    assert_eq!(
        attacker.ask(&process(pid, foreign))?,
        gone,
        "others are answered"
    );
    drop(daemon);
    Ok(())
}

#[test]
fn the_units_are_well_formed_and_exposed_as_little_as_they_claim() -> Result<()> {
    // As `systemd-analyze security` counts: 15 is 1.5.
    let thresholds = [
        ("mantled.service", 15),
        ("mantled-helper.service", 15),
        ("mantled-prepare.service", 19),
    ];
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd");
    for (unit, threshold) in thresholds {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", "--no-pager"]);
        analyze.arg(format!("--threshold={threshold}"));
        let said = succeed(analyze.arg(format!("{units}/{unit}")))?;
        println!("{}", said.lines().last().unwrap_or_default());
    }
    // The programs of the units must be there to be verified.
    let installed = tempfile::tempdir()?;
    let program = mantled()?.display().to_string();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    for entry in fs::read_dir(units)? {
        let path = entry?.path();
        let is_unit = path
            .extension()
            .is_some_and(|kind| kind == "service" || kind == "socket");
        if is_unit {
            let text = fs::read_to_string(&path)?.replace("/usr/bin/mantled", &program);
            let copy = installed.path().join(path.file_name().context("no name")?);
            fs::write(&copy, text)?;
            verify.arg(copy);
        }
    }
    let output = run(&mut verify, Duration::from_secs(60))?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.is_empty(),
        "{}: {said}",
        output.status
    );
    Ok(())
}

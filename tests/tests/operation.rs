//! The installed daemon as systemd runs it, beside a legacy agent's unit: what an operator does to
//! it, and what happens to it.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use mantled_tests::{Capture, Installed, Lab, Load, Tally, assert_clean, eventually, lab, succeed};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const SOON: Duration = Duration::from_secs(15);

/// Connections a second.
const LOAD: u32 = 200;

/// A capture of nothing proves nothing: what somebody outside of the unit says in clear is in it.
fn finish(capture: Capture, installed: &Installed) -> Result<Vec<u8>> {
    const OUTSIDER: &str = "an outsider's words";
    let address = installed.plain.address.to_string();
    installed
        .machine
        .exec(&["agent", "echo", &address, OUTSIDER])?;
    let wire = capture.finish()?;
    assert!(assert_clean(&wire, &[OUTSIDER]).is_err());
    Ok(wire)
}

#[test]
fn a_unit_enrolled_by_name_is_followed_and_leaves_in_verified_tls() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let machine = &installed.machine;
    let verified = |record: &serde_json::Value| {
        record["mantled.path"] == "verified" && record["process.executable.name"] == "agent"
    };
    let capture = Capture::start(&installed.lab)?;
    for _ in 0..3 {
        installed.says("7000 served")?;
    }
    assert_clean(&finish(capture, &installed)?, &[Installed::SECRET])?;
    let record = installed.record("the agent in TLS", 0, verified)?;
    assert_eq!(record["server.port"], Installed::EITHER);

    // Its cgroup is removed with it, and the next has another id.
    let cgroup = || {
        let status = installed.status().ok()?;
        Some(status["groups"][0]["cgroup"].as_str().map(str::to_owned))
    };
    assert!(cgroup().flatten().is_some());
    machine.exec(&["systemctl", "stop", Installed::UNIT])?;
    eventually("the group without a cgroup", SOON, || {
        cgroup()?.is_none().then_some(())
    })?;
    let daemon = installed.daemon()?;
    machine.exec(&["systemctl", "start", Installed::UNIT])?;
    eventually("the restarted unit's enrolment", SOON, cgroup)?;
    let before = installed.records()?.len();
    installed.record("the restarted agent", before, verified)?;
    installed.says_refused()?;
    assert_eq!(installed.daemon()?, daemon, "the daemon has gone on");

    // The enrolment outlives the daemon, and ends by command.
    machine.exec(&["systemctl", "restart", "mantled"])?;
    installed.says_refused()?;
    machine.exec(&["mantled", "withdraw", Installed::UNIT])?;
    installed.says("7001 served")
}

/// A network namespace in the machine, behind the machine's own; the agent's unit is in it.
fn boxed(installed: &Installed) -> Result<()> {
    let machine = &installed.machine;
    for words in [
        "ip netns add box",
        "ip link add box0 type veth peer name eth0 netns box",
        "ip address add 10.97.0.1/24 dev box0",
        "ip link set box0 up",
        "ip -n box link set lo up",
        "ip -n box address add 10.97.0.2/24 dev eth0",
        "ip -n box link set eth0 up",
        "ip -n box route add default via 10.97.0.1",
    ] {
        machine.exec(&words.split(' ').collect::<Vec<_>>())?;
    }
    let lab = &installed.lab;
    let site = lab.site.name.as_str();
    succeed(Command::new("ip").args([
        "-n",
        site,
        "route",
        "add",
        "10.97.0.0/24",
        "via",
        "10.99.0.1",
    ]))?;
    succeed(Command::new("ip").args([
        "netns",
        "exec",
        &lab.host.name,
        "sh",
        "-c",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ]))?;
    let directory = format!("/etc/systemd/system/{}.d", Installed::UNIT);
    machine.exec(&["mkdir", &directory])?;
    machine.write(
        &format!("{directory}/box.conf"),
        "[Service]\nNetworkNamespacePath=/run/netns/box\n",
    )?;
    machine.exec(&["systemctl", "daemon-reload"])?;
    machine.exec(&["systemctl", "restart", Installed::UNIT])?;
    installed.says("7001 served")
}

#[test]
fn a_unit_in_another_network_namespace_is_served_when_the_helper_may_enter_it() -> Result<()> {
    let installed = Installed::new(lab!(), AGENT)?;
    let machine = &installed.machine;
    boxed(&installed)?;
    installed.configure(Installed::CONFIGURATION)?;
    installed.enroll(Installed::UNIT, &[])?;
    installed.says("7000 echo: Connection refused")?;
    installed.says("7001 echo: Connection refused")?;
    let journal = machine.exec(&["journalctl", "-u", "mantled", "-o", "cat"])?;
    assert!(journal.contains("CAP_SYS_ADMIN"), "{journal}");

    // As systemd/README.md says.
    machine.exec(&[
        "install",
        "-D",
        "-m",
        "644",
        "/usr/share/mantled/containers.conf",
        "/etc/systemd/system/mantled-helper.service.d/containers.conf",
    ])?;
    machine.exec(&["systemctl", "daemon-reload"])?;
    machine.exec(&["systemctl", "try-restart", "mantled-helper.service"])?;
    installed.says("7000 served")?;
    installed.says_refused()?;
    installed.record("a session in the box", 0, |record| {
        record["mantled.path"] == "verified"
    })?;
    machine.exec(&["systemctl", "stop", Installed::UNIT])?;
    machine.exec(&["mantled", "detach", "--all"])?;
    Ok(())
}

#[test]
fn stopped_it_refuses_and_started_it_serves() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let machine = &installed.machine;
    machine.exec(&["systemctl", "stop", "mantled"])?;
    machine.wait_unit("mantled", "inactive")?;
    assert_eq!(machine.property("mantled", "Result")?, "success");
    let capture = Capture::start(&installed.lab)?;
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(60) {
        installed.says("7000 echo: Connection refused")?;
        installed.says("7001 echo: Connection refused")?;
    }
    assert_clean(&finish(capture, &installed)?, &[Installed::SECRET])?;
    machine.exec(&["systemctl", "start", "mantled"])?;
    installed.says("7000 served")
}

/// Kills the daemon as a crash would, and waits until systemd has started it again and the agents
/// are served again.
fn crash(installed: &Installed, load: &Load) -> Result<()> {
    let before = installed.daemon()?;
    installed
        .machine
        .exec(&["systemctl", "kill", "--signal=KILL", "mantled"])?;
    eventually("the next daemon", SOON, || {
        let ready = installed.machine.property("mantled", "ActiveState").ok()? == "active";
        (ready && installed.daemon().ok()? != before).then_some(())
    })?;
    load.serves(u64::from(LOAD))
}

/// What went wrong between two moments, but for connections that an end of the daemon cut off.
fn refusals(before: &Tally, after: &Tally) -> Vec<String> {
    after
        .failed
        .iter()
        .filter(|(error, count)| before.failed.get(*error) != Some(count))
        .filter(|(error, _)| error.starts_with("connect: "))
        .map(|(error, count)| format!("{count} times {error}"))
        .collect()
}

#[test]
fn killed_under_load_and_closed_nothing_leaves_in_clear() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let load = installed.start_load(LOAD, &["--on-daemon-down", "closed"])?;
    let before = load.tally();
    load.serves(u64::from(LOAD))?;
    assert_eq!(load.tally().failed, before.failed, "served without fail");

    let capture = Capture::start(&installed.lab)?;
    crash(&installed, &load)?;
    assert_clean(&finish(capture, &installed)?, &[Installed::SECRET])?;
    let after = load.finish()?;
    eprintln!("{before:?}\n{after:?}");
    let refusals = refusals(&before, &after);
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(refusals[0].contains("Connection refused"), "{refusals:?}");
    Ok(())
}

#[test]
fn killed_under_load_and_open_nobody_is_refused() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let load = installed.start_load(LOAD, &["--on-daemon-down", "open"])?;
    let before = load.tally();
    let capture = Capture::start(&installed.lab)?;
    crash(&installed, &load)?;
    let wire = capture.finish()?;
    assert!(
        assert_clean(&wire, &[Installed::SECRET]).is_err(),
        "nobody was let out while it was down"
    );

    // Closed again as soon as it is back.
    let capture = Capture::start(&installed.lab)?;
    load.serves(u64::from(LOAD))?;
    assert_clean(&finish(capture, &installed)?, &[Installed::SECRET])?;
    let after = load.finish()?;
    eprintln!("{before:?}\n{after:?}");
    assert_eq!(refusals(&before, &after), Vec::<String>::new());
    Ok(())
}

/// Fills the disk on which a file is.
fn fill(installed: &Installed, ballast: &str) -> Result<()> {
    let full = installed
        .machine
        .command("dd")
        .args(["if=/dev/zero", "bs=512", "status=none"])
        .arg(format!("of={ballast}"))
        .output()?;
    assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"));
    Ok(())
}

/// State and records on a small disk, and the agent's unit enrolled.
fn on_a_small_disk(lab: Lab, configuration: &str) -> Result<Installed> {
    let installed = Installed::new(lab, AGENT)?;
    let machine = &installed.machine;
    machine.exec(&["systemctl", "stop", "mantled"])?;
    machine.exec(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=128k,mode=0700",
        "tmpfs",
        "/var/lib/mantled",
    ])?;
    installed.configure(configuration)?;
    installed.enroll(Installed::UNIT, &[])?;
    installed.says("7000 served")?;
    Ok(installed)
}

const BALLAST: &str = "/var/lib/mantled/ballast";

#[test]
fn with_a_full_disk_it_refuses_and_says_so_until_there_is_room() -> Result<()> {
    let installed = on_a_small_disk(lab!(), Installed::CONFIGURATION)?;
    let machine = &installed.machine;
    let daemon = installed.daemon()?;
    fill(&installed, BALLAST)?;
    installed.says("7000 echo: ")?;
    eventually("a status that tells", SOON, || {
        (installed.status().ok()?["records_failing"] == true).then_some(())
    })?;
    // What cannot be kept is not passed off as done.
    let kept = machine
        .command("mantled")
        .args(["enroll", "other.service", "--mode", "observe"])
        .output()?;
    let said = String::from_utf8_lossy(&kept.stderr).into_owned();
    assert_eq!(kept.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be kept"), "{said}");

    machine.exec(&["rm", BALLAST])?;
    installed.says("7000 served")?;
    assert_eq!(installed.daemon()?, daemon, "it has gone on");
    // No line is torn, and no session is without one.
    machine.exec(&["systemctl", "stop", Installed::UNIT])?;
    eventually("a record of each session", SOON, || {
        let status = installed.status().ok()?;
        let number = |name: &str| status[name].as_u64();
        let complete = number("sessions")? == number("records_written")?
            && number("records_dropped")? == 0
            && number("records_written")? == installed.records().ok()?.len() as u64;
        complete.then_some(())
    })
    .map_err(|error| {
        let records = installed.records().map(|records| records.len());
        error.context(format!("{:?} {records:?}", installed.status()))
    })
}

#[test]
fn with_a_full_disk_and_continue_it_serves_and_records_what_it_can() -> Result<()> {
    let configuration = format!("{}on_failure = \"continue\"\n", Installed::CONFIGURATION);
    let installed = on_a_small_disk(lab!(), &configuration)?;
    fill(&installed, BALLAST)?;
    for _ in 0..3 {
        installed.says("7000 served")?;
    }
    eventually("a status that tells of it", SOON, || {
        (installed.status().ok()?["records_failing"] == true).then_some(())
    })?;
    installed.says("7000 served")?;
    installed.says_refused()?;
    installed.machine.exec(&["rm", BALLAST])?;
    eventually("records again", SOON, || {
        (installed.status().ok()?["records_failing"] == false).then_some(())
    })?;
    let records = installed.records()?.len();
    installed.record("a session after that", records, |_| true)?;
    // What waited in memory is written.
    eventually("the records of every connection", SOON, || {
        let status = installed.status().ok()?;
        (status["records_dropped"] == 0 && status["records_missing"] == 0).then_some(())
    })
}

#[test]
fn a_daemon_that_hangs_is_killed_and_started_again() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let machine = &installed.machine;
    // As the unit has it, but sooner.
    machine.exec(&["mkdir", "-p", "/etc/systemd/system/mantled.service.d"])?;
    machine.exec(&[
        "sh",
        "-c",
        "printf '[Service]\\nWatchdogSec=2\\n' > /etc/systemd/system/mantled.service.d/soon.conf",
    ])?;
    machine.exec(&["systemctl", "daemon-reload"])?;
    machine.exec(&["systemctl", "restart", "mantled"])?;
    installed.says("7000 served")?;
    let before = installed.daemon()?;
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(installed.daemon()?, before, "it says that it lives");
    // Nor is it killed because nobody tells it of processes.
    let helper = ["mantled-helper.socket", "mantled-helper.service"];
    machine.exec(&["systemctl", "stop", helper[0], helper[1]])?;
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(installed.daemon()?, before, "it says that it lives");
    installed.says_refused()?;
    machine.exec(&["systemctl", "start", helper[0]])?;
    machine.exec(&["systemctl", "kill", "--signal=STOP", "mantled"])?;
    eventually("the next daemon", SOON, || {
        let ready = machine.property("mantled", "ActiveState").ok()? == "active";
        (ready && installed.daemon().ok()? != before).then_some(())
    })?;
    installed.says("7000 served")?;
    installed.says_refused()?;

    // Nor does one that has taken over forget it.
    machine.exec(&["mantled", "upgrade"])?;
    let successor = installed.daemon()?;
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(installed.daemon()?, successor, "it says that it lives");
    machine.exec(&[
        "systemctl",
        "kill",
        "--kill-who=main",
        "--signal=STOP",
        "mantled",
    ])?;
    eventually("the daemon after it", SOON, || {
        let ready = machine.property("mantled", "ActiveState").ok()? == "active";
        (ready && installed.daemon().ok()? != successor).then_some(())
    })?;
    installed.says_refused()
}

#[test]
fn reloading_a_file_with_a_mistake_fails_and_changes_nothing() -> Result<()> {
    let installed = Installed::enforced(lab!(), AGENT)?;
    let machine = &installed.machine;
    let right = machine.read("/etc/mantled/mantled.toml")?;
    let daemon = installed.daemon()?;
    machine.write(
        "/etc/mantled/mantled.toml",
        &format!(
            "{right}\n[[bypass]]\ncidr = \"0.0.0.0/0\"\nreason = \"x\"\n[[route]]\nport = 70000\n"
        ),
    )?;
    assert!(machine.exec(&["systemctl", "reload", "mantled"]).is_err());
    assert_eq!(machine.property("mantled", "ActiveState")?, "active");
    installed.says_refused()?;
    installed.says("7000 served")?;
    machine.write("/etc/mantled/mantled.toml", &right)?;
    machine.exec(&["systemctl", "reload", "mantled"])?;
    assert_eq!(installed.daemon()?, daemon, "the same process");
    installed.says_refused()?;

    // One that has taken over is no child of systemd's, and is waited for all the same.
    machine.exec(&["mantled", "upgrade"])?;
    installed.says("7000 served")?;
    let ends = || Ok::<_, anyhow::Error>(machine.journal("mantled")?.matches("stopped").count());
    let before = ends()?;
    machine.exec(&["systemctl", "stop", "mantled"])?;
    assert!(ends()? > before, "{}", machine.journal("mantled")?);
    Ok(())
}

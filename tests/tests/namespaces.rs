//! Agents in other network namespaces: containers.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Capture, Container, Daemon, FalseResolver, Group, Held, Lab, Leaf, Namespace, Program, SITE_V4,
    SITE_V6, Server, assert_clean, eventually, lab, mantled, run, succeed,
};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const SECRET: &str = "the-agents-secret-words";

/// How soon a container's namespace has to be gone after the container.
const GONE: Duration = Duration::from_secs(2);

/// Answers one byte with another, in clear.
fn answer(byte: u8) -> impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static {
    move |mut stream| {
        stream.read_exact(&mut [0])?;
        stream.write_all(&[byte])
    }
}

/// A TLS server that says who has connected.
fn who(lab: &Lab, address: IpAddr, leaf: &Leaf) -> Result<Server> {
    Server::start_tls(&lab.site, address, 7000, leaf, |stream| {
        let peer = stream.sock.peer_addr()?.ip().to_string();
        stream.read_exact(&mut [0; 10])?;
        stream.write_all(format!("{peer:>10.10}").as_bytes())
    })
}

/// Waits until the daemon has begun to listen in a container.
fn listening(daemon: &Daemon, container: &Container) -> Result<()> {
    let cookie = container.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        mantled_redirect::sys::netns_cookie(&socket)
    })??;
    let line = format!("listening in another network namespace namespace={cookie}\n");
    eventually("listeners in the container", Duration::from_secs(5), || {
        daemon.log().contains(&line).then_some(())
    })
    .with_context(|| daemon.log())
}

/// A line of a child's output.
fn line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    let stdout = child.stdout.as_mut().context("no standard output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

#[test]
fn a_session_leaves_from_where_the_agent_is() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2", "fd99::2"])?;
    let (_v4, _v6) = (who(&lab, SITE_V4, &leaf)?, who(&lab, SITE_V6, &leaf)?);
    let group = Group::new()?;
    // One that runs before the group is enrolled, and one that starts after.
    let before = Container::start(&group, &lab.site, 1)?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start_on(&lab, &before.device)?;
    let echo = |container: &Container, address: &str| {
        succeed(
            container
                .command(&group, AGENT)
                .args(["echo", address, "0123456789"]),
        )
        .with_context(|| format!("{:#?}", daemon.records().last()))
    };
    // At once: whoever was there is served from the first moment.
    assert_eq!(
        echo(&before, "10.99.0.2:7000")?,
        "10.99.0.2:7000\n 10.98.1.1\n"
    );
    assert_eq!(
        echo(&before, "[fd99::2]:7000")?,
        "[fd99::2]:7000\n fd98:1::1\n"
    );
    let wire = capture.finish()?;
    ensure!(wire.len() > 1000, "nothing crossed the container's wire");
    assert_clean(&wire, &["0123456789"])?;

    // From the address to which the agent has bound its socket.
    let other = ["addr", "add", "10.98.1.9/24", "dev", "eth0"];
    succeed(
        Command::new("nsenter")
            .args(["--target", &before.init.to_string(), "--net", "ip"])
            .args(other),
    )?;
    let bound = succeed(before.command(&group, AGENT).args([
        "bound",
        "10.99.0.2:7000",
        "10.98.1.9 0123456789",
    ]))?;
    assert_eq!(bound, "10.99.0.2:7000\n 10.98.1.9\n");

    let after = Container::start(&group, &lab.site, 2)?;
    listening(&daemon, &after)?;
    assert_eq!(
        echo(&after, "10.99.0.2:7000")?,
        "10.99.0.2:7000\n 10.98.2.1\n"
    );
    // The host's own agents are where they were.
    let home =
        succeed(
            group
                .command(&lab.host, AGENT)
                .args(["echo", "10.99.0.2:7000", "0123456789"]),
        )?;
    assert_eq!(home, "10.99.0.2:7000\n 10.99.0.1\n");
    for record in daemon.settled_records(5)? {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["process.executable.path"], AGENT, "{record:#}");
    }
    Ok(())
}

#[test]
fn a_container_that_starts_is_served_at_its_first_attempts() -> Result<()> {
    let lab = lab!();
    let server = Server::start(&lab.site, SITE_V4, 7000, answer(b'x'))?;
    let group = Group::new()?;
    let daemon = Daemon::start(
        &lab,
        &group,
        "enforce",
        "[[route]]\ncidr = \"10.99.0.2\"\ntls = \"exempt\"\n",
    )?;
    // What happens in the first milliseconds: a process in a new namespace connects at once, before
    // anybody can listen there. It is refused, nothing leaves, and the next attempts succeed.
    let mut first = group.command(&lab.host, "unshare");
    first.args(["--net", "sh", "-c"]).arg(format!(
        "ip link set lo up; ip link add eth0 type dummy; ip addr add 10.97.0.1/24 dev eth0; \
         ip link set eth0 up; ip route add default dev eth0; \
         exec {AGENT} retry 127.0.0.1:1 300; true"
    ));
    // (Loopback stays untouched there as well: nobody listens, so that is what it is told.)
    let told = run(&mut first, Duration::from_secs(10))?;
    assert!(String::from_utf8_lossy(&told.stderr).contains("Connection refused"));
    let begun = Instant::now();
    let container = Container::start(&group, &lab.site, 1)?;
    let up = begun.elapsed();
    let printed = succeed(container.command(&group, AGENT).args([
        "retry",
        &server.address.to_string(),
        "1000",
    ]))?;
    println!("container up after {up:?}; first connection: {printed}");
    let printed = succeed(container.command(&group, AGENT).args([
        "hammer",
        &server.address.to_string(),
        "200",
    ]))?;
    assert_eq!(printed, "200\n");
    assert_eq!(daemon.settled_records(201)?.len(), 201);
    Ok(())
}

#[test]
fn a_connection_in_the_first_milliseconds_is_refused_and_the_next_is_served() -> Result<()> {
    let lab = lab!();
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    // A namespace comes into being and the same process connects, as fast as it can.
    let mut agent = group.command(&lab.host, "unshare");
    agent.args(["--net", "sh", "-c"]).arg(format!(
        "ip link set lo up; exec {AGENT} retry 10.99.0.2:7000 1000"
    ));
    let begun = Instant::now();
    let output = run(&mut agent, Duration::from_secs(10))?;
    // It was let connect; its server cannot be reached from there, of which it is told by a reset.
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{printed}");
    assert!(printed.contains("refused,"), "{output:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["error.type"], "dial_failed", "{:#}", records[0]);
    Ok(())
}

#[test]
fn nothing_but_verified_tls_leaves_a_container() -> Result<()> {
    let lab = lab!();
    let plain = Server::start(&lab.site, SITE_V4, 7001, answer(b'x'))?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    let daemon = Daemon::start(
        &lab,
        &group,
        "enforce",
        "[limits]\nhandshake = \"2s\"\ndetect = \"1s\"\n",
    )?;
    let capture = Capture::start_on(&lab, &container.device)?;
    let agent = |kind: &str, address: &str| {
        run(
            container
                .command(&group, AGENT)
                .args([kind, address, SECRET]),
            Duration::from_secs(20),
        )
    };
    assert!(!agent("echo", &plain.address.to_string())?.status.success());
    // The container's root may make raw sockets in its own namespace; they do not help it.
    for kind in ["datagram", "connected-datagram", "raw", "ping"] {
        let output = agent(kind, "10.99.0.2:9")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("not permitted"), "{kind}: {output:?}");
    }
    // What the kernel may send of neighbour discovery, a socket of the group's own may not.
    let forged = "import socket as s; \
        x = s.socket(s.AF_INET6, s.SOCK_RAW, s.IPPROTO_ICMPV6); \
        x.setsockopt(s.IPPROTO_IPV6, s.IPV6_UNICAST_HOPS, 255); \
        x.sendto(bytes([135]) + bytes(23), ('fd99::2', 0))";
    let output = run(
        container
            .command(&group, "/usr/bin/python3")
            .args(["-c", forged]),
        Duration::from_secs(20),
    )?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("not permitted"), "{output:?}");
    // A capture of nothing proves nothing: somebody outside of the group uses the wire.
    succeed(
        Command::new("nsenter")
            .args(["--target", &container.init.to_string(), "--net", AGENT])
            .args(["datagram", "10.99.0.2:9", "an outsider's words"]),
    )?;
    let wire = capture.finish()?;
    ensure!(
        wire.windows(19)
            .any(|window| window == b"an outsider's words")
    );
    assert_clean(&wire, &[SECRET])?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.verdict"], "refused", "{:#}", records[0]);
    let log = daemon.log();
    assert!(log.contains("datagram_refused"), "{log}");
    Ok(())
}

#[test]
fn who_it_was_is_what_the_host_knows() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let id = "0123456789abcdef".repeat(4);
    let pod = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
    let slice = Group::named(&format!(
        "mantled-test-{}-kubepods.slice",
        std::process::id()
    ))?;
    let inner = slice
        .path()
        .join(format!(
            "mantled-kubepods-burstable-pod{}.slice",
            pod.replace('-', "_")
        ))
        .join(format!("cri-containerd-{id}.scope"));
    fs::create_dir_all(&inner)?;
    let group = Group::at(&inner);
    // The slice is enrolled; the container is two levels below.
    let daemon = Daemon::start(&lab, &slice, "enforce", "")?;
    let container = Container::start(&group, &lab.site, 1)?;
    listening(&daemon, &container)?;
    let mut shell = container
        .command(&group, "sh")
        .args(["-c", r#"id -u; echo $$; exec "$@""#, "sh", AGENT])
        .args(["many", &server.address.to_string(), "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(shell.stdout.take().context("no output")?).lines();
    let mut next = || lines.next().context("no line")?.context("reading");
    let (uid, pid) = (next()?, next()?);
    assert_eq!(uid, "0", "in its own eyes it is root");
    assert_eq!(next()?, "open");
    // The session is open: find its process by what only the host knows.
    drop(shell.stdin.take());
    assert_eq!(next()?, "done");
    shell.wait()?;
    let records = daemon.settled_records(1)?;
    let record = &records[0];
    assert_eq!(record["process.user.id"], Container::USER, "{record:#}");
    assert_ne!(record["process.pid"].to_string(), pid, "{record:#}");
    assert_eq!(record["process.executable.path"], AGENT, "{record:#}");
    assert_eq!(record["container.id"], id, "{record:#}");
    assert_eq!(record["k8s.pod.uid"], pod, "{record:#}");
    drop(container);
    drop(group);
    let _ = fs::remove_dir(inner.parent().context("a parent")?);
    Ok(())
}

#[test]
fn the_pid_is_the_hosts() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "[limits]\ndrain = \"100ms\"\n")?;
    let mut agent = container
        .command(&group, AGENT)
        .args(["many", &server.address.to_string(), "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    assert_eq!(line(&mut agent)?, "open");
    // The record comes while the agent still lives: the daemon stops.
    daemon.stop()?;
    let record = daemon.settled_records(1)?.remove(0);
    let status = fs::read_to_string(format!("/proc/{}/status", record["process.pid"]))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| {
                value
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .unwrap_or_default()
    };
    let pids = field("NSpid:");
    assert_eq!(
        pids.len(),
        2,
        "it has a pid of its own in its namespace: {status}"
    );
    assert_eq!(pids[0], record["process.pid"].to_string());
    assert_ne!(pids[0], pids[1]);
    assert_eq!(field("Name:"), ["agent"]);
    assert_eq!(field("Uid:")[0], record["process.user.id"].to_string());
    agent.kill()?;
    agent.wait()?;
    Ok(())
}

#[test]
fn without_the_daemon_a_container_is_refused_until_it_is_back() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let agent = || {
        run(
            container
                .command(&group, AGENT)
                .args(["echo", &server.address.to_string(), SECRET]),
            Duration::from_secs(10),
        )
    };
    assert!(agent()?.status.success());
    daemon.kill()?;
    let output = agent()?;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Connection refused"), "{said}");
    // One that starts while nobody is there.
    let meanwhile = Container::start(&group, &lab.site, 2)?;
    let output = run(
        meanwhile
            .command(&group, AGENT)
            .args(["echo", &server.address.to_string(), SECRET]),
        Duration::from_secs(10),
    )?;
    assert!(!output.status.success());
    daemon.restart()?;
    // It is ready, so it listens in both.
    for container in [&container, &meanwhile] {
        succeed(container.command(&group, AGENT).args([
            "echo",
            &server.address.to_string(),
            SECRET,
        ]))?;
    }
    daemon.settled_records(3)?;
    Ok(())
}

#[test]
fn a_namespace_goes_with_its_container() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    for open_sessions in [0, 3] {
        let mut container = Container::start(&group, &lab.site, 1)?;
        listening(&daemon, &container)?;
        let mut agent = None;
        if open_sessions > 0 {
            let mut child = container
                .command(&group, AGENT)
                .args(["many", &server.address.to_string(), "3"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            assert_eq!(line(&mut child)?, "open");
            agent = Some(child);
        }
        assert!(container.has_namespace());
        container.end()?;
        let ended = Instant::now();
        eventually("the end of the namespace", GONE, || {
            (!container.has_namespace()).then_some(())
        })
        .with_context(|| daemon.log())?;
        println!(
            "with {open_sessions} open sessions the namespace was gone after {:?}",
            ended.elapsed()
        );
        if let Some(mut agent) = agent {
            agent.wait()?;
        }
    }
    daemon.settled_records(3)?;
    Ok(())
}

#[test]
fn a_server_that_goes_on_sending_does_not_keep_the_namespace() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    // It neither reads nor closes, so that the relay has a side that never ends.
    let server = Server::start_tls(&lab.site, SITE_V4, 7000, &leaf, |stream| {
        stream.read_exact(&mut [0; 5])?;
        stream.write_all(b"hello")?;
        std::thread::sleep(Duration::from_secs(30));
        Ok(())
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let mut container = Container::start(&group, &lab.site, 1)?;
    listening(&daemon, &container)?;
    let mut agent = container
        .command(&group, AGENT)
        .args(["many", &server.address.to_string(), "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    assert_eq!(line(&mut agent)?, "open");
    container.end()?;
    let ended = Instant::now();
    eventually("the end of the namespace", GONE, || {
        (!container.has_namespace()).then_some(())
    })
    .with_context(|| daemon.log())?;
    println!("gone after {:?}", ended.elapsed());
    agent.wait()?;
    daemon.settled_records(1)?;
    Ok(())
}

#[test]
fn sessions_of_a_group_that_is_withdrawn_go_on() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let name = group.path().file_name().context("a name")?;
    let name = format!("/{}", name.to_string_lossy());
    let mut container = Container::start(&group, &lab.site, 1)?;
    let daemon = Daemon::start_with(&lab, "")?;
    let mantled = |arguments: &[&str]| succeed(Command::new(mantled()?).args(arguments));
    mantled(&["enroll", &name, "--mode", "enforce"])?;
    let held = Held::by(container.command(&group, AGENT), server.address, 1)?;
    let cut = Held::by(container.command(&group, AGENT), server.address, 1)?;
    mantled(&["withdraw", &name])?;
    // Longer than it takes to give a namespace up.
    std::thread::sleep(Duration::from_secs(2));
    held.finish()?;
    // The namespace still ends with its container.
    container.end()?;
    eventually("the end of the namespace", GONE, || {
        (!container.has_namespace()).then_some(())
    })
    .with_context(|| daemon.log())?;
    drop(cut);
    daemon.settled_records(2)?;
    Ok(())
}

#[test]
fn namespaces_with_the_same_addresses_do_not_mix() -> Result<()> {
    let lab = lab!();
    let other = Namespace::new(&format!("mantled-other-{}-1", std::process::id()))?;
    other.ip(&["addr", "add", &format!("{SITE_V4}/32"), "dev", "lo"])?;
    let _a = Server::start(&lab.site, SITE_V4, 7000, answer(b'a'))?;
    let _b = Server::start(&other, SITE_V4, 7000, answer(b'b'))?;
    let group = Group::new()?;
    let containers = [
        Container::start(&group, &lab.site, 1)?,
        Container::start(&group, &other, 1)?,
    ];
    let daemon = Daemon::start(
        &lab,
        &group,
        "enforce",
        "[[route]]\ncidr = \"10.99.0.2\"\ntls = \"exempt\"\n",
    )?;
    // The same addresses and ports on both sides, at the same time. None that the kernel gives by
    // itself: the daemon's own connections leave from those (net.ipv4.ip_local_port_range).
    let children: Vec<_> = containers
        .iter()
        .map(|container| {
            container
                .command(&group, AGENT)
                .args(["sources", "10.99.0.2:7000", "10.98.1.1 21000 21299"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        })
        .collect::<std::io::Result<_>>()?;
    for (child, own) in children.into_iter().zip(["a", "b"]) {
        let output = mantled_tests::wait(child, Duration::from_secs(60))?;
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            own.repeat(300),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    daemon.settled_records(600)?;
    Ok(())
}

#[test]
fn what_is_known_of_a_server_is_known_of_one_namespace() -> Result<()> {
    let lab = lab!();
    let other = Namespace::new(&format!("mantled-other-{}-1", std::process::id()))?;
    other.ip(&["addr", "add", &format!("{SITE_V4}/32"), "dev", "lo"])?;
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _plain = Server::start(&lab.site, SITE_V4, 7000, |mut stream| {
        let mut words = [0; 64];
        let length = stream.read(&mut words)?;
        stream.write_all(&words[..length])
    })?;
    let _tls = Server::start_echo(&other, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let containers = [
        Container::start(&group, &lab.site, 1)?,
        Container::start(&group, &other, 1)?,
    ];
    let daemon = Daemon::start(
        &lab,
        &group,
        "observe",
        "[limits]\nhandshake = \"1s\"\ndetect = \"500ms\"\n",
    )?;
    for container in &containers {
        succeed(
            container
                .command(&group, AGENT)
                .args(["echo", "10.99.0.2:7000", "words"]),
        )?;
    }
    let records = daemon.settled_records(2)?;
    assert_eq!(records[0]["mantled.path"], "exposed", "{:#}", records[0]);
    // Had it been remembered of the address alone, this one would have gone in clear as well.
    assert_eq!(records[1]["mantled.path"], "verified", "{:#}", records[1]);
    Ok(())
}

#[test]
fn connections_from_before_enrolment_are_ended_in_a_container_too() -> Result<()> {
    let lab = lab!();
    let plain = Server::start(&lab.site, SITE_V4, 7001, answer(b'x'))?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    let mut early = container
        .command(&group, AGENT)
        .args(["early-connection", &plain.address.to_string(), SECRET])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    assert_eq!(line(&mut early)?, "connected");
    let capture = Capture::start_on(&lab, &container.device)?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    eventually("its end", Duration::from_secs(5), || {
        daemon
            .log()
            .contains("ended connections from before enrolment")
            .then_some(())
    })
    .with_context(|| daemon.log())?;
    let output = mantled_tests::wait(early, Duration::from_secs(10))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("abort"), "{output:?}");
    // What the agent said is dropped, so that nothing else need be on the wire.
    let port = SocketAddr::new(container.address, 9);
    lab.site.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.send_to(b"so that the capture is seen to work", port)
    })??;
    assert_clean(&capture.finish()?, &[SECRET])?;
    Ok(())
}

#[test]
fn a_resolver_on_the_containers_loopback() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["www.site.example"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    // As Docker's: somebody else's process that listens in the container's namespace.
    let place = Ipv4Addr::new(127, 0, 0, 11);
    let socket = container.enter(|| std::net::UdpSocket::bind((place, 53)))??;
    let _resolver = FalseResolver::serve(socket, |query| {
        vec![FalseResolver::answer(
            query,
            "www.site.example",
            Ipv4Addr::new(10, 99, 0, 2),
        )]
    })?;
    let resolv = lab.path("resolv.conf");
    fs::write(&resolv, "nameserver 127.0.0.11\noptions timeout:1\n")?;
    let look_up = || {
        succeed(
            container
                .command(&group, "unshare")
                .args(["--mount", "sh", "-c"])
                .arg(format!(
                    "mount --bind {} /etc/resolv.conf && getent ahostsv4 www.site.example",
                    resolv.display()
                )),
        )
    };
    let connect = || {
        run(
            container
                .command(&group, AGENT)
                .args(["echo", &server.address.to_string(), SECRET]),
            Duration::from_secs(20),
        )
    };
    // Loopback passes whether it is listed or not; what is asked there is known only if it is.
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    assert!(look_up()?.contains("10.99.0.2"));
    assert!(!connect()?.status.success());
    let record = daemon.settled_records(1)?.remove(0);
    assert_eq!(record["mantled.name.source"], "address", "{record:#}");
    drop(daemon);
    let daemon = Daemon::start(
        &lab,
        &group,
        "enforce",
        "[dns]\nresolvers = [\"127.0.0.11\"]\n",
    )?;
    assert!(look_up()?.contains("10.99.0.2"));
    assert!(connect()?.status.success(), "{}", daemon.log());
    let record = daemon.settled_records(1)?.remove(0);
    assert_eq!(record["mantled.name.source"], "dns", "{record:#}");
    assert_eq!(record["mantled.tls.verified_name"], "www.site.example");
    Ok(())
}

#[test]
fn syslog_and_ftp_leave_from_the_container() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _syslog = Program::rsyslog(&lab, &leaf)?;
    let _ftp = Program::vsftpd(&lab, &leaf)?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start_on(&lab, &container.device)?;
    succeed(container.command(&group, "logger").args([
        "--udp",
        "--server",
        "10.99.0.2",
        "--port",
        "514",
        "needle of logger",
    ]))?;
    eventually("the message", Duration::from_secs(10), || {
        let text = fs::read(Program::rsyslog_file(&lab)).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .contains("needle of logger")
            .then_some(())
    })?;
    let upload = lab.path("upload");
    fs::write(&upload, "needle-in-the-file\n".repeat(10_000))?;
    for mode in ["passive", "active"] {
        let client = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/ftp_client.py");
        let printed = succeed(
            container
                .command(&group, "/usr/bin/python3")
                .args([client, "10.99.0.2", mode])
                .arg(&upload),
        )?;
        assert!(printed.contains(&format!("['needle-{mode}']")), "{printed}");
    }
    assert_clean(&capture.finish()?, &["needle"])?;
    daemon.stop()?;
    // One of syslog; of each mode of FTP the control connection, the file there and back, the
    // listing.
    for record in daemon.settled_records(9)? {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
    }
    Ok(())
}

#[test]
fn a_daemon_that_may_not_enter_namespaces_says_so_and_serves_the_host() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let group = Group::new()?;
    let container = Container::start(&group, &lab.site, 1)?;
    // Mounts the bpf file system.
    drop(Daemon::start(&lab, &group, "enforce", "")?);
    let daemon = Daemon::start_under(
        &lab,
        &["setpriv", "--no-new-privs", "--bounding-set=-sys_admin"],
        &format!(
            "[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
            group.path().display()
        ),
    )?;
    let arguments = ["echo", &server.address.to_string(), SECRET];
    succeed(group.command(&lab.host, AGENT).args(arguments))?;
    let output = run(
        container.command(&group, AGENT).args(arguments),
        Duration::from_secs(10),
    )?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Connection refused"), "{output:?}");
    eventually("a word about it", Duration::from_secs(5), || {
        daemon.log().contains("CAP_SYS_ADMIN").then_some(())
    })?;
    // It is told once, however often it is tried.
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(daemon.log().matches("CAP_SYS_ADMIN").count(), 1);
    Ok(())
}

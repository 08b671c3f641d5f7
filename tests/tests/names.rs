//! The certificate must prove the name that the agent asked for.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Daemon, FalseResolver, Group, Lab, Program, SITE_V4, Server, eventually, lab, run, succeed,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const DNS: &str = "[dns]\nresolvers = [\"10.99.0.2\"]\n";
const WWW: &str = "host-record=www.site.example,10.99.0.2\n";
const SITE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

fn curl(lab: &Lab, group: &Group, url: &str) -> Result<Command> {
    let mut command = group.resolving(lab, SITE_V4, "curl")?;
    command.args(["-sS", "--max-time", "20", "-w", "%{http_code}", url]);
    Ok(command)
}

/// Has the group ask for a name, as any program does.
fn look_up(lab: &Lab, group: &Group, name: &str) -> Result<String> {
    succeed(
        group
            .resolving(lab, SITE_V4, "getent")?
            .args(["ahostsv4", name]),
    )
}

/// Has the group connect to the address, and say something.
fn echo(lab: &Lab, group: &Group) -> Result<std::process::Output> {
    run(
        group
            .command(&lab.host, AGENT)
            .args(["echo", "10.99.0.2:7000", "words"]),
        Duration::from_secs(20),
    )
}

/// A server whose certificate proves www.site.example, and a resolver with these lines.
fn site(lab: &Lab, zone: &str) -> Result<(Server, Program)> {
    let leaf = lab.authority.leaf(&["www.site.example"])?;
    Ok((
        Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?,
        Program::dnsmasq(lab, zone)?,
    ))
}

fn assert_verified(record: &Value, name: &str, source: &str) {
    assert_eq!(record["mantled.path"], "verified", "{record:#}");
    assert_eq!(record["mantled.tls.verified_name"], name, "{record:#}");
    assert_eq!(record["mantled.name.source"], source, "{record:#}");
}

#[test]
fn the_query_decides() -> Result<()> {
    let lab = lab!();
    let _web = Program::nginx(&lab, &lab.authority.leaf(&["www.site.example"])?)?;
    let _resolver = Program::dnsmasq(
        &lab,
        &format!(
            "{WWW}host-record=other.example,10.99.0.2\ncname=alias.example,www.site.example\n"
        ),
    )?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    // No route, no list: a plain client in an enrolled group.
    let printed = succeed(&mut curl(&lab, &group, "http://www.site.example/")?)?;
    assert_eq!(printed, "over HTTP/1.1 for www.site.example\n200");
    let records = daemon.settled_records(1)?;
    assert_verified(&records[0], "www.site.example", "dns");
    assert_eq!(records[0]["server.address"], "www.site.example");
    assert_eq!(records[0]["network.peer.address"], "10.99.0.2");
    assert_eq!(records[0]["server.port"], 80);
    // Of another group the same connection has no name.
    let stranger = Group::new()?;
    drop(daemon);
    let both = format!(
        "{DNS}[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
        group.path().display(),
        stranger.path().display()
    );
    let daemon = Daemon::start_with(&lab, &both)?;
    succeed(&mut curl(&lab, &group, "http://www.site.example/")?)?;
    let mut plain = stranger.command(&lab.host, "curl");
    plain.args(["-sS", "-H", "Host: www.site.example", "http://10.99.0.2/"]);
    assert!(succeed(&mut plain)?.contains("mantled refused"));
    let records = daemon.settled_records(2)?;
    assert_eq!(records[1]["error.type"], "certificate_name_mismatch");
    assert_eq!(records[1]["mantled.name.source"], "address");
    Ok(())
}

#[test]
fn an_alias_is_not_what_was_asked() -> Result<()> {
    let lab = lab!();
    let _web = Program::nginx(&lab, &lab.authority.leaf(&["www.site.example"])?)?;
    let _resolver = Program::dnsmasq(
        &lab,
        &format!(
            "{WWW}cname=alias.example,www.site.example\n\
             host-record=farm.example,10.99.0.2\n"
        ),
    )?;
    // The certificate proves the alias' target alone.
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    let printed = succeed(&mut curl(&lab, &group, "http://alias.example/")?)?;
    assert!(printed.ends_with("502"), "{printed}");
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["error.type"], "certificate_name_mismatch");
    assert_eq!(records[0]["server.address"], "alias.example");
    Ok(())
}

#[test]
fn a_chain_of_aliases_verifies_against_the_name_that_was_asked() -> Result<()> {
    let lab = lab!();
    let _web = Program::nginx(&lab, &lab.authority.leaf(&["shop.example"])?)?;
    let _resolver = Program::dnsmasq(
        &lab,
        "host-record=node.cdn.example,10.99.0.2\n\
         cname=edge.cdn.example,node.cdn.example\ncname=shop.example,edge.cdn.example\n",
    )?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    let printed = succeed(&mut curl(&lab, &group, "http://shop.example/")?)?;
    assert!(printed.ends_with("200"), "{printed}");
    assert_verified(&daemon.settled_records(1)?[0], "shop.example", "dns");
    Ok(())
}

#[test]
fn a_spoofed_answer_for_another_name_teaches_nothing() -> Result<()> {
    let lab = lab!();
    let _server = Server::start_echo(
        &lab.site,
        SITE_V4,
        7000,
        &lab.authority.leaf(&["bank.example"])?,
    )?;
    // Before each answer one that has the right id, port and address, for another name.
    let _resolver = FalseResolver::start(&lab.site, SITE_V4, |query| {
        vec![
            FalseResolver::answer(query, "bank.example", SITE),
            FalseResolver::answer(query, "www.site.example", SITE),
        ]
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    assert!(look_up(&lab, &group, "www.site.example")?.contains("10.99.0.2"));
    assert!(!echo(&lab, &group)?.status.success());
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["error.type"], "certificate_name_mismatch");
    assert_eq!(records[0]["server.address"], "www.site.example");
    Ok(())
}

#[test]
fn several_names_of_one_address_refuse_unless_the_protocol_says_which() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["a.example", "b.example"])?;
    let _web = Program::nginx(&lab, &leaf)?;
    let _server = Server::start_echo(&lab.site, SITE_V4, 7000, &leaf)?;
    let _resolver = Program::dnsmasq(
        &lab,
        "host-record=a.example,10.99.0.2\nhost-record=b.example,10.99.0.2\n",
    )?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    look_up(&lab, &group, "a.example")?;
    assert!(echo(&lab, &group)?.status.success());
    look_up(&lab, &group, "b.example")?;
    assert!(!echo(&lab, &group)?.status.success());
    let printed = succeed(&mut curl(&lab, &group, "http://b.example/")?)?;
    assert!(printed.ends_with("200"), "{printed}");
    // A host that nobody asked DNS for is not believed.
    let mut liar = group.command(&lab.host, "curl");
    liar.args(["-sS", "-H", "Host: c.example", "http://10.99.0.2/"]);
    assert!(succeed(&mut liar)?.contains("several names"));
    let records = daemon.settled_records(4)?;
    assert_verified(&records[0], "a.example", "dns");
    assert_eq!(
        records[1]["error.type"], "name_ambiguous",
        "{:#}",
        records[1]
    );
    assert!(records[1].get("mantled.path").is_none());
    assert_verified(&records[2], "b.example", "http");
    assert_eq!(records[3]["error.type"], "name_ambiguous");
    Ok(())
}

#[test]
fn a_stub_resolver_on_the_host() -> Result<()> {
    let lab = lab!();
    let _web = Program::nginx(&lab, &lab.authority.leaf(&["www.site.example"])?)?;
    let _resolver = Program::dnsmasq(&lab, WWW)?;
    let _stub = Program::stub_resolver(&lab)?;
    let group = Group::new()?;
    let stub = "[dns]\nresolvers = [\"127.0.0.53\"]\n";
    let daemon = Daemon::start(&lab, &group, "enforce", stub)?;
    let mut command = group.resolving(&lab, [127, 0, 0, 53].into(), "curl")?;
    command.args(["-sS", "--max-time", "20", "http://www.site.example/"]);
    assert_eq!(
        succeed(&mut command)?,
        "over HTTP/1.1 for www.site.example\n"
    );
    assert_verified(&daemon.settled_records(1)?[0], "www.site.example", "dns");
    Ok(())
}

#[test]
fn dns_over_tcp_is_learnt_from_and_nothing_else_goes_to_a_resolver() -> Result<()> {
    let lab = lab!();
    let _site = site(&lab, WWW)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    let dig = |arguments: &[&str]| {
        let mut command = group.command(&lab.host, "dig");
        command
            .args(["@10.99.0.2", "+short", "+timeout=2", "+tries=1"])
            .args(arguments);
        succeed(&mut command)
    };
    assert_eq!(dig(&["+tcp", "www.site.example"])?, "10.99.0.2\n");
    assert!(echo(&lab, &group)?.status.success());
    let records = daemon.settled_records(2)?;
    assert_eq!(records[0]["mantled.path"], "resolver", "{:#}", records[0]);
    assert_eq!(records[0]["network.protocol.name"], "dns");
    assert_verified(&records[1], "www.site.example", "dns");
    // Words that are no DNS, over either transport.
    let words = |kind: &str| {
        run(
            group.command(&lab.host, AGENT).args([
                kind,
                "10.99.0.2:53",
                "not a query at all, but a secret",
            ]),
            Duration::from_secs(10),
        )
    };
    assert!(!words("ask")?.status.success());
    assert!(!words("datagram")?.status.success());
    assert_eq!(daemon.settled_records(3)?[2]["error.type"], "protocol");
    Ok(())
}

#[test]
fn names_survive_a_restart() -> Result<()> {
    let lab = lab!();
    let _site = site(&lab, WWW)?;
    let group = Group::new()?;
    let mut daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    look_up(&lab, &group, "www.site.example")?;
    assert!(echo(&lab, &group)?.status.success());
    daemon.kill()?;
    daemon.restart()?;
    assert!(echo(&lab, &group)?.status.success());
    assert_verified(&daemon.settled_records(2)?[1], "www.site.example", "dns");
    // And what was answered while no daemon was there is not lost either.
    let other = Group::new()?;
    drop(daemon);
    let both = |group: &Group| {
        format!(
            "{DNS}[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
            group.path().display()
        )
    };
    let mut daemon = Daemon::start_with(&lab, &both(&other))?;
    daemon.kill()?;
    look_up(&lab, &other, "www.site.example")?;
    daemon.restart()?;
    assert!(echo(&lab, &other)?.status.success());
    assert_verified(&daemon.settled_records(1)?[0], "www.site.example", "dns");
    Ok(())
}

#[test]
fn the_end_of_a_ttl_changes_nothing_for_who_is_connected_or_comes_back() -> Result<()> {
    let lab = lab!();
    let _site = site(&lab, &format!("{WWW}local-ttl=1\n"))?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", DNS)?;
    look_up(&lab, &group, "www.site.example")?;
    let mut long = group
        .command(&lab.host, AGENT)
        .args(["many", "10.99.0.2:7000", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = [0; 5];
    let stdout = long.stdout.as_mut().expect("piped");
    stdout.read_exact(&mut said)?;
    assert_eq!(&said, b"open\n");
    // A name is live for thirty seconds at least.
    thread::sleep(Duration::from_secs(31));
    long.stdin.take().expect("piped").write_all(b"\n")?;
    assert!(long.wait()?.success(), "the connection went on");
    assert!(echo(&lab, &group)?.status.success());
    let records = daemon.settled_records(2)?;
    for record in &records {
        assert_verified(record, "www.site.example", "dns");
    }
    assert!(records[0].get("mantled.name.stale").is_none());
    assert_eq!(records[1]["mantled.name.stale"], true);
    Ok(())
}

#[test]
fn what_a_shared_resolver_asks_is_a_hint_and_no_more() -> Result<()> {
    let lab = lab!();
    let _site = site(&lab, WWW)?;
    // The agent asks a daemon over a socket; that one asks DNS, in a cgroup of its own.
    let nscd = Group::named("nscd.service")?;
    let group = Group::new()?;
    for (mode, verified) in [("observe", true), ("enforce", false)] {
        let daemon = Daemon::start(&lab, &group, mode, "[dns]\nresolvers = []\n")?;
        look_up(&lab, &nscd, "www.site.example")?;
        assert_eq!(echo(&lab, &group)?.status.success(), verified, "{mode}");
        let records = daemon.settled_records(1)?;
        if verified {
            assert_verified(&records[0], "www.site.example", "resolver");
        } else {
            assert_eq!(records[0]["error.type"], "certificate_name_mismatch");
            assert_eq!(records[0]["mantled.name.source"], "address");
        }
    }
    Ok(())
}

#[test]
fn the_name_of_a_resolver_is_no_way_out_of_a_group() -> Result<()> {
    let lab = lab!();
    let _plain = Server::start(&lab.site, SITE_V4, 7000, |mut stream| {
        let mut copy = stream.try_clone()?;
        std::io::copy(&mut stream, &mut copy).map(drop)
    })?;
    // Units are looked for below slices.
    let group = Group::named(&format!("mantled-test-{}-own.slice", std::process::id()))?;
    let own = group.path().file_name().expect("it has one").to_owned();
    // An agent that may make cgroups below its own chooses their names.
    let below = Group::named(&format!("{}/nscd.service", own.display()))?;
    let _daemon = Daemon::start(&lab, &group, "enforce", "[limits]\nhandshake = \"1s\"\n")?;
    assert!(!echo(&lab, &below)?.status.success());
    let datagram = run(
        below
            .command(&lab.host, AGENT)
            .args(["datagram", "10.99.0.2:9999", "words"]),
        Duration::from_secs(10),
    )?;
    assert!(!datagram.status.success());
    Ok(())
}

#[test]
fn routes_choose_by_name() -> Result<()> {
    let lab = lab!();
    let _web = Program::nginx(&lab, &lab.authority.leaf(&["www.site.example"])?)?;
    let _resolver = Program::dnsmasq(&lab, WWW)?;
    let group = Group::new()?;
    let config =
        format!("{DNS}[[route]]\nhost = \"*.site.example\"\nport = 8000\nupstream_port = 443\n");
    let daemon = Daemon::start(&lab, &group, "enforce", &config)?;
    let printed = succeed(&mut curl(&lab, &group, "http://www.site.example:8000/")?)?;
    assert!(printed.ends_with("200"), "{printed}");
    let records = daemon.settled_records(1)?;
    assert_verified(&records[0], "www.site.example", "dns");
    assert_eq!(records[0]["mantled.route"], 1);
    Ok(())
}

#[test]
fn the_hosts_file_names_what_dns_does_not() -> Result<()> {
    let lab = lab!();
    let server = Server::start_echo(
        &lab.site,
        SITE_V4,
        7000,
        &lab.authority.leaf(&["db.example"])?,
    )?;
    let hosts = lab.path("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n10.99.0.2 db.example db\n")?;
    let group = Group::new()?;
    let config = format!(
        "[[enroll]]\ncgroup = \"{}\"\nmode = \"enforce\"\n",
        group.path().display()
    );
    let mount = format!(
        "mount --bind '{}' /etc/hosts && exec \"$0\" \"$@\"",
        hosts.display()
    );
    let under = [
        "unshare",
        "--mount",
        "--propagation",
        "unchanged",
        "sh",
        "-c",
        &mount,
    ];
    let daemon = Daemon::start_under(&lab, &under, &config)?;
    assert!(echo(&lab, &group)?.status.success());
    assert_verified(&daemon.settled_records(1)?[0], "db.example", "hosts");
    ensure!(
        eventually("one connection", Duration::from_secs(1), || (server
            .accepted()
            == 1)
            .then_some(()))
        .is_ok()
    );
    Ok(())
}

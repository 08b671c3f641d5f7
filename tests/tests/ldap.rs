//! LDAP: OpenLDAP's tools and ldap3 in clear, against a slapd that serves nothing without
//! StartTLS; and servers that would rather not.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, PASSWORD, Program, SITE_V4, Server, assert_clean, lab, run,
    succeed,
};

const MANAGER: [&str; 5] = ["-x", "-D", "cn=admin,dc=site", "-w", PASSWORD];

/// One of OpenLDAP's tools, as the manager, in clear.
fn tool(lab: &Lab, group: &Group, name: &str, arguments: &[&str]) -> Command {
    let mut command = group.command(&lab.host, name);
    command
        .args(["-H", "ldap://10.99.0.2", "-o", "nettimeout=20"])
        .args(MANAGER)
        .args(arguments);
    command
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat()
}

#[test]
fn openldap_tools_reach_a_server_that_wants_start_tls() -> Result<()> {
    let lab = lab!();
    let _server = Program::slapd(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let capture = Capture::start(&lab)?;

    let mut people = String::from("dn: ou=people,dc=site\nobjectClass: organizationalUnit\n\n");
    for number in 0..5000 {
        writeln!(
            people,
            "dn: cn=needle-{number},ou=people,dc=site\nobjectClass: person\nsn: of the wire\n"
        )?;
    }
    let ldif = lab.path("people.ldif");
    fs::write(&ldif, people)?;
    succeed(tool(&lab, &group, "ldapadd", &["-f"]).arg(&ldif))?;
    let search = ["-LLL", "-b", "dc=site", "(objectClass=person)", "sn"];
    let paged = [&["-E", "pr=500/noprompt"][..], &search].concat();
    for arguments in [&paged[..], &search] {
        let printed = succeed(&mut tool(&lab, &group, "ldapsearch", arguments))?;
        assert_eq!(printed.matches("dn: cn=needle-").count(), 5000);
        assert_eq!(printed.matches("sn: of the wire").count(), 5000);
    }
    let change = lab.path("change.ldif");
    fs::write(
        &change,
        "dn: cn=needle-7,ou=people,dc=site\nchangetype: modify\nreplace: sn\nsn: changed\n\n\
         dn: cn=needle-8,ou=people,dc=site\nchangetype: delete\n",
    )?;
    succeed(tool(&lab, &group, "ldapmodify", &["-f"]).arg(&change))?;
    let printed = succeed(&mut tool(
        &lab,
        &group,
        "ldapsearch",
        &[
            "-LLL",
            "-b",
            "ou=people,dc=site",
            "(|(cn=needle-7)(cn=needle-8))",
            "sn",
        ],
    ))?;
    assert_eq!(
        printed,
        "dn: cn=needle-7,ou=people,dc=site\nsn: changed\n\n"
    );

    let wire = capture.finish()?;
    ensure!(wire.len() > 500_000, "it was captured: {}", wire.len());
    assert_clean(&wire, &["needle-", "dc=site", PASSWORD, "of the wire"])?;
    for record in daemon.settled_records(5)? {
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "ldap");
        assert_eq!(record["mantled.tls.verified_name"], "10.99.0.2");
        assert_eq!(record["server.port"], 389);
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    Ok(())
}

#[test]
fn ldap3_reaches_a_server_that_wants_start_tls() -> Result<()> {
    let lab = lab!();
    let _server = Program::slapd(&lab, &lab.authority.leaf(&["ldap.site.example"])?)?;
    let group = Group::new()?;
    let route = "[[route]]\nport = 389\nserver_name = \"ldap.site.example\"\ntls = \"starttls\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let capture = Capture::start(&lab)?;
    // Its path is not resolved: a virtual environment is found by the path of its interpreter.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let printed = succeed(
        group
            .command(&lab.host, root.join("../target/lab/venv/bin/python"))
            .arg(root.join("clients/ldap3_client.py"))
            .arg(PASSWORD),
    )?;
    assert_eq!(printed, "19 found\n100017 described\ndn:cn=admin,dc=site\n");
    assert_clean(&capture.finish()?, &["needle", "dc=site", PASSWORD])?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "verified", "{:#}", records[0]);
    assert_eq!(records[0]["network.protocol.name"], "ldap");
    assert_eq!(records[0]["mantled.tls.verified_name"], "ldap.site.example");
    Ok(())
}

#[test]
fn agents_that_ask_for_start_tls_themselves() -> Result<()> {
    let lab = lab!();
    let _server = Program::slapd(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let search = |group: &Group, option| {
        run(
            tool(
                &lab,
                group,
                "ldapsearch",
                &["-LLL", "-b", "dc=site", option],
            )
            .env("LDAPTLS_CACERT", lab.path("ca.pem")),
            Duration::from_secs(20),
        )
    };
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    // One that tries goes on in clear.
    let output = search(&group, "-Z")?;
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("dn: dc=site"), "{}", said(&output));
    assert!(
        said(&output).contains("unavailable (52)"),
        "{}",
        said(&output)
    );
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "verified", "{:#}", records[0]);
    // One that insists is told why not.
    let output = search(&group, "-ZZ")?;
    assert!(!output.status.success());
    assert!(
        said(&output).contains("beyond this host"),
        "{}",
        said(&output)
    );
    let records = daemon.settled_records(2)?;
    assert_eq!(records[1]["error.type"], "native_tls", "{:#}", records[1]);
    drop(daemon);

    // Where it may, it makes its own handshake.
    let route = "[[route]]\nport = 389\ntls = \"passthrough\"\n";
    for (mode, route) in [("enforce", route), ("observe", "")] {
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, mode, route)?;
        let output = search(&group, "-ZZ")?;
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("dn: dc=site"), "{}", said(&output));
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["mantled.path"], "native", "{:#}", records[0]);
    }
    Ok(())
}

/// An ExtendedResponse to message 1 with this resultCode and diagnosticMessage.
fn answer(id: u8, code: u8, diagnostic: &str) -> Vec<u8> {
    let length = diagnostic.len() as u8;
    let mut message = vec![0x30, 12 + length, 2, 1, id, 0x78, 7 + length];
    message.extend([0x0a, 1, code, 4, 0, 4, length]);
    message.extend(diagnostic.bytes());
    message
}

#[test]
fn hostile_answers_to_start_tls() -> Result<()> {
    let lab = lab!();
    let limits = "[limits]\nstarttls = \"1s\"\nhandshake = \"1s\"\n";
    let injected = [answer(1, 0, ""), answer(2, 0, "")].concat();
    for (what, words, cause) in [
        ("declines", answer(1, 2, "unsupported"), "upgrade_declined"),
        ("disconnects", answer(0, 51, "too busy"), "upgrade_declined"),
        ("injects", injected, "upgrade_injected"),
        ("answers another", answer(2, 0, ""), "upgrade_protocol"),
        (
            "talks nonsense",
            b"220 ready\r\n".to_vec(),
            "upgrade_protocol",
        ),
        ("stalls", Vec::new(), "upgrade_timeout"),
        ("goes ahead and stalls", answer(1, 0, ""), "upgrade_timeout"),
    ] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        let server = Server::start(&lab.site, SITE_V4, 389, move |mut stream: TcpStream| {
            let mut request = [0; 31];
            stream.read_exact(&mut request)?;
            stream.write_all(&words)?;
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    length => noted.lock().unwrap().extend_from_slice(&buffer[..length]),
                }
            }
        })?;
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
        let capture = Capture::start(&lab)?;
        let output = run(
            &mut tool(&lab, &group, "ldapsearch", &["-b", "dc=site"]),
            Duration::from_secs(20),
        )?;
        assert!(!output.status.success(), "{what}");
        assert!(
            said(&output).contains("unavailable (52)")
                && said(&output).contains("mantled refused this connection"),
            "{what}: {}",
            said(&output)
        );
        assert_clean(&capture.finish()?, &["dc=site", PASSWORD])?;
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], cause, "{what}: {:#}", records[0]);
        assert_eq!(records[0]["mantled.verdict"], "refused");
        assert_eq!(records[0]["mantled.bytes.sent"], 0);
        let heard = heard.lock().unwrap();
        assert!(
            heard.is_empty() || heard.starts_with(&[0x16, 3]),
            "{what}: {heard:x?}"
        );
        drop(heard);
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn observe_goes_on_in_clear_where_start_tls_is_declined() -> Result<()> {
    let lab = lab!();
    // It declines StartTLS and accepts any bind.
    let _server = Server::start(&lab.site, SITE_V4, 389, |mut stream: TcpStream| {
        let mut message = [0; 512];
        let length = stream.read(&mut message)?;
        if message[5] == 0x77 {
            return stream.write_all(&answer(1, 2, "unsupported"));
        }
        ensure_io(length > 5 && message[5] == 0x60)?;
        let mut accepted = answer(1, 0, "");
        accepted[5] = 0x61;
        stream.write_all(&accepted)?;
        let length = stream.read(&mut message)?;
        ensure_io(length > 5 && message[5] == 0x63)?;
        let mut done = answer(2, 0, "");
        done[5] = 0x65;
        stream.write_all(&done)
    })?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    succeed(&mut tool(&lab, &group, "ldapsearch", &["-b", "dc=site"]))?;
    let records = daemon.settled_records(1)?;
    assert_eq!(records[0]["mantled.path"], "exposed", "{:#}", records[0]);
    assert_eq!(records[0]["mantled.enforce.error"], "upgrade_declined");
    Ok(())
}

fn ensure_io(holds: bool) -> std::io::Result<()> {
    holds
        .then_some(())
        .ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

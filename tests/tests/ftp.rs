//! FTP clients in clear, against servers that require TLS on control and data connections; and
//! servers that would rather not.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use mantled_tests::{
    Capture, Daemon, Group, Lab, Leaf, Program, SITE_V4, Server, assert_clean, lab, mantled, run,
    succeed,
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::Value;

const NEEDLE: &str = "needle-in-the-file";

fn python(lab: &Lab, group: &Group, program: &str, arguments: &[&str]) -> Command {
    let mut command = group.command(&lab.host, "/usr/bin/python3");
    command
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("clients")
                .join(program),
        )
        .args(arguments);
    command
}

/// A file of so many megabytes, full of needles.
fn file(lab: &Lab, megabytes: usize) -> Result<PathBuf> {
    let path = lab.path("upload");
    let line = |n: usize| format!("{NEEDLE} {n:020}\n");
    let text: String = (0..megabytes * 1_000_000 / 40).map(line).collect();
    ensure!(text.len() == megabytes * 1_000_000);
    fs::write(&path, text)?;
    Ok(path)
}

fn digest(path: &Path) -> Result<String> {
    let printed = succeed(Command::new("sha256sum").arg(path))?;
    Ok(printed.split(' ').next().unwrap_or_default().to_owned())
}

/// Every record is of FTP inside TLS that was verified.
fn assert_verified(records: &[Value], name: &str) {
    for record in records {
        assert_eq!(record["mantled.verdict"], "allowed", "{record:#}");
        assert_eq!(record["mantled.path"], "verified", "{record:#}");
        assert_eq!(record["network.protocol.name"], "ftp", "{record:#}");
        assert_eq!(record["mantled.tls.verified_name"], name, "{record:#}");
        assert!(record.get("error.type").is_none(), "{record:#}");
        assert!(record["process.pid"].is_u64(), "{record:#}");
    }
}

/// Fifty megabytes there, back, and a listing, in a mode of ftplib's.
fn there_and_back(host: &str, mode: &str) -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2", "fd99::2"])?;
    let _server = Program::vsftpd(&lab, &leaf)?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let path = file(&lab, 50)?;
    let capture = Capture::start(&lab)?;
    let printed = succeed(&mut python(
        &lab,
        &group,
        "ftp_client.py",
        &[host, mode, &path.to_string_lossy()],
    ))?;
    let expected = format!(
        "features of TLS: []\nAUTH TLS refused\nPROT C refused\n226\n226\n{}\n['needle-{mode}']\n",
        digest(&path)?
    );
    assert_eq!(printed, expected);
    assert_eq!(
        digest(&lab.path(&format!("ftp/in/needle-{mode}")))?,
        digest(&path)?
    );
    let wire = capture.finish()?;
    ensure!(wire.len() > 100_000_000, "{} bytes captured", wire.len());
    assert_clean(
        &wire,
        &[
            NEEDLE,
            "needle-password",
            "needle-pasv",
            "PASS ",
            "LIST\r\n",
        ],
    )?;
    // The control connection, both files, the listing.
    let records = daemon.settled_records(4)?;
    assert_verified(&records, host);
    let control = |record: &&Value| record["server.port"] == 21;
    assert_eq!(records.iter().filter(control).count(), 1);
    for data in records.iter().filter(|record| !control(record)) {
        assert_eq!(data["tls.resumed"], true, "{data:#}");
    }
    let carried = |direction: &str| {
        let bytes = records.iter().map(|record| record[direction].as_u64());
        bytes.filter(|bytes| *bytes == Some(50_000_000)).count()
    };
    assert_eq!(carried("mantled.bytes.sent"), 1);
    assert_eq!(carried("mantled.bytes.received"), 1);
    Ok(())
}

#[test]
fn passive_transfers() -> Result<()> {
    there_and_back("10.99.0.2", "pasv")
}

#[test]
fn extended_passive_transfers() -> Result<()> {
    there_and_back("10.99.0.2", "epsv")?;
    there_and_back("fd99::2", "epsv")
}

#[test]
fn active_transfers() -> Result<()> {
    there_and_back("10.99.0.2", "active")
}

#[test]
fn extended_active_transfers() -> Result<()> {
    there_and_back("fd99::2", "active")
}

#[test]
fn transfers_that_go_otherwise_than_wished() -> Result<()> {
    let lab = lab!();
    let _server = Program::vsftpd(&lab, &lab.authority.leaf(&["10.99.0.2"])?)?;
    let large = lab.path("ftp/large");
    fs::write(&large, vec![b'l'; 20_000_000])?;
    fs::set_permissions(&large, fs::Permissions::from_mode(0o644))?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "enforce", "")?;
    let printed = succeed(&mut python(&lab, &group, "ftp_corners.py", &["10.99.0.2"]))?;
    let each = "empty 226 0\nmissing 550\nforbidden 553\ngiven up 426\nwhole 226 20000000\n";
    let expected = format!("{each}{each}elsewhere 500\nprivileged 500\n");
    assert_eq!(printed, expected);
    // The server does not connect for the two transfers that it refuses in active mode.
    let records = daemon.settled_records(1 + 5 + 3)?;
    // In passive mode it closes its listener, before or after the proxy has reached it.
    let (declined, others): (Vec<&Value>, Vec<&Value>) = records.iter().partition(|record| {
        record["error.type"] == "upstream_closed" || record["error.type"] == "dial_failed"
    });
    assert_eq!(declined.len(), 2, "{records:#?}");
    for record in &records {
        assert_eq!(record["network.protocol.name"], "ftp", "{record:#}");
    }
    for record in others {
        assert_eq!(record["mantled.verdict"], "allowed", "{record:#}");
    }
    Ok(())
}

#[test]
fn lftp_and_curl() -> Result<()> {
    let lab = lab!();
    let _server = Program::vsftpd(&lab, &lab.authority.leaf(&["ftp.site.example"])?)?;
    let group = Group::new()?;
    let route = "[[route]]\ncidr = \"10.99.0.2\"\nserver_name = \"ftp.site.example\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", route)?;
    let path = file(&lab, 5)?;
    let back = lab.path("back");
    let capture = Capture::start(&lab)?;
    for passive in ["on", "off"] {
        let script = format!(
            "set ftp:passive-mode {passive}; set net:max-retries 1; set net:timeout 20; \
             cd in; put {} -o lftp-{passive}; get lftp-{passive} -o {}; cls; quit",
            path.display(),
            back.display()
        );
        let _ = fs::remove_file(&back);
        let printed = succeed(
            group
                .command(&lab.host, "lftp")
                .args(["-c", &format!("open ftp://10.99.0.2; {script}")]),
        )?;
        assert!(printed.contains(&format!("lftp-{passive}")), "{printed}");
        assert_eq!(digest(&back)?, digest(&path)?, "lftp, passive {passive}");
    }
    for mode in [
        &["--disable-epsv"][..],
        &[],
        &["--ftp-port", "-"],
        // An address of the host that is not loopback.
        &["--ftp-port", "10.99.0.1"],
        &["--ftp-port", "-", "--disable-eprt"],
    ] {
        let curl = |arguments: &[&str]| {
            let mut command = group.command(&lab.host, "curl");
            command.args(["-sS", "--max-time", "30"]).args(mode);
            succeed(command.args(arguments))
        };
        let name = format!("ftp://10.99.0.2/in/curl{}", mode.concat());
        curl(&["-T", &path.to_string_lossy(), &name])?;
        let _ = fs::remove_file(&back);
        curl(&["-o", &back.to_string_lossy(), &name])?;
        assert_eq!(digest(&back)?, digest(&path)?, "curl {mode:?}");
        let listing = curl(&["ftp://10.99.0.2/in/"])?;
        assert!(listing.contains("curl"), "{listing}");
    }
    assert_clean(&capture.finish()?, &[NEEDLE, "curl--", "anonymous"])?;
    let lftp = 2 * (1 + 3);
    let curl = 5 * (2 + 2 + 2);
    assert_verified(&daemon.settled_records(lftp + curl)?, "ftp.site.example");
    Ok(())
}

#[test]
fn tls_from_the_first_byte_and_tls_1_3_alone() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let _server = Program::vsftpd_with(&lab, Some(&leaf), 990, "implicit_ssl=YES")?;
    let group = Group::new()?;
    let path = file(&lab, 2)?;
    for least in ["1.2", "1.3"] {
        let config = format!(
            "[[route]]\nport = 21\nprotocol = \"ftp\"\ntls = \"implicit\"\nupstream_port = 990\n\
             min_version = \"{least}\"\n"
        );
        let daemon = Daemon::start(&lab, &group, "enforce", &config)?;
        for mode in ["pasv", "active"] {
            let printed = succeed(&mut python(
                &lab,
                &group,
                "ftp_client.py",
                &["10.99.0.2", mode, &path.to_string_lossy()],
            ))?;
            assert!(printed.contains(&digest(&path)?), "{printed}");
            fs::remove_file(lab.path(&format!("ftp/in/needle-{mode}")))?;
        }
        let records = daemon.settled_records(8)?;
        assert_verified(&records, "10.99.0.2");
        for record in &records {
            assert_eq!(record["tls.protocol.version"], least, "{record:#}");
        }
    }
    Ok(())
}

#[test]
fn observe_mode_leaves_a_server_without_tls_as_it_is() -> Result<()> {
    let lab = lab!();
    let _server = Program::vsftpd_with(&lab, None, 21, "")?;
    let group = Group::new()?;
    let daemon = Daemon::start(&lab, &group, "observe", "")?;
    let path = file(&lab, 2)?;
    for mode in ["pasv", "epsv", "active"] {
        let printed = succeed(&mut python(
            &lab,
            &group,
            "ftp_client.py",
            &["10.99.0.2", mode, &path.to_string_lossy()],
        ))?;
        assert!(printed.contains(&digest(&path)?), "{printed}");
    }
    let records = daemon.settled_records(3 * 4)?;
    for record in &records {
        assert_eq!(record["mantled.path"], "exposed", "{record:#}");
        assert_eq!(record["network.protocol.name"], "ftp", "{record:#}");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    let refused = |record: &&Value| record["mantled.enforce.error"] == "upgrade_declined";
    assert_eq!(records.iter().filter(refused).count(), 3);
    Ok(())
}

#[test]
fn an_exempt_route_lets_files_out_in_enforce_mode() -> Result<()> {
    let lab = lab!();
    let _server = Program::vsftpd_with(&lab, None, 21, "")?;
    let group = Group::new()?;
    let config = "[[route]]\ncidr = \"10.99.0.2\"\ntls = \"exempt\"\n";
    let daemon = Daemon::start(&lab, &group, "enforce", config)?;
    let path = file(&lab, 2)?;
    for mode in ["pasv", "epsv"] {
        let printed = succeed(&mut python(
            &lab,
            &group,
            "ftp_client.py",
            &["10.99.0.2", mode, &path.to_string_lossy()],
        ))?;
        assert!(printed.contains(&digest(&path)?), "{printed}");
    }
    for record in daemon.settled_records(2 * 4)? {
        assert_eq!(record["mantled.path"], "exposed", "{record:#}");
        assert!(record.get("error.type").is_none(), "{record:#}");
    }
    Ok(())
}

#[test]
fn files_on_their_way_in_clear_are_cut_when_the_group_is_enforced() -> Result<()> {
    let lab = lab!();
    let slowly = "anon_max_rate=100000";
    let _server = Program::vsftpd_with(&lab, None, 21, slowly)?;
    fs::rename(file(&lab, 5)?, lab.path("ftp/file"))?;
    for passive in ["passive", "active"] {
        let group = Group::new()?;
        let daemon = Daemon::start_with(&lab, "")?;
        let name = group.path().file_name().context("it has one")?;
        let name = format!("/{}", name.to_string_lossy());
        let enroll =
            |mode: &str| succeed(Command::new(mantled()?).args(["enroll", &name, "--mode", mode]));
        enroll("observe")?;
        let mut agent = python(&lab, &group, "ftp_slow.py", &["10.99.0.2", passive])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut begun = String::new();
        BufReader::new(agent.stdout.take().context("no pipe")?).read_line(&mut begun)?;
        assert_eq!(begun, "begun\n");
        enroll("enforce")?;
        // Fifty seconds of file are left.
        let records = daemon.settled_records(2)?;
        for record in &records {
            assert_eq!(record["mantled.path"], "exposed", "{passive}: {record:#}");
            assert_eq!(
                record["error.type"], "mode_changed",
                "{passive}: {record:#}"
            );
        }
        ensure!(!agent.wait()?.success(), "the file came whole");
    }
    Ok(())
}

/// Logs in with curl; it must fail. Returns what it said.
fn curl_fails(lab: &Lab, group: &Group) -> Result<String> {
    let output = run(
        group
            .command(&lab.host, "curl")
            .args(["-v", "-sS", "--max-time", "20"])
            .args(["--user", "needle-user:needle-password", "ftp://10.99.0.2/"]),
        Duration::from_secs(30),
    )?;
    ensure!(!output.status.success(), "curl was served");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn hostile_answers_to_the_upgrade() -> Result<()> {
    let lab = lab!();
    let limits = "[limits]\nstarttls = \"1s\"\nhandshake = \"1s\"\n";
    let greeting = "220 FTP server\r\n";
    // What is said at once, and after AUTH TLS.
    for (what, first, answer, cause) in [
        (
            "strips AUTH",
            greeting,
            "500 Unknown command.\r\n",
            "upgrade_declined",
        ),
        (
            "declines",
            greeting,
            "534 Not today\r\n",
            "upgrade_declined",
        ),
        ("is full", "421 Too many users\r\n", "", "upgrade_declined"),
        (
            "injects before the handshake",
            greeting,
            "234 Go\r\n331 Password?\r\n",
            "upgrade_injected",
        ),
        (
            "talks nonsense",
            greeting,
            "HTTP/1.1 400\r\n",
            "upgrade_protocol",
        ),
        (
            "answers another way",
            greeting,
            "200 OK\r\n",
            "upgrade_protocol",
        ),
        ("stalls", greeting, "", "upgrade_timeout"),
        (
            "stalls in its greeting",
            "220-FTP\r\n",
            "",
            "upgrade_timeout",
        ),
        (
            "goes ahead and stalls",
            greeting,
            "234 Go\r\n",
            "upgrade_timeout",
        ),
    ] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        let server = Server::start(&lab.site, SITE_V4, 21, move |mut stream| {
            stream.write_all(first.as_bytes())?;
            let mut buffer = [0; 4096];
            loop {
                let length = stream.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                let mut heard = noted.lock().unwrap();
                if heard.is_empty() {
                    stream.write_all(answer.as_bytes())?;
                }
                heard.extend_from_slice(&buffer[..length]);
            }
        })?;
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", limits)?;
        let said = curl_fails(&lab, &group)?;
        assert!(said.contains("< 421 mantled refused"), "{what}: {said}");
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], cause, "{what}: {:#}", records[0]);
        assert_eq!(records[0]["mantled.verdict"], "refused", "{what}");
        assert_eq!(records[0]["network.protocol.name"], "ftp", "{what}");
        assert_eq!(records[0]["mantled.bytes.sent"], 0, "{what}");
        assert!(records[0].get("mantled.path").is_none(), "{what}");
        let heard = heard.lock().unwrap();
        let rest = heard.strip_prefix(b"AUTH TLS\r\n").unwrap_or(&heard);
        assert!(
            rest.is_empty() || rest.starts_with(&[0x16, 3]),
            "{what}: {}",
            heard.escape_ascii()
        );
        drop(heard);
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A server that makes TLS 1.3 as it should and answers by a script: the words that a command
/// begins with, and the reply. What it was told inside TLS is noted.
fn scripted(
    lab: &Lab,
    leaf: &Leaf,
    script: Vec<(&'static str, String)>,
) -> Result<(Server, Arc<Mutex<String>>)> {
    let config = Arc::new(
        ServerConfig::builder_with_provider(
            Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        )
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?,
        )?,
    );
    let heard = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&heard);
    let server = Server::start(&lab.site, SITE_V4, 21, move |mut stream: TcpStream| {
        stream.write_all(b"220 FTP server\r\n")?;
        stream.read_exact(&mut [0; 10])?;
        stream.write_all(b"234 Go\r\n")?;
        // Whoever offers TLS 1.2 alone is told so by an alert.
        let session = ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
        let mut lines = BufReader::new(StreamOwned::new(session, stream));
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            noted.lock().unwrap().push_str(&line);
            let known = script.iter().find(|(words, _)| line.starts_with(words));
            let answer = known.map_or("500 Unknown command.", |(_, answer)| answer);
            lines
                .get_mut()
                .write_all(format!("{answer}\r\n").as_bytes())?;
            lines.get_mut().flush()?;
        }
    })?;
    Ok((server, heard))
}

/// An honest script up to the transfer.
fn honest() -> Vec<(&'static str, String)> {
    [
        ("PBSZ 0", "200 OK"),
        ("PROT P", "200 OK"),
        ("USER", "331 Password?"),
        ("PASS", "230 Welcome"),
        ("TYPE", "200 OK"),
        ("RETR", "150 Here it comes"),
        ("QUIT", "221 Bye"),
    ]
    .map(|(words, answer)| (words, answer.to_owned()))
    .to_vec()
}

#[test]
fn a_server_that_does_not_protect_data_is_refused() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    for declined in ["PROT P", "PBSZ 0"] {
        let mut script = honest();
        script.retain(|(words, _)| *words != declined);
        let (server, heard) = scripted(&lab, &leaf, script)?;
        let group = Group::new()?;
        let daemon = Daemon::start(&lab, &group, "enforce", "")?;
        let said = curl_fails(&lab, &group)?;
        assert!(said.contains("< 421 mantled refused"), "{said}");
        let records = daemon.settled_records(1)?;
        assert_eq!(records[0]["error.type"], "upgrade_declined");
        assert!(records[0].get("mantled.path").is_none());
        assert!(!heard.lock().unwrap().contains("needle"));
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Downloads by PASV on one of two addresses: the reply to PASV, and what serves there.
fn download(lab: &Lab, leaf: &Leaf, passive: &str) -> Result<(Vec<Value>, Vec<u8>)> {
    let mut script = honest();
    script.push(("PASV", passive.to_owned()));
    let (_server, _) = scripted(lab, leaf, script)?;
    let group = Group::new()?;
    let daemon = Daemon::start(lab, &group, "enforce", "[limits]\ndetect = \"1s\"\n")?;
    let output = run(
        &mut python(lab, &group, "ftp_download.py", &["10.99.0.2"]),
        Duration::from_secs(30),
    )?;
    ensure!(!output.status.success(), "the file came");
    let control = |record: &Value| record["tls.protocol.version"] == "1.3";
    ensure!(daemon.settled_records(2)?.iter().any(control));
    Ok((daemon.settled_records(2)?, output.stdout))
}

#[test]
fn data_in_clear_is_refused() -> Result<()> {
    let lab = lab!();
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let _data = Server::start(&lab.site, SITE_V4, 5000, move |mut stream| {
        stream.write_all(b"forged contents of the file")?;
        stream.read_to_end(&mut noted.lock().unwrap()).map(drop)
    })?;
    let (records, printed) = download(&lab, &leaf, "227 OK (10,99,0,2,19,136)")?;
    assert_eq!(String::from_utf8_lossy(&printed), "");
    let data = records.iter().find(|record| record["server.port"] == 5000);
    let data = data.expect("a record of the data connection");
    assert_eq!(data["error.type"], "tls_not_offered", "{data:#}");
    assert_eq!(data["mantled.verdict"], "refused");
    Ok(())
}

#[test]
fn another_hosts_address_is_nothing_that_was_announced() -> Result<()> {
    let lab = lab!();
    lab.site
        .ip(&["addr", "add", "10.99.0.3/24", "dev", "wire"])?;
    let leaf = lab.authority.leaf(&["10.99.0.2"])?;
    // With the name of the control connection it would be verified.
    let _data = Server::start_tls(&lab.site, "10.99.0.3".parse()?, 5000, &leaf, |stream| {
        stream.write_all(b"contents of another host")
    })?;
    let (records, printed) = download(&lab, &leaf, "227 OK (10,99,0,3,19,136)")?;
    assert_eq!(String::from_utf8_lossy(&printed), "");
    let data = records.iter().find(|record| record["server.port"] == 5000);
    let data = data.expect("a record of the data connection");
    assert_eq!(data["error.type"], "certificate_name_mismatch", "{data:#}");
    assert_eq!(data["server.address"], "10.99.0.3");
    Ok(())
}

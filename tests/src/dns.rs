//! DNS servers: a real one, one that says what a test wants, and agents that ask them.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{Group, Lab, Namespace, Program, SITE_V4};

/// Flags of an answer: response, recursion desired and available.
const ANSWER: u16 = 0x8180;

/// A DNS server over UDP that answers as a test says.
#[derive(Debug)]
pub struct FalseResolver {
    stop: Arc<AtomicBool>,
}

impl FalseResolver {
    /// Starts one on port 53. For each query it sends every message that `answer` returns, in
    /// that order.
    ///
    /// # Errors
    /// As bind(2).
    pub fn start(
        namespace: &Namespace,
        address: IpAddr,
        answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        Self::serve(namespace.enter(|| UdpSocket::bind((address, 53)))??, answer)
    }

    /// The same on this socket.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn serve(
        socket: UdpSocket,
        answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut query = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                match socket.recv_from(&mut query) {
                    Ok((length, from)) => {
                        for message in answer(&query[..length]) {
                            let _ = socket.send_to(&message, from);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Self { stop })
    }

    /// An answer to `query` that calls itself one for `name` and gives it `address`.
    pub fn answer(query: &[u8], name: &str, address: Ipv4Addr) -> Vec<u8> {
        // Type A is answered; whatever else is asked has no records.
        let kind = query[query[12..].iter().position(|byte| *byte == 0).unwrap_or(0) + 14];
        let records = u16::from(kind == 1);
        let mut message = query[..2].to_vec();
        for word in [ANSWER, 1, records, 0, 0] {
            message.extend(word.to_be_bytes());
        }
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.bytes());
        }
        message.extend([0, 0, kind, 0, 1]);
        if records > 0 {
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            message.extend(address.octets());
        }
        message
    }
}

impl Drop for FalseResolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(30)); // its socket closes
    }
}

impl Program {
    /// dnsmasq on the site's port 53 with these lines of configuration and nothing else.
    ///
    /// # Errors
    /// As [`Program::start`].
    pub fn dnsmasq(lab: &Lab, configuration: &str) -> Result<Self> {
        let command = dnsmasq(lab, &lab.site, SITE_V4, configuration)?;
        Self::start(lab, command, 53)
    }

    /// dnsmasq as the stub resolver of the lab's host: it listens on 127.0.0.53 and asks the
    /// site's resolver.
    ///
    /// # Errors
    /// As [`Program::start_in`].
    pub fn stub_resolver(lab: &Lab) -> Result<Self> {
        let address = IpAddr::from([127, 0, 0, 53]);
        let command = dnsmasq(lab, &lab.host, address, &format!("server={SITE_V4}\n"))?;
        Self::start_in(lab, &lab.host, command, (address, 53).into())
    }
}

fn dnsmasq(
    lab: &Lab,
    namespace: &Namespace,
    address: IpAddr,
    configuration: &str,
) -> Result<Command> {
    let file = lab.path(&format!("dnsmasq-{address}.conf"));
    std::fs::write(
        &file,
        format!("no-resolv\nno-hosts\nbind-interfaces\nlisten-address={address}\n{configuration}"),
    )?;
    let mut command = namespace.command("dnsmasq");
    command
        .args(["--keep-in-foreground", "--user=root", "--pid-file", "-C"])
        .arg(file);
    Ok(command)
}

impl Group {
    /// A command that runs in the group and asks this resolver for names, and no file.
    ///
    /// # Errors
    /// The lab's directory cannot be written.
    pub fn resolving(
        &self,
        lab: &Lab,
        resolver: IpAddr,
        program: impl AsRef<std::ffi::OsStr>,
    ) -> Result<Command> {
        let conf = lab.path(&format!("resolv-{resolver}.conf"));
        std::fs::write(
            &conf,
            format!("nameserver {resolver}\noptions timeout:1 attempts:2\n"),
        )?;
        let mut command = self.command(&lab.host, "unshare");
        over(&mut command, &[(&conf, "/etc/resolv.conf")]);
        command.arg(program);
        Ok(command)
    }
}

/// Arguments of unshare(1) that start a program which sees other files in these places.
fn over(command: &mut Command, files: &[(&Path, &str)]) {
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    let mounts: String = files
        .iter()
        .map(|(file, place)| format!("mount --bind '{}' {place} && ", file.display()))
        .collect();
    command.arg(format!("{mounts} exec \"$0\" \"$@\""));
}

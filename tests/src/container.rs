//! A container made by hand.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Group, Namespace, SITE_V4, SITE_V6, netns, succeed};

/// Processes with user, pid, mount and network namespaces of their own, in a group, and with a
/// wire to the site. Its root is nobody on the host. It ends when it is dropped.
#[derive(Debug)]
pub struct Container {
    child: Child,
    /// Its first process, as the host knows it.
    pub init: u32,
    /// Its address.
    pub address: IpAddr,
    /// The site's end of its wire.
    pub device: String,
    site: String,
}

impl Container {
    /// The user that its root is on the host.
    pub const USER: u32 = 65_534;

    /// Starts one. Those of the same site need different numbers; its address is
    /// 10.98.NUMBER.1, and the site's servers are where they are for everybody.
    ///
    /// # Errors
    /// As unshare(1) and `ip`.
    pub fn start(group: &Group, site: &Namespace, number: u8) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#])
            .arg(group.path())
            .arg("setpriv")
            .args([
                format!("--reuid={}", Self::USER),
                format!("--regid={}", Self::USER),
            ])
            .args(["--clear-groups", "unshare", "--user", "--map-root-user"])
            .args(["--pid", "--fork", "--kill-child", "--mount", "--net"])
            .args(["sh", "-c", "ip link set lo up && echo up && exec sleep inf"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a container")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let mut container = Self {
            init: 0,
            address: Ipv4Addr::new(10, 98, number, 1).into(),
            device: format!("box{number}"),
            site: site.name.clone(),
            child,
        };
        ensure!(line == "up\n", "the container did not start");
        let pid = container.child.id();
        container.init = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?
            .trim()
            .parse()
            .context("the container's first process")?;
        let init = container.init.to_string();
        let (v4, v6) = (
            |host: u8| format!("10.98.{number}.{host}"),
            |host: u8| format!("fd98:{number}::{host}"),
        );
        let device = container.device.as_str();
        site.ip(&[
            "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", &init,
        ])?;
        site.ip(&["addr", "add", &format!("{}/24", v4(2)), "dev", device])?;
        site.ip(&[
            "addr",
            "add",
            &format!("{}/64", v6(2)),
            "dev",
            device,
            "nodad",
        ])?;
        site.ip(&["link", "set", device, "up"])?;
        let own = |arguments: &[&str]| {
            succeed(
                Command::new("nsenter")
                    .args(["--target", &init, "--net", "ip"])
                    .args(arguments),
            )
        };
        own(&["addr", "add", &format!("{}/24", v4(1)), "dev", "eth0"])?;
        own(&[
            "addr",
            "add",
            &format!("{}/64", v6(1)),
            "dev",
            "eth0",
            "nodad",
        ])?;
        own(&["link", "set", "eth0", "up"])?;
        own(&["route", "add", &SITE_V4.to_string(), "via", &v4(2)])?;
        own(&["-6", "route", "add", &SITE_V6.to_string(), "via", &v6(2)])?;
        Ok(container)
    }

    /// A command that runs in it, as its root, and in the group. It joins before its program
    /// starts.
    pub fn command(&self, group: &Group, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#])
            .arg(group.path())
            .args(["nsenter", "--target", &self.init.to_string()])
            .args(["--user", "--pid", "--mount", "--net", "--"])
            .arg(program);
        command
    }

    /// Runs a function on a thread in its network namespace.
    ///
    /// # Errors
    /// It has ended.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = format!("/proc/{}/ns/net", self.init);
        netns::enter(namespace.as_ref(), work)
    }

    /// Ends it, as its runtime would.
    ///
    /// # Errors
    /// As kill(2).
    pub fn end(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Does its network namespace exist? The kernel removes both ends of the wire with it.
    pub fn has_namespace(&self) -> bool {
        succeed(Command::new("ip").args(["-n", &self.site, "link", "show", "dev", &self.device]))
            .is_ok()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

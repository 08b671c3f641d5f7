//! Network namespaces.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, setns},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tempfile::TempDir;

use crate::{Authority, succeed, sweep};

/// The host's address on the wire.
pub const HOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
/// The site's.
pub const SITE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
/// The host's address on the wire.
pub const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1));
/// The site's.
pub const SITE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2));

const BPFFS: &str = "/sys/fs/bpf";
/// Where the daemon keeps its pins.
pub(crate) const PINS: &str = "/sys/fs/bpf/mantled";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Two namespaces, a directory and a certificate authority.
#[derive(Debug)]
pub struct Lab {
    /// Daemon and agents.
    pub host: Namespace,
    /// Servers.
    pub site: Namespace,
    /// Signs the servers' certificates; its own is `ca.pem` in [`Lab::dir`].
    pub authority: Authority,
    directory: TempDir,
    unmount_bpffs: bool,
}

impl Lab {
    /// Sets it up.
    ///
    /// # Errors
    /// No root, no `ip`, no working kernel.
    pub fn new() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab needs root");
        }
        sweep::sweep()?;
        let doctor = Command::new(crate::mantled()?).arg("doctor").output()?;
        if !doctor.status.success() {
            bail!(
                "this host cannot run mantled:\n{}",
                String::from_utf8_lossy(&doctor.stdout)
            );
        }
        let mounted = bpffs_is_mounted();
        let directory = tempfile::Builder::new()
            .prefix(&format!("mantled-lab-{}-", std::process::id()))
            .tempdir()?;
        // Servers that drop root read their certificates here.
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let authority = Authority::new("mantled lab")?;
        std::fs::write(directory.path().join("ca.pem"), authority.pem())?;
        let tag = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let host = Namespace::new(&format!("mantled-host-{tag}"))?;
        let site = Namespace::new(&format!("mantled-site-{tag}"))?;
        ip(&[
            "link", "add", "wire", "netns", &host.name, "type", "veth", "peer", "name", "wire",
            "netns", &site.name,
        ])?;
        for (namespace, v4, v6) in [(&host, HOST_V4, HOST_V6), (&site, SITE_V4, SITE_V6)] {
            namespace.ip(&["addr", "add", &format!("{v4}/24"), "dev", "wire"])?;
            namespace.ip(&["addr", "add", &format!("{v6}/64"), "dev", "wire", "nodad"])?;
            namespace.ip(&["link", "set", "wire", "up"])?;
        }
        Ok(Self {
            host,
            site,
            authority,
            directory,
            unmount_bpffs: !mounted,
        })
    }

    /// A directory for this lab's files.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.unmount_bpffs {
            // The daemon mounts it where it is missing; in use by somebody else it stays.
            let _ = std::fs::remove_dir(PINS);
            if !Path::new(PINS).exists() {
                let _ = umount(BPFFS);
            }
        }
    }
}

fn bpffs_is_mounted() -> bool {
    statfs(BPFFS).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts the bpf file system where it is missing, as systemd does when it boots.
///
/// # Errors
/// It cannot be mounted.
pub(crate) fn mount_bpffs() -> Result<()> {
    if bpffs_is_mounted() {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .context("mount the bpf file system")
}

/// A network namespace; deleted when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    /// As `ip netns` knows it.
    pub name: String,
}

impl Namespace {
    /// Makes one, with loopback up.
    ///
    /// # Errors
    /// As `ip netns add`.
    pub fn new(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let namespace = Self {
            name: name.to_owned(),
        };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The file that names it.
    pub fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// As `ip`.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// A command that runs in it. Unlike `ip netns exec` this keeps the mounts, cgroup2 among
    /// them.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.file().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a function on a thread in it.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter(&self.file(), work)
    }
}

/// Runs a function on a thread in the network namespace that a file names.
pub(crate) fn enter<T: Send>(file: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = File::open(file)?;
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("setns")?;
                Ok(work())
            })
            .join()
            .map_err(|_| anyhow::anyhow!("the thread in {} panicked", file.display()))?
    })
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    succeed(Command::new("ip").args(arguments))
}

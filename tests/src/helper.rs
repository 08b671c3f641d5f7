//! The daemon and its helper as their units run them: users of their own, each with a few
//! capabilities.

use std::{
    fs,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{PermissionsExt as _, chown},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};

use crate::{
    Lab, mantled,
    netns::{PINS, mount_bpffs},
};

/// The daemon's user.
pub const DAEMON_USER: u32 = 61_001;

/// The helper's user.
pub const HELPER_USER: u32 = 61_002;

/// Keeps /proc and /run/mantled from the daemon, and shows it its pins, as its unit does, and becomes
/// the rest. `$0` is the daemon's user, `$1` an empty directory, `$2` the helper's socket.
const UNIT: &str = r#"
user=$0 aside=$1 helper=$2
shift 2
mount --bind /sys/fs/bpf/mantled "$aside"
mount -t tmpfs -o mode=755,uid="$user" tmpfs /run/mantled
mount -t proc -o hidepid=invisible,subset=pid proc /proc
exec "$@" --helper "$helper" --pins "$aside"
"#;

/// The capabilities that a unit's file gives, without `CAP_` and in lower case.
///
/// # Errors
/// It gives none.
pub fn capabilities(unit: &str) -> Result<Vec<String>> {
    let given = unit
        .lines()
        .find_map(|line| line.strip_prefix("AmbientCapabilities="))
        .context("the unit gives no capabilities")?;
    Ok(given
        .split(' ')
        .map(|name| name.trim_start_matches("CAP_").to_lowercase())
        .collect())
}

/// `setpriv` with arguments: what follows runs as `user` with these capabilities and no others.
fn as_user(user: u32, capabilities: &[String]) -> Vec<String> {
    let list = capabilities
        .iter()
        .fold("-all".to_owned(), |list, name| format!("{list},+{name}"));
    vec![
        "setpriv".to_owned(),
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".to_owned(),
        "--no-new-privs".to_owned(),
        format!("--bounding-set={list}"),
        format!("--inh-caps={list}"),
        format!("--ambient-caps={list}"),
    ]
}

/// What a [`crate::Daemon`] is to be started under, so that it runs as its unit does, with these
/// capabilities.
///
/// # Errors
/// The bpf file system cannot be mounted, or its directories cannot be made.
pub fn as_unit(lab: &Lab, capabilities: &[String]) -> Result<Vec<String>> {
    // What the boot, mantled-prepare.service, StateDirectory= and LogsDirectory= do.
    mount_bpffs()?;
    for directory in [PINS.into(), lab.path("state"), lab.path("records")] {
        fs::create_dir_all(&directory)?;
        chown(&directory, Some(DAEMON_USER), Some(DAEMON_USER))?;
    }
    let aside = lab.path("aside");
    fs::create_dir_all(&aside)?;
    fs::create_dir_all("/run/mantled")?;
    let mut under: Vec<String> = ["unshare", "--mount", "sh", "-ec", UNIT]
        .map(str::to_owned)
        .into();
    under.push(DAEMON_USER.to_string());
    under.push(aside.display().to_string());
    under.push(socket_of(lab).display().to_string());
    under.extend(as_user(DAEMON_USER, capabilities));
    Ok(under)
}

fn socket_of(lab: &Lab) -> PathBuf {
    lab.path("helper.sock")
}

/// `mantled helper` on the lab's host; ended when it is dropped.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    /// As systemd keeps it: who connects while no helper runs waits for the next.
    listener: OwnedFd,
    start: Vec<String>,
    log: PathBuf,
    socket: PathBuf,
}

impl Helper {
    /// Starts it with these capabilities, to answer `client` alone.
    ///
    /// # Errors
    /// Its socket cannot be made, or it cannot be started.
    pub fn start(lab: &Lab, capabilities: &[String], client: u32) -> Result<Self> {
        let socket = socket_of(lab);
        let _ = fs::remove_file(&socket);
        let listener = seqpacket()?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&socket)?)?;
        listen(&listener, Backlog::new(64)?)?;
        // So that it is the helper itself who refuses strangers.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
        let mut start = vec![format!("--net={}", lab.host.file().display())];
        start.extend(as_user(HELPER_USER, capabilities));
        start.push(mantled()?.display().to_string());
        start.extend(["helper", "--client", &client.to_string()].map(str::to_owned));
        let log = lab.path("helper.log");
        Ok(Self {
            child: spawn(&start, &listener, &log)?,
            listener,
            start,
            log,
            socket,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A connection to it.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(&self) -> Result<OwnedFd> {
        let connection = seqpacket()?;
        connect(connection.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        Ok(connection)
    }

    /// Kills it as a crash would. Its socket stays.
    ///
    /// # Errors
    /// As kill(2).
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.start, &self.listener, &self.log)?;
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn spawn(start: &[String], listener: &OwnedFd, log: &PathBuf) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(log)?;
    Command::new("nsenter")
        .args(start)
        .stdin(Stdio::from(listener.try_clone()?))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting mantled helper")
}

fn seqpacket() -> Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

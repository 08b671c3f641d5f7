//! The lab: a disposable world in which the real daemon meets real servers and clients.
//!
//! A [`Lab`] is two network namespaces joined by a veth pair: "the host" with daemon and agents,
//! "the site" with servers. A [`Group`] is a cgroup for agents, and a [`Container`] is one more place
//! for them. [`Daemon`] runs the real binary.
//! A [`Machine`] is a Debian that systemd has booted on the host's end of the wire; [`Installed`] is
//! one with the real [`Package`] and a legacy agent as a unit. A [`Load`] is an agent that makes so
//! many connections a second. Everything ends and is removed when it is dropped.
//!
//! The tests need root and a kernel that runs mantled's programs. Where these are missing a test
//! says so and passes; in CI (`CI=true`) it fails.

mod capture;
mod certificates;
mod clients;
mod container;
mod daemon;
mod dns;
mod group;
mod held;
mod helper;
mod installed;
mod load;
mod machine;
mod netns;
mod package;
mod postgres;
mod program;
mod server;
mod sweep;
mod tds;

pub use capture::{Capture, assert_clean};
pub use certificates::{Authority, Leaf};
pub use clients::{PostgresClient, SslMode, python_client, python_program};
pub use container::Container;
pub use daemon::Daemon;
pub use dns::FalseResolver;
pub use group::Group;
pub use held::Held;
pub use helper::{DAEMON_USER, HELPER_USER, Helper, as_unit, capabilities};
pub use installed::Installed;
pub use load::{Load, Tally};
pub use machine::Machine;
pub use netns::{HOST_V4, HOST_V6, Lab, Namespace, SITE_V4, SITE_V6};
pub use package::Package;
pub use postgres::{PASSWORD, Postgres};
pub use program::{MAIL_PASSWORD, Program, delivered};
pub use server::Server;
pub use tds::{TdsPeer, TdsVersion};

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// A lab, or the end of the calling test where the world is missing.
#[macro_export]
macro_rules! lab {
    () => {
        match $crate::Lab::new() {
            Ok(lab) => lab,
            Err(error) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "the lab cannot be set up: {error:#}"
                );
                eprintln!("SKIPPED: the lab cannot be set up: {error:#}");
                return Ok(());
            }
        }
    };
}

/// The binary under test: `MANTLED_BIN`, else the debug build.
///
/// # Errors
/// It is not there.
pub fn mantled() -> Result<PathBuf> {
    let path = std::env::var_os("MANTLED_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/debug/mantled"),
        PathBuf::from,
    );
    path.canonicalize().with_context(|| {
        format!(
            "{} is missing; `cargo xtask test` builds it",
            path.display()
        )
    })
}

/// By what limits are multiplied: `MANTLED_LAB_PATIENCE`, for a machine that is emulated; else 1.
/// What a test measures itself goes through this too.
pub fn patience() -> u32 {
    std::env::var("MANTLED_LAB_PATIENCE")
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(1)
}

/// Runs a command to its end, at most `limit`, and returns what it printed.
///
/// # Errors
/// It cannot be started, or does not end in time; then it is killed.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    wait(child, limit).with_context(|| format!("{command:?}"))
}

/// Runs a command that must succeed, and returns its standard output.
///
/// # Errors
/// As [`run`], or another exit code than 0.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = run(command, Duration::from_secs(60))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for a child whose output is piped.
///
/// # Errors
/// It does not end in time; then it is killed.
pub fn wait(child: Child, limit: Duration) -> Result<Output> {
    let limit = limit * patience();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(limit) {
        Ok(output) => Ok(output?),
        Err(_) => {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            bail!("did not end in {limit:?}");
        }
    }
}

/// Polls until `done` gives a value.
///
/// # Errors
/// It does not in `limit`; `what` says what was awaited.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> Option<T>,
) -> Result<T> {
    let limit = limit * patience();
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the daemon has pinned this.
pub fn pinned(name: &str) -> String {
    let version = mantled_redirect::abi::VERSION;
    format!("/sys/fs/bpf/mantled/v{version}/{name}")
}

//! `mantled exec`: a command in a cgroup of its own.
//!
//! The daemon enrols that cgroup where one runs ([`with_daemon`]). Else, or with a configuration of
//! its own, this process is its own interceptor; then nothing is pinned: when this process and its
//! guard are gone, everything is.

mod with_daemon;

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use mantled_record::SessionRecord;
use mantled_redirect::{cgroup::Cgroup, spawn, sys};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    signal::unix::{self, SignalKind, signal},
    sync::{mpsc, watch},
};

use super::{Exit, load, no_helper, runtime};
use crate::{
    admin::lease,
    app::{App, Options, open_log},
    config::{Config, DEFAULT_SOCKET, Mode},
    enrollment::group,
    groups::EXEC,
    helper::Helper,
    summary::describe,
};

const NO_SESSIONS: &str = "mantled: the command made no connections beyond this host";

/// Exit code of a command that cannot be started, as shells have it.
const NOT_STARTED: u8 = 127;

/// Arguments of `mantled exec`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file; then the daemon is not asked. Without one, the daemon's, and the defaults
    /// where none runs.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the daemon is asked.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// What happens to connections that cannot be verified.
    #[arg(short, long, value_enum, default_value = "enforce")]
    mode: ModeArgument,
    /// Append the session records to this file.
    #[arg(short, long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// No summary at the end.
    #[arg(short, long)]
    quiet: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ModeArgument {
    /// They are refused.
    Enforce,
    /// They go on in clear, and the summary says so.
    Observe,
}

pub(super) fn run(arguments: Arguments, verbose: u8) -> Result<(), Exit> {
    let mode = match arguments.mode {
        ModeArgument::Enforce => Mode::Enforce,
        ModeArgument::Observe => Mode::Observe,
    };
    if arguments.config.is_none() && lease::is_served(&arguments.socket) {
        return with_daemon::run(&arguments, mode);
    }
    let config = match &arguments.config {
        Some(path) => load(path)?,
        None => Config::builtin(),
    };
    let output: Box<dyn io::Write + Send> = match &arguments.record {
        Some(file) => open_log(file)?,
        None => match config.record().file() {
            Some(file) => open_log(&file)?,
            // Standard output belongs to the command.
            None => Box::new(io::sink()),
        },
    };
    // Other groups of the configuration are the daemon's.
    let config = config.for_command();
    let settings = group(
        mode,
        config.on_daemon_down_for(mode),
        mode.default_inbound(),
    );

    let cgroup = create_cgroup()?;
    // From here on the guard clears the cgroup, whatever happens to this process.
    let guard = Guard::start(&cgroup)?;
    let (copies, records) = mpsc::unbounded_channel();
    let options = Options {
        pins: None,
        helper: Helper::at(None).map_err(no_helper)?,
        debug: verbose > 1,
        copies: Some(copies),
        lock: None,
        predecessor: None,
    };
    let mut app = App::build(config, output, options)?;
    app.enroll(&cgroup, settings)?;
    guard.hold(&app.interceptor.link_fds())?;

    let runtime = runtime()?;
    let status = runtime.block_on(serve(app, &arguments.command, &cgroup, guard));
    // A writer that hangs must not keep the process.
    runtime.shutdown_background();
    let status = status?;
    if !arguments.quiet {
        summarise(records);
    }
    exit_as(status)
}

fn create_cgroup() -> Result<Cgroup, Exit> {
    Ok(Cgroup::create_below_own(&format!(
        "{EXEC}{}",
        std::process::id()
    ))?)
}

/// As the command has ended.
fn exit_as(status: ExitStatus) -> Result<(), Exit> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Exit::code(code as u8)),
        // As shells have it.
        None => Err(Exit::code(128 + status.signal().unwrap_or(0) as u8)),
    }
}

async fn serve(
    app: App,
    command: &[OsString],
    cgroup: &Cgroup,
    guard: Guard,
) -> Result<ExitStatus, Exit> {
    let failed = |what: &str, error: io::Error| Exit::failed(format!("{what}: {error}"));
    let (stop, stopped) = watch::channel(false);
    let signals = Signals::new()?;
    let proxy = tokio::spawn(app.run(stopped));
    let status = signals.wait_for(start(command, cgroup)?).await?;
    // Whatever the command has left behind goes with it; then no session is left to drain.
    let cleared = tokio::task::spawn_blocking(move || guard.clear())
        .await
        .map_err(Exit::failed)?;
    let _ = stop.send(true);
    proxy
        .await
        .map_err(Exit::failed)?
        .map_err(|error| failed("the proxy", error))?;
    cleared?;
    Ok(status)
}

/// What is sent to this process while the command runs.
struct Signals {
    terminate: unix::Signal,
    /// The terminal sends it to the command as well, which decides what it means.
    _interrupt: unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Exit> {
        let failed = |error: io::Error| Exit::failed(format!("signals: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            _interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn wait_for(mut self, mut child: Child) -> Result<ExitStatus, Exit> {
        let pid = Pid::from_raw(child.id() as i32);
        let mut waiting = tokio::task::spawn_blocking(move || child.wait());
        loop {
            tokio::select! {
                status = &mut waiting => {
                    return status
                        .map_err(io::Error::other)
                        .flatten()
                        .map_err(|error| Exit::failed(format!("waiting for the command: {error}")));
                }
                _ = self.terminate.recv() => {
                    let _ = kill(pid, Signal::SIGTERM);
                }
            }
        }
    }
}

/// Starts the command on this thread, the main one: the command dies with the thread that
/// started it.
fn start(command: &[OsString], cgroup: &Cgroup) -> Result<Child, Exit> {
    let [program, arguments @ ..] = command else {
        return Err(Exit::code(super::INVALID));
    };
    let mut command = Command::new(program);
    command.args(arguments);
    spawn::inside(&mut command, cgroup)
        .and_then(|()| command.spawn())
        .map_err(|error| Exit {
            code: NOT_STARTED,
            message: Some(format!("{}: {error}", program.display())),
        })
}

/// The process that outlives this one.
///
/// Dropped or cleared, it is waited for: what comes after finds the cgroup gone.
struct Guard {
    child: Child,
    /// None once it was told to clear.
    socket: Option<UnixStream>,
}

impl Guard {
    fn start(cgroup: &Cgroup) -> Result<Self, Exit> {
        let started = (|| {
            let (socket, theirs) = UnixStream::pair()?;
            let child = Command::new("/proc/self/exe")
                .arg("guard")
                .arg(cgroup.path())
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::null())
                // The terminal's signals are not for it.
                .process_group(0)
                .spawn()?;
            io::Result::Ok(Self {
                child,
                socket: Some(socket),
            })
        })();
        started.map_err(|error| {
            let _ = std::fs::remove_dir(cgroup.path());
            Exit::failed(format!("starting the guard: {error}"))
        })
    }

    /// Gives it copies of what the group's protection hangs on.
    fn hold(&self, held: &[BorrowedFd<'_>]) -> Result<(), Exit> {
        let socket = self
            .socket
            .as_ref()
            .ok_or_else(|| Exit::failed("the guard is gone"))?;
        sys::send_descriptors(socket, held)
            .map_err(|error| Exit::failed(format!("handing the links to the guard: {error}")))
    }

    /// Lets it clear the cgroup, and waits until it has.
    fn clear(mut self) -> Result<(), Exit> {
        self.socket = None;
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Exit::failed(format!("the guard ended with {status}"))),
            Err(error) => Err(Exit::failed(format!("waiting for the guard: {error}"))),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.socket.take().is_some() {
            let _ = self.child.wait();
        }
    }
}

/// One line a session, on standard error.
fn summarise(mut records: mpsc::UnboundedReceiver<SessionRecord>) {
    let mut sessions = 0_u64;
    while let Ok(record) = records.try_recv() {
        sessions += 1;
        eprintln!("mantled: {}", describe(&record));
    }
    if sessions == 0 {
        eprintln!("{NO_SESSIONS}");
    }
}

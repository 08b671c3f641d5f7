//! The command line: one subcommand a file.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or invalid configuration, 3 refused by policy, 4 missing
//! kernel feature or privilege.

mod ca;
mod check;
mod completions;
mod detach;
mod doctor;
mod enroll;
mod exec;
mod guard;
mod helper;
mod man;
mod policy;
mod run;
mod status;
mod survey;
mod top;
mod upgrade;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{app::StartError, journal::Journal};

/// Puts plaintext agents behind verified TLS, policy and a complete record, with no change to
/// the agents.
#[derive(Debug, Parser)]
#[command(name = "mantled", version, propagate_version = true)]
struct Arguments {
    /// More of what happens, on standard error; twice for the kernel programs too.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run(run::Arguments),
    /// Run a command in a fresh enrolled cgroup, with everything it connects to behind TLS.
    Exec(exec::Arguments),
    /// Look who speaks with whom, in clear or in TLS, and what enforcing would do; nothing is
    /// redirected.
    Survey(survey::Arguments),
    /// Enrol a group of processes, or change how it is enrolled, while the daemon runs.
    Enroll(enroll::Arguments),
    /// End what `enroll` began.
    Withdraw(enroll::WithdrawArguments),
    /// What is enrolled, and how it goes.
    Status(status::Arguments),
    /// Groups, rates, refusals and sessions, as they change.
    Top(top::Arguments),
    /// Have the daemon read its configuration again; a wrong one changes nothing.
    Reload(upgrade::Arguments),
    /// Have the program that is installed now take over from the daemon; no connection is refused.
    Upgrade(upgrade::Arguments),
    /// Check a configuration file; every error at once.
    Check(check::Arguments),
    /// Check, test and explain policies.
    Policy(policy::Arguments),
    /// The authority of this host, for routes with `tls = "terminate"`.
    Ca(ca::Arguments),
    /// Check what this host offers: kernel, cgroups, privileges.
    Doctor(doctor::Arguments),
    /// Detach every program and remove every pin, also of a dead daemon.
    Detach(detach::Arguments),
    /// Print what lets a shell complete the command line.
    Completions(completions::Arguments),
    /// Print the manual page, or write all of them.
    Man(man::Arguments),
    /// Look at processes for a daemon that must not; started by mantled-helper.socket.
    Helper(helper::Arguments),
    /// Keeps `exec`'s programs attached until its processes are gone.
    #[command(hide = true)]
    Guard(guard::Arguments),
}

/// What a subcommand can end with, apart from success.
#[derive(Debug)]
struct Exit {
    code: u8,
    message: Option<String>,
}

const FAILED: u8 = 1;
const INVALID: u8 = 2;
const REFUSED: u8 = 3;
const ENVIRONMENT: u8 = 4;

impl Exit {
    fn failed(message: impl std::fmt::Display) -> Self {
        Self {
            code: FAILED,
            message: Some(message.to_string()),
        }
    }

    fn invalid(message: impl std::fmt::Display) -> Self {
        Self {
            code: INVALID,
            message: Some(message.to_string()),
        }
    }

    /// The message is already where it belongs.
    fn code(code: u8) -> Self {
        Self {
            code,
            message: None,
        }
    }
}

impl From<StartError> for Exit {
    fn from(error: StartError) -> Self {
        let code = match error {
            StartError::Configuration(_) => INVALID,
            StartError::Environment(_) => ENVIRONMENT,
            StartError::Failed(_) => FAILED,
        };
        Self {
            code,
            message: Some(error.to_string()),
        }
    }
}

impl From<mantled_redirect::Error> for Exit {
    fn from(error: mantled_redirect::Error) -> Self {
        StartError::from(error).into()
    }
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(arguments.verbose);
    let result = match arguments.command {
        Command::Run(command) => run::run(&command, arguments.verbose),
        Command::Exec(command) => exec::run(command, arguments.verbose),
        Command::Survey(command) => survey::run(&command),
        Command::Enroll(command) => enroll::run(&command),
        Command::Withdraw(command) => enroll::withdraw(&command),
        Command::Status(command) => status::run(&command),
        Command::Top(command) => top::run(&command),
        Command::Reload(command) => upgrade::reload(&command),
        Command::Upgrade(command) => upgrade::upgrade(&command),
        Command::Check(command) => check::run(&command),
        Command::Policy(command) => policy::run(&command),
        Command::Ca(command) => ca::run(&command),
        Command::Doctor(command) => doctor::run(&command),
        Command::Detach(command) => detach::run(&command),
        Command::Completions(command) => completions::run(&command),
        Command::Man(command) => man::run(&command),
        Command::Helper(command) => helper::run(&command),
        Command::Guard(command) => guard::run(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            if let Some(message) = exit.message {
                eprintln!("mantled: {message}");
            }
            ExitCode::from(exit.code)
        }
    }
}

/// Logs go to standard error; standard output belongs to records and tables. `MANTLED_LOG` takes
/// tracing's directives.
fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "mantled=info,mantled_redirect=info",
        1 => "mantled=debug,mantled_redirect=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("MANTLED_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let registry = tracing_subscriber::registry().with(filter);
    // Where standard error is the journal, what is logged keeps its fields.
    if let Some(journal) = is_journal().then(Journal::connect).and_then(Result::ok) {
        registry.with(journal).init();
        return;
    }
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    registry.with(text).init();
}

/// Is standard error the journal's stream (systemd.exec(5), `$JOURNAL_STREAM`)?
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let stderr = nix::sys::stat::fstat(std::io::stderr());
    match (named, stderr) {
        (Some(named), Ok(stat)) => named == format!("{}:{}", stat.st_dev, stat.st_ino),
        _ => false,
    }
}

/// Loads a configuration; its errors are the message.
fn load(path: &std::path::Path) -> Result<crate::config::Config, Exit> {
    crate::config::Config::load(path).map_err(|errors| {
        eprintln!("{errors}");
        Exit::code(INVALID)
    })
}

/// A session takes two descriptors, and the usual soft limit is 1,024: takes what the hard limit
/// allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "the limit of open files stays");
    }
}

fn no_helper(error: std::io::Error) -> Exit {
    Exit::failed(format!(
        "starting the thread that enters network namespaces: {error}"
    ))
}

/// The event loop.
fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    raise_descriptor_limit();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("mantled")
        .build()
        .map_err(|error| Exit::failed(format!("starting the event loop: {error}")))
}

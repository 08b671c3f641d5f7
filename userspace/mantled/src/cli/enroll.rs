//! `mantled enroll` and `mantled withdraw`: one group at a time, while the daemon runs.

use std::path::PathBuf;

use mantled_redirect::cgroup;
use serde::de::DeserializeOwned;

use super::Exit;
use crate::{
    admin::{self, Reply, Request},
    config::{DEFAULT_SOCKET, Inbound, Mode, OnDown, Target},
};

/// Which group.
#[derive(Debug, clap::Args)]
struct Group {
    /// A unit ("shipper.service"), or a cgroup's path below the hierarchy's root
    /// ("/system.slice/x.service").
    #[arg(
        value_name = "UNIT|CGROUP",
        required_unless_present = "pid",
        conflicts_with = "pid"
    )]
    group: Option<String>,
    /// The cgroup of this process.
    #[arg(long)]
    pid: Option<u32>,
    /// Where the daemon is asked.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

impl Group {
    fn target(&self) -> Result<String, Exit> {
        let named = match (self.pid, &self.group) {
            (Some(pid), _) => cgroup::of_process(pid).map_err(|error| {
                Exit::invalid(format!("process {pid}: its cgroup cannot be told: {error}"))
            })?,
            (None, Some(group)) => group.clone(),
            (None, None) => return Err(Exit::code(super::INVALID)),
        };
        // The daemon says the same, but a mistake of typing is told without one.
        let target = Target::parse(&named).map_err(Exit::invalid)?;
        Ok(target.to_string())
    }
}

/// Arguments of `mantled enroll`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    group: Group,
    /// What is done to connections that cannot be verified.
    #[arg(short, long, value_name = "enforce|observe", value_parser = word::<Mode>)]
    mode: Mode,
    /// Whether servers inside of the group may answer peers [default: refuse in enforce mode].
    #[arg(long, value_name = "refuse|allow", value_parser = word::<Inbound>)]
    inbound: Option<Inbound>,
    /// What happens while the daemon is down [default: as the configuration says].
    #[arg(long, value_name = "closed|open", value_parser = word::<OnDown>)]
    on_daemon_down: Option<OnDown>,
}

/// A word of the configuration.
fn word<T: DeserializeOwned>(typed: &str) -> Result<T, String> {
    serde_json::from_value(typed.into()).map_err(|error| error.to_string())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let target = arguments.group.target()?;
    let request = Request::Enroll {
        target: target.clone(),
        mode: arguments.mode,
        inbound: arguments.inbound,
        on_daemon_down: arguments.on_daemon_down,
    };
    let Reply::Enrolled {
        cgroup,
        ended,
        listening,
    } = admin::ask(&arguments.group.socket, &request).map_err(Exit::failed)?
    else {
        return Err(Exit::failed("the daemon answered something else"));
    };
    let mode = arguments.mode.name();
    match cgroup {
        Some(cgroup) => println!("{target} is enrolled in {mode} mode: {cgroup}"),
        None => println!("{target} does not run; it is enrolled in {mode} mode when it starts"),
    }
    if ended > 0 {
        println!(
            "ended {ended} connections from before; the agent makes them again, through mantled"
        );
    }
    if arguments.mode == Mode::Observe {
        println!(
            "connections from before stay as they are, past mantled, until the agent makes them again"
        );
    }
    let refuses = arguments
        .inbound
        .unwrap_or(arguments.mode.default_inbound())
        == Inbound::Refuse;
    if refuses && !listening.is_empty() {
        println!(
            "it listens on {listening:?}, and its answers to other hosts are dropped; `--inbound allow` lets them pass"
        );
    }
    Ok(())
}

/// Arguments of `mantled withdraw`.
#[derive(Debug, clap::Args)]
pub(super) struct WithdrawArguments {
    #[command(flatten)]
    group: Group,
}

pub(super) fn withdraw(arguments: &WithdrawArguments) -> Result<(), Exit> {
    let target = arguments.group.target()?;
    let request = Request::Withdraw {
        target: target.clone(),
    };
    admin::ask(&arguments.group.socket, &request).map_err(Exit::failed)?;
    println!("{target} is not enrolled any more; sessions that are open go on to their end");
    Ok(())
}

//! `mantled enroll` and `mantled withdraw`: one group at a time, while the daemon runs.

use std::{path::PathBuf, time::Duration};

use mantled_redirect::cgroup;
use serde::de::DeserializeOwned;

use super::{Exit, survey::period};
use crate::{
    admin::{self, Reply, Request},
    config::{DEFAULT_SOCKET, Inbound, Mode, OnDown, Target},
    share::Share,
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
    #[arg(
        short,
        long,
        value_name = "enforce|observe",
        value_parser = word::<Mode>,
        required_unless_present = "confirm"
    )]
    mode: Option<Mode>,
    /// Whether servers inside of the group may answer peers [default: refuse in enforce mode].
    #[arg(long, value_name = "refuse|allow", value_parser = word::<Inbound>)]
    inbound: Option<Inbound>,
    /// What happens while the daemon is down [default: as the configuration says].
    #[arg(long, value_name = "closed|open", value_parser = word::<OnDown>)]
    on_daemon_down: Option<OnDown>,
    /// Go back to what was before after this time (`30s`, `10m`, `2h`), unless it is confirmed.
    #[arg(long = "for", value_name = "TIME", value_parser = period)]
    time: Option<Duration>,
    /// In observe mode: this share of the connections goes through mantled, the others as if it
    /// were not there.
    #[arg(long, value_name = "SHARE")]
    canary: Option<Share>,
    /// End the TCP connections that the group has, so that it makes them again, through mantled
    /// (enforce mode does that in any case).
    #[arg(long)]
    reset: bool,
    /// What was enrolled with `--for` is to stay.
    #[arg(
        long,
        conflicts_with_all = ["mode", "inbound", "on_daemon_down", "time", "canary", "reset"]
    )]
    confirm: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// A word of the configuration.
fn word<T: DeserializeOwned>(typed: &str) -> Result<T, String> {
    serde_json::from_value(typed.into()).map_err(|error| error.to_string())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let target = arguments.group.target()?;
    let Some(mode) = arguments.mode else {
        return confirm(arguments, target);
    };
    if mode == Mode::Enforce && arguments.canary.is_some_and(|share| share != Share::ALL) {
        return Err(Exit::invalid(
            "--canary is for observe mode: what is left out of it goes past mantled, and enforce lets nothing past",
        ));
    }
    let request = Request::Enroll {
        target: target.clone(),
        mode,
        inbound: arguments.inbound,
        on_daemon_down: arguments.on_daemon_down,
        canary: arguments.canary,
        reset: arguments.reset,
        revert_after: arguments.time.map(|time| time.as_secs()),
    };
    let reply = admin::ask(&arguments.group.socket, &request).map_err(Exit::failed)?;
    let Reply::Enrolled {
        cgroup,
        ended,
        staying,
        staying_with,
        listening,
    } = reply
    else {
        return Err(Exit::failed("the daemon answered something else"));
    };
    if arguments.json {
        print_json(&serde_json::json!({
            "target": target,
            "mode": mode,
            "canary": arguments.canary.unwrap_or(Share::ALL),
            "reverts_in_s": arguments.time.map(|time| time.as_secs()),
            "cgroup": cgroup,
            "ended": ended,
            "staying": staying,
            "staying_with": staying_with,
            "listening": listening,
        }));
        return Ok(());
    }
    let name = mode.name();
    match cgroup {
        Some(cgroup) => println!("{target} is enrolled in {name} mode: {cgroup}"),
        None => println!("{target} does not run; it is enrolled in {name} mode when it starts"),
    }
    if let Some(share) = arguments.canary.filter(|share| *share != Share::ALL) {
        println!("{share} of its connections go through mantled, the others as before");
    }
    if ended > 0 {
        println!(
            "ended {ended} connections from before; the agent makes them again, through mantled"
        );
    }
    if staying > 0 {
        let mut with: Vec<String> = staying_with.iter().map(ToString::to_string).collect();
        if staying > with.len() {
            with.push("...".to_owned());
        }
        println!(
            "{staying} connections from before stay as they are, past mantled, until the agent makes them again (`--reset` ends them): {}",
            with.join(", ")
        );
    }
    let refuses = arguments.inbound.unwrap_or(mode.default_inbound()) == Inbound::Refuse;
    if refuses && !listening.is_empty() {
        println!(
            "it listens on {listening:?}, and its answers to other hosts are dropped; `--inbound allow` lets them pass"
        );
    }
    if let Some(time) = arguments.time {
        println!(
            "in {} it is as it was before, unless you confirm it: mantled enroll {target} --confirm",
            duration(time)
        );
    }
    Ok(())
}

fn confirm(arguments: &Arguments, target: String) -> Result<(), Exit> {
    let request = Request::Confirm {
        target: target.clone(),
    };
    admin::ask(&arguments.group.socket, &request).map_err(Exit::failed)?;
    if arguments.json {
        print_json(&serde_json::json!({ "target": target, "confirmed": true }));
    } else {
        println!("{target} stays as it is enrolled");
    }
    Ok(())
}

fn print_json(value: &serde_json::Value) {
    println!("{value:#}");
}

/// As a person would write it.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let parts = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.join(" ")
    }
}

/// Arguments of `mantled withdraw`.
#[derive(Debug, clap::Args)]
pub(super) struct WithdrawArguments {
    #[command(flatten)]
    group: Group,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn withdraw(arguments: &WithdrawArguments) -> Result<(), Exit> {
    let target = arguments.group.target()?;
    let request = Request::Withdraw {
        target: target.clone(),
    };
    admin::ask(&arguments.group.socket, &request).map_err(Exit::failed)?;
    if arguments.json {
        print_json(&serde_json::json!({ "target": target, "withdrawn": true }));
    } else {
        println!("{target} is not enrolled any more; sessions that are open go on to their end");
    }
    Ok(())
}

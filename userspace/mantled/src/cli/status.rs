//! `mantled status`: what is enrolled, and how it goes.

use std::{path::PathBuf, time::Duration};

use super::{Exit, enroll::duration};
use crate::{
    admin::{self, GroupStatus, Reply, Request, Status},
    config::DEFAULT_SOCKET,
    share::Share,
};

/// Arguments of `mantled status`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Where the daemon is asked.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let reply = admin::ask(&arguments.socket, &Request::Status).map_err(Exit::failed)?;
    let Reply::Status(status) = reply else {
        return Err(Exit::failed("the daemon answered something else"));
    };
    if arguments.json {
        let text = serde_json::to_string_pretty(&status).map_err(Exit::failed)?;
        println!("{text}");
    } else {
        print(&status);
    }
    // A script that only looks at the exit code must hear of a group that is not protected.
    if status.groups.iter().any(|group| !group.detached.is_empty()) {
        return Err(Exit::failed("a group is not protected: see DETACHED above"));
    }
    Ok(())
}

fn print(status: &Status) {
    println!(
        "mantled {} (process {}): {} sessions open, {} since it started; {} records written, {} lost{}",
        status.version,
        status.pid,
        status.sessions_open,
        status.sessions,
        status.records_written,
        status.records_dropped,
        if status.records_failing {
            "; RECORDS CANNOT BE WRITTEN"
        } else {
            ""
        }
    );
    if status.groups.is_empty() {
        println!("no group is enrolled; `mantled enroll` enrols one");
        return;
    }
    let width = status
        .groups
        .iter()
        .map(|group| group.target.len())
        .max()
        .unwrap_or(0)
        .max("GROUP".len());
    println!(
        "{:width$}  {:7}  {:10}  {:>8}  {:>8}  {:>7}  {:>6}  {:>7}  {:>6}  {:>8}",
        "GROUP",
        "MODE",
        "STATE",
        "SESSIONS",
        "UPGRADED",
        "EXPOSED",
        "NATIVE",
        "REFUSED",
        "FAILED",
        "BYPASSES"
    );
    for group in &status.groups {
        let tally = &group.tally;
        println!(
            "{:width$}  {:7}  {:10}  {:>8}  {:>8}  {:>7}  {:>6}  {:>7}  {:>6}  {:>8}",
            group.target,
            group.mode.name(),
            state(group),
            tally.sessions,
            tally.upgraded,
            tally.exposed,
            tally.native,
            tally.refused,
            tally.failed,
            tally.bypass_attempts
        );
        if group.canary != Share::ALL || tally.left_out > 0 {
            println!(
                "  {} of its connections go through mantled; {} went past it",
                group.canary, tally.left_out
            );
        }
        if let (Some(left), Some(before)) = (group.reverts_in_s, &group.reverts_to) {
            let then = match before.as_str() {
                "not enrolled" => "withdrawn".to_owned(),
                mode => format!("in {mode} mode as before"),
            };
            println!(
                "  in {} it is {then}, unless you confirm it: mantled enroll {} --confirm",
                duration(Duration::from_secs(left)),
                group.target
            );
        }
        if !group.detached.is_empty() {
            println!(
                "  DETACHED: the kernel does not run {}; restart mantled, and see `mantled doctor`",
                group.detached.join(", ")
            );
        }
    }
}

fn state(group: &GroupStatus) -> &'static str {
    match &group.cgroup {
        None => "not there",
        Some(_) if group.detached.is_empty() => "attached",
        Some(_) => "DETACHED",
    }
}

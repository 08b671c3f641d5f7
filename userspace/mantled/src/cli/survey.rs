//! `mantled survey`: look before anything is touched.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use mantled_redirect::cgroup::Cgroup;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{Exit, INVALID, load, runtime};
use crate::{
    config::{Config, DEFAULT_PATH, Target},
    survey::{Destination, Survey},
};

/// Arguments of `mantled survey`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file, for its groups, routes, trust and resolvers; without one, the usual one
    /// where it exists.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long: `30s`, `10m`, `2h`. Without it, until it is interrupted.
    #[arg(long = "for", value_name = "TIME", value_parser = period)]
    time: Option<Duration>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Do not ask the servers for TLS.
    #[arg(long)]
    no_probe: bool,
    /// systemd units or cgroups; without any, those that the configuration enrols.
    #[arg(value_name = "UNIT|CGROUP")]
    groups: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let config = match &arguments.config {
        Some(path) => load(path)?,
        None if Path::new(DEFAULT_PATH).exists() => load(Path::new(DEFAULT_PATH))?,
        None => Config::builtin(),
    };
    let groups = groups(arguments, &config)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let survey = Survey::start(config, &groups)?;
        eprintln!(
            "mantled: looking at {} group{}{}",
            groups.len(),
            if groups.len() == 1 { "" } else { "s" },
            if arguments.time.is_none() {
                "; end with Ctrl-C"
            } else {
                ""
            }
        );
        wait(arguments.time).await?;
        let seen = survey.finish(!arguments.no_probe).await?;
        // A reader that has gone wants no more.
        let _ = if arguments.json {
            writeln!(io::stdout(), "{:#}", as_json(&seen))
        } else {
            print(&seen)
        };
        Ok(())
    })
}

/// The groups that were named, or else those of the configuration.
fn groups(arguments: &Arguments, config: &Config) -> Result<Vec<Cgroup>, Exit> {
    let mut groups = Vec::new();
    for named in &arguments.groups {
        groups.push(if named.starts_with('/') {
            Cgroup::open(Path::new(named))?
        } else {
            Cgroup::of_unit(named)?
        });
    }
    if arguments.groups.is_empty() {
        for enrollment in config.enrollments() {
            match enrollment.target() {
                Target::Cgroup(path) => groups.push(Cgroup::open(Path::new(path.as_str()))?),
                Target::Unit(unit) => match Cgroup::of_unit(unit.as_str()) {
                    Ok(cgroup) => groups.push(cgroup),
                    Err(error) => eprintln!("mantled: {}: {error}", unit.as_str()),
                },
            }
        }
    }
    if groups.is_empty() {
        return Err(Exit {
            code: INVALID,
            message: Some(
                "there is no group to look at; name units or cgroups, as in \
                 `mantled survey --for 60s shipper.service`, or write [[enroll]] tables"
                    .to_owned(),
            ),
        });
    }
    Ok(groups)
}

async fn wait(time: Option<Duration>) -> Result<(), Exit> {
    let failed = |error: io::Error| Exit::failed(format!("signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = sleep(time.unwrap_or_default()), if time.is_some() => {}
    }
    Ok(())
}

fn print(seen: &[Destination]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if seen.is_empty() {
        return writeln!(out, "nothing was sent beyond this host");
    }
    for destination in seen {
        let who = destination.process.as_ref().map_or_else(
            || destination.group.clone(),
            |(pid, name)| format!("{name} ({pid})"),
        );
        let name = match destination.names.as_slice() {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        };
        writeln!(
            out,
            "{who} {} {}{name}, {} {}",
            if destination.inbound { "<-" } else { "->" },
            destination.address,
            destination.transport,
            destination.protocol.unwrap_or("(unknown)"),
        )?;
        writeln!(
            out,
            "    {} connections, {} in clear, {} TLS; {} B out, {} B in",
            destination.connections,
            destination.clear,
            destination.tls,
            destination.sent,
            destination.received
        )?;
        writeln!(out, "    {}", destination.outcome.sentence())?;
    }
    Ok(())
}

fn as_json(seen: &[Destination]) -> serde_json::Value {
    seen.iter()
        .map(|destination| {
            serde_json::json!({
                "process.linux.cgroup": destination.group,
                "process.pid": destination.process.as_ref().map(|(pid, _)| pid),
                "process.executable.name": destination.process.as_ref().map(|(_, name)| name),
                "network.peer.address": destination.address.ip().to_string(),
                "server.port": destination.address.port(),
                "mantled.names": destination.names,
                "network.transport": destination.transport,
                "network.protocol.name": destination.protocol,
                "mantled.inbound": destination.inbound,
                "mantled.connections": destination.connections,
                "mantled.connections.clear": destination.clear,
                "mantled.connections.tls": destination.tls,
                "mantled.bytes.sent": destination.sent,
                "mantled.bytes.received": destination.received,
                "mantled.enforce": destination.outcome.name(),
                "mantled.reason": destination.outcome.sentence(),
            })
        })
        .collect()
}

/// A duration as it is typed.
pub(super) fn period(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok();
    number
        .zip(seconds)
        .and_then(|(number, seconds)| number.checked_mul(seconds))
        .filter(|seconds| (1..=31 * 86_400).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "write a time such as 60s, 10m or 2h".to_owned())
}

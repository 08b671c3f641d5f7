//! `mantled policy`: check, test and explain policies.

mod replay;
mod test;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use mantled_policy::{Decision, SCHEMA};
use mantled_record::{Process, TlsFacts};
use serde_json::Value;

use super::{Exit, load};
use crate::{
    config::{Config, DEFAULT_PATH},
    policy::{Case, Rules, Way, denial},
};

/// Arguments of `mantled policy`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// Configuration file, whose [policy] dir and [record] dir are used.
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The directory of the policies, whatever the configuration says.
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Check every policy; every error at once.
    Check,
    /// Print what policies may speak of, as a Cedar schema.
    Schema,
    /// Run the cases that lie beside the policies (*.test.toml).
    Test,
    /// What the policies of now say of a session that was recorded.
    Explain {
        /// The session.id of its record.
        session: String,
        /// The file of its record, whatever the configuration says.
        #[arg(long, value_name = "FILE")]
        records: Option<PathBuf>,
    },
    /// What the policies of now would have said of every session that was recorded, where that is
    /// something else. Each is judged at the time at which it was opened.
    Replay {
        /// The file of the records, whatever the configuration says.
        #[arg(long, value_name = "FILE")]
        records: Option<PathBuf>,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    match &arguments.action {
        Action::Schema => {
            print!("{SCHEMA}");
            Ok(())
        }
        Action::Check => {
            let (dir, rules) = rules(arguments)?;
            println!(
                "{}: valid ({} policies)",
                dir.display(),
                rules.count().unwrap_or_default()
            );
            Ok(())
        }
        Action::Test => {
            let (dir, rules) = rules(arguments)?;
            test::run(&dir, &rules)
        }
        Action::Explain { session, records } => {
            let (_, rules) = rules(arguments)?;
            explain(&rules, &record_file(arguments, records.as_ref())?, session)
        }
        Action::Replay { records, json } => {
            let (_, rules) = rules(arguments)?;
            replay::run(&rules, &record_file(arguments, records.as_ref())?, *json)
        }
    }
}

/// The file that is named, else the one that the configuration says.
fn record_file(arguments: &Arguments, named: Option<&PathBuf>) -> Result<PathBuf, Exit> {
    match named {
        Some(file) => Ok(file.clone()),
        None => configuration(arguments)?.record().file().ok_or_else(|| {
            Exit::invalid("records go to standard output; name their file with --records")
        }),
    }
}

fn configuration(arguments: &Arguments) -> Result<Config, Exit> {
    load(
        arguments
            .config
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_PATH)),
    )
}

fn rules(arguments: &Arguments) -> Result<(PathBuf, Rules), Exit> {
    let dir = match &arguments.dir {
        Some(dir) => dir.clone(),
        None => configuration(arguments)?
            .policy()
            .dir
            .clone()
            .ok_or_else(|| {
                Exit::invalid(
                    "the configuration has no [policy] dir; name the directory with --dir",
                )
            })?,
    };
    let rules = Rules::load(Some(&dir)).map_err(Exit::invalid)?;
    Ok((dir, rules))
}

fn explain(rules: &Rules, file: &Path, session: &str) -> Result<(), Exit> {
    let failed = |error: std::io::Error| Exit::failed(format!("{}: {error}", file.display()));
    let lines = BufReader::new(fs::File::open(file).map_err(failed)?).lines();
    for line in lines {
        let line = line.map_err(failed)?;
        if !line.contains(session) {
            continue;
        }
        let Ok(record) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if record["session.id"] == session {
            return tell(rules, &record);
        }
    }
    Err(Exit::failed(format!(
        "{} has no session {session}",
        file.display()
    )))
}

fn tell(rules: &Rules, record: &Value) -> Result<(), Exit> {
    let (connect, open) = cases(record).ok_or_else(|| {
        Exit::failed("the record tells neither process nor destination: nobody was asked about it")
    })?;
    println!(
        "recorded: {}{}",
        record["mantled.verdict"].as_str().unwrap_or("unknown"),
        record["mantled.reason"]
            .as_str()
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default()
    );
    let mut allowed = true;
    for (name, case) in [("connect", Some(connect)), ("open", open)] {
        let decision = case.and_then(|case| rules.decide(&case));
        if let Some(decision) = decision {
            println!("{name}: {}", in_words(&decision));
            allowed &= decision.allowed;
        }
    }
    if allowed {
        Ok(())
    } else {
        Err(Exit::code(super::REFUSED))
    }
}

fn in_words(decision: &Decision) -> String {
    if decision.allowed {
        format!("permitted by policy {}", decision.policies.join(", "))
    } else {
        denial(decision).text
    }
}

/// What the policies were asked about a session: when it connected, and when its way out was there.
fn cases(record: &Value) -> Option<(Case, Option<Case>)> {
    let text = |key: &str| record[key].as_str().map(str::to_owned);
    let number = |key: &str| record[key].as_u64().and_then(|value| value.try_into().ok());
    let address = text("network.peer.address").or_else(|| text("server.address"))?;
    let port = record["server.port"].as_u64()?.try_into().ok()?;
    let connect = Case {
        process: Process {
            name: text("process.executable.name")?,
            executable: text("process.executable.path"),
            uid: number("process.user.id")?,
            gid: number("mantled.process.group.id")?,
            cgroup: text("process.linux.cgroup"),
            unit: text("mantled.systemd.unit"),
            container: text("container.id"),
            pod: text("k8s.pod.uid"),
            ..Process::default()
        },
        host: text("mantled.policy.host"),
        destination: Some(SocketAddr::new(address.parse().ok()?, port)),
        transport: if record["network.transport"] == "udp" {
            "udp"
        } else {
            "tcp"
        },
        opened: None,
    };
    // Of a way out that was refused when it was there, what it had proven tells that it was verified.
    let verified = || text("mantled.tls.verified_name").map(|_| "verified".to_owned());
    let open = text("mantled.path").or_else(verified).map(|path| Case {
        opened: Some(Way {
            protocol: text("network.protocol.name"),
            is_named: true,
            tls: (path != "exposed").then(|| TlsFacts {
                version: text("tls.protocol.version"),
                cipher: text("tls.cipher"),
                group: text("tls.curve"),
                verified_name: text("mantled.tls.verified_name"),
                ..TlsFacts::default()
            }),
            path,
        }),
        ..connect.clone()
    });
    Some((connect, open))
}

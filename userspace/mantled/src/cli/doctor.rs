//! `mantled doctor`: what does this host offer, and what is missing?

mod host;

use std::path::{Path, PathBuf};

use mantled_redirect::{
    cgroup::Cgroup,
    doctor::{self, Finding, Level},
};

use super::{ENVIRONMENT, Exit, load};
use crate::config::{Config, DEFAULT_PATH, Target};

/// Arguments of `mantled doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file, for its directories and groups; without one, the usual one where it
    /// exists.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let config = match &arguments.config {
        Some(path) => load(path)?,
        None if Path::new(DEFAULT_PATH).exists() => load(Path::new(DEFAULT_PATH))?,
        None => Config::builtin(),
    };
    // A unit that does not run has none, and no obstacle either.
    let planned: Vec<Cgroup> = config
        .enrollments()
        .iter()
        .filter_map(|enrollment| match enrollment.target() {
            Target::Unit(unit) => Cgroup::of_unit(unit.as_str()).ok(),
            Target::Cgroup(path) => Cgroup::open(Path::new(path.as_str())).ok(),
        })
        .collect();
    let mut findings = doctor::examine(&planned);
    findings.extend(host::examine(&config));
    if arguments.json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| {
                serde_json::json!({
                    "check": finding.check,
                    "level": finding.level.name(),
                    "detail": finding.detail,
                    "remedy": finding.remedy,
                })
            })
            .collect();
        println!("{:#}", serde_json::Value::from(list));
    } else {
        for finding in &findings {
            print(finding);
        }
    }
    if findings.iter().any(|finding| finding.level == Level::Fail) {
        return Err(Exit::code(ENVIRONMENT));
    }
    Ok(())
}

fn print(finding: &Finding) {
    let level = match finding.level {
        // It must be seen in a long list.
        Level::Fail => "FAIL",
        level => level.name(),
    };
    print!("{level:<4}  {:<22}  {}", finding.check, finding.detail);
    match &finding.remedy {
        Some(remedy) => println!("; {remedy}"),
        None => println!(),
    }
}

//! The benchmark: the release build of the daemon beside other proxies (docs/benchmarks.md).

use std::env;

use anyhow::Result;

use crate::sh;

/// Compare mantled with other proxies on this machine; takes the machine for some ten minutes
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// Take for granted that `cargo xtask setup bench` was run
    #[arg(long)]
    no_setup: bool,
    /// How often each proxy has its turn [default: 5; with --quick: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Short loads: shows that everything works, not how fast
    #[arg(long)]
    quick: bool,
    /// Only these: direct-plain, direct-tls, mantled, haproxy, stunnel
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    paths: Vec<String>,
    /// Only so many idle sessions, and the memory that each of them takes
    #[arg(long, value_name = "N", conflicts_with_all = ["rounds", "quick"])]
    sessions: Option<usize>,
    /// Only what it costs to judge the statements of PostgreSQL's clients
    #[arg(long, conflicts_with_all = ["quick", "paths", "sessions"])]
    commands: bool,
    /// Only what a decision costs, of 50, 500 and 5,000 policies
    #[arg(long, conflicts_with_all = ["quick", "paths", "sessions", "commands"])]
    policies: bool,
    /// What the results call the measured state [default: what git says]
    #[arg(long, value_name = "TEXT")]
    revision: Option<String>,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        if !self.no_setup {
            sh::run(sh::command(&env::current_exe()?.to_string_lossy()).args(["setup", "bench"]))?;
        }
        // The client of the direct path speaks TLS too, so the benchmark is optimised as well.
        sh::run(&mut sh::cargo([
            "build",
            "--release",
            "--package",
            "mantled",
            "--package",
            "mantled-tests",
            "--bin",
            "mantled",
            "--bin",
            "bench",
        ]))?;
        let built = sh::target().join("release");
        let mut bench = sh::command(&built.join("bench").to_string_lossy());
        bench.env("MANTLED_BIN", built.join("mantled"));
        let only = match (self.commands, self.policies) {
            (true, _) => Some("commands"),
            (_, true) => Some("policies"),
            _ => None,
        };
        if let Some(only) = only {
            let rounds = self.rounds.map(|rounds| rounds.to_string());
            return sh::run(bench.arg(only).args(rounds));
        }
        bench.arg("--output").arg(sh::target().join("bench"));
        let revision = self.revision.or_else(|| revision().ok());
        bench.args(revision.iter().flat_map(|text| ["--revision", text]));
        if let Some(rounds) = self.rounds {
            bench.args(["--rounds", &rounds.to_string()]);
        }
        if let Some(sessions) = self.sessions {
            bench.args(["--sessions", &sessions.to_string()]);
        }
        if self.quick {
            bench.arg("--quick");
        }
        if !self.paths.is_empty() {
            bench.args(["--paths", &self.paths.join(",")]);
        }
        sh::run(&mut bench)
    }
}

/// The commit, and whether the files differ from it.
fn revision() -> Result<String> {
    let git = |arguments: &[&str]| sh::read(sh::command("git").args(arguments));
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["--no-optional-locks", "status", "--porcelain"])?;
    Ok(commit
        + if changes.is_empty() {
            ""
        } else {
            " with changes"
        })
}

//! The benchmark: mantled beside other ways to give a plaintext client TLS.
//!
//! `cargo xtask bench` builds and starts it; docs/benchmarks.md tells what it measures. A
//! [`path::Path`] is one way from the client to the server; to compare with another proxy is to
//! write one more of them, in [`path::all`]. A *turn* starts a path, puts every load on it, and
//! stops it again; a *round* is one turn of every path. So the paths take turns on a machine whose
//! speed drifts, and no path inherits memory or TLS sessions from an earlier turn.
//!
//! The same program is the load generator and the server for post-quantum handshakes: it starts
//! itself again as `bench client` and `bench server`.

mod client;
mod commands;
mod machine;
mod path;
mod policies;
mod process;
mod report;
mod server;
mod site;
mod turn;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use mantled_tests::{Lab, succeed};
use nix::sys::resource::{Resource, getrlimit};

use crate::{process::Cpus, report::Report, site::Site, turn::Load};

const USAGE: &str = "usage: bench [--rounds N] [--quick] [--paths NAME,...] [--output DIRECTORY] \
                     [--revision TEXT] | bench --sessions N [--paths NAME,...] | bench commands [ROUNDS] | \
                     bench policies [ROUNDS]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["client", rest @ ..] => client::main(rest),
        ["server", rest @ ..] => server::main(rest),
        ["commands"] => commands::main(5),
        ["commands", rounds] => rounds.parse().context(USAGE).and_then(commands::main),
        ["policies"] => policies::main(15),
        ["policies", rounds] => rounds.parse().context(USAGE).and_then(policies::main),
        options => Options::parse(options).and_then(|options| run(&options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What was asked for.
#[derive(Debug)]
struct Options {
    rounds: Option<usize>,
    quick: bool,
    paths: Option<Vec<String>>,
    output: PathBuf,
    revision: String,
    /// Only so many idle sessions, and the memory that each of them takes.
    sessions: Option<usize>,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            rounds: None,
            quick: false,
            paths: None,
            output: PathBuf::from("target/bench"),
            revision: "unknown".into(),
            sessions: None,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if *word == "--quick" {
                options.quick = true;
                continue;
            }
            let value = words.next().context(USAGE)?;
            match *word {
                "--rounds" => options.rounds = Some(value.parse().context("--rounds")?),
                "--sessions" => options.sessions = Some(value.parse().context("--sessions")?),
                "--paths" => options.paths = Some(value.split(',').map(str::to_owned).collect()),
                "--output" => options.output = value.into(),
                "--revision" => options.revision = (*value).to_owned(),
                _ => bail!(USAGE),
            }
        }
        if options.rounds == Some(0) {
            bail!("--rounds: at least one");
        }
        Ok(options)
    }
}

fn run(options: &Options) -> Result<()> {
    let load = if options.quick {
        Load::QUICK
    } else {
        Load::FULL
    };
    let rounds = options.rounds.unwrap_or(if options.quick { 2 } else { 5 });
    let mut paths = path::all();
    if let Some(wanted) = &options.paths {
        if let Some(unknown) = wanted
            .iter()
            .find(|name| !paths.iter().any(|path| path.name() == *name))
        {
            let known: Vec<_> = paths.iter().map(|path| path.name()).collect();
            bail!(
                "--paths: there is no {unknown}; there are {}",
                known.join(", ")
            );
        }
        paths.retain(|path| wanted.iter().any(|name| name == path.name()));
    }

    // Before anything is started: what is started inherits it.
    let cpus = Cpus::choose()?;
    cpus.host()?;
    let lab = Lab::new()?;
    // The closed connections of a turn hold their ports for a minute. Below 10000 are listeners.
    for setting in [
        "net.ipv4.ip_local_port_range=10000 65535",
        "net.ipv4.tcp_tw_reuse=1",
    ] {
        succeed(lab.host.command("sysctl").args(["-qw", setting]))?;
    }
    let site = Site::start(&lab, &cpus)?;
    if let Some(sessions) = options.sessions {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        // A proxy has two descriptors for each session.
        ensure!(
            2 * sessions as u64 + 100 <= most,
            "--sessions {sessions}: this machine allows {most} open files a process (ulimit -Hn), \
             which is enough for {} sessions",
            most.saturating_sub(100) / 2
        );
        for path in paths.iter().filter(|path| path.is_proxy()) {
            let sample = turn::idle(&lab, &site, path.as_ref(), sessions)
                .with_context(|| format!("{} with {sessions} sessions", path.name()))?;
            println!(
                "{:<13} {sessions} sessions at once, each of which works before and after: {}",
                path.name(),
                report::memory(&sample)
            );
        }
        return Ok(());
    }
    let mut report = Report::new(
        &lab,
        &paths,
        load,
        rounds,
        &cpus,
        &options.revision,
        options.quick,
    )?;

    for round in 0..rounds {
        let busy = machine::busy()?;
        report.background(busy);
        eprintln!(
            "round {} of {rounds}; before it, others used {:.0} % of the machine",
            round + 1,
            100.0 * busy
        );
        // Each round begins with another path: nobody is always first, or always after the same.
        let turns = paths
            .iter()
            .cycle()
            .skip(round % paths.len())
            .take(paths.len());
        for path in turns {
            let sample = turn::measure(&lab, &site, path.as_ref(), load, round == 0)
                .with_context(|| format!("{} in round {}", path.name(), round + 1))?;
            eprintln!("  {:<13} {}", path.name(), report::brief(&sample));
            report.add(path.name(), sample);
        }
    }

    let table = report.markdown();
    fs::create_dir_all(&options.output)?;
    let file = options.output.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(&report.json())? + "\n")?;
    fs::write(options.output.join("results.md"), &table)?;
    println!("{table}");
    eprintln!(
        "bench: {} and results.md beside it are written",
        file.display()
    );
    Ok(())
}

//! The tests: unit tests, the lab against the real kernel, and a moment of fuzzing.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{dist, setup::Setup, sh, vm::Vm};

/// The fuzz crate: outside of the workspace, since it is compiled with a sanitizer.
const FUZZ: &str = "tests/fuzz";

/// Seconds for each fuzz target in CI: enough to see that the target builds, runs, and passes its
/// corpus.
const CI_FUZZ_SECONDS: u32 = 3;

/// Build the daemon and run all tests
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Test {
    #[command(subcommand)]
    elsewhere: Option<Elsewhere>,
    /// Take for granted that `cargo xtask setup` was run
    #[arg(long)]
    no_setup: bool,
    /// Fuzz each target that long [default: 3 when CI=true, else not at all]
    #[arg(long, value_name = "SECONDS")]
    fuzz: Option<u32>,
    /// Given to `cargo nextest run`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "NEXTEST ARGS"
    )]
    nextest: Vec<String>,
}

#[derive(clap::Subcommand)]
enum Elsewhere {
    Vm(Vm),
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        if let Some(Elsewhere::Vm(vm)) = self.elsewhere {
            return vm.run();
        }
        if !self.no_setup {
            Setup::default().run()?;
        }
        // The lab's tests start the daemon as a user would: as a program.
        sh::run(&mut sh::cargo(["build", "--package", "mantled"]))?;
        // And install it as a user would.
        dist::debug_package()?;
        let mut nextest = sh::cargo(["nextest", "run", "--workspace", "--exclude", "mantled-ebpf"]);
        nextest.env("MANTLED_BIN", sh::target().join("debug/mantled"));
        // A filter that matches nothing proves nothing. `--no-tests` on the command line wins.
        nextest.env("NEXTEST_NO_TESTS", "fail");
        if sh::is_ci() {
            nextest.args(["--profile", "ci"]);
        }
        sh::run(nextest.args(&self.nextest))?;
        match self.fuzz.or(sh::is_ci().then_some(CI_FUZZ_SECONDS)) {
            None | Some(0) => Ok(()),
            Some(seconds) => fuzz(seconds),
        }
    }
}

fn fuzz(seconds: u32) -> Result<()> {
    if !sh::root().join(FUZZ).join("Cargo.toml").is_file() {
        println!("test: fuzzing is skipped, since there is no {FUZZ}");
        return Ok(());
    }
    let targets = sh::read(&mut sh::cargo(["fuzz", "list", "--fuzz-dir", FUZZ]))?;
    for target in targets.lines() {
        sh::run(&mut fuzz_target(target, seconds)?)?;
    }
    Ok(())
}

/// The sanitizer needs unstable flags, which the pinned stable compiler takes with
/// `RUSTC_BOOTSTRAP`; its address sanitizer is part of the standard library's component.
///
/// What the fuzzer builds and finds goes below target/, and the inputs that are checked in are only
/// read. An input that crashes is left in tests/fuzz/artifacts.
fn fuzz_target(target: &str, seconds: u32) -> Result<Command> {
    let build = sh::target().join("fuzz");
    let found = build.join("corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let given = Path::new(FUZZ).join("corpus").join(target);
    let mut command = sh::cargo(["fuzz", "run", "--fuzz-dir", FUZZ, "--target-dir"]);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .arg(&build)
        .arg(target)
        .arg(&found);
    if sh::root().join(&given).is_dir() {
        command.arg(given);
    }
    command.args(["--", &format!("-max_total_time={seconds}")]);
    if sh::is_ci() {
        // A change is judged by inputs that it can be judged by again.
        command.arg("-seed=1");
    }
    Ok(command)
}

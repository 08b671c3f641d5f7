//! What is checked without running anything.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{setup::Compiler, sh};

/// That of the machine's byte order, as in redirect's build script.
const KERNEL_TARGET: &str = if cfg!(target_endian = "little") {
    "bpfel-unknown-none"
} else {
    "bpfeb-unknown-none"
};

/// Format, clippy, and the licences and sources of the dependencies
#[derive(clap::Args)]
pub(crate) struct Lint {}

impl Lint {
    /// Runs every check before it fails, so that one run tells all there is to mend.
    pub(crate) fn run(self) -> Result<()> {
        let failed: Vec<String> = [
            sh::cargo(["fmt", "--all", "--check"]),
            sh::cargo([
                "clippy",
                "--workspace",
                "--exclude",
                "mantled-ebpf",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
            kernel_clippy(),
            // cargo-deny is offline and looks at crates of other platforms, which no build fetches.
            sh::cargo(["fetch", "--quiet", "--locked"]),
            // Advisories are left out: their database is not reachable from everywhere.
            sh::cargo(["deny", "--offline", "check", "licenses", "bans", "sources"]),
        ]
        .iter_mut()
        .filter_map(|check| sh::run(check).err())
        .map(|error| format!("{error:#}"))
        .collect();
        if !failed.is_empty() {
            bail!("lint: {}", failed.join("\n       "));
        }
        Ok(())
    }
}

/// The kernel object compiles for its own target only, with the toolchain and the switches that
/// redirect's build script uses.
fn kernel_clippy() -> Command {
    let compiler = Compiler::choose();
    let mut command = sh::command("rustup");
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["run", compiler.name(), "cargo", "clippy"])
        .args(["--package", "mantled-ebpf", "-Z", "build-std=core"])
        .args(["--target", KERNEL_TARGET, "--", "-D", "warnings"]);
    command
}

//! What is checked without running anything.

use anyhow::{Result, bail};

use crate::sh;

/// Format, clippy, and the licences and sources of the dependencies
#[derive(clap::Args)]
pub(crate) struct Lint {}

impl Lint {
    /// Runs every check before it fails, so that one run tells all there is to mend.
    pub(crate) fn run(self) -> Result<()> {
        let failed: Vec<String> = [
            sh::cargo(["fmt", "--all", "--check"]),
            // The kernel object compiles for its own target only, in redirect's build script.
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
            // cargo-deny looks at the crates of all platforms; a build fetches its own only.
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

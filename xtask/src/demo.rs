//! The demonstration: a TLS-only PostgreSQL, and a psql that knows no TLS.

use anyhow::Result;

use crate::{setup::Setup, sh};

/// Show the main job with a real server: psql without TLS, alone and under mantled
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Take for granted that `cargo xtask setup` was run
    #[arg(long)]
    no_setup: bool,
}

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        if !self.no_setup {
            Setup::default().run()?;
        }
        sh::run(&mut sh::cargo(["build", "--package", "mantled"]))?;
        let mut demo = sh::cargo([
            "run",
            "--quiet",
            "--package",
            "mantled-tests",
            "--bin",
            "demo",
        ]);
        sh::run(demo.env("MANTLED_BIN", sh::target().join("debug/mantled")))
    }
}

//! `mantled completions`: lets a shell complete the command line.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Exit;

/// Arguments of `mantled completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// For which shell.
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    // The generator panics where its output cannot be written.
    let mut script = Vec::new();
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "mantled", &mut script);
    io::stdout()
        .write_all(&script)
        .map_err(|error| Exit::failed(format!("writing the completions: {error}")))
}

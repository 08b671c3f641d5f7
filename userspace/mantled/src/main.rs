//! The `mantled` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    mantled::cli::main()
}

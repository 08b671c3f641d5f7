//! The chores of the repository: `cargo xtask CHORE`.
//!
//! A chore is a file with a `clap::Args` struct that has a `run`; here it takes its `mod` line and
//! its line in the table.

mod bench;
mod demo;
mod dist;
mod kernels;
mod lint;
mod rootfs;
mod setup;
mod sh;
mod test;
mod vm;

use std::process::ExitCode;

use clap::Parser as _;

/// Makes the subcommands from lines of `module Struct`.
macro_rules! chores {
    ($($module:ident $chore:ident,)*) => {
        /// The chores of the repository
        #[derive(clap::Parser)]
        #[command(bin_name = "cargo xtask")]
        struct Cli {
            #[command(subcommand)]
            chore: Chore,
        }

        #[derive(clap::Subcommand)]
        enum Chore {
            $($chore($module::$chore),)*
        }

        impl Chore {
            fn run(self) -> anyhow::Result<()> {
                match self {
                    $(Self::$chore(chore) => chore.run(),)*
                }
            }
        }
    };
}

chores! {
    setup Setup,
    demo Demo,
    lint Lint,
    test Test,
    bench Bench,
    dist Dist,
}

fn main() -> ExitCode {
    sh::exit(Cli::parse().chore.run())
}

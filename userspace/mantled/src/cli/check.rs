//! `mantled check`: is the configuration valid?

use std::path::PathBuf;

use super::{Exit, load};
use crate::{
    config::{DEFAULT_PATH, json_schema},
    policy::Rules,
};

/// Arguments of `mantled check`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Print the JSON Schema of the configuration instead.
    #[arg(long)]
    schema: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    if arguments.schema {
        println!("{:#}", json_schema());
        return Ok(());
    }
    let config = load(&arguments.config)?;
    crate::tls::Connectors::new(&config).map_err(crate::app::StartError::Configuration)?;
    let rules = Rules::load(config.policy().dir.as_deref())
        .map_err(crate::app::StartError::Configuration)?;
    let policies = rules
        .count()
        .map_or_else(String::new, |count| format!(", {count} policies"));
    println!(
        "{}: valid ({} enrolled, {} routes, {} bypassed{policies})",
        arguments.config.display(),
        config.enrollments().len(),
        config.routes().len(),
        config.bypasses().len()
    );
    Ok(())
}

//! `mantled reload` and `mantled upgrade`: the daemon goes on with another configuration, or as
//! another program.

use std::path::PathBuf;

use super::Exit;
use crate::{
    admin::{self, Reply, Request},
    config::DEFAULT_SOCKET,
};

/// Arguments of both.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the daemon is asked.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
}

pub(super) fn reload(arguments: &Arguments) -> Result<(), Exit> {
    let reply = admin::ask(&arguments.socket, &Request::Reload).map_err(Exit::invalid)?;
    let Reply::Reloaded { notes } = reply else {
        return Err(Exit::failed("the daemon answered something else"));
    };
    println!(
        "the configuration was loaded; open sessions of which it says something else have ended"
    );
    for note in notes {
        println!("but {note}");
    }
    Ok(())
}

pub(super) fn upgrade(arguments: &Arguments) -> Result<(), Exit> {
    let reply = admin::ask(&arguments.socket, &Request::Upgrade).map_err(Exit::failed)?;
    let Reply::Upgraded {
        version,
        pid,
        draining,
    } = reply
    else {
        return Err(Exit::failed("the daemon answered something else"));
    };
    println!(
        "mantled {version} (process {pid}) serves; {draining} sessions go on to their end in the process before it"
    );
    Ok(())
}

//! `mantled helper`: what the daemon must not do itself.

use nix::unistd::{Uid, User};

use super::Exit;
use crate::helper::server;

/// Arguments of `mantled helper`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The daemon's user, by name or number: nobody else is answered.
    #[arg(long, value_name = "USER")]
    client: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let client = user(&arguments.client)?;
    let listener = server::listener(std::io::stdin()).map_err(|error| {
        Exit::invalid(format!(
            "standard input is not the helper's socket ({error}); `systemctl start mantled-helper.socket` starts it as it should be"
        ))
    })?;
    tracing::info!(client = client.as_raw(), "ready");
    server::serve(&listener, client)
        .map_err(|error| Exit::failed(format!("the helper's socket: {error}")))
}

fn user(named: &str) -> Result<Uid, Exit> {
    if let Ok(number) = named.parse() {
        return Ok(Uid::from_raw(number));
    }
    match User::from_name(named) {
        Ok(Some(user)) => Ok(user.uid),
        Ok(None) => Err(Exit::invalid(format!(
            "there is no user {named}; `systemd-sysusers` makes those of packages"
        ))),
        Err(error) => Err(Exit::failed(format!("looking for user {named}: {error}"))),
    }
}

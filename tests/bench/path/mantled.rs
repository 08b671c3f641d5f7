//! mantled: the client is in an enrolled group and calls the server; it knows of no proxy.

use std::process::Command;

use anyhow::Result;
use mantled_tests::{Daemon, Group, Lab, SITE_V4};

use super::{Path, Running};
use crate::{
    client::Call,
    machine::version,
    site::{NAME, Port, this},
};

/// The daemon, in enforce mode, with a route for each of the site's ports.
pub(crate) struct Mantled;

struct Enrolled {
    // Before the group: an enrolled group stays enforced until the daemon has detached itself.
    daemon: Daemon,
    group: Group,
}

impl Enrolled {
    /// The port that the client asks for. 80 leads to 443.
    const fn asked(port: Port) -> u16 {
        port.number() - 443 + 80
    }
}

impl Path for Mantled {
    fn name(&self) -> &'static str {
        "mantled"
    }

    fn version(&self) -> Result<String> {
        version(
            &mantled_tests::mantled()?.to_string_lossy(),
            "--version",
            "mantled",
        )
    }

    fn start(&self, lab: &Lab) -> Result<Box<dyn Running>> {
        let routes = Port::TLS.map(|port| {
            format!(
                "[[route]]\ncidr = \"{SITE_V4}\"\nport = {}\nupstream_port = {}\n\
                 server_name = \"{NAME}\"\n",
                Enrolled::asked(port),
                port.number()
            )
        });
        let group = Group::new()?;
        let daemon = Daemon::start(lab, &group, "enforce", &routes.concat())?;
        Ok(Box::new(Enrolled { daemon, group }))
    }

    fn is_hybrid(&self) -> bool {
        true
    }
}

impl Running for Enrolled {
    fn call(&self, _: &Lab, port: Port) -> Call {
        Call {
            address: (SITE_V4, Self::asked(port)).into(),
            tls: None,
        }
    }

    fn client(&self, lab: &Lab) -> Result<Command> {
        Ok(self.group.command(&lab.host, this()?))
    }

    fn pid(&self) -> Option<u32> {
        Some(self.daemon.pid())
    }
}

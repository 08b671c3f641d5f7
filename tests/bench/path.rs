//! The ways from the client to the server. One that is added here is measured, checked and shown
//! like the others.

mod direct;
mod haproxy;
mod mantled;
mod stunnel;

use std::{net::SocketAddr, process::Command};

use anyhow::Result;
use mantled_tests::{Lab, SITE_V4};

use crate::{
    client::{Call, Tls},
    process::Service,
    site::{NAME, Port, this},
};

/// All of them.
pub(crate) fn all() -> Vec<Box<dyn Path>> {
    vec![
        Box::new(direct::Plain),
        Box::new(direct::OwnTls),
        Box::new(mantled::Mantled),
        Box::new(haproxy::Haproxy),
        Box::new(stunnel::Stunnel),
    ]
}

/// A way from a client to the server.
pub(crate) trait Path {
    /// As the table shows it.
    fn name(&self) -> &'static str;

    /// What program this is, and its version.
    fn version(&self) -> Result<String>;

    /// Makes it ready. What comes back ends it when it is dropped.
    fn start(&self, lab: &Lab) -> Result<Box<dyn Running>>;

    /// Is this a proxy, which others are compared with?
    fn is_proxy(&self) -> bool {
        true
    }

    /// Does TLS reach the server this way?
    fn has_tls(&self) -> bool {
        true
    }

    /// Can it do post-quantum key exchange?
    fn is_hybrid(&self) -> bool {
        false
    }
}

/// A path that is ready.
pub(crate) trait Running {
    /// What a client calls that wants to get to that port of the site.
    fn call(&self, lab: &Lab, port: Port) -> Call;

    /// The start of a client's command: on the host, outside of any enrolled group.
    fn client(&self, lab: &Lab) -> Result<Command> {
        Ok(lab.host.command(this()?))
    }

    /// The proxy's process.
    fn pid(&self) -> Option<u32> {
        None
    }
}

/// A proxy that listens on the host's loopback address, on one port for each of the site's. The
/// client knows of it.
struct Listening(Service);

impl Listening {
    /// Where it listens for what is to go to that port of the site.
    fn address(port: Port) -> SocketAddr {
        ([127, 0, 0, 1], 9000 + port.number()).into()
    }

    /// Text for each port: that, where to listen, and where to connect to.
    fn each(text: impl Fn(Port, SocketAddr, SocketAddr) -> String) -> String {
        let site = |port: Port| (SITE_V4, port.number()).into();
        Port::TLS
            .map(|port| text(port, Self::address(port), site(port)))
            .concat()
    }
}

impl Running for Listening {
    fn call(&self, _: &Lab, port: Port) -> Call {
        Call {
            address: Self::address(port),
            tls: None,
        }
    }

    fn pid(&self) -> Option<u32> {
        Some(self.0.pid())
    }
}

/// The client's own TLS, as strict as the proxies'.
fn own_tls(lab: &Lab, port: Port) -> Tls {
    Tls {
        authority: lab.path("ca.pem"),
        name: NAME.to_owned(),
        hybrid: port == Port::Hybrid,
    }
}

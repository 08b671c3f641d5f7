//! Syslog: TLS from the first byte, and a relay that survives the server.

use std::net::SocketAddr;

use super::{Upgrade, Way};
use crate::{
    config::Protocol,
    error::Failure,
    proxy::{
        detect::Dialling,
        spoken::Spoken,
        syslog::{Again, Line},
        upstream::{Dial, Upstream},
    },
};

impl Upgrade<'_> {
    pub(super) async fn syslog(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let way = self
            .implicit(dialling, Spoken::Known(Protocol::Syslog))
            .await?;
        let Upstream::Verified(verified) = way.upstream else {
            return Ok(way);
        };
        let again = Again {
            dial: Dial {
                address: SocketAddr::new(self.dial.address.ip(), self.plan.implicit_port()),
                ..self.dial.clone()
            },
            connectors: self.context.connectors.clone(),
            route: self.plan.route,
            name: self.plan.name.clone(),
            patience: self.context.config.limits().handshake,
        };
        Ok(Way::plain(Upstream::Syslog(Box::new(Line {
            verified: *verified,
            again,
            kept: self.context.syslog.clone(),
        }))))
    }
}

//! TLS from the first byte, on the port that a route or a well-known pair names, else on the one
//! that the agent asked for.

use std::net::SocketAddr;

use mantled_wire::{
    http::{self, Expected, Ports},
    nats,
};

use super::{Upgrade, Way};
use crate::{
    config::Protocol,
    error::{Cause, Failure},
    proxy::{detect::Dialling, filter::Filter, spoken::Spoken, upstream::Dial},
    tls::Alpn,
};

impl Upgrade<'_> {
    pub(super) async fn implicit(
        &mut self,
        dialling: Dialling,
        spoken: Spoken,
    ) -> Result<Way, Failure> {
        let port = self.plan.implicit_port();
        let dialled = if port == self.dial.address.port() {
            self.dialled(dialling).await?
        } else {
            let other = Dial {
                address: SocketAddr::new(self.dial.address.ip(), port),
                ..self.dial.clone()
            };
            match other.connect().await {
                Ok(dialled) => dialled,
                Err(error) => {
                    // Where the agent's own port does not answer either, the server is not there.
                    self.dialled(dialling).await?;
                    return Err(Failure::new(
                        Cause::TlsNotOffered,
                        format!(
                            "port {port}, where TLS for port {} usually is, could not be reached \
                             ({error}); a route with upstream_port tells where it is",
                            self.plan.destination.port()
                        ),
                    ));
                }
            }
        };
        let ports = Ports {
            agent: self.plan.destination.port(),
            server: dialled.port().unwrap_or(port),
        };
        let upstream = self.verify(dialled, alpn(spoken)).await?;
        let (from_agent, from_server) = filters(spoken, ports);
        Ok(Way {
            upstream,
            from_agent,
            from_server,
        })
    }
}

/// What is offered in the handshake.
pub(super) fn alpn(spoken: Spoken) -> Alpn {
    match spoken {
        Spoken::Known(Protocol::Http) => Alpn::Http1,
        Spoken::Known(Protocol::Http2) => Alpn::Http2,
        Spoken::Known(Protocol::Tds) => Alpn::Tds8,
        _ => Alpn::None,
    }
}

/// What is changed inside. An agent that had not said enough yet when TLS was due may turn out to
/// speak HTTP.
fn filters(spoken: Spoken, ports: Ports) -> (Filter, Filter) {
    let expected = match spoken {
        Spoken::Known(Protocol::Http) => Expected::Http,
        Spoken::Opaque | Spoken::Silent => Expected::Anything,
        Spoken::Known(Protocol::Nats) => {
            let info = nats::InfoRewrite::default();
            return (Filter::None, Filter::Rewrite(Box::new(info)));
        }
        _ => return (Filter::None, Filter::None),
    };
    let (requests, responses) = http::rewriting(expected, ports);
    (
        Filter::Rewrite(Box::new(requests)),
        Filter::Rewrite(Box::new(responses)),
    )
}

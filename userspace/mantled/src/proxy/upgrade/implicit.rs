//! TLS from the first byte, on the port that a route or a well-known pair names, else on the one
//! that the agent asked for.

use std::net::SocketAddr;

use super::{Upgrade, Way};
use crate::{
    error::{Cause, Failure},
    proxy::{detect::Dialling, upstream::Dial},
    tls::Alpn,
};

impl Upgrade<'_> {
    pub(super) async fn implicit(
        &mut self,
        dialling: Dialling,
        alpn: Alpn,
    ) -> Result<Way, Failure> {
        let port = self.plan.implicit_port();
        let dialled = if port == self.dial.address.port() {
            self.dialled(dialling).await?
        } else {
            let other = Dial {
                address: SocketAddr::new(self.dial.address.ip(), port),
                ..self.dial
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
        self.verify(dialled, alpn).await.map(Way::plain)
    }
}

//! TLS from the first byte, on the port that a route or a well-known pair names, else on the one
//! that the agent asked for.

use super::{Upgrade, Way};
use crate::{
    error::{Cause, Failure},
    proxy::detect::{Dialling, dial_failure},
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
            dialling
                .take()
                .await
                .map_err(|error| dial_failure(&error))?
        } else {
            drop(dialling);
            self.dial.address.set_port(port);
            self.dial.connect().await.map_err(|error| {
                Failure::new(
                    Cause::TlsNotOffered,
                    format!(
                        "port {port}, where TLS for port {} usually is, could not be reached ({error}); \
                         a route with upstream_port tells where it is",
                        self.plan.destination.port()
                    ),
                )
            })?
        };
        self.verify(dialled, alpn).await.map(Way::plain)
    }
}

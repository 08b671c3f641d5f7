//! The agent's own TLS: passed on where that is allowed, with what can be seen of it recorded.
//!
//! The proxy cannot verify it (TLS 1.3 hides the certificate), so enforce mode lets it pass only
//! by a route that says `passthrough`.

use mantled_record::Path;
use mantled_wire::{Progress, tls::ClientHello, tls::RecordGuard};
use tokio::time::timeout;

use super::{Upgrade, Way};
use crate::{
    error::{Cause, Failure},
    proxy::{
        detect::Dialling,
        filter::{Filter, ServerRecords},
        upstream::Upstream,
    },
};

impl Upgrade<'_> {
    pub(super) async fn native(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let hello = self.client_hello().await?;
        let tls = &mut self.session.record.tls;
        tls.client_server_name = hello.server_name;
        tls.client_versions = hello
            .versions
            .iter()
            .map(|version| version.name())
            .collect();
        tls.client_alpn = hello
            .alpn
            .iter()
            .map(|alpn| String::from_utf8_lossy(alpn).into_owned())
            .collect();
        if !self.plan.native {
            return Err(Failure::new(
                Cause::NativeTls,
                "the agent speaks TLS itself, which mantled cannot verify; \
                 a route with tls = \"passthrough\" allows it",
            ));
        }
        let dialled = self.dialled(dialling).await?;
        self.session.goes(Path::Native);
        Ok(Way {
            upstream: Upstream::Native(dialled.native()),
            from_agent: Filter::Records(RecordGuard::default()),
            from_server: Filter::ServerRecords(ServerRecords::default()),
        })
    }

    async fn client_hello(&mut self) -> Result<ClientHello, Failure> {
        let patience = self.context.config.limits().detect;
        let agent = &mut *self.agent;
        let read = async {
            loop {
                match ClientHello::parse(&agent.head) {
                    Ok(Progress::Done(hello)) => return Ok(hello),
                    Ok(Progress::NeedMore) => {}
                    Err(error) => return Err(Failure::new(Cause::NotTls, error.to_string())),
                }
                match agent.read_more().await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => {
                        return Err(Failure::new(
                            Cause::NotTls,
                            "the agent closed in the middle of its ClientHello",
                        ));
                    }
                }
            }
        };
        timeout(patience, read).await.unwrap_or_else(|_| {
            Err(Failure::new(
                Cause::NotTls,
                "the agent did not finish its ClientHello in time",
            ))
        })
    }
}

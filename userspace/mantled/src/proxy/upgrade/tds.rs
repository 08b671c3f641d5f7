//! TDS (Microsoft SQL Server): 7.x by PRELOGIN, with the TLS handshake inside TDS packets, and 8,
//! which begins with TLS (`tls = "implicit"`).
//!
//! The agent is told that there is no encryption, and goes on in clear on its host. One that
//! insists on TLS of its own is refused: its handshake would be inside packets as well, where
//! nothing of it can be checked. A route with `tls = "exempt"` lets it through unverified.

use mantled_wire::{
    Progress,
    starttls::Dialogue as _,
    tds::{Prelogin, PreloginFilter, StartTls, parse_prelogin},
};
use tokio::time::timeout;

use super::{Upgrade, Way};
use crate::{
    config::Protocol,
    error::{Cause, Failure},
    proxy::{detect::Dialling, filter::Filter, spoken::Spoken},
};

impl Upgrade<'_> {
    pub(super) async fn tds(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let (prelogin, length) = self.prelogin().await?;
        if prelogin.insists_on_tls() && self.plan.clear_text.is_some() {
            // Observing must not break it.
            self.would_refuse(insists());
            let dialled = self.dialled(dialling).await?;
            return self.expose(dialled).map(Way::plain);
        }
        if prelogin.insists_on_tls() {
            return Err(insists());
        }
        let mut dialogue = StartTls::new(prelogin);
        let dialled = self.go_ahead(dialling, &mut dialogue).await?;
        let upstream = self.verify_in_packets(dialled).await?;
        self.agent.consume(length);
        self.tell(&dialogue.welcome().to_agent).await?;
        Ok(Way::plain(upstream))
    }

    /// TDS 8. What the agent says of encryption there is ignored (MS-TDS §2.2.6.5).
    pub(super) async fn tds_implicit(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let (prelogin, _) = self.prelogin().await?;
        if prelogin.insists_on_tls() {
            return Err(insists());
        }
        let way = self
            .implicit(dialling, Spoken::Known(Protocol::Tds))
            .await?;
        Ok(Way {
            from_server: Filter::Rewrite(Box::new(PreloginFilter::default())),
            ..way
        })
    }

    /// What the agent begins with; it stays in its head.
    async fn prelogin(&mut self) -> Result<(Prelogin, usize), Failure> {
        let patience = self.context.config.limits().starttls;
        let agent = &mut *self.agent;
        let read = async {
            loop {
                match parse_prelogin(&agent.head) {
                    Ok(Progress::Done(found)) => return Ok(found),
                    Ok(Progress::NeedMore) => {}
                    Err(error) => {
                        return Err(Failure::new(Cause::AgentProtocol, error.to_string()));
                    }
                }
                match agent.read_more().await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => {
                        return Err(Failure::new(
                            Cause::AgentProtocol,
                            "the agent closed in the middle of its PRELOGIN",
                        ));
                    }
                }
            }
        };
        timeout(patience, read).await.unwrap_or_else(|_| {
            Err(Failure::new(
                Cause::AgentProtocol,
                "the agent did not finish its PRELOGIN in time",
            ))
        })
    }
}

fn insists() -> Failure {
    Failure::new(
        Cause::NativeTls,
        "the agent insists on TLS of its own inside TDS, which mantled cannot verify; \
         turn its encryption off, or let it through with a route that says tls = \"exempt\"",
    )
}

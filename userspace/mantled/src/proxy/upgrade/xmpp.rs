//! XMPP: a stream of the proxy's own up to STARTTLS, then the agent's inside TLS.
//!
//! The server is asked for the domain that the agent's header is for, but what the certificate
//! must prove is the plan's name: the header is the agent's word, and nothing proves that it goes
//! with the address. A route's `server_name` tells the domain that RFC 6120 §13.7.2 wants.
//!
//! The agent is not offered STARTTLS, so one that insists on TLS of its own cannot have it.

use mantled_wire::{
    Progress,
    xmpp::{FeaturesFilter, Header, StartTls, parse_header},
};
use tokio::time::timeout;

use super::{Upgrade, Way};
use crate::{
    config::Protocol,
    error::{Cause, Failure},
    proxy::{detect::Dialling, filter::Filter, spoken::Spoken},
};

impl Upgrade<'_> {
    pub(super) async fn xmpp(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let patience = self.context.config.limits().starttls;
        let header = timeout(patience, self.stream_header())
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::AgentProtocol,
                    "the agent did not finish its stream header in time",
                ))
            })?;
        self.starttls(dialling, Box::new(StartTls::new(header)))
            .await
    }

    /// TLS from the first byte (XEP-0368).
    pub(super) async fn xmpp_implicit(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let way = self
            .implicit(dialling, Spoken::Known(Protocol::Xmpp))
            .await?;
        Ok(Way {
            from_server: Filter::Rewrite(Box::new(FeaturesFilter::default())),
            ..way
        })
    }

    async fn stream_header(&mut self) -> Result<Header, Failure> {
        loop {
            match parse_header(&self.agent.head) {
                Ok(Progress::Done(header)) => return Ok(header),
                Ok(Progress::NeedMore) => {}
                Err(error) => return Err(Failure::new(Cause::AgentProtocol, error.to_string())),
            }
            match self.agent.read_more().await {
                Ok(true) => {}
                Ok(false) | Err(_) => {
                    return Err(Failure::new(
                        Cause::AgentProtocol,
                        "the agent closed in the middle of its stream header",
                    ));
                }
            }
        }
    }
}

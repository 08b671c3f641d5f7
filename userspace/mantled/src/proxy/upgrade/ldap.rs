//! LDAP: StartTLS, or the agent's own.
//!
//! An agent that asks for StartTLS itself is told in enforce mode that it is unavailable: one that
//! only tries (`ldapsearch -Z`) goes on in clear on this host, and what leaves is verified by the
//! proxy. Where native TLS is allowed, the server is asked on its behalf and the agent makes its
//! own handshake.

use mantled_wire::{
    Progress,
    ldap::{Request, StartTls, parse_request, start_tls_accepted, start_tls_declined},
};
use tokio::time::timeout;

use super::{Upgrade, Way};
use crate::{
    error::{Cause, Failure},
    proxy::{checks::Before, detect::Dialling},
};

/// What the agent wants, after its question about encryption.
enum Wants {
    /// A session; its first message is still in its head.
    Session,
    /// TLS of its own, and it may have it.
    Tls {
        /// The id of its request.
        id: u32,
        /// The bytes of its request, which is still in its head.
        length: usize,
    },
}

impl Upgrade<'_> {
    pub(super) async fn ldap(&mut self, dialling: Dialling) -> Result<Way, Failure> {
        let patience = self.context.config.limits().starttls;
        let wants = timeout(patience, self.ldap_wants())
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::AgentProtocol,
                    "the agent did not go on with a request of its own in time",
                ))
            })?;
        let mut dialogue = StartTls::default();
        match wants {
            Wants::Session => self.starttls(dialling, Box::new(dialogue)).await,
            Wants::Tls { id, length } => {
                let dialled = self.go_ahead(dialling, &mut dialogue).await?;
                self.agent.consume(length);
                self.tell(&start_tls_accepted(id)).await?;
                self.native(Dialling::Ready(dialled), Before::StartTls)
                    .await
            }
        }
    }

    /// Declines the agent's StartTLS, unless it may have it.
    async fn ldap_wants(&mut self) -> Result<Wants, Failure> {
        let mut declined = false;
        let insists = || {
            Failure::new(
                Cause::NativeTls,
                "the agent insists on TLS of its own, which mantled cannot verify; \
                 a route with tls = \"passthrough\" allows it",
            )
        };
        loop {
            // An agent that waits for the server is one whose protocol a route names.
            if self.agent.head.is_empty() && !declined {
                return Ok(Wants::Session);
            }
            match parse_request(&self.agent.head) {
                Ok(Progress::Done(Request::StartTls { id, length })) if self.plan.native => {
                    return Ok(Wants::Tls { id, length });
                }
                Ok(Progress::Done(Request::StartTls { id, length })) if !declined => {
                    declined = true;
                    self.agent.consume(length);
                    let reason = "mantled encrypts this connection beyond this host; \
                                  go on without StartTLS";
                    self.tell(&start_tls_declined(id, reason)).await?;
                }
                // It asks again, or says goodbye.
                Ok(Progress::Done(Request::StartTls { .. } | Request::Unbind)) if declined => {
                    return Err(insists());
                }
                Ok(Progress::Done(_)) => return Ok(Wants::Session),
                Ok(Progress::NeedMore) => match self.agent.read_more().await {
                    Ok(true) => {}
                    Ok(false) | Err(_) if declined => return Err(insists()),
                    Ok(false) | Err(_) => {
                        return Err(Failure::new(
                            Cause::AgentProtocol,
                            "the agent closed in the middle of its first request",
                        ));
                    }
                },
                Err(error) => return Err(Failure::new(Cause::AgentProtocol, error.to_string())),
            }
        }
    }
}

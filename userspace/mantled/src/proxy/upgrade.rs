//! From a dialled connection to an [`Upstream`]: one file for each way to TLS.

mod implicit;
mod native;
mod postgres;
mod starttls;
mod terminate;

use std::time::Duration;

use mantled_record::{Path, TlsFacts};
use rustls::pki_types::ServerName;

use super::{
    Context,
    agent::Agent,
    checks::Before,
    detect::{Dialling, dial_failure},
    filter::Filter,
    ledger::Session,
    plan::Plan,
    spoken::Spoken,
    unreachable,
    upstream::{Dial, Dialled, Upstream, Verified},
    without_tls,
};
use crate::{
    config::{Protocol, TlsMode},
    error::{Cause, Failure},
    tls::{Alpn, Offer},
};

/// Where the agent's bytes go, and what looks at them on the way.
#[derive(Debug)]
pub struct Way {
    /// Where to.
    pub upstream: Upstream,
    /// Looks at what the agent sends.
    pub from_agent: Filter,
    /// Looks at what the server sends.
    pub from_server: Filter,
}

impl Way {
    fn plain(upstream: Upstream) -> Self {
        Self {
            upstream,
            from_agent: Filter::None,
            from_server: Filter::None,
        }
    }
}

/// One session on its way up: what every way to TLS needs.
pub struct Upgrade<'a> {
    pub(super) context: &'a Context,
    pub(super) session: &'a mut Session,
    pub(super) agent: &'a mut Agent,
    pub(super) plan: &'a Plan,
    pub(super) dial: Dial,
}

impl Upgrade<'_> {
    /// Makes the way. In observe mode a server that cannot be verified is used in clear, and the
    /// record says what enforce mode would have refused.
    ///
    /// # Errors
    /// What refuses the session.
    pub async fn run(mut self, spoken: Spoken, dialling: Dialling) -> Result<Way, Failure> {
        if self.plan.may_fall_back()
            && spoken != Spoken::Tls
            && let Some(failure) = self.context.without_tls.recall(self.plan.destination)
        {
            self.would_refuse(failure);
            let dialled = self.dialled(dialling).await?;
            return self.expose(dialled).map(Way::plain);
        }
        let result = match (self.plan.tls, spoken) {
            (TlsMode::Exempt, _) => {
                let dialled = self.dialled(dialling).await?;
                return self.expose(dialled).map(Way::plain);
            }
            (TlsMode::Terminate, Spoken::Tls) => {
                return self.terminate(dialling, Before::Nothing).await;
            }
            (_, Spoken::Tls) => return self.native(dialling, Before::Nothing).await,
            (TlsMode::Passthrough, Spoken::Known(Protocol::Postgresql)) => {
                self.postgres(dialling).await
            }
            (TlsMode::Passthrough, _) => Err(Failure::new(
                Cause::NotTls,
                "the route says passthrough, but the agent does not speak TLS",
            )),
            (TlsMode::Implicit, spoken) => self.implicit(dialling, alpn(spoken)).await,
            (TlsMode::Auto | TlsMode::Starttls | TlsMode::Terminate, spoken) => {
                self.by_protocol(spoken, dialling).await
            }
        };
        match result {
            Err(failure)
                if self.plan.may_fall_back()
                    // In the middle of its own handshake, clear text is not what it expects.
                    && !self.agent.expects_tls
                    && is_about_the_server(failure.cause) =>
            {
                self.context
                    .without_tls
                    .remember(self.plan.destination, &failure);
                self.would_refuse(failure);
                // The attempt has spoiled its connection.
                self.dial.address = self.plan.address();
                let dialled = self.dialled(Dialling::start(self.dial.connect())).await?;
                self.expose(dialled).map(Way::plain)
            }
            result => result,
        }
    }

    /// The protocol's own way.
    async fn by_protocol(&mut self, spoken: Spoken, dialling: Dialling) -> Result<Way, Failure> {
        match spoken {
            Spoken::Known(Protocol::Postgresql) => return self.postgres(dialling).await,
            Spoken::Known(protocol) => {
                if let Some(dialogue) = starttls::dialogue(protocol) {
                    return self.starttls(dialling, dialogue).await;
                }
            }
            _ => {}
        }
        match (self.plan.tls, spoken) {
            (TlsMode::Starttls, _) => Err(Failure::new(
                Cause::NoUpgrade,
                "the route says starttls, but the agent speaks no protocol for which mantled knows it",
            )),
            (_, Spoken::ServerFirst) => Err(Failure::new(
                Cause::NoUpgrade,
                "the server speaks first, in clear, and mantled knows no way to TLS for its protocol",
            )),
            _ => self.implicit(dialling, alpn(spoken)).await,
        }
    }

    /// Waits for the first dial; when it has failed, the kernel is told.
    async fn dialled(&self, dialling: Dialling) -> Result<Dialled, Failure> {
        dialling.take().await.map_err(|error| {
            unreachable::remember(self.context, self.plan.destination, &self.dial, &error);
            dial_failure(&error)
        })
    }

    fn would_refuse(&mut self, failure: Failure) {
        self.session.record.would_refuse = Some(failure.cause.name());
        self.session.record.reason = Some(failure.text);
    }

    /// The record tells the port where it is not the one that the agent asked for.
    fn note_port(&mut self, dialled: &Dialled) {
        let asked = self.plan.destination.port();
        self.session.record.upstream_port = dialled.port().filter(|port| *port != asked);
    }

    fn expose(&mut self, dialled: Dialled) -> Result<Upstream, Failure> {
        let permit = self.plan.clear_text.ok_or_else(|| {
            Failure::new(
                Cause::Internal,
                "clear text was about to leave without a permit",
            )
        })?;
        self.note_port(&dialled);
        self.session.goes(Path::Exposed);
        Ok(Upstream::Exposed(dialled.expose(permit)))
    }

    /// How long a handshake may take. Observing must not delay much.
    fn handshake_patience(&self) -> Duration {
        let patience = self.context.config.limits().handshake;
        if self.plan.may_fall_back() {
            patience.min(without_tls::PATIENCE)
        } else {
            patience
        }
    }

    /// The TLS handshake, and what it shows, for whichever way led to it.
    async fn verify(&mut self, dialled: Dialled, alpn: Alpn) -> Result<Upstream, Failure> {
        let verified = self
            .handshake(dialled, &self.plan.name, alpn.into())
            .await?;
        self.session.goes(Path::Verified);
        Ok(Upstream::Verified(Box::new(verified)))
    }

    async fn handshake(
        &mut self,
        dialled: Dialled,
        name: &ServerName<'static>,
        offer: Offer,
    ) -> Result<Verified, Failure> {
        self.note_port(&dialled);
        let patience = self.handshake_patience();
        let connector = self.context.connectors.of_route(self.plan.route);
        let verified = dialled.verify(&connector, name, offer, patience).await?;
        let agents = std::mem::take(&mut self.session.record.tls);
        self.session.record.tls = TlsFacts {
            client_server_name: agents.client_server_name,
            client_versions: agents.client_versions,
            client_alpn: agents.client_alpn,
            ..verified.facts().clone()
        };
        Ok(verified)
    }
}

/// What is offered where TLS is spoken from the first byte.
fn alpn(spoken: Spoken) -> Alpn {
    match spoken {
        Spoken::Known(Protocol::Http) => Alpn::Http1,
        Spoken::Known(Protocol::Http2) => Alpn::Http2,
        _ => Alpn::None,
    }
}

/// Is it the server (or the path to it) that cannot be verified, rather than the agent that went
/// wrong?
fn is_about_the_server(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::CertificateExpired
            | Cause::CertificateUntrusted
            | Cause::CertificateName
            | Cause::CertificateInvalid
            | Cause::CertificateRevoked
            | Cause::CertificatePin
            | Cause::RevocationUnknown
            | Cause::TlsNotOffered
            | Cause::TlsFailed
            | Cause::NoUpgrade
            | Cause::UpgradeDeclined
            | Cause::UpgradeInjected
            | Cause::UpgradeProtocol
            | Cause::UpgradeTimeout
    )
}

//! From a dialled connection to an [`Upstream`]: one file for each way to TLS.

mod ftp;
mod implicit;
mod ldap;
mod mysql;
mod native;
mod postgres;
mod rehearse;
mod resolver;
mod ssh;
mod starttls;
mod syslog;
mod tds;
mod terminate;
mod xmpp;

pub use rehearse::rehearse;

use std::time::Duration;

use mantled_record::{Path, TlsFacts};
use mantled_redirect::Peer;
use mantled_wire::Rewrite;
use rustls::pki_types::ServerName;

use super::{
    Context,
    agent::Agent,
    checks::Before,
    detect::{Dialling, dial_failure},
    filter::Filter,
    ledger::Session,
    permit::permit,
    plan::Plan,
    revocation::Revocation,
    spoken::Spoken,
    unreachable,
    upstream::{Dial, Dialled, Upstream, Verified},
    without_tls,
};
use crate::{
    config::{Protocol, TlsMode},
    error::{Cause, Failure},
    policy::Case,
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
    /// The same through an inspector: it sees what the agent sends before anything else changes that,
    /// and what the server sends after.
    #[must_use]
    pub(super) fn through(
        self,
        from_agent: impl Rewrite + 'static,
        from_server: impl Rewrite + 'static,
    ) -> Self {
        Self {
            upstream: self.upstream,
            from_agent: Filter::Rewrite(Box::new(from_agent)).then(self.from_agent),
            from_server: self
                .from_server
                .then(Filter::Rewrite(Box::new(from_server))),
        }
    }

    pub(super) fn plain(upstream: Upstream) -> Self {
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
    pub(super) peer: &'a Peer,
    pub(super) session: &'a mut Session,
    pub(super) agent: &'a mut Agent,
    pub(super) plan: &'a Plan,
    pub(super) dial: Dial,
    pub(super) revocation: &'a Revocation,
}

impl Upgrade<'_> {
    /// Makes the way. In observe mode a server that cannot be verified is used in clear, and the
    /// record says what enforce mode would have refused.
    ///
    /// # Errors
    /// What refuses the session.
    pub async fn run(mut self, spoken: Spoken, dialling: Dialling) -> Result<Way, Failure> {
        if let Some(service) = &self.plan.data_of {
            return self.ftp_data(dialling, service).await;
        }
        if self.plan.may_fall_back()
            && spoken != Spoken::Tls
            && let Some(failure) = self
                .context
                .without_tls
                .recall(&self.dial.place, self.plan.destination)
        {
            self.would_refuse(failure);
            let dialled = self.dialled(dialling).await?;
            return self.carry_in_clear(dialled, spoken);
        }
        let result = match (self.plan.tls, spoken) {
            (TlsMode::Exempt, _) => {
                let dialled = self.dialled(dialling).await?;
                return self.carry_in_clear(dialled, spoken);
            }
            (TlsMode::Terminate, Spoken::Tls) => {
                return self.terminate(dialling, Before::Nothing).await;
            }
            (_, Spoken::Tls) => return self.native(dialling, Before::Nothing).await,
            // SSH inside TLS is what an implicit route asks for.
            (
                TlsMode::Auto | TlsMode::Starttls | TlsMode::Passthrough | TlsMode::Terminate,
                Spoken::Known(Protocol::Ssh),
            ) => return self.ssh(dialling).await,
            (TlsMode::Passthrough, Spoken::Known(Protocol::Postgresql)) => {
                self.postgres(dialling).await
            }
            (TlsMode::Passthrough, Spoken::Known(Protocol::Ldap)) => self.ldap(dialling).await,
            (TlsMode::Passthrough, Spoken::Known(Protocol::Mysql)) => self.mysql(dialling).await,
            (TlsMode::Passthrough, _) => Err(Failure::new(
                Cause::NotTls,
                "the route says passthrough, but the agent does not speak TLS",
            )),
            (TlsMode::Implicit, Spoken::Known(Protocol::Xmpp)) => {
                self.xmpp_implicit(dialling).await
            }
            (TlsMode::Implicit, Spoken::Known(Protocol::Ftp)) => self.ftp(dialling).await,
            (TlsMode::Implicit, Spoken::Known(Protocol::Tds)) => self.tds_implicit(dialling).await,
            (TlsMode::Auto | TlsMode::Implicit, Spoken::Known(Protocol::Syslog)) => {
                self.syslog(dialling).await
            }
            (TlsMode::Implicit, spoken) => self.implicit(dialling, spoken).await,
            (TlsMode::Auto | TlsMode::Starttls | TlsMode::Terminate, spoken) => {
                self.by_protocol(spoken, dialling).await
            }
        };
        match result {
            // An agent that has heard something cannot begin anew; in the middle of its own handshake
            // clear text is not what it expects.
            Err(failure)
                if self.plan.may_fall_back()
                    && self.agent.parting.is_none()
                    && !self.agent.expects_tls
                    && is_about_the_server(failure.cause) =>
            {
                self.context.without_tls.remember(
                    &self.dial.place,
                    self.plan.destination,
                    &failure,
                );
                self.would_refuse(failure);
                // The attempt has spoiled its connection.
                self.dial.address = self.plan.address();
                let dialled = self.dialled(Dialling::start(self.dial.connect())).await?;
                self.carry_in_clear(dialled, spoken)
            }
            result => result,
        }
    }

    /// The protocol's own way.
    async fn by_protocol(&mut self, spoken: Spoken, dialling: Dialling) -> Result<Way, Failure> {
        match spoken {
            Spoken::Known(Protocol::Postgresql) => return self.postgres(dialling).await,
            Spoken::Known(Protocol::Ldap) => return self.ldap(dialling).await,
            Spoken::Known(Protocol::Tds) => return self.tds(dialling).await,
            Spoken::Known(Protocol::Xmpp) => return self.xmpp(dialling).await,
            Spoken::Known(Protocol::Ftp) => return self.ftp(dialling).await,
            Spoken::Known(Protocol::Mysql) => return self.mysql(dialling).await,
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
            _ => self.implicit(dialling, spoken).await,
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

    /// Leaves the session in clear, which needs a permit.
    fn carry_in_clear(&mut self, dialled: Dialled, spoken: Spoken) -> Result<Way, Failure> {
        match spoken {
            Spoken::Known(Protocol::Ftp) => self.ftp_in_clear(dialled),
            _ => self.expose(dialled).map(Way::plain),
        }
    }

    fn expose(&mut self, dialled: Dialled) -> Result<Upstream, Failure> {
        let permit = self.plan.clear_text.ok_or_else(|| {
            Failure::new(
                Cause::Internal,
                "clear text was about to leave without a permit",
            )
        })?;
        self.note_port(&dialled);
        self.goes(Path::Exposed)?;
        Ok(Upstream::Exposed(dialled.expose(permit)))
    }

    /// How long a handshake may take. Observing must not delay much.
    fn patience(&self) -> Duration {
        let patience = self.context.config.limits().handshake;
        if self.plan.may_fall_back() {
            patience.min(without_tls::PATIENCE)
        } else {
            patience
        }
    }

    /// The TLS handshake, and what it shows, for whichever way led to it.
    async fn verify(&mut self, dialled: Dialled, alpn: Alpn) -> Result<Upstream, Failure> {
        self.verify_by(dialled, Offer::One(alpn)).await
    }

    /// The same for a handshake inside the packets of TDS 7.x.
    async fn verify_in_packets(&mut self, dialled: Dialled) -> Result<Upstream, Failure> {
        self.verify_by(dialled, Offer::InTdsPackets).await
    }

    async fn verify_by(&mut self, dialled: Dialled, offer: Offer) -> Result<Upstream, Failure> {
        let name = proven_name(self.plan)?;
        let verified = self.handshake(dialled, name, offer).await?;
        self.goes_to(verified)
    }

    /// The way is verified; the record says so.
    fn goes_to(&mut self, verified: Verified) -> Result<Upstream, Failure> {
        self.learn_of(&verified);
        self.goes(Path::Verified)?;
        Ok(Upstream::Verified(Box::new(verified)))
    }

    /// The way is there; policy says whether the agent's bytes may go there.
    fn goes(&mut self, path: Path) -> Result<(), Failure> {
        // What its control connection may, it may.
        if self.plan.data_of.is_none() {
            let case = Case::of(&self.session.record, self.plan.destination, &self.plan.name);
            let case = case.opened(&self.session.record, path, self.plan.protocol);
            permit(self.context, self.peer, self.session, &case)?;
            if !self.plan.lenient {
                self.revocation.permitted(case);
            } else if self.session.record.would_refuse == Some(Cause::PolicyDenied.name())
                || !self.context.rules.families(&case).is_empty()
                || !self.context.rules.masks(&case).is_empty()
            {
                self.revocation.only_observed();
            }
        }
        self.session.goes(path);
        Ok(())
    }

    async fn handshake(
        &mut self,
        dialled: Dialled,
        name: &ServerName<'static>,
        offer: Offer,
    ) -> Result<Verified, Failure> {
        self.note_port(&dialled);
        let patience = self.patience();
        let connector = self.context.connectors.of_route(self.plan.route);
        let verified = dialled.verify(&connector, name, offer, patience).await?;
        self.learn_of(&verified);
        Ok(verified)
    }

    /// The record tells what the handshake has shown, beside what it knows of the agent's own.
    fn learn_of(&mut self, verified: &Verified) {
        let agents = std::mem::take(&mut self.session.record.tls);
        self.session.record.tls = TlsFacts {
            client_server_name: agents.client_server_name,
            client_versions: agents.client_versions,
            client_alpn: agents.client_alpn,
            ..verified.facts().clone()
        };
    }
}

/// The name that the certificate must prove, unless nobody knows which one is meant.
fn proven_name(plan: &Plan) -> Result<&ServerName<'static>, Failure> {
    if plan.ambiguous.is_empty() {
        return Ok(&plan.name);
    }
    Err(Failure::new(
        Cause::NameAmbiguous,
        format!(
            "the agent has asked for several names that have this address ({}); a route with \
             server_name tells which one the certificate must prove",
            plan.ambiguous.join(", ")
        ),
    ))
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
            | Cause::NameAmbiguous
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

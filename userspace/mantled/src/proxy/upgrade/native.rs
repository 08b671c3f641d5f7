//! The agent's own TLS: passed on where that is allowed, with what can be seen of it recorded.
//!
//! The proxy cannot see whether the agent verifies its server, nor the certificate (TLS 1.3 hides
//! it), so enforce mode lets it pass only by a route that says `passthrough`. Such a route's server
//! is verified by a handshake of the proxy's own, with the name that the agent asks for: what is
//! proven is that the server there has the name, not that the agent's very connection leads to it.
//! That the agent cannot be led to another one rests on the agent's own verification.

use mantled_record::Path;
use mantled_wire::{
    Progress, ldap,
    tls::{ClientHello, ProtocolVersion, RecordGuard},
};
use rustls::pki_types::ServerName;
use tokio::time::timeout;

use super::{Upgrade, Way, mysql, postgres, proven_name, starttls::converse};
use crate::{
    config::{MinVersion, Route, TlsMode},
    error::{Cause, Failure},
    proxy::{
        checks::{Before, Check},
        detect::Dialling,
        filter::{Filter, ServerRecords},
        upstream::{Dialled, Upstream},
    },
    tls::show_name,
};

impl Upgrade<'_> {
    /// Passes it on. Observe mode records what enforce mode would have refused.
    pub(super) async fn native(
        &mut self,
        dialling: Dialling,
        before: Before,
    ) -> Result<Way, Failure> {
        let hello = self.client_hello().await?;
        let may_object = !self.plan.may_fall_back();
        if !self.plan.native {
            return Err(needs_route());
        }
        let minimum = self.minimum();
        let mut objection = too_old(&hello, minimum);
        if may_object && let Some(failure) = objection {
            return Err(failure);
        }
        let mut dialled = Some(self.dialled(dialling).await?);
        if objection.is_none() {
            objection = if before == Before::Greeting {
                // The agent answers the greeting of this very connection.
                self.check(&hello, before, &mut None).await.err()
            } else {
                self.check(&hello, before, &mut dialled).await.err()
            };
        }
        if self.plan.tls != TlsMode::Passthrough {
            objection = objection.or_else(|| Some(needs_route()));
        }
        match objection {
            Some(failure) if may_object => return Err(failure),
            Some(failure) => self.would_refuse(failure),
            None => {}
        }
        let dialled = match dialled {
            Some(dialled) => dialled,
            None => self.redial(before).await?,
        };
        self.note_port(&dialled);
        self.goes(Path::Native)?;
        Ok(Way {
            upstream: Upstream::Native(dialled.native()),
            from_agent: Filter::Records(RecordGuard::default()),
            from_server: Filter::ServerRecords(ServerRecords::new(may_object.then_some(minimum))),
        })
    }

    /// Reads the agent's ClientHello, and leaves it in the agent's head.
    pub(super) async fn client_hello(&mut self) -> Result<ClientHello, Failure> {
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
        let hello = timeout(patience, read).await.unwrap_or_else(|_| {
            Err(Failure::new(
                Cause::NotTls,
                "the agent did not finish its ClientHello in time",
            ))
        })?;
        self.agent.expects_tls = true;
        let tls = &mut self.session.record.tls;
        tls.client_server_name.clone_from(&hello.server_name);
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
        Ok(hello)
    }

    /// The lowest version of the trust that counts here.
    fn minimum(&self) -> ProtocolVersion {
        match self.context.config.trust_for(self.route()).min_version {
            MinVersion::Tls12 => ProtocolVersion(0x0303),
            MinVersion::Tls13 => ProtocolVersion(0x0304),
        }
    }

    fn route(&self) -> Option<&Route> {
        let routes = self.context.config.routes();
        self.plan.route.and_then(|index| routes.get(index))
    }

    /// The name that the server of an agent with TLS must prove: what the agent asks for, where
    /// that is what the route, or the plan, knows.
    pub(super) fn name_for(&self, hello: &ClientHello) -> Result<ServerName<'static>, Failure> {
        let Some(asked) = &hello.server_name else {
            return proven_name(self.plan).cloned();
        };
        // Where the agent knows several names, it says here which one it means.
        let ambiguous = &self.plan.ambiguous;
        if !ambiguous.is_empty() && ambiguous.iter().all(|name| **name != **asked) {
            proven_name(self.plan)?;
        }
        let asked = ServerName::try_from(asked.clone()).map_err(|_| {
            Failure::new(
                Cause::CertificateName,
                "the agent asks for a server name that no certificate can prove",
            )
        })?;
        let by_route = self.route().and_then(Route::server_name).is_some();
        let known = by_route || matches!(self.plan.name, ServerName::DnsName(_));
        if known && asked != self.plan.name {
            return Err(Failure::new(
                Cause::CertificateName,
                format!(
                    "the agent asks for {}, where {} is due",
                    show_name(&asked),
                    show_name(&self.plan.name)
                ),
            ));
        }
        Ok(asked)
    }

    /// Another connection, as far as the first one had come.
    pub(super) async fn redial(&self, before: Before) -> Result<Dialled, Failure> {
        let mut dialled = self.dialled(Dialling::start(self.dial.connect())).await?;
        let lead = async {
            match before {
                Before::Nothing => Ok(()),
                Before::SslRequest => postgres::must_be_willing(&mut dialled).await,
                Before::StartTls => converse(&mut dialled, &mut ldap::StartTls::default()).await,
                Before::Greeting => mysql::rehearse(&mut dialled).await,
            }
        };
        let patience = self.context.config.limits().starttls;
        timeout(patience, lead)
            .await
            .unwrap_or_else(|_| Err(postgres::no_answer()))?;
        Ok(dialled)
    }

    /// Verifies the server by a handshake of the proxy's own, unless that was done lately. It is
    /// made on the connection that is there, which is taken for it: a server that serves one after
    /// the other must not wait for the agent's words meanwhile.
    async fn check(
        &mut self,
        hello: &ClientHello,
        before: Before,
        spare: &mut Option<Dialled>,
    ) -> Result<(), Failure> {
        let check = Check {
            dial: self.dial.clone(),
            route: self.plan.route,
            name: self.name_for(hello)?,
            before,
        };
        let context = self.context;
        let make = async {
            let name = &check.name;
            let dialled = match spare.take() {
                Some(dialled) => dialled,
                None => self.redial(before).await?,
            };
            // Those of now: after a change of trust nobody finds what an older one has proven.
            let connector = context.connectors.of_route(check.route);
            dialled.check(&connector, name, hello.alpn.clone()).await
        };
        let patience = self.patience();
        let facts = context
            .checks
            .recall_or(check.clone(), patience, make)
            .await?;
        let tls = &mut self.session.record.tls;
        tls.server_checked = Some(show_name(&check.name));
        tls.pin = facts.pin;
        tls.certificate = facts.certificate;
        Ok(())
    }
}

fn needs_route() -> Failure {
    Failure::new(
        Cause::NativeTls,
        "the agent speaks TLS itself, which mantled cannot verify; \
         a route with tls = \"passthrough\" or \"terminate\" allows it",
    )
}

fn too_old(hello: &ClientHello, minimum: ProtocolVersion) -> Option<Failure> {
    let highest = hello.highest_version();
    if highest >= Some(minimum) {
        return None;
    }
    Some(Failure::new(
        Cause::TlsVersion,
        format!(
            "the agent offers TLS {} at most, and the lowest version is {}",
            highest.map_or_else(|| "of no known version".to_owned(), ProtocolVersion::name),
            minimum.name()
        ),
    ))
}

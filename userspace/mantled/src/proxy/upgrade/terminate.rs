//! The agent's own TLS, ended here: the proxy verifies the server in the agent's place and speaks
//! to the agent with a certificate of the host's authority.
//!
//! The server comes first: only one that has proven its name is vouched for, and what it chose of
//! the agent's application protocols (ALPN) is what the agent is told. What is inside is relayed
//! as it is.
//!
//! Authentication that is bound to the TLS channel cannot work across two channels. A PostgreSQL
//! agent over TLS that could bind says so, and a server that could as well refuses SCRAM without
//! (RFC 5802 §6); libpq needs `channel_binding=disable`.

use std::io;

use mantled_record::Path;
use mantled_wire::tls::ClientHello;
use rustls::{AlertDescription, Error as TlsError, pki_types::ServerName};
use tokio::time::timeout;

use super::{Upgrade, Way, is_about_the_server};
use crate::{
    error::{Cause, Failure},
    proxy::{
        checks::Before,
        detect::Dialling,
        filter::{Filter, ServerRecords},
        upstream::{Dialled, Upstream, Verified},
    },
    tls::Offer,
};

impl Upgrade<'_> {
    /// Ends it here. Observe mode leaves the agent's TLS alone where the server does not verify,
    /// or where an agent has not believed the authority a moment ago.
    pub(super) async fn terminate(
        &mut self,
        dialling: Dialling,
        before: Before,
    ) -> Result<Way, Failure> {
        let hello = self.client_hello().await?;
        let observe = self.plan.may_fall_back();
        let distrust = self
            .context
            .distrusting
            .recall(&self.dial.place, self.plan.destination);
        let dialled = self.dialled(dialling).await?;
        if observe && let Some(failure) = distrust {
            return self.leave_alone(dialled, failure);
        }
        let verified = match self.verify_for(&hello, dialled).await {
            Ok(verified) => verified,
            Err(failure) if observe && is_about_the_server(failure.cause) => {
                let dialled = self.redial(before).await?;
                return self.leave_alone(dialled, failure);
            }
            Err(failure) => return Err(failure),
        };
        if let Err(failure) = self.convince(&hello, &verified).await {
            if observe && failure.cause == Cause::AgentDistrustsCa {
                let destination = self.plan.destination;
                self.context
                    .distrusting
                    .remember(&self.dial.place, destination, &failure);
            }
            return Err(failure);
        }
        self.session.record.tls.terminated = Some(true);
        self.goes(Path::Verified)?;
        Ok(Way::plain(Upstream::Verified(Box::new(verified))))
    }

    /// The server, with the name and the protocols that the agent asks for.
    async fn verify_for(
        &mut self,
        hello: &ClientHello,
        dialled: Dialled,
    ) -> Result<Verified, Failure> {
        let name = self.name_for(hello)?;
        self.handshake(dialled, &name, Offer::Agents(hello.alpn.clone()))
            .await
    }

    /// The handshake with the agent.
    async fn convince(&mut self, hello: &ClientHello, verified: &Verified) -> Result<(), Failure> {
        let connectors = self.context.connectors.current();
        let authority = connectors
            .authority()
            .ok_or_else(|| Failure::new(Cause::Internal, "there is no authority"))?;
        let config = authority
            .server_config(self.vouched_for(hello), verified.alpn())
            .map_err(|error| Failure::new(Cause::Internal, error))?;
        let patience = self.context.config.limits().handshake;
        timeout(patience, self.agent.accept_tls(config))
            .await
            .map_err(|_| {
                Failure::new(
                    Cause::AgentProtocol,
                    "the agent did not finish its TLS handshake in time",
                )
            })?
            .map_err(|error| agent_failure(&error))
    }

    /// The names that the agent may have in mind: the one that it asks for, else the address that
    /// it connected to, and the name that the server has proven.
    fn vouched_for(&self, hello: &ClientHello) -> Vec<ServerName<'static>> {
        let asked = hello
            .server_name
            .clone()
            .and_then(|name| ServerName::try_from(name).ok());
        if let Some(name) = asked {
            return vec![name];
        }
        let mut names = vec![ServerName::from(self.plan.destination.ip())];
        if !names.contains(&self.plan.name) {
            names.push(self.plan.name.clone());
        }
        names
    }

    fn leave_alone(&mut self, dialled: Dialled, failure: Failure) -> Result<Way, Failure> {
        self.would_refuse(failure);
        self.note_port(&dialled);
        self.goes(Path::Native)?;
        Ok(Way {
            upstream: Upstream::Native(dialled.native()),
            from_agent: Filter::Records(Default::default()),
            from_server: Filter::ServerRecords(ServerRecords::default()),
        })
    }
}

/// Why there was no handshake with the agent.
fn agent_failure(error: &io::Error) -> Failure {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls {
        Some(TlsError::AlertReceived(alert)) if is_about_the_certificate(*alert) => {
            distrusts(&format!("it sent the alert {alert:?}"))
        }
        Some(error) => Failure::new(
            Cause::AgentProtocol,
            format!("no TLS handshake with the agent: {error}"),
        ),
        // Its ClientHello was there before, so it has seen the certificate.
        None => distrusts("it closed when it had seen the certificate"),
    }
}

/// What programs say of a certificate that they do not believe: OpenSSL and most others
/// unknown_ca, Java certificate_unknown, Go bad_certificate.
fn is_about_the_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::AccessDenied
    )
}

fn distrusts(how: &str) -> Failure {
    Failure::new(
        Cause::AgentDistrustsCa,
        format!(
            "the agent does not trust this host's authority ({how}); `mantled ca install` lets \
             this host's programs trust it and tells what those with a list of their own need; \
             one that pins its server needs tls = \"passthrough\""
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_does_not_believe_is_told_apart() {
        let tls = |error: TlsError| io::Error::new(io::ErrorKind::InvalidData, error);
        for (error, cause) in [
            (
                tls(TlsError::AlertReceived(AlertDescription::UnknownCA)),
                Cause::AgentDistrustsCa,
            ),
            (
                tls(TlsError::AlertReceived(
                    AlertDescription::CertificateUnknown,
                )),
                Cause::AgentDistrustsCa,
            ),
            (
                tls(TlsError::AlertReceived(AlertDescription::BadCertificate)),
                Cause::AgentDistrustsCa,
            ),
            (io::ErrorKind::UnexpectedEof.into(), Cause::AgentDistrustsCa),
            (
                tls(TlsError::AlertReceived(AlertDescription::InternalError)),
                Cause::AgentProtocol,
            ),
            (tls(TlsError::DecryptError), Cause::AgentProtocol),
        ] {
            let failure = agent_failure(&error);
            assert_eq!(failure.cause, cause, "{error}");
        }
    }
}

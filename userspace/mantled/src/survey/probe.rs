//! Asking a server for the TLS that it offers, as the proxy would for an agent.

use mantled_record::TlsFacts;
use mantled_redirect::Peer;

use crate::{
    config::{Config, TlsMode},
    error::{Cause, Failure},
    proxy::{place::Place, plan::Plan, spoken::Spoken, upgrade, upstream::Dial},
    tls::Connectors,
};

/// What enforcing would do.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Nobody has asked the server.
    NotAsked,
    /// Its connections would be upgraded.
    Upgraded(Box<TlsFacts>),
    /// They would be refused.
    Refused(Failure),
    /// A route lets them out in clear.
    Exempt,
    /// The agents speak TLS themselves, which a route has to allow.
    OwnTls,
    /// It is no TCP, and would be dropped.
    Dropped,
    /// It is a server in the group, whose answers would be dropped.
    Inbound,
}

impl Outcome {
    /// A word for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::Upgraded(_) => "upgrade",
            Self::Refused(failure) => failure.cause.name(),
            Self::Exempt => "exempt",
            Self::OwnTls => "native_tls",
            Self::Dropped => "dropped",
            Self::Inbound => "inbound",
        }
    }

    /// A sentence for people, with the remedy.
    pub fn sentence(&self) -> String {
        match self {
            Self::NotAsked => "in clear; the server was not asked for TLS".to_owned(),
            Self::Upgraded(facts) => format!(
                "upgrade: TLS {}, verified as {}",
                facts.version.as_deref().unwrap_or("?"),
                facts.verified_name.as_deref().unwrap_or("?")
            ),
            Self::Refused(failure) => {
                let remedy = match failure.cause {
                    Cause::CertificateUntrusted => {
                        "needs a CA: name it in [tls] roots, or in a route's"
                    }
                    Cause::CertificateName => {
                        "name mismatch: a route with server_name tells which name it must prove"
                    }
                    Cause::CertificateExpired => "the server's certificate has to be renewed",
                    Cause::NameAmbiguous => "a route with server_name tells which name is meant",
                    Cause::DialFailed => "the server could not be reached from here",
                    Cause::NoUpgrade
                    | Cause::TlsNotOffered
                    | Cause::UpgradeDeclined
                    | Cause::UpgradeTimeout => {
                        "no TLS there: a route with upstream_port tells where it is, exempt lets it out in clear"
                    }
                    _ => "would be refused",
                };
                format!("REFUSED: {remedy} ({failure})")
            }
            Self::Exempt => "in clear, by a route that exempts it".to_owned(),
            Self::OwnTls => {
                "the agent speaks TLS itself: a route with passthrough allows it".to_owned()
            }
            Self::Dropped => {
                "DROPPED: no TCP, which cannot be upgraded; bypass lets it out".to_owned()
            }
            Self::Inbound => {
                "a server in the group: inbound = \"allow\" lets it answer, in clear".to_owned()
            }
        }
    }
}

/// Asks the server. Nothing of an agent's is said to it.
pub(super) async fn ask(
    config: &Config,
    connectors: &Connectors,
    plan: &Plan,
    peer: &Peer,
    spoken: Spoken,
) -> Outcome {
    if plan.tls == TlsMode::Exempt {
        return Outcome::Exempt;
    }
    let connector = connectors.of_route(plan.route);
    let dial = Dial::of(plan, peer, &Place::default(), config.limits().dial);
    let spoken = spoken.or_named(plan.protocol);
    match upgrade::rehearse(plan, dial, connector, spoken, config.limits()).await {
        Ok(facts) => Outcome::Upgraded(Box::new(facts)),
        Err(failure) => Outcome::Refused(failure),
    }
}

//! What may happen to a session: mode, name and route, joined before anything is dialled.

use std::{net::SocketAddr, sync::Arc};

use mantled_redirect::{Peer, abi};
use rustls::pki_types::ServerName;

use super::{data_channels::Service, spoken::Spoken};
use crate::{
    config::{Config, Protocol, TlsMode, Trust},
    names::{Found, Source},
};

/// Allows clear text on the way out. Only observe mode, a route with `tls = "exempt"` and
/// [`Plan::of_resolver`] give one.
#[derive(Clone, Copy, Debug)]
pub struct ClearTextPermit(());

/// What may happen to a session.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Index of the route in the configuration.
    pub route: Option<usize>,
    /// How TLS comes about.
    pub tls: TlsMode,
    /// The protocol that the route names.
    pub protocol: Option<Protocol>,
    /// Where the agent wanted to go.
    pub destination: SocketAddr,
    /// The port that the route names.
    pub port: Option<u16>,
    /// The name that the certificate must prove.
    pub name: ServerName<'static>,
    /// Where it comes from, for the record.
    pub name_source: &'static str,
    /// The names of which nobody knows which one the agent means; then `name` is not to be used.
    pub ambiguous: Vec<Arc<str>>,
    /// The connection is one that this control connection has announced.
    pub data_of: Option<Service>,
    /// May clear text leave?
    pub clear_text: Option<ClearTextPermit>,
    /// May the agent's own encryption pass, which nobody can verify here?
    pub native: bool,
    /// It is observe mode alone that allows this: in enforce mode what is not verified is refused.
    pub lenient: bool,
}

impl Plan {
    /// Joins the mode that the group had at connect() with the names by which it knows the
    /// address and the first route that matches both.
    pub fn new(config: &Config, peer: &Peer, known: &Found) -> Self {
        let destination = peer.destination;
        // An unknown mode counts as enforce.
        let observe = peer.flow.mode == abi::MODE_OBSERVE;
        let hint = Found::default();
        let known = if known.source == Some(Source::Resolver) && !observe {
            &hint
        } else {
            known
        };
        let found = config.route_for(&known.names, destination.ip(), destination.port());
        let route = found.map(|(_, route)| route);
        let of_route = route.and_then(|route| route.server_name().cloned());
        let ambiguous = if of_route.is_none() && known.names.len() > 1 {
            known.names.clone()
        } else {
            Vec::new()
        };
        let (name, name_source) = match (of_route, known.names.as_slice()) {
            (Some(name), _) => (name, "route"),
            (None, [name]) => match (ServerName::try_from(name.to_string()), known.source) {
                (Ok(name), Some(source)) => (name, source.name()),
                // A name that no certificate can hold proves nothing.
                _ => (ServerName::from(destination.ip()), "address"),
            },
            (None, _) => (ServerName::from(destination.ip()), "address"),
        };
        let tls = route.map_or(TlsMode::Auto, |route| route.tls());
        Self {
            route: found.map(|(index, _)| index),
            tls,
            protocol: route.and_then(|route| route.protocol()),
            destination,
            port: route.and_then(|route| route.upstream_port()),
            name,
            name_source,
            ambiguous,
            data_of: None,
            clear_text: (observe || tls == TlsMode::Exempt).then_some(ClearTextPermit(())),
            native: observe || tls == TlsMode::Passthrough,
            lenient: observe && !matches!(tls, TlsMode::Exempt | TlsMode::Passthrough),
        }
    }

    /// DNS to one of the host's resolvers, which leaves in clear.
    pub fn of_resolver(peer: &Peer) -> Self {
        Self {
            route: None,
            tls: TlsMode::Exempt,
            protocol: None,
            destination: peer.destination,
            port: None,
            name: ServerName::from(peer.destination.ip()),
            name_source: "address",
            ambiguous: Vec::new(),
            data_of: None,
            clear_text: Some(ClearTextPermit(())),
            native: false,
            lenient: false,
        }
    }

    /// Of a connection that a control connection has announced: it goes exactly there, with what
    /// was proven of that server. An announcement in clear counts only where clear text may leave.
    #[must_use]
    pub fn data_of(mut self, service: Option<Service>) -> Self {
        let Some(service) = service else { return self };
        if service.connector.is_none() && self.clear_text.is_none() {
            return self;
        }
        self.route = service.route;
        self.tls = TlsMode::Implicit;
        self.port = Some(self.destination.port());
        self.name = service.name.clone();
        self.name_source = "control";
        self.ambiguous.clear();
        self.data_of = Some(service);
        self
    }

    /// Is this, by `config`, what `other` was by `its`? A certificate of the agent's host that was
    /// renewed changes nothing for sessions that are open.
    pub fn is_as(&self, config: &Config, other: &Self, its: &Config) -> bool {
        let trust = |plan: &Self, config: &Config| {
            let route = plan.route.and_then(|index| config.routes().get(index));
            Trust {
                client: None,
                ..config.trust_for(route).clone()
            }
        };
        (self.tls, self.protocol, self.port) == (other.tls, other.protocol, other.port)
            && (&self.name, &self.ambiguous) == (&other.name, &other.ambiguous)
            && trust(self, config) == trust(other, its)
    }

    /// May a server that cannot be verified be used in clear? An exempt route does not even try.
    pub fn may_fall_back(&self) -> bool {
        self.clear_text.is_some() && self.tls != TlsMode::Exempt
    }

    /// May TLS be on another port than the one that is dialled first?
    pub fn has_other_port(&self) -> bool {
        self.tls == TlsMode::Auto && self.implicit_port() != self.address().port()
    }

    /// What is spoken where nobody has spoken yet, by the well-known port: an agent that logs may
    /// have nothing to say for long. Its first messages are to be framed as well.
    pub fn protocol_of_silence(&self, heard: Spoken) -> Option<Protocol> {
        (heard == Spoken::Silent && self.destination.port() == 514).then_some(Protocol::Syslog)
    }

    /// Where to dial first.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(
            self.destination.ip(),
            self.port.unwrap_or(self.destination.port()),
        )
    }

    /// The port on which a server of a well-known plaintext port speaks TLS from the first byte.
    /// A hint, never proof: it counts only if the certificate verifies.
    pub fn implicit_port(&self) -> u16 {
        if let Some(port) = self.port {
            return port;
        }
        // Pairs of IANA's service name registry.
        match self.destination.port() {
            80 => 443,    // http, https
            514 => 6514,  // shell (syslog over TCP by custom), syslog-tls
            1883 => 8883, // mqtt, secure-mqtt
            5672 => 5671, // amqp, amqps
            other => other,
        }
    }
}

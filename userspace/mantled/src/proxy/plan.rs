//! What may happen to a session: mode and route, joined before anything is dialled.

use std::net::SocketAddr;

use mantled_redirect::{Peer, abi};
use rustls::pki_types::ServerName;

use super::{data_channels::Service, spoken::Spoken};
use crate::config::{Config, Protocol, TlsMode};

/// Allows clear text on the way out. Only observe mode and a route with `tls = "exempt"` give one.
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
    /// The connection is one that this control connection has announced.
    pub data_of: Option<Service>,
    /// May clear text leave?
    pub clear_text: Option<ClearTextPermit>,
    /// May the agent's own encryption pass, which nobody can verify here?
    pub native: bool,
}

impl Plan {
    /// Joins the mode that the group had at connect() with the first route that matches.
    pub fn new(config: &Config, peer: &Peer) -> Self {
        let destination = peer.destination;
        let found = config.route_for(destination.ip(), destination.port());
        let route = found.map(|(_, route)| route);
        let tls = route.map_or(TlsMode::Auto, |route| route.tls());
        // An unknown mode counts as enforce.
        let observe = peer.flow.mode == abi::MODE_OBSERVE;
        Self {
            route: found.map(|(index, _)| index),
            tls,
            protocol: route.and_then(|route| route.protocol()),
            destination,
            port: route.and_then(|route| route.upstream_port()),
            name: route
                .and_then(|route| route.server_name().cloned())
                .unwrap_or_else(|| ServerName::from(destination.ip())),
            data_of: None,
            clear_text: (observe || tls == TlsMode::Exempt).then_some(ClearTextPermit(())),
            native: observe || tls == TlsMode::Passthrough,
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
        self.data_of = Some(service);
        self
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

//! What a session speaks.

use crate::config::Protocol;

/// What a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// A protocol that was recognised, or that a route names.
    Known(Protocol),
    /// DNS with a resolver of the host's.
    Dns,
    /// The agent began with a ClientHello.
    Tls,
    /// The agent spoke, and nobody here knows the language.
    Opaque,
    /// The server spoke first, and nobody here knows the language.
    ServerFirst,
    /// Nobody spoke in the time that was given.
    Silent,
    /// The agent closed without a word.
    Nothing,
}

impl Spoken {
    /// The name in records (`network.protocol.name`).
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Known(Protocol::Opaque) => None,
            Self::Known(protocol) => Some(protocol.name()),
            Self::Dns => Some("dns"),
            Self::Tls => Some("tls"),
            Self::Opaque | Self::ServerFirst | Self::Silent | Self::Nothing => None,
        }
    }

    /// What was recognised, else what the route names.
    pub fn or_named(self, protocol: Option<Protocol>) -> Self {
        match (self, protocol) {
            (Self::Opaque | Self::ServerFirst | Self::Silent, Some(protocol)) => {
                Self::Known(protocol)
            }
            _ => self,
        }
    }
}

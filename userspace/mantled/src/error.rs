//! Why a session did not go as the agent wished.

use mantled_record::Verdict;

/// The cause: a bounded set, which is what `error.type` of a record and a metric's label may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The kernel did not redirect this connection.
    NotRedirected,
    /// Records cannot be written, and the operator chose to refuse then.
    RecordFailure,
    /// The operator's policies do not permit it.
    PolicyDenied,
    /// The server could not be reached.
    DialFailed,
    /// The server's certificate has expired, or is not valid yet.
    CertificateExpired,
    /// It was not issued by a trusted authority.
    CertificateUntrusted,
    /// It does not prove the name that was asked for.
    CertificateName,
    /// It is otherwise invalid.
    CertificateInvalid,
    /// The agent knows several names of the address, and nobody can tell which one it means.
    NameAmbiguous,
    /// A certificate of its chain is revoked.
    CertificateRevoked,
    /// No revocation list that is in force covers a certificate of its chain.
    RevocationUnknown,
    /// No key of its chain is pinned.
    CertificatePin,
    /// The server does not speak TLS there.
    TlsNotOffered,
    /// It speaks TLS, but no handshake came about.
    TlsFailed,
    /// It speaks first, in clear, and mantled knows no way to TLS for it.
    NoUpgrade,
    /// It declined the upgrade.
    UpgradeDeclined,
    /// Bytes came between the go-ahead and the handshake.
    UpgradeInjected,
    /// Its answer to the upgrade was none of the protocol.
    UpgradeProtocol,
    /// The handshake, or the dialogue before it, took too long.
    UpgradeTimeout,
    /// It offers only authentication that is bound to a channel which the agent does not have.
    ChannelBinding,
    /// The agent, or the server that it talks to, has only versions of TLS that are too old.
    TlsVersion,
    /// The agent encrypts by itself, which nothing allows here.
    NativeTls,
    /// The agent does not trust the host's authority, by which its TLS was to end here.
    AgentDistrustsCa,
    /// The agent speaks SSH, which nothing allows here.
    NativeSsh,
    /// A stream that began as TLS went on as something else, or was none where TLS was due.
    NotTls,
    /// What the agent sent is not the protocol that it began with.
    AgentProtocol,
    /// What one side sent cannot be carried in the protocol that was spoken.
    Protocol,
    /// The agent closed its connection in the middle.
    AgentClosed,
    /// The server's stream ended without TLS' goodbye: it may have been cut.
    UpstreamTruncated,
    /// The server reset the connection, or its TLS broke.
    UpstreamClosed,
    /// The group was enforced while a session in observe mode was open.
    ModeChanged,
    /// A configuration was loaded that says something else of the session.
    ConfigurationChanged,
    /// The daemon stopped.
    Stopped,
    /// The daemon failed.
    Internal,
}

impl Cause {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotRedirected => "not_redirected",
            Self::RecordFailure => "record_failure",
            Self::PolicyDenied => "policy_denied",
            Self::DialFailed => "dial_failed",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::CertificateName => "certificate_name_mismatch",
            Self::CertificateInvalid => "certificate_invalid",
            Self::NameAmbiguous => "name_ambiguous",
            Self::CertificateRevoked => "certificate_revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::CertificatePin => "certificate_pin_mismatch",
            Self::TlsNotOffered => "tls_not_offered",
            Self::TlsFailed => "tls_failed",
            Self::NoUpgrade => "no_upgrade",
            Self::UpgradeDeclined => "upgrade_declined",
            Self::UpgradeInjected => "upgrade_injected",
            Self::UpgradeProtocol => "upgrade_protocol",
            Self::UpgradeTimeout => "upgrade_timeout",
            Self::ChannelBinding => "channel_binding",
            Self::TlsVersion => "tls_version",
            Self::NativeTls => "native_tls",
            Self::AgentDistrustsCa => "agent_distrusts_ca",
            Self::NativeSsh => "native_ssh",
            Self::NotTls => "not_tls",
            Self::AgentProtocol => "agent_protocol",
            Self::Protocol => "protocol",
            Self::AgentClosed => "agent_closed",
            Self::UpstreamTruncated => "upstream_truncated",
            Self::UpstreamClosed => "upstream_closed",
            Self::ModeChanged => "mode_changed",
            Self::ConfigurationChanged => "configuration_changed",
            Self::Stopped => "stopped",
            Self::Internal => "internal",
        }
    }

    /// What the session's record says.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::DialFailed => Verdict::Failed,
            // The session had been allowed; this is how it ended.
            Self::AgentClosed | Self::UpstreamTruncated | Self::UpstreamClosed => Verdict::Allowed,
            Self::ModeChanged | Self::ConfigurationChanged | Self::Stopped | Self::Internal => {
                Verdict::Aborted
            }
            _ => Verdict::Refused,
        }
    }
}

/// A cause, and what happened in a sentence. The sentence is shown to the agent and recorded, so
/// it holds nothing that the agent sent but the name of a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The cause.
    pub cause: Cause,
    /// The sentence, without a full stop.
    pub text: String,
}

impl Failure {
    /// A failure.
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self {
            cause,
            text: text.into(),
        }
    }
}

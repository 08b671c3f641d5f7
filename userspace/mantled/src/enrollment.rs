//! Enrolling a group: what happens to the connections that it has.

use std::net::IpAddr;

use mantled_redirect::{
    Interceptor, abi,
    cgroup::Cgroup,
    existing::{self, Candidate, Existing, Fate},
};

use crate::config::{Config, Inbound, Mode, OnDown};

/// The kernel's form of how a group is enrolled.
pub fn group(mode: Mode, on_down: OnDown, inbound: Inbound) -> abi::Group {
    abi::Group {
        mode: match mode {
            Mode::Enforce => abi::MODE_ENFORCE,
            Mode::Observe => abi::MODE_OBSERVE,
        },
        on_daemon_down: match on_down {
            OnDown::Closed => abi::DOWN_CLOSED,
            OnDown::Open => abi::DOWN_OPEN,
        },
        inbound: match inbound {
            Inbound::Refuse => abi::INBOUND_REFUSE,
            Inbound::Allow => abi::INBOUND_ALLOW,
        },
        left_out: 0,
    }
}

/// Enrols a group. In enforce mode, and with `reset`, connections that it has already are ended, so
/// that the agent makes them again, through the proxy. Returns what was found; None where that could
/// not be told.
///
/// # Errors
/// [`mantled_redirect::Error`].
pub fn enroll(
    interceptor: &mut Interceptor,
    config: &Config,
    resolvers: &[IpAddr],
    cgroup: &Cgroup,
    settings: abi::Group,
    reset: bool,
) -> Result<Option<Existing>, mantled_redirect::Error> {
    let known = interceptor.enrolled()?.contains(&cgroup.id());
    interceptor.enroll(cgroup, settings)?;
    if settings.mode == abi::MODE_RESOLVER {
        tracing::debug!(cgroup = %cgroup.path().display(), "listening to a resolver's queries");
        return Ok(None);
    }
    let enforce = settings.mode == abi::MODE_ENFORCE;
    let group = cgroup.path().display();
    tracing::info!(cgroup = %group, mode = if enforce { "enforce" } else { "observe" }, "enrolled");
    let allows_inbound = settings.inbound == abi::INBOUND_ALLOW;
    let judge = |candidate| match candidate {
        Candidate::ForeignListener if enforce && !allows_inbound => Fate::End,
        Candidate::ForeignListener => Fate::Leave,
        // A daemon that starts again finds the connections that its predecessor has allowed.
        Candidate::Connection { inbound: true, .. } if allows_inbound && known => Fate::Leave,
        Candidate::Connection { peer, .. }
            if is_excepted(config, resolvers, peer.ip(), peer.port()) =>
        {
            Fate::Leave
        }
        Candidate::Connection { .. } if enforce => Fate::End,
        // What the proxy would not have carried either.
        Candidate::Connection {
            stream, inbound, ..
        } if !stream || inbound => Fate::Leave,
        Candidate::Connection { .. } if reset => Fate::End,
        Candidate::Connection { .. } => Fate::Stay,
    };
    let found = match existing::inspect(cgroup, judge) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "sockets from before enrolment could not be ended; packets of the group's own are dropped");
            return Ok(None);
        }
    };
    if found.ended > 0 {
        tracing::info!(
            sockets = found.ended,
            "ended connections from before enrolment"
        );
    }
    for left in &found.left {
        tracing::warn!(
            socket = left,
            "could not end a socket from before enrolment"
        );
    }
    if enforce && !allows_inbound && !found.listening.is_empty() {
        tracing::warn!(
            cgroup = %group,
            ports = ?found.listening,
            "the group listens, and inbound = \"refuse\": its answers to other hosts are dropped"
        );
    }
    if !found.foreign_listeners.is_empty() {
        tracing::warn!(
            cgroup = %group,
            ports = ?found.foreign_listeners,
            ended = enforce && !allows_inbound,
            "listeners that were made outside of the group (socket activation): what they accept is not the group's"
        );
    }
    Ok(Some(found))
}

/// What an enforced group may reach past the proxy.
fn is_excepted(config: &Config, resolvers: &[IpAddr], address: IpAddr, port: u16) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || (port == 53 && resolvers.contains(&address))
        || config.bypasses().iter().any(|bypass| {
            bypass.cidr().contains(&address) && bypass.port().is_none_or(|listed| listed == port)
        })
}

//! Enrolling groups: what happens to the connections that they have, and following units from one
//! cgroup to the next.

use std::{net::IpAddr, os::fd::OwnedFd, time::Duration};

use mantled_redirect::{
    Interceptor, abi,
    cgroup::Cgroup,
    existing::{self, Candidate},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Config, Inbound, Mode, OnDown};

/// How often units are looked for. A unit that starts is unprotected for this long at most; then
/// the connections that it has made are ended.
const FOLLOW: Duration = Duration::from_millis(200);

/// An enrolled unit: its cgroup is a new one whenever it starts.
#[derive(Debug)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// How it is enrolled.
    pub settings: abi::Group,
    /// The cgroup that is enrolled; None while the unit does not run.
    pub enrolled: Option<u64>,
}

/// Units that resolve names for others, who ask them by other ways than DNS (nss-resolve, nscd).
/// Their own queries tell which names addresses may have been asked for.
const RESOLVERS: [&str; 2] = ["systemd-resolved.service", "nscd.service"];

/// The resolvers of this host, as units to be followed. Nothing of theirs is redirected.
pub fn resolvers() -> impl Iterator<Item = Unit> {
    RESOLVERS.iter().map(|name| Unit {
        name: (*name).to_owned(),
        settings: abi::Group {
            mode: abi::MODE_RESOLVER,
            ..abi::Group::default()
        },
        enrolled: None,
    })
}

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
        pad: 0,
    }
}

/// Enrols a group. In enforce mode connections that it has already are ended, so that the agent
/// makes them again, through the proxy.
///
/// # Errors
/// [`mantled_redirect::Error`].
pub fn enroll(
    interceptor: &mut Interceptor,
    config: &Config,
    resolvers: &[IpAddr],
    cgroup: &Cgroup,
    settings: abi::Group,
) -> Result<(), mantled_redirect::Error> {
    let known = interceptor.enrolled()?.contains(&cgroup.id());
    interceptor.enroll(cgroup, settings)?;
    if settings.mode == abi::MODE_RESOLVER {
        tracing::debug!(cgroup = %cgroup.path().display(), "listening to a resolver's queries");
        return Ok(());
    }
    let enforce = settings.mode == abi::MODE_ENFORCE;
    let group = cgroup.path().display();
    tracing::info!(cgroup = %group, mode = if enforce { "enforce" } else { "observe" }, "enrolled");
    end_existing(config, resolvers, cgroup, settings, known, None);
    Ok(())
}

/// Ends the connections of a group that enforcing would not have allowed, in the network namespace
/// that `netlink` is of; None is the daemon's own. A group that was `known` before may keep what
/// was allowed then.
pub fn end_existing(
    config: &Config,
    resolvers: &[IpAddr],
    cgroup: &Cgroup,
    settings: abi::Group,
    known: bool,
    netlink: Option<OwnedFd>,
) {
    let enforce = settings.mode == abi::MODE_ENFORCE;
    let group = cgroup.path().display();
    let allows_inbound = settings.inbound == abi::INBOUND_ALLOW;
    let ends = |candidate| match candidate {
        Candidate::ForeignListener => enforce && !allows_inbound,
        // A daemon that starts again finds the connections that its predecessor has allowed.
        Candidate::Connection { inbound: true, .. } if allows_inbound && known => false,
        Candidate::Connection { peer, port, .. } => {
            enforce && !is_excepted(config, resolvers, peer, port)
        }
    };
    let found = match existing::inspect(cgroup, netlink, ends) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "sockets from before enrolment could not be ended; packets of the group's own are dropped");
            return;
        }
    };
    if found.ended > 0 {
        tracing::info!(
            sockets = found.ended,
            "ended connections from before enrolment"
        );
    }
    for left in found.left {
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

/// Enrols units as they start, and again when they have a new cgroup. Never ends.
pub async fn follow(
    interceptor: &mut Interceptor,
    config: &Config,
    resolvers: &[IpAddr],
    units: &mut [Unit],
) {
    let mut ticks = interval(FOLLOW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for unit in &mut *units {
            let cgroup = Cgroup::of_unit(&unit.name).ok();
            if cgroup.as_ref().map(Cgroup::id) == unit.enrolled {
                continue;
            }
            if let Some(gone) = unit.enrolled.take()
                && let Err(error) = interceptor.withdraw(gone)
            {
                tracing::warn!(%error, unit = unit.name, "its last cgroup could not be withdrawn");
            }
            let Some(cgroup) = cgroup else {
                if unit.settings.mode == abi::MODE_RESOLVER {
                    continue;
                }
                tracing::info!(
                    unit = unit.name,
                    "has stopped; it is enrolled when it starts"
                );
                continue;
            };
            match enroll(interceptor, config, resolvers, &cgroup, unit.settings) {
                Ok(()) => unit.enrolled = Some(cgroup.id()),
                Err(error) => {
                    tracing::error!(%error, unit = unit.name, "COULD NOT BE ENROLLED; it is not protected")
                }
            }
        }
    }
}

//! Enrolling a group: what happens to the connections that it has.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use mantled_redirect::{Interceptor, abi, cgroup::Cgroup, existing::Socket};

use crate::{
    config::{Config, Inbound, Mode, OnDown},
    helper::{End, Helper},
};

/// What was found in a group that is enrolled.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// Local ports on which the group's servers listen, beyond loopback.
    pub listening: Vec<u16>,
    /// Those of them whose sockets were made in another cgroup.
    pub foreign_listeners: Vec<u16>,
    /// Sockets that were ended.
    pub ended: usize,
    /// The other ends of connections that stay as they are.
    pub staying: Vec<SocketAddr>,
    /// Sockets that could not be ended, each with the reason.
    pub left: Vec<String>,
    /// Processes whose sockets could not be looked at.
    pub hidden: usize,
}

impl Existing {
    /// Both.
    fn and(mut self, other: Self) -> Self {
        self.listening.extend(other.listening);
        self.foreign_listeners.extend(other.foreign_listeners);
        for ports in [&mut self.listening, &mut self.foreign_listeners] {
            ports.sort_unstable();
            ports.dedup();
        }
        self.staying.extend(other.staying);
        self.left.extend(other.left);
        self.ended += other.ended;
        // The same processes, whichever namespace is looked at.
        self.hidden = self.hidden.max(other.hidden);
        self
    }
}

/// What is to be done with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is ended.
    End,
    /// It stays, and is told.
    Stay,
    /// It is as it should be.
    Leave,
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
    helper: &Helper,
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
    let before = Before {
        config,
        resolvers,
        helper,
        settings,
        known,
        reset,
    };
    let mut found = before.end(cgroup, None);
    for namespace in interceptor.namespaces_of(cgroup.id()) {
        found = found.and_then(|found| Some(found.and(before.end(cgroup, Some(namespace))?)));
    }
    Ok(found)
}

/// What is done with the connections that a group has from before it was enrolled.
#[derive(Clone, Copy, Debug)]
pub struct Before<'a> {
    /// What the operator wrote.
    pub config: &'a Config,
    /// Where names are asked.
    pub resolvers: &'a [IpAddr],
    /// Who looks at the sockets.
    pub helper: &'a Helper,
    /// How the group is enrolled.
    pub settings: abi::Group,
    /// It was enrolled before, and may keep what was allowed then.
    pub known: bool,
    /// Observed connections are ended as well.
    pub reset: bool,
}

impl Before<'_> {
    /// Ends those that enforcing would not have allowed, or, with `reset`, that the proxy would have
    /// carried, in the daemon's own network namespace or in the one with this cookie. Returns what
    /// was found; None where that could not be told.
    pub fn end(&self, cgroup: &Cgroup, namespace: Option<u64>) -> Option<Existing> {
        let found = end_existing(self.helper, cgroup, namespace, |socket| self.judge(socket));
        match found {
            Ok(found) => {
                tell(cgroup, self.settings, &found);
                Some(found)
            }
            Err(error) => {
                tracing::warn!(%error, namespace, "sockets from before enrolment could not be ended; packets of the group's own are dropped");
                None
            }
        }
    }

    fn judge(&self, socket: Socket) -> Fate {
        let enforce = self.settings.mode == abi::MODE_ENFORCE;
        let allows_inbound = self.settings.inbound == abi::INBOUND_ALLOW;
        match socket {
            Socket::Listener { foreign: true, .. } if enforce && !allows_inbound => Fate::End,
            Socket::Listener { .. } => Fate::Leave,
            // A daemon that starts again finds the connections that its predecessor has allowed.
            Socket::Connection { inbound: true, .. } if allows_inbound && self.known => Fate::Leave,
            Socket::Connection { peer, .. }
                if is_excepted(self.config, self.resolvers, peer.ip(), peer.port()) =>
            {
                Fate::Leave
            }
            Socket::Connection { .. } if enforce => Fate::End,
            // What the proxy would not have carried either.
            Socket::Connection {
                stream, inbound, ..
            } if !stream || inbound => Fate::Leave,
            Socket::Connection { .. } if self.reset => Fate::End,
            Socket::Connection { .. } => Fate::Stay,
        }
    }
}

/// Tells the operator what was found.
fn tell(cgroup: &Cgroup, settings: abi::Group, found: &Existing) {
    let enforce = settings.mode == abi::MODE_ENFORCE;
    let allows_inbound = settings.inbound == abi::INBOUND_ALLOW;
    let group = cgroup.path().display();
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
    if found.hidden > 0 {
        tracing::warn!(
            cgroup = %group,
            processes = found.hidden,
            "sockets from before enrolment could not be looked at; packets of the group's own are dropped"
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

/// Looks at the sockets of a group's processes, and does with each what `judge` says.
fn end_existing(
    helper: &Helper,
    cgroup: &Cgroup,
    namespace: Option<u64>,
    judge: impl Fn(Socket) -> Fate,
) -> io::Result<Existing> {
    let sockets = helper.sockets(cgroup, namespace)?;
    let found = sockets.found();
    let mut existing = Existing {
        hidden: sockets.hidden(),
        ..Existing::default()
    };
    for socket in &found {
        if let Socket::Listener { port, foreign } = *socket {
            existing.listening.push(port);
            if foreign {
                existing.foreign_listeners.push(port);
            }
        }
    }
    for ports in [&mut existing.listening, &mut existing.foreign_listeners] {
        ports.sort_unstable();
        ports.dedup();
    }
    existing.staying = found
        .iter()
        .filter(|socket| judge(**socket) == Fate::Stay)
        .filter_map(|socket| match *socket {
            Socket::Connection { peer, .. } => Some(peer),
            Socket::Listener { .. } => None,
        })
        .collect();
    let (places, ending): (Vec<usize>, Vec<Socket>) = found
        .into_iter()
        .enumerate()
        .filter(|(_, socket)| judge(*socket) == Fate::End)
        .unzip();
    for (socket, end) in ending.iter().zip(sockets.end(&places)) {
        match end {
            End::Ended => existing.ended += 1,
            End::Gone => {}
            End::Failed(error) => existing.left.push(format!("{socket:?}: {error}")),
        }
    }
    Ok(existing)
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

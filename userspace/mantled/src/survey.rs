//! The survey: who of a group speaks with whom, in clear or in TLS, and what would enforcing do?
//!
//! The kernel counts and keeps the first bytes; nothing is redirected. Afterwards the servers that
//! were spoken to in clear are asked for TLS by this process, in the way that the proxy would.

mod probe;

use std::{collections::HashMap, fs, future::poll_fn, net::SocketAddr, task::Poll};

use mantled_redirect::{Interceptor, Peer, SurveyKey, Surveyed, abi, cgroup::Cgroup, events};

use crate::{
    app::StartError,
    config::Config,
    names::{Found, Names},
    proxy::{detect, plan::Plan, spoken::Spoken},
    tls::Connectors,
};
pub use probe::Outcome;

/// Probes that run at a time: servers are not to be flooded.
const PROBES: usize = 8;

/// A survey that runs. When it is dropped nothing is attached any more.
#[derive(Debug)]
pub struct Survey {
    interceptor: Interceptor,
    names: Names,
    config: Config,
    connectors: Connectors,
    groups: HashMap<u64, String>,
}

/// What was seen of one destination.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The group's path below the root of the hierarchy.
    pub group: String,
    /// A process that spoke with it.
    pub process: Option<(u32, String)>,
    /// The other side.
    pub address: SocketAddr,
    /// The names by which the group knows it.
    pub names: Vec<String>,
    /// `tcp`, `udp`, or the protocol's number.
    pub transport: String,
    /// The other side connects to a server in the group; `address` has that one's port.
    pub inbound: bool,
    /// The protocol that was recognised of what went in clear.
    pub protocol: Option<&'static str>,
    /// Connections that carried something; for UDP, datagrams that were sent.
    pub connections: u64,
    /// Those that carried something in clear.
    pub clear: u64,
    /// Those that carried TLS; one that began in clear counts in both.
    pub tls: u64,
    /// Bytes of payload from the group.
    pub sent: u64,
    /// Bytes of payload to the group.
    pub received: u64,
    /// What enforcing would do.
    pub outcome: Outcome,
}

impl Survey {
    /// Begins to count what these groups do.
    ///
    /// # Errors
    /// As the daemon's start.
    pub fn start(config: Config, groups: &[Cgroup]) -> Result<Self, StartError> {
        let connectors = Connectors::new(&config).map_err(StartError::Configuration)?;
        let mut interceptor = Interceptor::load(None)?;
        let resolvers = config
            .dns()
            .resolvers_or(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        interceptor.set_resolvers(&resolvers)?;
        let names = Names::new(interceptor.names()?)
            .map_err(|error| StartError::Failed(format!("the kernel's list of names: {error}")))?;
        interceptor.attach()?;
        let settings = abi::Group {
            mode: abi::MODE_SURVEY,
            ..abi::Group::default()
        };
        let mut known = HashMap::new();
        for cgroup in groups {
            interceptor.enroll(cgroup, settings)?;
            let path = cgroup.path().display().to_string();
            known.insert(cgroup.id(), path);
        }
        Ok(Self {
            interceptor,
            names,
            config,
            connectors,
            groups: known,
        })
    }

    /// What was seen so far, most bytes first. With `ask`, servers that were spoken to in clear
    /// are asked for TLS.
    ///
    /// # Errors
    /// As bpf(2).
    pub async fn finish(self, ask: bool) -> Result<Vec<Destination>, StartError> {
        let seen = self.interceptor.surveyed()?;
        let mut destinations: Vec<_> = seen
            .iter()
            .map(|(key, counted)| (self.describe(key, counted), key, counted))
            .collect();
        if ask {
            for some in destinations.chunks_mut(PROBES) {
                let probes = some.iter_mut().map(|(destination, key, counted)| {
                    let names = self.names.of(key.group, destination.address.ip());
                    let plan = Plan::new(&self.config, &peer(key), &names);
                    let spoken = spoken(counted, key.port as u16);
                    let this = &self;
                    async move {
                        if matches!(destination.outcome, Outcome::NotAsked) {
                            destination.outcome = probe::ask(
                                &this.config,
                                &this.connectors,
                                &plan,
                                &peer(key),
                                spoken,
                            )
                            .await;
                        }
                    }
                });
                all(probes).await;
            }
        }
        let mut destinations: Vec<Destination> = destinations
            .into_iter()
            .map(|(destination, ..)| destination)
            .collect();
        destinations.sort_by_key(|seen| std::cmp::Reverse(seen.sent + seen.received));
        Ok(destinations)
    }

    fn describe(&self, key: &SurveyKey, counted: &Surveyed) -> Destination {
        let address = peer(key).destination;
        let Found { names, .. } = self.names.of(key.group, address.ip());
        let outcome = match key.protocol {
            TCP if key.inbound != 0 => Outcome::Inbound,
            TCP if counted.clear == 0 => Outcome::OwnTls,
            TCP => Outcome::NotAsked,
            _ => Outcome::Dropped,
        };
        Destination {
            group: self.groups.get(&key.group).cloned().unwrap_or_default(),
            process: (counted.pid != 0).then(|| (counted.pid, events::text(&counted.comm))),
            address,
            names: names.iter().map(ToString::to_string).collect(),
            transport: match key.protocol {
                TCP => "tcp".to_owned(),
                UDP => "udp".to_owned(),
                other => other.to_string(),
            },
            inbound: key.inbound != 0,
            protocol: match spoken(counted, key.port as u16) {
                _ if counted.clear == 0 => Spoken::Tls.name(),
                spoken => spoken.name(),
            },
            connections: counted.connections,
            clear: counted.clear,
            tls: counted.tls,
            sent: counted.sent,
            received: counted.received,
            outcome,
        }
    }
}

/// Awaits them all at once.
async fn all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

const TCP: u32 = 6;
const UDP: u32 = 17;

/// What an enforced connection to there would be.
fn peer(key: &SurveyKey) -> Peer {
    Peer::from(abi::Flow {
        group: key.group,
        destination: key.address,
        port: key.port,
        mode: abi::MODE_ENFORCE,
        ..abi::Flow::default()
    })
}

/// What was spoken, by the first bytes of whichever side spoke first.
fn spoken(counted: &Surveyed, port: u16) -> Spoken {
    let bytes = |first: &abi::FirstBytes| {
        first
            .bytes
            .get(..first.length as usize)
            .unwrap_or_default()
            .to_vec()
    };
    if counted.server_first > 0 {
        return detect::recognise_greeting(&bytes(&counted.from_server), port)
            .unwrap_or(Spoken::ServerFirst);
    }
    match detect::recognise(&bytes(&counted.from_agent)) {
        Some(spoken) => spoken,
        None => Spoken::Opaque,
    }
}

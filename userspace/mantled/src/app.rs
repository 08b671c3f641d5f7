//! Where the parts are built and joined: everything is loaded, opened and bound first, so that
//! what is wrong shows before a single connection is touched; then it runs.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use ipnet::IpNet;
use mantled_record::{Fate, SessionRecord, Sink};
use mantled_redirect::{Interceptor, Listeners, Pins, Watch, abi, cgroup::Cgroup};
use tokio::sync::{mpsc, watch};

use crate::{
    admin,
    completeness::Completeness,
    config::{Bypass, Config, OnFailure, Target},
    enrollment,
    groups::{Origin, TAKEN, Wanted},
    handover::{Inheritance, Predecessor},
    helper::Helper,
    names::Names,
    policy::Rules,
    proxy::{
        Context, Live, Terms,
        checks::Checks,
        data_channels::DataChannels,
        ledger::{Ledger, Owed},
        place::Place,
        syslog::Kept,
        without_tls::WithoutTls,
    },
    state::StateFile,
    tls::{Connectors, LiveConnectors},
    watchdog::Probes,
};

/// Why a record is one of a session that was lost.
pub(crate) const KILLED: &str = "the daemon that served this session was killed";

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the operator wrote cannot be done.
    #[error("{0}")]
    Configuration(String),
    /// A kernel feature or privilege is missing.
    #[error("{0}")]
    Environment(mantled_redirect::Error),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<mantled_redirect::Error> for StartError {
    fn from(error: mantled_redirect::Error) -> Self {
        if error.is_environment() {
            Self::Environment(error)
        } else {
            Self::Configuration(error.to_string())
        }
    }
}

/// How it is to run.
#[derive(Debug)]
pub struct Options {
    /// Where maps and links outlive the process; None: they end with it.
    pub pins: Option<Pins>,
    /// Who looks at processes.
    pub helper: Helper,
    /// Kernel programs log what they do.
    pub debug: bool,
    /// Gets a copy of every session's record.
    pub copies: Option<mpsc::UnboundedSender<SessionRecord>>,
    /// The host's lock, for a daemon that nobody precedes.
    pub lock: Option<OwnedFd>,
    /// The daemon from which this one takes over.
    pub predecessor: Option<Predecessor>,
}

/// A daemon that is ready to run.
pub struct App {
    /// The kernel side.
    pub interceptor: Interceptor,
    pub(crate) live: Live,
    pub(crate) listeners: Listeners,
    pub(crate) home: Place,
    pub(crate) watch: Watch,
    pub(crate) wanted: Vec<Wanted>,
    /// None: nobody asks (`mantled exec`).
    pub(crate) socket: Option<admin::Socket>,
    pub(crate) writer: JoinHandle<()>,
    pub(crate) lock: Option<OwnedFd>,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) completeness: Completeness,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("interceptor", &self.interceptor)
            .finish_non_exhaustive()
    }
}

impl App {
    /// Builds everything, attaches the programs and enrols the configured groups. When it fails
    /// the host is as it was: what an earlier daemon has pinned stays, what this one has goes.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn build(
        config: Config,
        output: Box<dyn Write + Send>,
        options: Options,
    ) -> Result<Self, StartError> {
        // A predecessor's are not ours to remove, whatever it has done with them.
        let fresh = options
            .pins
            .clone()
            .filter(|pins| !pins.exist() && options.predecessor.is_none());
        Self::try_build(config, output, options).inspect_err(|_| {
            if let Some(pins) = fresh
                && let Err(error) = pins.remove()
            {
                tracing::error!(%error, "`mantled detach --all` removes what is left");
            }
        })
    }

    fn try_build(
        config: Config,
        output: Box<dyn Write + Send>,
        options: Options,
    ) -> Result<Self, StartError> {
        let connectors = Connectors::new(&config).map_err(StartError::Configuration)?;
        let rules =
            Rules::load(config.policy().dir.as_deref()).map_err(StartError::Configuration)?;
        // `mantled exec` is nobody's daemon: it has no state, and is not asked.
        let daemon = options.pins.is_some();
        let rules = rules
            .keyed(daemon.then(|| config.state_dir()))
            .map_err(StartError::Configuration)?;
        let rules = Arc::new(rules);
        let mut wanted = Vec::new();
        for enrollment in config.enrollments() {
            // Units come and go; a cgroup that is not there is a mistake.
            if let Target::Cgroup(path) = enrollment.target() {
                Cgroup::open(Path::new(path.as_str()))?.check_enrollable()?;
            }
            wanted.push(Wanted::configured(enrollment));
        }
        if daemon {
            let kept = StateFile::in_directory(config.state_dir())
                .load()
                .map_err(StartError::Configuration)?;
            for saved in &kept {
                let saved = Wanted::saved(saved).map_err(StartError::Configuration)?;
                if wanted.iter().any(|listed| listed.target == saved.target) {
                    tracing::warn!(group = %saved.target, "the configuration enrols it as well, and decides how");
                } else {
                    wanted.push(saved);
                }
            }
        }

        let mut interceptor = Interceptor::load(options.pins)?;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            StartError::Failed(format!("{what}: {error}"))
        };
        let flows = interceptor.flows();
        let owed = Owed::default();
        let completeness = Completeness::new(flows.clone(), interceptor.counters());
        let settle = {
            let (flows, owed) = (flows.clone(), owed.clone());
            let recorded = completeness.recorded();
            move |flow, fate| {
                // Counted before it is gone from the list: there is no moment when it is neither.
                recorded.fetch_add(1, Ordering::Relaxed);
                // The kernel's entry first: the sweeper looks at them in the other order.
                let listed = flows.settle(flow).unwrap_or_else(|error| {
                    tracing::warn!(%error, flow, "the kernel's entry of a session stays");
                    false
                });
                if !listed || fate == Fate::Dropped {
                    recorded.fetch_sub(1, Ordering::Relaxed);
                }
                owed.settle(flow);
            }
        };
        let on_failure = match config.record().on_failure {
            OnFailure::Refuse => mantled_record::OnFailure::Refuse,
            OnFailure::Continue => mantled_record::OnFailure::Continue,
        };
        let (sink, writer) = Sink::start(output, on_failure, settle)
            .map_err(|error| failed("starting the record writer", &error))?;
        let ledger = Ledger::new(sink, owed, options.copies);

        // Up to here nothing has changed for anybody.
        let (listeners, lock) = match &options.predecessor {
            Some(predecessor) => {
                let Inheritance {
                    streams,
                    datagrams,
                    lock,
                } = predecessor
                    .inherit()
                    .map_err(|error| failed("taking over", &error))?;
                let listeners = Listeners::inherit(streams, datagrams)
                    .map_err(|error| failed("taking over", &error))?;
                (listeners, Some(lock))
            }
            None => {
                let listeners = Listeners::bind(config.listen_port())?;
                completeness
                    .begin()
                    .map_err(|error| failed("the kernel's counters", &error))?;
                // What an earlier daemon left: its connections are gone, and their records are
                // owed.
                flows
                    .forget_waiting(true)
                    .map_err(|error| failed("the kernel's list of flows", &error))?;
                for peer in flows
                    .unsettled()
                    .map_err(|error| failed("the kernel's list of flows", &error))?
                {
                    ledger.write_lost(&peer, KILLED);
                }
                (listeners, options.lock)
            }
        };
        let socket = if daemon {
            Some(admin::Socket::bind(&config.admin().socket).map_err(StartError::Configuration)?)
        } else {
            None
        };
        interceptor.set_bypass(&bypass_entries(config.bypasses()))?;
        let resolvers = resolvers(&config);
        interceptor.set_resolvers(&resolvers)?;
        interceptor.set_relayed(&config.relayed_ports())?;
        let watch = interceptor.watch(options.helper.namespaces())?;
        interceptor.serve(&listeners, options.debug)?;
        interceptor.attach()?;

        let names = interceptor.names()?;
        let names =
            Names::new(names).map_err(|error| failed("the kernel's list of names", &error))?;
        let netns = listeners
            .netns()
            .map_err(|error| failed("SO_NETNS_COOKIE", &error))?;
        let config = Arc::new(config);
        let live = Live::new(Context {
            connectors: LiveConnectors::new(connectors),
            resolvers,
            flows,
            helper: options.helper,
            names: Arc::new(names),
            changes: watch::Sender::new(Terms {
                config: Arc::clone(&config),
                rules: Arc::clone(&rules),
            }),
            config,
            rules,
            ledger,
            without_tls: WithoutTls::default(),
            data_channels: DataChannels::default(),
            syslog: Kept::default(),
            distrusting: WithoutTls::default(),
            checks: Checks::default(),
            probes: Probes::default(),
        });
        let mut app = Self {
            interceptor,
            live,
            listeners,
            home: Place::home(netns),
            watch,
            wanted,
            socket,
            writer,
            lock,
            predecessor: options.predecessor,
            completeness,
        };
        // One that the operator enrols is an agent like any other.
        let resolvers: Vec<Wanted> = Wanted::resolvers()
            .filter(|resolver| {
                app.wanted
                    .iter()
                    .all(|wanted| wanted.target != resolver.target)
            })
            .collect();
        app.wanted.extend(resolvers);
        let mut groups = Vec::new();
        for wanted in &mut app.wanted {
            let found = match wanted.find() {
                Ok(found) => found,
                Err(_) if wanted.origin == Origin::Resolver => None,
                // Which is meant is not guessed; what an earlier daemon has enrolled stays so.
                Err(error) => return Err(error.into()),
            };
            if let Some(cgroup) = found {
                if groups
                    .iter()
                    .any(|(other, _): &(Cgroup, abi::Group)| other.id() == cgroup.id())
                {
                    wanted.tell(TAKEN.to_owned());
                    continue;
                }
                wanted.enrolled = Some(cgroup.id());
                wanted.counted = wanted.enrolled;
                app.live.current().ledger.count(cgroup.id(), None);
                groups.push((cgroup, wanted.settings));
            } else if wanted.origin != Origin::Resolver {
                tracing::warn!(
                    group = %wanted.target,
                    "does not run; it is enrolled when it starts"
                );
            }
        }
        let before = app.interceptor.enrolled()?;
        for id in &before {
            if !groups.iter().any(|(cgroup, _)| cgroup.id() == *id) {
                if let Some((orphan, cgroup)) = Wanted::orphan(*id, &app.live.current().flows) {
                    app.live.current().ledger.count(*id, None);
                    groups.push((cgroup, orphan.settings));
                    app.wanted.push(orphan);
                    continue;
                }
                tracing::info!(
                    cgroup = id,
                    "withdrawn: the configuration does not enrol it any more"
                );
                app.interceptor.withdraw(*id)?;
            }
        }
        for (cgroup, settings) in &groups {
            if let Err(error) = app.enroll(cgroup, *settings) {
                // Those that this start has added must not stay refused without a daemon.
                for (cgroup, _) in groups
                    .iter()
                    .filter(|(added, _)| !before.contains(&added.id()))
                {
                    let _ = app.interceptor.withdraw(cgroup.id());
                }
                return Err(error);
            }
        }
        app.interceptor.forget_others()?;
        Ok(app)
    }

    /// See [`enrollment::enroll`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn enroll(&mut self, cgroup: &Cgroup, settings: abi::Group) -> Result<(), StartError> {
        let context = self.live.current();
        enrollment::enroll(
            &mut self.interceptor,
            &context.config,
            &context.resolvers,
            cgroup,
            settings,
            false,
            &context.helper,
        )?;
        Ok(())
    }
}

/// The kernel finds only the longest prefix, so each gets the ports of those around it. No port
/// means all.
pub(crate) fn bypass_entries(bypasses: &[Bypass]) -> Vec<(IpAddr, u8, Vec<u16>)> {
    let mut prefixes: Vec<IpNet> = bypasses.iter().map(Bypass::cidr).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
        .into_iter()
        .map(|prefix| {
            let around = || {
                bypasses
                    .iter()
                    .filter(|bypass| bypass.cidr().contains(&prefix))
            };
            let mut ports: Vec<u16> = around().filter_map(Bypass::port).collect();
            ports.sort_unstable();
            ports.dedup();
            if around().any(|bypass| bypass.port().is_none()) {
                ports.clear();
            }
            (prefix.network(), prefix.prefix_len(), ports)
        })
        .collect()
}

/// Whom enrolled groups may ask for names.
pub(crate) fn resolvers(config: &Config) -> Vec<IpAddr> {
    config
        .dns()
        .resolvers_or(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// Where session records go.
///
/// # Errors
/// The directory cannot be made or the file not be opened.
pub fn record_output(config: &Config) -> Result<Box<dyn Write + Send>, StartError> {
    let Some(file) = config.record().file() else {
        return Ok(Box::new(io::stdout()));
    };
    open_log(&file)
}

/// Opens a session log for appending.
///
/// # Errors
/// The directory cannot be made or the file not be opened.
pub fn open_log(file: &Path) -> Result<Box<dyn Write + Send>, StartError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |error: io::Error| {
        StartError::Configuration(format!(
            "the session log {} cannot be opened: {error}; make its directory writable for mantled, or set [record] dir",
            file.display()
        ))
    };
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    Ok(Box::new(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bypassed_prefix_has_the_ports_of_those_around_it() {
        let config = Config::parse(
            r#"
            bypass = [
                { cidr = "10.0.0.0/8", port = 123, reason = "time" },
                { cidr = "10.1.0.0/16", port = 80, reason = "mirror" },
                { cidr = "10.1.2.0/24", reason = "backup" },
            ]
            "#,
            Path::new("test.toml"),
        )
        .unwrap();
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            bypass_entries(config.bypasses()),
            [
                (at("10.0.0.0"), 8, vec![123]),
                (at("10.1.0.0"), 16, vec![80, 123]),
                (at("10.1.2.0"), 24, vec![]),
            ]
        );
    }
}

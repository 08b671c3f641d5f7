//! Where the parts are built and joined: everything is loaded, opened and bound first, so that
//! what is wrong shows before a single connection is touched; then it runs.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use ipnet::IpNet;
use mantled_record::{SessionRecord, Sink};
use mantled_redirect::{
    Counters, Interceptor, Listeners, Pins, abi, cgroup::Cgroup, events::Events, existing,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    config::{Bypass, Config, Inbound, Mode, OnDown, OnFailure, Target},
    proxy::{
        self, Context,
        ledger::{Ledger, Owed},
    },
    tls::Connectors,
};

/// How often connections that never reached accept() are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// Events of the kernel that are logged a second; the rest is counted.
const LOGGED_EVENTS: u32 = 20;

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
    /// Kernel programs log what they do.
    pub debug: bool,
    /// Gets a copy of every session's record.
    pub copies: Option<mpsc::UnboundedSender<SessionRecord>>,
}

/// A daemon that is ready to run.
pub struct App {
    /// The kernel side.
    pub interceptor: Interceptor,
    context: Arc<Context>,
    listeners: Listeners,
    resolvers: Vec<IpAddr>,
    writer: JoinHandle<()>,
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
        let fresh = options.pins.clone().filter(|pins| !pins.exist());
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
        let groups = config
            .enrollments()
            .iter()
            .map(|enrollment| {
                let cgroup = match enrollment.target() {
                    Target::Unit(unit) => Cgroup::of_unit(unit.as_str()),
                    Target::Cgroup(path) => Cgroup::open(Path::new(path.as_str())),
                }?;
                cgroup.check_enrollable()?;
                Ok((
                    cgroup,
                    group(
                        enrollment.mode(),
                        enrollment.on_daemon_down(),
                        enrollment.inbound(),
                    ),
                ))
            })
            .collect::<Result<Vec<_>, mantled_redirect::Error>>()?;

        let listeners = Listeners::bind(config.listen_port())?;
        let mut interceptor = Interceptor::load(options.pins)?;
        let flows = interceptor.flows();
        let owed = Owed::default();
        let settle = {
            let (flows, owed) = (flows.clone(), owed.clone());
            move |cookie| {
                owed.settle(cookie);
                if let Err(error) = flows.settle(cookie) {
                    tracing::warn!(%error, cookie, "the kernel's entry of a session stays");
                }
            }
        };
        let on_failure = match config.record().on_failure {
            OnFailure::Refuse => mantled_record::OnFailure::Refuse,
            OnFailure::Continue => mantled_record::OnFailure::Continue,
        };
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            StartError::Failed(format!("{what}: {error}"))
        };
        let (sink, writer) = Sink::start(output, on_failure, settle)
            .map_err(|error| failed("starting the record writer", &error))?;
        let ledger = Ledger::new(sink, owed, options.copies);

        // What an earlier daemon left: its connections are gone, and their records are owed.
        flows
            .forget_waiting(true)
            .map_err(|error| failed("the kernel's list of flows", &error))?;
        for peer in flows
            .unsettled()
            .map_err(|error| failed("the kernel's list of flows", &error))?
        {
            ledger.write_lost(&peer, "the daemon that served this session was killed");
        }
        interceptor.set_bypass(&bypass_entries(config.bypasses()))?;
        let resolvers = config
            .dns()
            .resolvers_or(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        interceptor.set_resolvers(&resolvers)?;
        interceptor.serve(&listeners, options.debug)?;
        interceptor.attach()?;

        let netns = listeners
            .netns()
            .map_err(|error| failed("SO_NETNS_COOKIE", &error))?;
        let context = Arc::new(Context {
            config,
            connectors,
            flows,
            netns,
            ledger,
        });
        let mut app = Self {
            interceptor,
            context,
            listeners,
            resolvers,
            writer,
        };
        let wanted: Vec<u64> = groups.iter().map(|(cgroup, _)| cgroup.id()).collect();
        for id in app.interceptor.enrolled()? {
            if !wanted.contains(&id) {
                tracing::info!(
                    cgroup = id,
                    "withdrawn: the configuration does not enrol it any more"
                );
                app.interceptor.withdraw(id)?;
            }
        }
        for (cgroup, settings) in groups {
            app.enroll(&cgroup, settings)?;
        }
        Ok(app)
    }

    /// Enrols a group. In enforce mode connections that it has already are ended, so that the
    /// agent makes them again, through the proxy.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn enroll(&mut self, cgroup: &Cgroup, settings: abi::Group) -> Result<(), StartError> {
        self.interceptor.enroll(cgroup, settings)?;
        let enforce = settings.mode == abi::MODE_ENFORCE;
        tracing::info!(
            cgroup = %cgroup.path().display(),
            mode = if enforce { "enforce" } else { "observe" },
            "enrolled"
        );
        let ends = |address: IpAddr, port| enforce && !self.is_excepted(address, port);
        match existing::inspect(cgroup, ends) {
            Ok(found) => {
                if found.ended > 0 {
                    tracing::info!(
                        connections = found.ended,
                        "ended connections from before enrolment"
                    );
                }
                for left in found.left {
                    tracing::warn!(
                        connection = left,
                        "could not end a connection from before enrolment; its packets are dropped"
                    );
                }
                if enforce && settings.inbound == abi::INBOUND_REFUSE && !found.listening.is_empty()
                {
                    tracing::warn!(
                        cgroup = %cgroup.path().display(),
                        ports = ?found.listening,
                        "the group listens, and inbound = \"refuse\": its answers to other hosts are dropped"
                    );
                }
            }
            Err(error) => {
                tracing::warn!(%error, "connections from before enrolment could not be ended; their packets are dropped");
            }
        }
        Ok(())
    }

    fn is_excepted(&self, address: IpAddr, port: u16) -> bool {
        address.is_loopback()
            || address.is_unspecified()
            || (port == 53 && self.resolvers.contains(&address))
            || self.context.config.bypasses().iter().any(|bypass| {
                bypass.cidr().contains(&address)
                    && bypass.port().is_none_or(|listed| listed == port)
            })
    }

    /// Serves until `stop` turns true, drains, and writes every record that can be written.
    ///
    /// # Errors
    /// As the event loop's registration of sockets.
    pub async fn run(self, stop: watch::Receiver<bool>) -> io::Result<()> {
        let Self {
            mut interceptor,
            context,
            listeners,
            writer,
            ..
        } = self;
        let events = interceptor.events().map_err(io::Error::other)?;
        let counters = interceptor.counters();
        let background = [
            tokio::spawn(log_events(events)),
            tokio::spawn(sweep(Arc::clone(&context))),
        ];
        let mut sockets = vec![listeners.v4.try_clone()?];
        if let Some(v6) = &listeners.v6 {
            sockets.push(v6.try_clone()?);
        }
        let served = proxy::run(Arc::clone(&context), sockets, stop).await;
        // Not before: while sessions drain, a connect() finds the backlog of a closed listener.
        drop(listeners);
        for task in background {
            task.abort();
            let _ = task.await;
        }
        log_totals(&counters, &context.ledger);
        drop(context);
        // The writer ends when the last ledger is gone, which the lines above have seen to.
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        served
    }
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

/// The kernel finds only the longest prefix, so each gets the ports of those around it. No port
/// means all.
fn bypass_entries(bypasses: &[Bypass]) -> Vec<(IpAddr, u8, Vec<u16>)> {
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

/// Logs what the kernel programs refuse and drop.
async fn log_events(mut events: Events) {
    let mut second = Instant::now();
    let (mut logged, mut suppressed) = (0, 0_u64);
    loop {
        let event = match events.next().await {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(%error, "the kernel's events cannot be read any more");
                return;
            }
        };
        if second.elapsed() >= Duration::from_secs(1) {
            if suppressed > 0 {
                tracing::warn!(
                    suppressed,
                    "more of the kernel's refusals in the last second"
                );
            }
            (second, logged, suppressed) = (Instant::now(), 0, 0);
        }
        if logged >= LOGGED_EVENTS {
            suppressed += 1;
            continue;
        }
        logged += 1;
        tracing::warn!(
            event.name = event.kind.name(),
            protocol = event.protocol,
            server.address = %event.address,
            server.port = event.port,
            process.pid = event.pid,
            process.executable.name = event.comm,
            process.user.id = event.uid,
            cgroup = event.group,
            "refused by the kernel"
        );
    }
}

/// Finds connections that were redirected and never reached accept(), and writes their records.
async fn sweep(context: Arc<Context>) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = context
            .flows
            .forget_waiting(false)
            .and_then(|()| context.flows.unsettled());
        match result {
            Ok(unsettled) => {
                for peer in unsettled {
                    if peer.is_stale() && !context.ledger.owes(peer.flow.cookie) {
                        context
                            .ledger
                            .write_lost(&peer, "the connection never reached the proxy");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the kernel's list of flows cannot be read"),
        }
    }
}

fn log_totals(counters: &Counters, ledger: &Ledger) {
    let kernel = counters.read().unwrap_or_default();
    let seen: Vec<String> = kernel
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name}={count}"))
        .collect();
    tracing::info!(
        sessions = ledger.opened(),
        kernel = seen.join(" "),
        "stopped"
    );
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

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
    Counters, Interceptor, Listeners, Pins, abi,
    cgroup::Cgroup,
    events::{Events, Kind},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    admin,
    config::{Bypass, Config, OnFailure, Target},
    enrollment,
    groups::{Groups, Origin, TAKEN, Wanted},
    helper::Helper,
    names::Names,
    proxy::{
        self, Context,
        checks::Checks,
        data_channels::DataChannels,
        ledger::{Ledger, Owed},
        syslog::Kept,
        without_tls::WithoutTls,
    },
    state::StateFile,
    tls::{Connectors, LiveConnectors},
};

/// How often connections that never reached accept() are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// How long a daemon that stops waits for its last records to be written.
const LAST_WRITE: Duration = Duration::from_secs(10);

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
    /// Who looks at processes.
    pub helper: Helper,
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
    wanted: Vec<Wanted>,
    /// None: nobody asks (`mantled exec`).
    socket: Option<admin::Socket>,
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
        let mut wanted = Vec::new();
        for enrollment in config.enrollments() {
            let settings = enrollment::group(
                enrollment.mode(),
                enrollment.on_daemon_down(),
                enrollment.inbound(),
            );
            // Units come and go; a cgroup that is not there is a mistake.
            if let Target::Cgroup(path) = enrollment.target() {
                Cgroup::open(Path::new(path.as_str()))?.check_enrollable()?;
            }
            wanted.push(Wanted {
                target: enrollment.target().clone(),
                settings,
                origin: Origin::Configuration,
                enrolled: None,
                counted: None,
                trouble: None,
            });
        }
        // `mantled exec` is nobody's daemon: it has no state, and is not asked.
        let daemon = options.pins.is_some();
        let socket = if daemon {
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
            let path = &config.admin().socket;
            let socket = admin::Socket::bind(path).map_err(|error| {
                StartError::Configuration(format!(
                    "the admin socket {} cannot be made: {error}; make its directory writable for mantled, or set [admin] socket",
                    path.display()
                ))
            })?;
            Some(socket)
        } else {
            None
        };

        let listeners = Listeners::bind(config.listen_port())?;
        let mut interceptor = Interceptor::load(options.pins)?;
        let flows = interceptor.flows();
        let owed = Owed::default();
        let settle = {
            let (flows, owed) = (flows.clone(), owed.clone());
            move |flow| {
                // The kernel's entry first: the sweeper looks at them in the other order.
                if let Err(error) = flows.settle(flow) {
                    tracing::warn!(%error, flow, "the kernel's entry of a session stays");
                }
                owed.settle(flow);
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
        interceptor.set_relayed(&config.relayed_ports())?;
        interceptor.serve(&listeners, options.debug)?;
        interceptor.attach()?;

        let names = interceptor.names()?;
        let names =
            Names::new(names).map_err(|error| failed("the kernel's list of names", &error))?;
        let netns = listeners
            .netns()
            .map_err(|error| failed("SO_NETNS_COOKIE", &error))?;
        let context = Arc::new(Context {
            config,
            connectors: LiveConnectors::new(connectors),
            flows,
            helper: options.helper,
            names: Arc::new(names),
            resolvers,
            netns,
            groups_changed: watch::Sender::default(),
            ledger,
            without_tls: WithoutTls::default(),
            data_channels: DataChannels::default(),
            syslog: Kept::default(),
            distrusting: WithoutTls::default(),
            checks: Checks::default(),
        });
        let mut app = Self {
            interceptor,
            context,
            listeners,
            wanted,
            socket,
            writer,
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
                app.context.ledger.count(cgroup.id(), None);
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
        Ok(app)
    }

    /// See [`enrollment::enroll`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn enroll(&mut self, cgroup: &Cgroup, settings: abi::Group) -> Result<(), StartError> {
        let Self {
            interceptor,
            context,
            ..
        } = self;
        enrollment::enroll(
            interceptor,
            &context.config,
            &context.resolvers,
            cgroup,
            settings,
            &context.helper,
        )?;
        Ok(())
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
            wanted,
            socket,
            writer,
        } = self;
        let events = interceptor.events().map_err(io::Error::other)?;
        let counters = interceptor.counters();
        let names = Arc::clone(&context.names);
        let (calls, called) = mpsc::channel(1);
        let background = [
            tokio::spawn(log_events(events, context.ledger.clone())),
            tokio::spawn(sweep(Arc::clone(&context))),
            tokio::spawn(async move { names.follow().await }),
            tokio::spawn(follow_trust(Arc::clone(&context))),
            tokio::spawn(async move {
                if let Some(socket) = socket {
                    socket.serve(calls).await;
                }
            }),
        ];
        let mut groups = Groups {
            interceptor,
            state: StateFile::in_directory(context.config.state_dir()),
            context: Arc::clone(&context),
            wanted,
        };
        let sockets = listeners.into_parts();
        let served = tokio::select! {
            served = proxy::run(Arc::clone(&context), sockets, stop) => served,
            () = groups.run(called) => Ok(()),
        };
        drop(groups);
        for task in background {
            task.abort();
            let _ = task.await;
        }
        log_totals(&counters, &context.ledger);
        drop(context);
        // The writer ends when the last ledger is gone, which the lines above have seen to.
        let written = tokio::task::spawn_blocking(move || writer.join());
        if timeout(LAST_WRITE, written).await.is_err() {
            tracing::error!(
                "records could not be written; the next start writes what they owe as aborted"
            );
        }
        served
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
async fn log_events(mut events: Events, ledger: Ledger) {
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
        if matches!(event.kind, Kind::Dropped | Kind::DatagramRefused) {
            ledger.bypass_attempt(event.group);
        }
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

/// Keeps the connectors up to date with their files.
async fn follow_trust(context: Arc<Context>) {
    let replaced = || {
        context.without_tls.forget();
        context.distrusting.forget();
        context.checks.forget();
    };
    context.connectors.follow(&context.config, replaced).await;
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
                    let lost = peer.is_stale()
                        && !context.ledger.owes(peer.flow.id)
                        // Settled since the list was read?
                        && context.flows.is_unsettled(peer.flow.id).unwrap_or(false);
                    if lost {
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

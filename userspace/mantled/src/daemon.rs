//! A daemon from ready to gone: it serves until it is told to stop, or until a successor serves.

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use mantled_redirect::{
    Counters, Flows, Peer, Watch,
    events::{Events, Kind},
};
use sd_notify::NotifyState;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, block_in_place, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    admin::{self, Answered, Reply},
    app::{App, KILLED},
    completeness::Completeness,
    groups::{Groups, Upgrade},
    handover::{Predecessor, Successor},
    metrics,
    names::Names,
    namespaces,
    proxy::{Live, Phase, Server, ledger::Ledger},
    state::StateFile,
    watchdog,
};

/// How often connections that never reached accept() are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// How long a daemon that stops waits for its last records to be written.
const LAST_WRITE: Duration = Duration::from_secs(10);

/// How often one that was succeeded asks whether its sessions may go on: it hears of no change.
const JUDGE: Duration = Duration::from_secs(1);

/// Time for the accept loops to see that they are paused.
const LAST_ACCEPT: Duration = Duration::from_millis(10);

/// Events of the kernel that are logged a second; the rest is counted.
const LOGGED_EVENTS: u32 = 20;

impl App {
    /// Serves until `stop` turns true, drains, and writes every record that can be written.
    ///
    /// # Errors
    /// As the event loop's registration of sockets.
    pub async fn run(self, stop: watch::Receiver<bool>) -> io::Result<()> {
        let Self {
            mut interceptor,
            live,
            listeners,
            home,
            watch,
            wanted,
            socket,
            writer,
            lock,
            predecessor,
            completeness,
        } = self;
        let context = live.current();
        let (flows, ledger) = (context.flows.clone(), context.ledger.clone());
        let names = Arc::clone(&context.names);
        let state = StateFile::in_directory(context.config.state_dir());
        drop(context);
        let events = interceptor.events().map_err(io::Error::other)?;
        let counters = interceptor.counters();
        let sockets = listeners.into_parts();
        let address = sockets
            .streams
            .first()
            .ok_or_else(|| io::Error::other("no listener"))?
            .local_addr()?;
        let handed = match lock {
            Some(lock) => {
                let (streams, datagrams) = sockets.duplicate()?;
                Some(Handed {
                    streams,
                    datagrams,
                    lock,
                })
            }
            // `mantled exec` is nobody's predecessor.
            None => None,
        };
        let (phase, phases) = watch::channel(Phase::Serving);
        let server = Server::new(live.clone(), home, phases.clone());
        let elsewhere = namespaces::run(server.clone(), watch.clone());
        let proxy = tokio::spawn(async move {
            let elsewhere = async {
                elsewhere.await;
                Ok(())
            };
            tokio::try_join!(server.run(sockets), elsewhere).map(|((), ())| ())
        });
        let predecessor = predecessor.map(Arc::new);
        if let Some(predecessor) = &predecessor {
            predecessor.release()?;
        }
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        tracing::info!("ready");
        let background = Background::default()
            .with(log_events(events, watch))
            .with(sweep(
                flows.clone(),
                ledger.clone(),
                phases.clone(),
                predecessor.clone(),
                completeness.clone(),
            ))
            .with(follow_names(names, phases.clone()))
            .with(follow_trust(live.clone()))
            .with(pass_on_the_end(predecessor.clone(), phases.clone()));

        let groups = Groups {
            interceptor,
            state,
            live: live.clone(),
            wanted,
            completeness,
            predecessor: predecessor.clone(),
            upgrade: None,
        };
        let life = Life {
            live: &live,
            phase: &phase,
            address,
            stop,
        };
        let served = life.serve(groups, socket, handed, proxy).await;
        if let Some(predecessor) = predecessor {
            if *phases.borrow() != Phase::Succeeded {
                predecessor.end();
            }
            // The successor takes the end of this process for the end of both.
            let _ = spawn_blocking(move || predecessor.gone()).await;
        }
        background.end().await;
        log_totals(&counters, &ledger);
        drop((live, flows, ledger));
        // The writer ends when the last ledger is gone, which the lines above have seen to.
        let written = spawn_blocking(move || writer.join());
        if timeout(LAST_WRITE, written).await.is_err() {
            tracing::error!(
                "records could not be written; the next start writes what they owe as aborted"
            );
        }
        served
    }
}

/// What a successor gets.
struct Handed {
    streams: Vec<OwnedFd>,
    datagrams: Vec<OwnedFd>,
    lock: OwnedFd,
}

struct Life<'a> {
    live: &'a Live,
    phase: &'a watch::Sender<Phase>,
    /// Where the proxy accepts.
    address: SocketAddr,
    stop: watch::Receiver<bool>,
}

type Proxy = JoinHandle<io::Result<()>>;

impl Life<'_> {
    async fn serve(
        mut self,
        mut groups: Groups,
        mut socket: Option<admin::Socket>,
        handed: Option<Handed>,
        mut proxy: Proxy,
    ) -> io::Result<()> {
        let answers = socket.is_some();
        loop {
            let (calls, mut called) = mpsc::channel(1);
            let background = Background::default()
                .with(admin::on_hangup(answers, calls.clone()))
                .with(metrics::serve(
                    self.live.current().config.admin().metrics,
                    calls.clone(),
                ))
                .with(watchdog::run(
                    self.live.clone(),
                    self.address,
                    calls.clone(),
                ))
                .with(serve_admin(socket.take(), calls));
            let upgrade = tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => None,
                upgrade = groups.run(&mut called) => Some(upgrade),
                // It ends before it is told to only where it cannot begin.
                ended = &mut proxy => return ended.map_err(io::Error::other)?,
            };
            background.end().await;
            let (Some(upgrade), Some(handed)) = (upgrade, &handed) else {
                break;
            };
            let Upgrade {
                mut successor,
                reply,
            } = upgrade;
            self.phase.send_replace(Phase::Paused);
            sleep(LAST_ACCEPT).await;
            // What the kernel shows of names is the successor's from here on.
            let names = Arc::clone(&self.live.current().names);
            names.pause();
            let taken = block_in_place(|| {
                successor.take_over(&handed.streams, &handed.datagrams, &handed.lock)
            });
            match taken {
                Ok(()) => {
                    self.succeeded(successor, reply, groups).await;
                    break;
                }
                Err(reason) => {
                    tracing::error!(%reason, "the upgrade has failed; this process goes on");
                    drop(successor);
                    groups.take_back();
                    names.resume();
                    let path = self.live.current().config.admin().socket.clone();
                    socket = admin::Socket::bind(&path)
                        .inspect_err(|error| tracing::error!("{error}"))
                        .ok();
                    self.phase.send_replace(Phase::Serving);
                    let _ = reply.send(Err(format!(
                        "{reason}; process {} goes on",
                        std::process::id()
                    )));
                }
            }
        }
        // The backlog is the successor's, or nobody's. The lock is kept to the end: a daemon that
        // starts after a successor has died must not take these sessions for lost.
        let _lock = handed.map(|handed| handed.lock);
        if *self.phase.borrow() == Phase::Serving {
            self.phase.send_replace(Phase::Stopping);
        }
        let _ = self.stop;
        proxy.await.map_err(io::Error::other)?
    }

    /// A successor serves: tells the service manager and the caller, and sees to it that the open
    /// sessions end when they must.
    async fn succeeded(
        &mut self,
        mut successor: Successor,
        reply: oneshot::Sender<Result<Answered, String>>,
        groups: Groups,
    ) {
        let _ = sd_notify::notify(&[NotifyState::MainPid(successor.pid)]);
        self.phase.send_replace(Phase::Succeeded);
        // Its programs are not attached any more.
        drop(groups);
        let draining = self.live.current().ledger.open_sessions();
        tracing::info!(
            successor = successor.pid,
            version = successor.version,
            sessions = draining,
            "a new process serves; this one carries its sessions to their end"
        );
        let _ = reply.send(Ok(Reply::Upgraded {
            version: successor.version.clone(),
            pid: successor.pid,
            draining,
        }
        .into()));
        let phase = self.phase.clone();
        let mut stop = self.stop.clone();
        // Not the context itself: records are written to the end when the last of it is gone.
        let changes = self.live.current().changes.clone();
        tokio::spawn(async move {
            // By the end of the socket the successor learns that this process has gone, so it is
            // kept until then.
            let mut told = spawn_blocking(move || {
                successor.wait();
                successor
            });
            let mut ticks = interval(JUDGE);
            let _successor = loop {
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => break None,
                    successor = &mut told => break successor.ok(),
                    // The successor's changes are seen in the kernel's maps alone.
                    _ = ticks.tick() => changes.send_modify(|_| {}),
                }
            };
            phase.send_replace(Phase::Stopping);
            std::future::pending::<()>().await;
        });
    }
}

/// Tasks that end with this.
#[derive(Default)]
struct Background(Vec<JoinHandle<()>>);

impl Background {
    fn with(mut self, task: impl Future<Output = ()> + Send + 'static) -> Self {
        self.0.push(tokio::spawn(task));
        self
    }

    async fn end(self) {
        for task in self.0 {
            task.abort();
            let _ = task.await;
        }
    }
}

async fn serve_admin(socket: Option<admin::Socket>, calls: mpsc::Sender<admin::Call>) {
    if let Some(socket) = socket {
        socket.serve(calls).await;
    }
}

async fn follow_names(names: Arc<Names>, mut phases: watch::Receiver<Phase>) {
    loop {
        tokio::select! {
            () = names.follow() => return,
            _ = phases.wait_for(|phase| *phase != Phase::Serving) => {}
        }
        // Until this process serves again, where it does.
        if phases
            .wait_for(|phase| *phase == Phase::Serving)
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Keeps the connectors up to date with their files.
async fn follow_trust(live: Live) {
    loop {
        let context = live.current();
        let replaced = || {
            context.without_tls.forget();
            context.distrusting.forget();
            context.checks.forget();
        };
        tokio::select! {
            () = context.connectors.follow(&context.config, replaced) => return,
            () = live.replaced_since(&context) => {}
        }
    }
}

/// What the predecessor still carries ends when what is carried here must: not at an upgrade.
async fn pass_on_the_end(
    predecessor: Option<Arc<Predecessor>>,
    mut phases: watch::Receiver<Phase>,
) {
    if let Some(predecessor) = predecessor
        && phases
            .wait_for(|phase| *phase == Phase::Stopping)
            .await
            .is_ok()
    {
        predecessor.end();
    }
}

/// Logs what the kernel programs refuse and drop. What they say of network namespaces has these
/// looked at.
async fn log_events(mut events: Events, watch: Watch) {
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
        if matches!(
            event.kind,
            Kind::NamespaceSeen | Kind::NamespaceRefused | Kind::NamespacePassed
        ) {
            watch.wake();
        }
        if event.kind == Kind::NamespaceSeen {
            // Nothing has happened to it.
            continue;
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
            "{}",
            what_happened(event.kind)
        );
    }
}

/// An event in a sentence, with the remedy where there is one.
fn what_happened(kind: Kind) -> &'static str {
    match kind {
        Kind::NamespaceRefused => {
            "refused by the kernel: mantled did not listen in this container's network namespace \
             yet; it does in a moment, so the agent should try again (where this goes on, see the \
             error about that namespace)"
        }
        Kind::NamespacePassed => {
            "passed mantled by: it did not listen in this container's network namespace yet; it \
             does in a moment (where this goes on, see the error about that namespace)"
        }
        Kind::DownPassed => "passed mantled by: the daemon was down, and on_daemon_down is open",
        _ => "refused by the kernel",
    }
}

/// Finds connections that were redirected and never reached accept(), and writes their records.
/// Those of a predecessor are its own until it has gone.
async fn sweep(
    flows: Flows,
    ledger: Ledger,
    phases: watch::Receiver<Phase>,
    predecessor: Option<Arc<Predecessor>>,
    completeness: Completeness,
) {
    if let Some(predecessor) = predecessor {
        let since = mantled_redirect::sys::monotonic();
        let _ = spawn_blocking(move || predecessor.gone()).await;
        if let Err(error) = completeness.begin() {
            tracing::warn!(%error, "the kernel's counters cannot be read");
        }
        write_lost(&flows, &ledger, KILLED, |peer| peer.flow.at < since);
    }
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if *phases.borrow() != Phase::Serving {
            continue;
        }
        if let Err(error) = flows.forget_waiting(false) {
            tracing::warn!(%error, "the kernel's list of flows cannot be read");
        }
        let reason = "the connection never reached the proxy";
        write_lost(&flows, &ledger, reason, Peer::is_stale);
    }
}

/// Writes the records of connections that nobody will write.
fn write_lost(flows: &Flows, ledger: &Ledger, reason: &str, lost: impl Fn(&Peer) -> bool) {
    let unsettled = match flows.unsettled() {
        Ok(unsettled) => unsettled,
        Err(error) => {
            tracing::warn!(%error, "the kernel's list of flows cannot be read");
            return;
        }
    };
    for peer in unsettled {
        let lost = lost(&peer)
            && !ledger.owes(peer.flow.id)
            // Settled since the list was read?
            && flows.is_unsettled(peer.flow.id).unwrap_or(false);
        if lost {
            ledger.write_lost(&peer, reason);
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

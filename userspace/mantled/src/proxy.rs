//! The proxy: accepts what the kernel redirects and serves each connection in its own task.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod agent;
pub mod agent_stream;
pub mod checks;
pub mod data_channels;
pub mod datagrams;
pub mod detect;
pub mod filter;
pub mod ledger;
pub mod origin;
pub mod plan;
pub mod refusal;
pub mod relay;
pub mod revocation;
pub mod session;
pub mod spoken;
pub mod syslog;
pub mod transport;
pub mod unreachable;
pub mod upgrade;
pub mod upstream;
pub mod without_tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mantled_redirect::{Flows, Parts};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    config::Config,
    helper::Helper,
    names::Names,
    tls::{Connectors, LiveConnectors},
    watchdog::Probes,
};
use checks::Checks;
use data_channels::DataChannels;
use ledger::Ledger;
use without_tls::WithoutTls;

/// After accept() has failed for want of descriptors or memory: time for sessions to end.
const BREATH: Duration = Duration::from_millis(50);

/// How long a daemon that stops goes on accepting what is in the backlog.
const LAST_CALL: Duration = Duration::from_millis(50);

/// What every session reads. A reload makes another one, for the sessions that begin after it:
/// whatever a session looks up by the index of a route is of one configuration.
#[derive(Debug)]
pub struct Context {
    /// The operator's configuration.
    pub config: Arc<Config>,
    /// TLS for its routes.
    pub connectors: LiveConnectors,
    /// Whom enrolled groups may ask for names.
    pub resolvers: Vec<IpAddr>,
    /// The kernel's list of redirected connections.
    pub flows: Flows,
    /// Who looks at processes.
    pub helper: Helper,
    /// Which names the agents asked for.
    pub names: Arc<Names>,
    /// The network namespace of the listeners.
    pub netns: u64,
    /// Tells open sessions that a group is enrolled in another way, or the configuration, which
    /// it holds, is another one.
    pub changes: watch::Sender<Arc<Config>>,
    /// Open sessions and their records.
    pub ledger: Ledger,
    /// Servers that had no TLS a moment ago.
    pub without_tls: WithoutTls,
    /// Connections that others have announced.
    pub data_channels: DataChannels,
    /// What syslog's sessions keep.
    pub syslog: syslog::Kept,
    /// Servers whose agents did not trust the host's authority a moment ago, for observe mode.
    pub distrusting: WithoutTls,
    /// Servers of agents with TLS of their own.
    pub checks: Checks,
    /// The watchdog's own connections.
    pub probes: Probes,
}

impl Context {
    /// The same with another configuration. What was found out about servers is forgotten.
    #[must_use]
    pub fn with(&self, config: Config, connectors: Connectors, resolvers: Vec<IpAddr>) -> Self {
        Self {
            config: Arc::new(config),
            connectors: LiveConnectors::new(connectors),
            resolvers,
            flows: self.flows.clone(),
            helper: self.helper.clone(),
            names: Arc::clone(&self.names),
            netns: self.netns,
            changes: self.changes.clone(),
            ledger: self.ledger.clone(),
            without_tls: WithoutTls::default(),
            data_channels: self.data_channels.clone(),
            syslog: self.syslog.clone(),
            distrusting: WithoutTls::default(),
            checks: Checks::default(),
            probes: self.probes.clone(),
        }
    }

    /// Makes the open sessions ask whether they may go on.
    pub fn judge_again(&self) {
        self.changes.send_modify(|_| {});
    }
}

/// The context of now; cheap to clone.
#[derive(Clone, Debug)]
pub struct Live(watch::Sender<Arc<Context>>);

impl Live {
    /// Begins with this one.
    pub fn new(context: Context) -> Self {
        Self(watch::Sender::new(Arc::new(context)))
    }

    /// That of sessions that begin now.
    pub fn current(&self) -> Arc<Context> {
        Arc::clone(&self.0.borrow())
    }

    /// Replaces it, and makes the open sessions ask whether they may go on.
    pub fn replace(&self, context: Context) {
        let context = Arc::new(context);
        let config = Arc::clone(&context.config);
        self.0.send_replace(Arc::clone(&context));
        context.changes.send_replace(config);
    }

    /// Ends when there is another one than this.
    pub async fn replaced_since(&self, context: &Arc<Context>) {
        let mut contexts = self.0.subscribe();
        let _ = contexts
            .wait_for(|current| !Arc::ptr_eq(current, context))
            .await;
    }
}

/// What is done with connections that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// They are served.
    Serving,
    /// They wait in the kernel's backlog, for a successor or for this daemon to go on.
    Paused,
    /// A successor serves them; sessions that are open here go on to their end.
    Succeeded,
    /// The daemon stops: sessions that are open have `[limits] drain` to end.
    Stopping,
}

/// Accepts until a successor does, or until the daemon stops; then the sessions that do not end
/// in time are cut, each with a record.
///
/// # Errors
/// As tokio's registration of the listeners.
pub async fn run(live: Live, sockets: Parts, mut phases: watch::Receiver<Phase>) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(live.current().config.limits().sessions));
    let mut loops = JoinSet::new();
    for listener in sockets.streams {
        let listener = TcpListener::from_std(listener)?;
        loops.spawn(accept(
            live.clone(),
            listener,
            Arc::clone(&permits),
            phases.clone(),
        ));
    }
    for socket in sockets.datagrams {
        loops.spawn(datagrams::run(live.clone(), socket, phases.clone()));
    }
    let _ = phases
        .wait_for(|phase| matches!(phase, Phase::Succeeded | Phase::Stopping))
        .await;
    // First the kernel hears of it, so that no connection is sent to a listener that closes.
    drop(sockets.liveness);
    let overdue = overdue(&live, phases);
    while loops.join_next().await.is_some() {}
    live.current().data_channels.finish(overdue).await;
    Ok(())
}

/// Ends when sessions that are still open must be cut.
async fn overdue(live: &Live, mut phases: watch::Receiver<Phase>) {
    let _ = phases.wait_for(|phase| *phase == Phase::Stopping).await;
    sleep(live.current().config.limits().drain).await;
}

/// Waits for the sessions, and cuts those that are overdue.
async fn drain(live: &Live, sessions: &mut JoinSet<()>, phases: watch::Receiver<Phase>) {
    let ended = async { while sessions.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => return,
        () = overdue(live, phases) => {}
    }
    tracing::warn!(
        sessions = sessions.len(),
        "cutting the sessions that have not ended"
    );
    sessions.shutdown().await;
}

async fn accept(
    live: Live,
    listener: TcpListener,
    permits: Arc<Semaphore>,
    mut phases: watch::Receiver<Phase>,
) {
    let mut sessions = JoinSet::new();
    loop {
        let phase = *phases.borrow_and_update();
        match phase {
            Phase::Serving | Phase::Stopping => {}
            Phase::Succeeded => break,
            Phase::Paused => match phases.changed().await {
                Ok(()) => continue,
                Err(_) => break,
            },
        }
        let accepted = tokio::select! {
            biased;
            Ok(()) = phases.changed(), if phase == Phase::Serving => continue,
            accepted = next(&listener, &permits) => accepted,
            // Those that are in the backlog by then are served; nobody is sent here after them.
            () = sleep(LAST_CALL), if phase == Phase::Stopping => break,
        };
        match accepted {
            Ok((stream, client, permit)) => {
                let context = live.current();
                if context.probes.answer(client) {
                    continue;
                }
                sessions.spawn(async move {
                    session::serve(&context, stream, client).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                sleep(BREATH).await;
            }
        }
        // Forget those that have ended, so that the set does not grow.
        while sessions.try_join_next().is_some() {}
    }
    drop(listener);
    drain(&live, &mut sessions, phases).await;
}

/// The next connection. The permit comes first: without one, connections wait in the kernel's
/// backlog.
async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((stream, client, permit))
}

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

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use mantled_redirect::{Flows, Parts};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{config::Config, helper::Helper, names::Names, tls::LiveConnectors};
use checks::Checks;
use data_channels::DataChannels;
use ledger::Ledger;
use without_tls::WithoutTls;

/// After accept() has failed for want of descriptors or memory: time for sessions to end.
const BREATH: Duration = Duration::from_millis(50);

/// How long a daemon that stops goes on accepting what is in the backlog.
const LAST_CALL: Duration = Duration::from_millis(50);

/// What every session reads.
#[derive(Debug)]
pub struct Context {
    /// The operator's configuration.
    pub config: Config,
    /// TLS for its routes.
    pub connectors: LiveConnectors,
    /// The kernel's list of redirected connections.
    pub flows: Flows,
    /// Who looks at processes.
    pub helper: Helper,
    /// Which names the agents asked for.
    pub names: Arc<Names>,
    /// Whom enrolled groups may ask for names.
    pub resolvers: Vec<IpAddr>,
    /// The network namespace of the listeners.
    pub netns: u64,
    /// Tells open sessions that a group is enrolled in another way.
    pub groups_changed: watch::Sender<()>,
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
}

/// Accepts until `stop` turns true, then gives the sessions `[limits] drain` to end; those that
/// are left are cut, each with a record.
///
/// # Errors
/// As tokio's registration of the listeners.
pub async fn run(
    context: Arc<Context>,
    sockets: Parts,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(context.config.limits().sessions));
    let mut loops = JoinSet::new();
    for listener in sockets.streams {
        let listener = TcpListener::from_std(listener)?;
        let (context, permits, stop) = (Arc::clone(&context), Arc::clone(&permits), stop.clone());
        loops.spawn(accept(context, listener, permits, stop));
    }
    for socket in sockets.datagrams {
        loops.spawn(datagrams::run(Arc::clone(&context), socket, stop.clone()));
    }
    let _ = stop.wait_for(|stop| *stop).await;
    // First the kernel hears of it, so that no connection is sent to a listener that closes.
    drop(sockets.liveness);
    let deadline = Instant::now() + context.config.limits().drain;
    while loops.join_next().await.is_some() {}
    context.data_channels.finish(deadline).await;
    Ok(())
}

async fn accept(
    context: Arc<Context>,
    listener: TcpListener,
    permits: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    let mut sessions = JoinSet::new();
    let mut stopping = false;
    loop {
        // The permit comes first: without one, connections wait in the kernel's backlog.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            break;
        };
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            // Those that are in the backlog by then are served; nobody is sent here after them.
            () = sleep(LAST_CALL), if stopping => break,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                continue;
            }
        };
        match accepted {
            Ok((stream, client)) => {
                let context = Arc::clone(&context);
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
    let drain = context.config.limits().drain;
    let drained = timeout(drain, async {
        while sessions.join_next().await.is_some() {}
    })
    .await;
    if drained.is_err() {
        tracing::warn!(
            sessions = sessions.len(),
            "cutting the sessions that have not ended"
        );
        sessions.shutdown().await;
    }
}

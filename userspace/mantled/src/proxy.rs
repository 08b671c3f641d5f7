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
pub mod place;
pub mod plan;
pub mod refusal;
pub mod relay;
pub mod session;
pub mod spoken;
pub mod syslog;
pub mod transport;
pub mod unreachable;
pub mod upgrade;
pub mod upstream;
pub mod without_tls;

use std::{future::pending, io, net::IpAddr, sync::Arc, time::Duration};

use mantled_redirect::{Flows, Parts};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{config::Config, names::Names, tls::LiveConnectors};
use checks::Checks;
use data_channels::DataChannels;
use ledger::Ledger;
use place::Place;
use without_tls::WithoutTls;

/// After accept() has failed for want of descriptors or memory: time for sessions to end.
const BREATH: Duration = Duration::from_millis(50);

/// How long a daemon that stops goes on accepting what is in the backlog.
const LAST_CALL: Duration = Duration::from_millis(50);

/// How long sessions outlive the last process of their network namespace, which they keep: time for
/// what the agent said last to arrive.
const GRACE: Duration = Duration::from_secs(1);

/// What every session reads.
#[derive(Debug)]
pub struct Context {
    /// The operator's configuration.
    pub config: Config,
    /// TLS for its routes.
    pub connectors: LiveConnectors,
    /// The kernel's list of redirected connections.
    pub flows: Flows,
    /// Which names the agents asked for.
    pub names: Arc<Names>,
    /// Whom enrolled groups may ask for names.
    pub resolvers: Vec<IpAddr>,
    /// A session needs one of them.
    pub permits: Arc<Semaphore>,
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

/// When the listeners of a place are to close: the daemon stops, or the place has ended.
#[derive(Clone, Debug)]
pub struct Stop {
    daemon: watch::Receiver<bool>,
    place: Place,
}

impl Stop {
    /// Waits until they are.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.daemon.wait_for(|stop| *stop) => {}
            () = self.place.ended() => {}
        }
    }

    /// Waits until these sessions have ended, for as long as there is time; cuts those that have
    /// not, each with a record. A place that has ended leaves them [`GRACE`].
    pub async fn drain(&self, sessions: &mut JoinSet<()>, drain: Duration) {
        let over = async {
            let stops = async {
                if *self.daemon.borrow() {
                    sleep(drain).await;
                } else {
                    pending().await
                }
            };
            tokio::select! {
                () = stops => {}
                () = self.place.ended() => sleep(GRACE).await,
            }
        };
        let drained = tokio::select! {
            () = async { while sessions.join_next().await.is_some() {} } => true,
            () = over => false,
        };
        if !drained {
            tracing::warn!(
                sessions = sessions.len(),
                "cutting the sessions that have not ended"
            );
            sessions.shutdown().await;
        }
    }
}

/// Accepts until `stop` turns true, then gives the sessions `[limits] drain` to end; those that
/// are left are cut, each with a record.
///
/// # Errors
/// As tokio's registration of the listeners.
pub async fn run(
    context: Arc<Context>,
    place: Place,
    sockets: Parts,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let serving = serve(Arc::clone(&context), place, sockets, stop.clone());
    let deadline = async {
        let _ = stop.wait_for(|stop| *stop).await;
        Ok(Instant::now() + context.config.limits().drain)
    };
    let ((), deadline) = tokio::try_join!(serving, deadline)?;
    context.data_channels.finish(deadline).await;
    Ok(())
}

/// Accepts in one place until `stop` turns true or the place has ended, and lets the sessions end.
///
/// # Errors
/// As tokio's registration of the listeners.
pub async fn serve(
    context: Arc<Context>,
    place: Place,
    sockets: Parts,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut stop = Stop {
        daemon: stop,
        place: place.clone(),
    };
    let mut loops = JoinSet::new();
    for listener in sockets.streams {
        let listener = TcpListener::from_std(listener)?;
        loops.spawn(accept(
            Arc::clone(&context),
            place.clone(),
            listener,
            stop.clone(),
        ));
    }
    for socket in sockets.datagrams {
        loops.spawn(datagrams::run(
            Arc::clone(&context),
            place.clone(),
            socket,
            stop.clone(),
        ));
    }
    stop.requested().await;
    // First the kernel hears of it, so that no connection is sent to a listener that closes.
    drop(sockets.liveness);
    while loops.join_next().await.is_some() {}
    Ok(())
}

async fn accept(context: Arc<Context>, place: Place, listener: TcpListener, mut stop: Stop) {
    let mut sessions = JoinSet::new();
    let mut stopping = false;
    loop {
        // The permit comes first: without one, connections wait in the kernel's backlog.
        let permit = tokio::select! {
            permit = Arc::clone(&context.permits).acquire_owned() => permit,
            // A place that has ended is not kept by a daemon that has no permit left.
            () = place.ended() => break,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            // Those that are in the backlog by then are served; nobody is sent here after them.
            () = sleep(LAST_CALL), if stopping => break,
            () = stop.requested(), if !stopping => {
                stopping = true;
                continue;
            }
        };
        match accepted {
            Ok((stream, client)) => {
                let (context, place) = (Arc::clone(&context), place.clone());
                sessions.spawn(async move {
                    session::serve(&context, &place, stream, client).await;
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
    stop.drain(&mut sessions, context.config.limits().drain)
        .await;
}

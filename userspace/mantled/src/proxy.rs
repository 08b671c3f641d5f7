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
mod inspect;
pub mod ledger;
pub mod origin;
mod permit;
pub mod place;
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
    future::pending,
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
    policy::Rules,
    tls::{Connectors, LiveConnectors},
    watchdog::Probes,
};
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

/// What every session reads. A reload makes another one, for the sessions that begin after it:
/// whatever a session looks up by the index of a route is of one configuration.
#[derive(Debug)]
pub struct Context {
    /// The operator's configuration.
    pub config: Arc<Config>,
    /// The operator's policies.
    pub rules: Arc<Rules>,
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
    /// Tells open sessions that a group is enrolled in another way, or the configuration, which
    /// it holds, is another one.
    pub changes: watch::Sender<Terms>,
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

/// What open sessions are judged by.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The operator's configuration.
    pub config: Arc<Config>,
    /// The operator's policies.
    pub rules: Arc<Rules>,
}

impl Context {
    /// The same with another configuration. What was found out about servers is forgotten.
    #[must_use]
    pub fn with(
        &self,
        config: Config,
        rules: Rules,
        connectors: Connectors,
        resolvers: Vec<IpAddr>,
    ) -> Self {
        Self {
            config: Arc::new(config),
            rules: Arc::new(rules),
            connectors: LiveConnectors::new(connectors),
            resolvers,
            flows: self.flows.clone(),
            helper: self.helper.clone(),
            names: Arc::clone(&self.names),
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
        let terms = Terms {
            config: Arc::clone(&context.config),
            rules: Arc::clone(&context.rules),
        };
        self.0.send_replace(Arc::clone(&context));
        context.changes.send_replace(terms);
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

/// Serves one place; cheap to clone.
#[derive(Clone, Debug)]
pub struct Server {
    live: Live,
    place: Place,
    /// A session needs one of them, in whichever place.
    permits: Arc<Semaphore>,
    phases: watch::Receiver<Phase>,
}

/// Which connections a place takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepts {
    All,
    /// None yet: they wait in the backlog.
    Later,
    /// Those that are in the backlog by now; the kernel sends no more.
    TheLast,
    /// None: the backlog is a successor's.
    Nothing,
}

impl Server {
    /// Of the daemon's own network namespace.
    pub fn new(live: Live, home: Place, phases: watch::Receiver<Phase>) -> Self {
        let sessions = live.current().config.limits().sessions;
        Self {
            live,
            place: home,
            permits: Arc::new(Semaphore::new(sessions)),
            phases,
        }
    }

    /// Of another place.
    #[must_use]
    pub fn at(&self, place: Place) -> Self {
        Self {
            place,
            ..self.clone()
        }
    }

    /// What the sessions that begin now read.
    pub fn context(&self) -> Arc<Context> {
        self.live.current()
    }

    /// What the daemon does.
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phases.clone()
    }

    /// Serves until a successor does, or until the daemon stops; then the sessions that do not end
    /// in time are cut, each with a record, and so are the transfers of all places.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub async fn run(self, sockets: Parts) -> io::Result<()> {
        let mut home = self.clone();
        self.serve(sockets).await?;
        let channels = home.context().data_channels.clone();
        channels.finish(home.overdue()).await;
        Ok(())
    }

    /// The same until the place has ended, if that is first.
    ///
    /// # Errors
    /// As tokio's registration of the listeners.
    pub async fn serve(mut self, sockets: Parts) -> io::Result<()> {
        let mut loops = JoinSet::new();
        for listener in sockets.streams {
            let listener = TcpListener::from_std(listener)?;
            loops.spawn(self.clone().accept(listener));
        }
        for socket in sockets.datagrams {
            loops.spawn(datagrams::run(self.clone(), socket));
        }
        while matches!(self.accepts(), Accepts::All | Accepts::Later) {
            self.changed().await;
        }
        // First the kernel hears of it, so that no connection is sent to a listener that closes.
        drop(sockets.liveness);
        while loops.join_next().await.is_some() {}
        Ok(())
    }

    /// A successor gets the listeners of the daemon's own place. In another one it has listeners
    /// of its own, so what has arrived here is served here.
    fn accepts(&mut self) -> Accepts {
        let phase = *self.phases.borrow_and_update();
        match (phase, self.place.is_home()) {
            _ if self.place.has_ended() => Accepts::TheLast,
            (Phase::Serving, _) | (Phase::Paused, false) => Accepts::All,
            (Phase::Paused, true) => Accepts::Later,
            (Phase::Succeeded, true) => Accepts::Nothing,
            (Phase::Succeeded, false) | (Phase::Stopping, _) => Accepts::TheLast,
        }
    }

    /// Ends when it may accept otherwise than it did when it was asked last.
    async fn changed(&mut self) {
        tokio::select! {
            changed = self.phases.changed() => if changed.is_err() {
                pending().await
            },
            () = self.place.ended() => {}
        }
    }

    /// Ends when sessions that are still open must be cut.
    async fn overdue(&mut self) {
        let stopped = async {
            let _ = self
                .phases
                .wait_for(|phase| *phase == Phase::Stopping)
                .await;
            sleep(self.live.current().config.limits().drain).await;
        };
        let deserted = async {
            self.place.ended().await;
            sleep(GRACE).await;
        };
        tokio::select! {
            () = stopped => {}
            () = deserted => {}
        }
    }

    /// Waits for the sessions, and cuts those that are overdue.
    async fn drain(&mut self, sessions: &mut JoinSet<()>) {
        let ended = async { while sessions.join_next().await.is_some() {} };
        tokio::select! {
            () = ended => return,
            () = self.overdue() => {}
        }
        tracing::warn!(
            sessions = sessions.len(),
            "cutting the sessions that have not ended"
        );
        sessions.shutdown().await;
    }

    async fn accept(mut self, listener: TcpListener) {
        let mut sessions = JoinSet::new();
        loop {
            let accepts = self.accepts();
            match accepts {
                Accepts::All | Accepts::TheLast => {}
                Accepts::Nothing => break,
                Accepts::Later => {
                    self.changed().await;
                    continue;
                }
            }
            let permits = Arc::clone(&self.permits);
            let accepted = tokio::select! {
                biased;
                () = self.changed(), if accepts == Accepts::All => continue,
                accepted = next(&listener, permits) => accepted,
                // Nobody is sent here after them.
                () = sleep(LAST_CALL), if accepts == Accepts::TheLast => break,
            };
            match accepted {
                Ok((stream, client, permit)) => {
                    let context = self.context();
                    if context.probes.answer(client) {
                        continue;
                    }
                    let place = self.place.clone();
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
        self.drain(&mut sessions).await;
    }
}

/// The next connection. The permit comes first: without one, connections wait in the kernel's
/// backlog.
async fn next(
    listener: &TcpListener,
    permits: Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = permits.acquire_owned().await.map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((stream, client, permit))
}

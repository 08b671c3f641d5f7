//! The service manager's watchdog (sd_notify(3), `WATCHDOG=1`): it hears from this process as long
//! as a connection to the proxy is accepted and the groups are looked after.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sd_notify::NotifyState;
use tokio::{
    net::TcpSocket,
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    admin::{Call, Request},
    proxy::Live,
};

/// Connections of the watchdog's own, by their local address; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Probes(Arc<Mutex<HashMap<SocketAddr, oneshot::Sender<()>>>>);

impl Probes {
    fn awaited(&self) -> MutexGuard<'_, HashMap<SocketAddr, oneshot::Sender<()>>> {
        // Nothing panics while it holds the lock; a map is whole after every call in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is the connection that was accepted from there one of the watchdog's? Then it has been seen.
    pub fn answer(&self, client: SocketAddr) -> bool {
        match self.awaited().remove(&client) {
            Some(seen) => {
                let _ = seen.send(());
                true
            }
            None => false,
        }
    }

    /// Connects to the listener, and waits until that was accepted.
    async fn probe(&self, listener: SocketAddr) -> std::io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(listener.ip(), 0))?;
        let own = socket.local_addr()?;
        let (seen, accepted) = oneshot::channel();
        self.awaited().insert(own, seen);
        let connected = socket.connect(listener).await;
        let result = match connected {
            Ok(_stream) => accepted.await.map_err(std::io::Error::other),
            Err(error) => Err(error),
        };
        self.awaited().remove(&own);
        result
    }
}

/// Tells the service manager, where it wants to hear. `listener` is where the proxy accepts.
pub async fn run(live: Live, listener: SocketAddr, calls: mpsc::Sender<Call>) {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    let patience = period / 3;
    let mut ticks = interval(patience);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(patience, look(&live, listener, &calls)).await {
            Ok(Ok(())) => {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
            Ok(Err(error)) => tracing::error!(%error, "the watchdog cannot reach the proxy"),
            Err(_) => tracing::error!(
                patience = patience.as_secs_f64(),
                "the watchdog has waited for the proxy in vain"
            ),
        }
    }
}

async fn look(live: &Live, listener: SocketAddr, calls: &mpsc::Sender<Call>) -> Result<(), String> {
    let context = live.current();
    // With every permit taken nothing is accepted, and nothing is wrong.
    if context.ledger.open_sessions() < context.config.limits().sessions {
        context
            .probes
            .probe(listener)
            .await
            .map_err(|error| error.to_string())?;
    }
    let (reply, answered) = oneshot::channel();
    let call = Call {
        request: Request::Status,
        caller: std::process::id(),
        reply,
    };
    let gone = || "the groups are not looked after".to_owned();
    calls.send(call).await.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_probe_ends_when_it_was_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let probes = Probes::default();
        let one = probes.clone();
        let probe = tokio::spawn(async move { one.probe(address).await });
        let (_stream, client) = listener.accept().await.unwrap();
        assert!(!probe.is_finished());
        assert!(probes.answer(client));
        probe.await.unwrap().unwrap();
        assert!(!probes.answer(client));
        // Nobody accepts.
        let waited = timeout(Duration::from_millis(50), probes.probe(address)).await;
        assert!(waited.is_err());
    }
}

//! Connections that a control connection has announced: FTP's data channels.
//!
//! A server names a port for a passive transfer, and the agent connects there by itself, in clear;
//! the kernel redirects that like any other connection. The proxy has read the announcement first,
//! so it knows what such a connection is before it comes: TLS from the first byte, with what the
//! control connection has proven. For an active transfer it is the server that connects, to a
//! listener of the proxy's; those transfers run as tasks of their own, which end here.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::{task::JoinSet, time::Instant};

use crate::tls::Connector;

/// How long an announced connection is expected, which is as long as servers wait for theirs.
pub const WINDOW: Duration = Duration::from_secs(60);

/// How long the other side of a data connection may say nothing before its TLS handshake. It
/// begins that only when the control connection asks for the transfer, and the agent decides when
/// to ask; a server may look for its answer before it begins.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a data connection inherits from its control connection.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where the agent's control connection went.
    pub control: SocketAddr,
    /// The route that applied to it.
    pub route: Option<usize>,
    /// What its certificate had to prove.
    pub name: ServerName<'static>,
    /// Its trust and its TLS sessions, which servers want to see resumed; None where it is
    /// carried in clear.
    pub connector: Option<Connector>,
}

/// Where an agent of this group connects.
type Key = (u64, SocketAddr);

/// The connections that are expected, and the transfers that servers connect for; cheap to clone.
///
/// A control connection holds one [`Expectation`] at a time, so there are never more than
/// sessions.
#[derive(Clone, Debug, Default)]
pub struct DataChannels(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    expected: Mutex<HashMap<Key, Expected>>,
    announced: AtomicU64,
    transfers: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Expected {
    id: u64,
    until: Instant,
    service: Service,
}

/// Nothing panics while it holds one of these locks; the maps are whole after every call in any
/// case.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DataChannels {
    /// Expects a connection of this group's. The expectation ends with what is returned.
    pub fn expect(&self, group: u64, destination: SocketAddr, service: Service) -> Expectation {
        let expected = Expected {
            id: self.0.announced.fetch_add(1, Ordering::Relaxed),
            until: Instant::now() + WINDOW,
            service,
        };
        let expectation = Expectation {
            channels: self.clone(),
            key: (group, destination),
            id: expected.id,
        };
        // A server that names a port anew has closed what listened there before.
        lock(&self.0.expected).insert(expectation.key, expected);
        expectation
    }

    /// Takes what is expected of this connection; it is expected once.
    pub fn take(&self, group: u64, destination: SocketAddr) -> Option<Service> {
        self.take_at(group, destination, Instant::now())
    }

    fn take_at(&self, group: u64, destination: SocketAddr, now: Instant) -> Option<Service> {
        let expected = lock(&self.0.expected).remove(&(group, destination))?;
        (now < expected.until).then_some(expected.service)
    }

    /// Runs a transfer for which the server connects.
    pub fn run(&self, transfer: impl Future<Output = ()> + Send + 'static) {
        let mut transfers = lock(&self.0.transfers);
        transfers.spawn(transfer);
        // Forget those that have ended, so that the set does not grow.
        while transfers.try_join_next().is_some() {}
    }

    /// Waits until those transfers have ended; cuts them when they are overdue.
    pub async fn finish(&self, overdue: impl Future<Output = ()>) {
        let mut transfers = std::mem::take(&mut *lock(&self.0.transfers));
        let ended = async { while transfers.join_next().await.is_some() {} };
        tokio::select! {
            () = ended => return,
            () = overdue => {}
        }
        transfers.shutdown().await;
    }
}

/// A connection that is expected until this is dropped.
#[derive(Debug)]
pub struct Expectation {
    channels: DataChannels,
    key: Key,
    id: u64,
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut expected = lock(&self.channels.0.expected);
        if expected
            .get(&self.key)
            .is_some_and(|expected| expected.id == self.id)
        {
            expected.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service {
            control: "192.0.2.1:21".parse().unwrap(),
            route: None,
            name: "ftp.example".try_into().unwrap(),
            connector: None,
        }
    }

    #[test]
    fn a_connection_is_expected_once_of_one_group_and_while_it_is_held() {
        let channels = DataChannels::default();
        let there = "192.0.2.1:50000".parse().unwrap();
        let held = channels.expect(1, there, service());
        assert!(channels.take(2, there).is_none());
        assert!(
            channels
                .take(1, "192.0.2.1:50001".parse().unwrap())
                .is_none()
        );
        assert!(channels.take(1, there).is_some());
        assert!(channels.take(1, there).is_none());
        drop(held);
        drop(channels.expect(1, there, service()));
        assert!(channels.take(1, there).is_none());
        // Another control connection's announcement outlives the one that it has replaced.
        let old = channels.expect(1, there, service());
        let _new = channels.expect(1, there, service());
        drop(old);
        assert!(channels.take(1, there).is_some());
    }

    #[test]
    fn a_connection_is_not_expected_for_ever() {
        let channels = DataChannels::default();
        let there = "192.0.2.1:50000".parse().unwrap();
        let _held = channels.expect(1, there, service());
        let late = Instant::now() + WINDOW;
        assert!(channels.take_at(1, there, late).is_none());
    }
}

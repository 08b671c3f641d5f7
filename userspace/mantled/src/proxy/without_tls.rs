//! Servers that had no TLS a moment ago, for observe mode.
//!
//! Observing must not break what it observes. A server without TLS costs its first connection an
//! attempt, which some servers let run into the time-out; the next ones go in clear at once, and
//! their records say for which cause.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::place::Place;
use crate::error::Failure;

/// How long an attempt is remembered: a server that has got TLS is noticed after this.
const MEMORY: Duration = Duration::from_secs(300);

/// How long an attempt may take in observe mode.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Servers that are remembered at most. Beyond that all are forgotten, which costs attempts.
const CAPACITY: usize = 4096;

/// The memory.
#[derive(Debug, Default)]
pub struct WithoutTls(Mutex<HashMap<Key, (Instant, Failure)>>);

/// A server, as it is reached from there.
type Key = (Place, SocketAddr);

impl WithoutTls {
    fn servers(&self) -> MutexGuard<'_, HashMap<Key, (Instant, Failure)>> {
        // Nothing panics while it holds the lock; a map is whole after every call in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the last attempt failed, if there was one lately.
    pub fn recall(&self, place: &Place, server: SocketAddr) -> Option<Failure> {
        let servers = self.servers();
        let (at, failure) = servers.get(&(place.clone(), server))?;
        (at.elapsed() < MEMORY).then(|| failure.clone())
    }

    /// What is trusted has changed, so all attempts are worth making again.
    pub fn forget(&self) {
        self.servers().clear();
    }

    /// An attempt has failed.
    pub fn remember(&self, place: &Place, server: SocketAddr, failure: &Failure) {
        let mut servers = self.servers();
        if servers.len() >= CAPACITY {
            servers.clear();
        }
        servers.insert((place.clone(), server), (Instant::now(), failure.clone()));
    }
}

//! Servers of agents that encrypt by themselves, as the proxy's own handshakes have found them.
//!
//! One handshake counts for all connections to the same server for a while, and however many come
//! at once wait for the same one.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mantled_record::TlsFacts;
use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout_at};

use super::upstream::Dial;
use crate::error::{Cause, Failure};

/// How long a server that has verified is believed. Certificates live for days; what changes in
/// between is the trust, and then everything is forgotten.
const GOOD: Duration = Duration::from_secs(600);

/// How long one that has not is not asked again: it must not be hammered, and one that is mended
/// is found soon.
const BAD: Duration = Duration::from_secs(5);

/// Servers that are remembered at most. Beyond that all are forgotten, which costs handshakes.
const CAPACITY: usize = 4096;

/// What a handshake is made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// How the server is reached.
    pub dial: Dial,
    /// The route whose trust counts.
    pub route: Option<usize>,
    /// The name to prove.
    pub name: ServerName<'static>,
    /// What is said before the handshake.
    pub before: Before,
}

/// What is said before a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// PostgreSQL's SSLRequest.
    SslRequest,
    /// LDAP's StartTLS.
    StartTls,
    /// MySQL's greeting and SSLRequest.
    Greeting,
}

/// What came of one.
type Outcome = Result<TlsFacts, Failure>;

/// Held while a handshake is made; the next to hold it finds what came of it.
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Outcome)>>>;

/// The memory.
#[derive(Debug, Default)]
pub struct Checks(Mutex<HashMap<Check, Slot>>);

impl Checks {
    fn slots(&self) -> MutexGuard<'_, HashMap<Check, Slot>> {
        // Nothing panics while it holds the lock; a map is whole after every call in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is trusted has changed, so nothing counts any more.
    pub fn forget(&self) {
        // Checks that are being made keep their slots, which nobody finds afterwards.
        self.slots().clear();
    }

    /// What came of this check: lately, or now by `make`, in `patience` altogether.
    ///
    /// # Errors
    /// As `make`, or [`Cause::UpgradeTimeout`].
    pub async fn recall_or(
        &self,
        check: Check,
        patience: Duration,
        make: impl Future<Output = Outcome>,
    ) -> Outcome {
        let deadline = Instant::now() + patience;
        let late = || {
            Failure::new(
                Cause::UpgradeTimeout,
                format!(
                    "the server did not finish the handshake that verifies it in {} s",
                    patience.as_secs_f32()
                ),
            )
        };
        let slot = self.slot(check);
        let Ok(mut held) = timeout_at(deadline, slot.lock()).await else {
            return Err(late());
        };
        if let Some((at, outcome)) = &*held {
            let memory = if outcome.is_ok() { GOOD } else { BAD };
            if at.elapsed() < memory {
                return outcome.clone();
            }
        }
        let outcome = timeout_at(deadline, make)
            .await
            .unwrap_or_else(|_| Err(late()));
        *held = Some((Instant::now(), outcome.clone()));
        outcome
    }

    fn slot(&self, check: Check) -> Slot {
        let mut slots = self.slots();
        if slots.len() >= CAPACITY && !slots.contains_key(&check) {
            slots.clear();
        }
        Arc::clone(slots.entry(check).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{super::place::Place, *};

    fn check(port: u16) -> Check {
        Check {
            dial: Dial {
                place: Place::default(),
                address: ([192, 0, 2, 1], port).into(),
                source: None,
                device: 0,
                mark: 0,
                patience: Duration::from_secs(1),
            },
            route: None,
            name: ServerName::try_from("a.example").unwrap(),
            before: Before::Nothing,
        }
    }

    const PATIENCE: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn those_that_come_at_once_wait_for_one_handshake() {
        let (checks, made) = (Checks::default(), AtomicUsize::new(0));
        let ask = |port| {
            checks.recall_or(check(port), PATIENCE, async {
                made.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PATIENCE / 4).await;
                Ok(TlsFacts::default())
            })
        };
        let (a, b, c, other) = tokio::join!(ask(1), ask(1), ask(1), ask(2));
        assert!(a.is_ok() && b.is_ok() && c.is_ok() && other.is_ok());
        assert_eq!(made.load(Ordering::Relaxed), 2);
        assert!(ask(1).await.is_ok());
        assert_eq!(made.load(Ordering::Relaxed), 2);
        checks.forget();
        assert!(ask(1).await.is_ok());
        assert_eq!(made.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_patience_allows() {
        let checks = Checks::default();
        let stall = || checks.recall_or(check(1), PATIENCE, std::future::pending());
        let begun = Instant::now();
        let (a, b) = tokio::join!(stall(), async {
            tokio::time::sleep(PATIENCE / 2).await;
            stall().await
        });
        for outcome in [a, b] {
            assert_eq!(outcome.unwrap_err().cause, Cause::UpgradeTimeout);
        }
        assert!(begun.elapsed() < PATIENCE * 2, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_where_another_gave_up() {
        let checks = Checks::default();
        let (given_up, done) = tokio::join!(
            tokio::time::timeout(
                PATIENCE / 4,
                checks.recall_or(check(1), PATIENCE, std::future::pending())
            ),
            checks.recall_or(check(1), PATIENCE, async { Ok(TlsFacts::default()) }),
        );
        assert!(given_up.is_err() && done.is_ok());
    }
}

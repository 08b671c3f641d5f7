//! Is there a record for every connection? The kernel counts the connections that it sends to the
//! proxy, whatever the proxy does with them; each of them was never established, or is open, or
//! has a record. What is missing from that sum is a record that was lost.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use mantled_redirect::{Counters, Flows};

/// The check; cheap to clone.
#[derive(Clone, Debug)]
pub struct Completeness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    flows: Flows,
    counters: Counters,
    /// Connections whose record this process has written.
    recorded: Arc<AtomicU64>,
    /// None: another process records as well, so that the sum cannot be told.
    begin: Mutex<Option<Balance>>,
}

/// A reading of all that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Balance {
    /// Connections that the kernel has sent to the proxy.
    published: u64,
    /// Those of them that came to nothing.
    not_established: u64,
    /// Those that are open, or wait for their record to be written.
    unsettled: u64,
    /// Those whose record is written.
    recorded: u64,
}

impl Balance {
    /// Connections since `begin` of which nothing is left. What happens while a balance is read can
    /// only make it smaller, see [`Inner::read`].
    fn missing_since(&self, begin: &Self) -> u64 {
        let sent = self.published.saturating_sub(begin.published);
        let accounted = [
            (self.not_established, begin.not_established),
            (self.unsettled, begin.unsettled),
            (self.recorded, begin.recorded),
        ]
        .iter()
        .fold(0_i128, |sum, (now, then)| {
            sum + i128::from(*now) - i128::from(*then)
        });
        u64::try_from(i128::from(sent) - accounted).unwrap_or(0)
    }
}

impl Inner {
    /// Connections move from left to right in this order, so one that moves meanwhile is counted
    /// twice, and never not at all.
    fn read(&self) -> io::Result<Balance> {
        let counters = self.counters.read()?;
        let counter = |wanted: &str| {
            counters
                .iter()
                .find(|(name, _)| *name == wanted)
                .map_or(0, |(_, count)| *count)
        };
        let published = counter("published");
        let unsettled = self.flows.count_unsettled()?;
        let recorded = self.recorded.load(Ordering::Relaxed);
        let not_established = self
            .counters
            .read()?
            .into_iter()
            .find(|(name, _)| *name == "not_established")
            .map_or(0, |(_, count)| count);
        Ok(Balance {
            published,
            not_established,
            unsettled,
            recorded,
        })
    }
}

impl Completeness {
    /// From when [`Self::begin`] is called.
    pub fn new(flows: Flows, counters: Counters) -> Self {
        Self(Arc::new(Inner {
            flows,
            counters,
            recorded: Arc::default(),
            begin: Mutex::default(),
        }))
    }

    /// Counts what this process records.
    pub fn recorded(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.recorded)
    }

    fn begun(&self) -> MutexGuard<'_, Option<Balance>> {
        // A balance is whole at any time.
        self.0.begin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this process alone records.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn begin(&self) -> io::Result<()> {
        *self.begun() = Some(self.0.read()?);
        Ok(())
    }

    /// Connections since the beginning of which nothing is left: 0, or records were lost.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn missing(&self) -> io::Result<u64> {
        match *self.begun() {
            Some(begin) => Ok(self.0.read()?.missing_since(&begin)),
            None => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balance(published: u64, not_established: u64, unsettled: u64, recorded: u64) -> Balance {
        Balance {
            published,
            not_established,
            unsettled,
            recorded,
        }
    }

    #[test]
    fn what_is_neither_open_nor_recorded_is_missing() {
        let begin = balance(10, 1, 4, 0);
        assert_eq!(balance(10, 1, 4, 0).missing_since(&begin), 0);
        // Five more: one came to nothing, two are open, two are recorded; and the four that were
        // open at the beginning are recorded.
        assert_eq!(balance(15, 2, 2, 6).missing_since(&begin), 0);
        assert_eq!(balance(15, 2, 2, 5).missing_since(&begin), 1);
        // One that was counted twice is not missing.
        assert_eq!(balance(15, 2, 3, 6).missing_since(&begin), 0);
    }
}

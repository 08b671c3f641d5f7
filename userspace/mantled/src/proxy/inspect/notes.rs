//! What an inspector has seen, for the record.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use mantled_mask::Masker;
use mantled_record::SessionRecord;

/// Most refusals that a record tells.
const TOLD: usize = 16;

/// Longest text of one of them, in characters.
const LENGTH: usize = 256;

/// Of one session; cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Notes(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    session: String,
    commands: u64,
    refused: u64,
    policies: BTreeSet<String>,
    refusals: Vec<String>,
    /// Counts what it masks.
    masker: Option<Arc<Masker>>,
}

impl Notes {
    /// Of the session of this record.
    pub(super) fn of(record: &SessionRecord) -> Self {
        Self(Arc::new(Mutex::new(Seen {
            session: record.id.clone(),
            ..Seen::default()
        })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        // Counters and lists are whole after every call.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// So many more were asked about.
    pub(super) fn commands(&self, count: usize) {
        self.with(|seen| seen.commands += count as u64);
    }

    /// Answers are masked from now on.
    pub(super) fn masks(&self, masker: &Arc<Masker>) {
        self.with(|seen| seen.masker = Some(Arc::clone(masker)));
    }

    /// These policies have decided about one.
    pub(super) fn decided(&self, policies: &[String]) {
        self.with(|seen| seen.policies.extend(policies.iter().cloned()));
    }

    /// It was refused, or observe mode alone has let it pass. Neither text holds a value of the
    /// agent's. The first of a session are logged at once: it may stay open for long.
    pub(super) fn refused(&self, shape: &str, reason: &str) {
        self.with(|seen| {
            seen.refused += 1;
            if seen.refusals.len() < TOLD {
                let shape: String = shape.chars().take(LENGTH).collect();
                tracing::info!(
                    session.id = seen.session,
                    "a command was refused by policy: {shape}: {reason}"
                );
                seen.refusals.push(format!("{shape}: {reason}"));
            }
        });
    }

    /// Writes them into the record.
    pub(in crate::proxy) fn tell(&self, record: &mut SessionRecord) {
        self.with(|seen| {
            record.commands = Some(seen.commands);
            record.commands_refused = Some(seen.refused);
            record.refusals.clone_from(&seen.refusals);
            record.masked = seen.masker.as_ref().map(|masker| masker.count());
            for policy in &seen.policies {
                if !record.policies.contains(policy) {
                    record.policies.push(policy.clone());
                }
            }
        });
    }
}

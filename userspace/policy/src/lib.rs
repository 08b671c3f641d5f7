//! What policies written in Cedar say of a session: facts in, decision out. No files, no clock, no
//! network.
//!
//! [`Policies::load`] takes the texts and refuses what the [`SCHEMA`] does not know; [`Facts`] is all
//! that a policy can look at; [`Policies::decide`] answers. Without a permit the answer is no, and so
//! it is where a policy cannot be evaluated: Cedar would leave out a `forbid` that fails.

mod facts;
mod index;
mod load;

pub use facts::{
    Action, Command, Facts, Family, Http, HttpClass, Kubernetes, Opened, Redis, RedisClass,
    Service, Sql, SqlClass, Tls, Workload,
};
pub use load::{Mistake, SCHEMA};

use std::collections::BTreeSet;

use cedar_policy::{Authorizer, Entities, PolicyId, Schema};
use mantled_mask::{Column, Masks};

use index::Index;

/// Policies that have been checked.
#[derive(Debug)]
pub struct Policies {
    schema: Schema,
    /// The actions, and which of them holds which.
    actions: Entities,
    index: Index,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// May it?
    pub allowed: bool,
    /// The policies that made it so, by their `@id`, in order: the permits, or the forbids. None:
    /// nothing permits it.
    pub policies: Vec<String>,
    /// What could not be evaluated, each of which denies.
    pub errors: Vec<String>,
    /// What is to be masked in the answers: what any of the permits that made it so says.
    pub masks: Masks,
}

impl Policies {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.index.len()
    }

    /// Does any of them mask anything?
    pub fn mask(&self) -> bool {
        self.index.mask()
    }

    /// All columns that any of them masks, in order.
    pub fn masked_columns(&self) -> BTreeSet<Column> {
        self.index.columns()
    }

    /// The families of which every command must be permitted: a policy whose scope this workload and
    /// this service are in names one of their actions. Nothing that cannot be asked about is left out.
    pub fn families(&self, facts: &Facts<'_>) -> Vec<Family> {
        match facts.ask(&self.schema, &self.actions) {
            Ok(asked) => self.index.families(&asked),
            Err(_) => Family::ALL.to_vec(),
        }
    }

    /// Decides.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let refused = |error: String| Decision {
            allowed: false,
            policies: Vec::new(),
            errors: vec![error],
            masks: Masks::default(),
        };
        let asked = match facts.ask(&self.schema, &self.actions) {
            Ok(asked) => asked,
            Err(error) => return refused(error),
        };
        let candidates = match self.index.candidates(&asked) {
            Ok(candidates) => candidates,
            Err(error) => return refused(error),
        };
        let response =
            Authorizer::new().is_authorized(&asked.request, &candidates, &asked.entities);
        let diagnostics = response.diagnostics();
        let errors: Vec<String> = diagnostics.errors().map(ToString::to_string).collect();
        let mut policies: Vec<String> = diagnostics
            .reason()
            .map(|id: &PolicyId| id.to_string())
            .collect();
        policies.sort_unstable();
        let allowed = errors.is_empty() && response.decision() == cedar_policy::Decision::Allow;
        let masks = if allowed {
            self.index.masks(diagnostics.reason())
        } else {
            Masks::default()
        };
        Decision {
            allowed,
            masks,
            policies,
            errors,
        }
    }
}

#[cfg(test)]
mod tests;

//! Which policies can concern a question at all: Cedar evaluates each one that it is given.
//!
//! A policy is filed under what its scope names: the actions, and of those the principal, or else the
//! resource. What a question's principal and resource are, and are in, tells where to look.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use cedar_policy::{
    ActionConstraint, EntityUid, Policy, PolicyId, PolicySet, PrincipalConstraint,
    ResourceConstraint, Schema,
};

use mantled_mask::{Column, Masks};

use crate::{
    facts::{Asked, Family},
    load,
};

/// Sets that are remembered: a host has few kinds of agents.
const SETS: usize = 1024;

#[derive(Debug)]
pub(crate) struct Index {
    policies: Vec<Policy>,
    /// What those with obligations mask.
    masks: HashMap<PolicyId, Masks>,
    actions: HashMap<String, Scopes>,
    /// Policies that name an action of the family's.
    families: HashMap<Family, Scopes>,
    /// By the places of their policies.
    sets: Mutex<HashMap<Vec<usize>, Arc<PolicySet>>>,
}

/// Places of policies of one action.
#[derive(Debug, Default)]
struct Scopes {
    any: Vec<usize>,
    principal: HashMap<EntityUid, Vec<usize>>,
    resource: HashMap<EntityUid, Vec<usize>>,
}

impl Index {
    pub(crate) fn new(policies: Vec<Policy>, schema: &Schema) -> Self {
        let mut actions: HashMap<String, Scopes> = HashMap::new();
        let mut families: HashMap<Family, Scopes> = HashMap::new();
        let names: Vec<EntityUid> = schema.actions().cloned().collect();
        for (place, policy) in policies.iter().enumerate() {
            let named: Vec<EntityUid> = match policy.action_constraint() {
                ActionConstraint::Any => names.clone(),
                ActionConstraint::Eq(action) => vec![action],
                ActionConstraint::In(groups) => names
                    .iter()
                    .filter(|action| groups.iter().any(|group| holds(schema, group, action)))
                    .cloned()
                    .collect(),
            };
            let is_named = !matches!(policy.action_constraint(), ActionConstraint::Any);
            for family in Family::ALL.into_iter().filter(|_| is_named) {
                let begin = format!("{}.", family.name());
                let is_of = |action: &EntityUid| action.id().unescaped().starts_with(&begin);
                if named.iter().any(is_of) {
                    families.entry(family).or_default().file(policy, place);
                }
            }
            for action in named {
                let name = action.id().unescaped().to_owned();
                actions.entry(name).or_default().file(policy, place);
            }
        }
        let masks = policies
            .iter()
            .filter_map(|policy| Some((policy.id().clone(), load::masks(policy)?)))
            .collect();
        Self {
            policies,
            masks,
            actions,
            families,
            sets: Mutex::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.policies.len()
    }

    /// What these policies mask together.
    pub(crate) fn masks<'a>(&self, policies: impl Iterator<Item = &'a PolicyId>) -> Masks {
        let mut masks = Masks::default();
        for own in policies.filter_map(|id| self.masks.get(id)) {
            masks.merge(own);
        }
        masks
    }

    pub(crate) fn mask(&self) -> bool {
        !self.masks.is_empty()
    }

    /// All columns that any policy masks.
    pub(crate) fn columns(&self) -> BTreeSet<Column> {
        let columns = self.masks.values().flat_map(Masks::columns);
        columns.map(|(column, _)| column.clone()).collect()
    }

    /// The families whose commands are to be put to the policies.
    pub(crate) fn families(&self, asked: &Asked) -> Vec<Family> {
        let concerns = |family: &Family| {
            let scopes = self.families.get(family);
            scopes.is_some_and(|scopes| !scopes.places(asked).is_empty())
        };
        Family::ALL.into_iter().filter(concerns).collect()
    }

    /// Those that can say something of this question.
    pub(crate) fn candidates(&self, asked: &Asked) -> Result<Arc<PolicySet>, String> {
        let places = self
            .actions
            .get(asked.action)
            .map_or_else(Vec::new, |scopes| scopes.places(asked));
        // A set is whole after every call.
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(set) = sets.get(&places) {
            return Ok(Arc::clone(set));
        }
        let chosen = places.iter().filter_map(|place| self.policies.get(*place));
        let set = PolicySet::from_policies(chosen.cloned()).map_err(|error| error.to_string())?;
        let set = Arc::new(set);
        if sets.len() >= SETS {
            sets.clear();
        }
        sets.insert(places, Arc::clone(&set));
        Ok(set)
    }
}

/// Is `action` this group, or in it?
fn holds(schema: &Schema, group: &EntityUid, action: &EntityUid) -> bool {
    group == action
        || schema
            .action_entities()
            .is_ok_and(|entities| entities.is_ancestor_of(group, action))
}

impl Scopes {
    fn file(&mut self, policy: &Policy, place: usize) {
        match policy.principal_constraint() {
            PrincipalConstraint::In(uid)
            | PrincipalConstraint::Eq(uid)
            | PrincipalConstraint::IsIn(_, uid) => {
                self.principal.entry(uid).or_default().push(place);
                return;
            }
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => {}
        }
        match policy.resource_constraint() {
            ResourceConstraint::In(uid)
            | ResourceConstraint::Eq(uid)
            | ResourceConstraint::IsIn(_, uid) => {
                self.resource.entry(uid).or_default().push(place);
            }
            ResourceConstraint::Any | ResourceConstraint::Is(_) => self.any.push(place),
        }
    }

    fn places(&self, asked: &Asked) -> Vec<usize> {
        let of_principal = asked.principal.iter().map(|uid| self.principal.get(uid));
        let of_resource = asked.resource.iter().map(|uid| self.resource.get(uid));
        let mut places: Vec<usize> = of_principal
            .chain(of_resource)
            .flatten()
            .chain([&self.any])
            .flatten()
            .copied()
            .collect::<HashSet<_>>()
            .into_iter()
            .collect();
        places.sort_unstable();
        places
    }
}

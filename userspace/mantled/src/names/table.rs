//! The names by group and address. Times are given: `CLOCK_MONOTONIC` in nanoseconds.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use mantled_redirect::Kept;

use super::{Found, Source};

/// A name is live for this long at least: an agent that has resolved it connects a moment later,
/// and again when that fails, whatever the zone's owner thinks of caches.
const LEAST_LIFE: Duration = Duration::from_secs(30);

/// And for this long at most.
const MOST_LIFE: Duration = Duration::from_secs(86_400);

/// A stale name is forgotten when nobody has used it for this long.
const MEMORY: Duration = Duration::from_secs(86_400);

/// Names of one address for one group. More than one is ambiguous already, so which ones are
/// dropped does not matter.
const MAX_NAMES: usize = 16;

/// Addresses of all groups. Beyond that nothing is learnt until some are forgotten: unknown names
/// refuse, they do not permit.
const MAX_ADDRESSES: usize = 65_536;

/// Uses closer together than this are not written to the kernel's map.
const TOUCH: Duration = Duration::from_secs(60);

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table(HashMap<(u64, IpAddr), Vec<Entry>>);

#[derive(Clone, Debug)]
struct Entry {
    name: Arc<str>,
    until: u64,
    used: u64,
}

impl Entry {
    fn kept(&self, group: u64, address: IpAddr) -> Kept {
        Kept {
            group,
            address,
            name: self.name.to_string(),
            until: self.until,
            used: self.used,
        }
    }

    fn is_over(&self, now: u64) -> bool {
        self.until < now && self.used + nanos(MEMORY) < now
    }
}

impl Table {
    /// Puts back what an earlier daemon knew.
    pub(super) fn restore(&mut self, kept: Kept) {
        let entries = self.0.entry((kept.group, kept.address)).or_default();
        if entries.len() < MAX_NAMES && entries.iter().all(|entry| *entry.name != *kept.name) {
            entries.push(Entry {
                name: kept.name.into(),
                until: kept.until,
                used: kept.used,
            });
        }
    }

    /// An answer says that `name` has this address. Returns what is to be kept of it.
    pub(super) fn learn(
        &mut self,
        now: u64,
        group: u64,
        address: IpAddr,
        name: &Arc<str>,
        ttl: Duration,
    ) -> Option<Kept> {
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&(group, address)) {
            return None;
        }
        let entries = self.0.entry((group, address)).or_default();
        let fresh = Entry {
            name: Arc::clone(name),
            until: now + nanos(ttl.clamp(LEAST_LIFE, MOST_LIFE)),
            used: now,
        };
        let kept = fresh.kept(group, address);
        if let Some(known) = entries.iter_mut().find(|entry| entry.name == *name) {
            *known = fresh;
        } else {
            if entries.len() >= MAX_NAMES {
                // The one whose time is over first.
                entries.sort_by_key(|entry| entry.until);
                entries.remove(0);
            }
            entries.push(fresh);
        }
        Some(kept)
    }

    /// The live names, else the stale ones; and what is to be kept of their use.
    pub(super) fn find(&mut self, now: u64, group: u64, address: IpAddr) -> (Found, Option<Kept>) {
        let Some(entries) = self.0.get_mut(&(group, address)) else {
            return (Found::default(), None);
        };
        let stale = entries.iter().all(|entry| entry.until < now);
        let mut chosen: Vec<&mut Entry> = entries
            .iter_mut()
            .filter(|entry| {
                if stale {
                    !entry.is_over(now)
                } else {
                    entry.until >= now
                }
            })
            .collect();
        let mut touched = None;
        if let [one] = chosen.as_mut_slice()
            && one.used + nanos(TOUCH) < now
        {
            one.used = now;
            touched = Some(one.kept(group, address));
        }
        let names: Vec<_> = chosen.iter().map(|entry| Arc::clone(&entry.name)).collect();
        let found = Found {
            source: (!names.is_empty()).then_some(Source::Dns),
            stale: stale && !names.is_empty(),
            names,
        };
        (found, touched)
    }

    /// Forgets names that nobody has used for long, and returns them.
    pub(super) fn forget(&mut self, now: u64) -> Vec<Kept> {
        let mut forgotten = Vec::new();
        self.0.retain(|(group, address), entries| {
            entries.retain(|entry| {
                let over = entry.is_over(now);
                if over {
                    forgotten.push(entry.kept(*group, *address));
                }
                !over
            });
            !entries.is_empty()
        });
        forgotten
    }
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const GROUP: u64 = 7;

    fn address() -> IpAddr {
        [192, 0, 2, 1].into()
    }

    fn learn(table: &mut Table, at: u64, name: &str, ttl: u64) {
        let name: Arc<str> = name.into();
        let kept = table.learn(
            at * SECOND,
            GROUP,
            address(),
            &name,
            Duration::from_secs(ttl),
        );
        assert_eq!(kept.unwrap().name, &*name);
    }

    fn names(table: &mut Table, at: u64, group: u64) -> (Vec<String>, bool) {
        let (found, _) = table.find(at * SECOND, group, address());
        let names = found.names.iter().map(ToString::to_string).collect();
        (names, found.stale)
    }

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_is_its_groups_own() {
        let mut table = Table::default();
        learn(&mut table, 0, "db.example", 60);
        assert_eq!(names(&mut table, 1, GROUP), (list(&["db.example"]), false));
        assert_eq!(names(&mut table, 1, GROUP + 1), (list(&[]), false));
    }

    #[test]
    fn live_names_put_stale_ones_aside() {
        let mut table = Table::default();
        learn(&mut table, 0, "db.example", 0);
        assert_eq!(names(&mut table, 29, GROUP), (list(&["db.example"]), false));
        assert_eq!(names(&mut table, 31, GROUP), (list(&["db.example"]), true));
        learn(&mut table, 40, "bank.example", 60);
        assert_eq!(
            names(&mut table, 41, GROUP),
            (list(&["bank.example"]), false)
        );
        learn(&mut table, 50, "db.example", 60);
        assert_eq!(
            names(&mut table, 51, GROUP),
            (list(&["db.example", "bank.example"]), false)
        );
    }

    #[test]
    fn a_name_is_remembered_for_as_long_as_it_is_used() {
        let mut table = Table::default();
        learn(&mut table, 0, "db.example", 60);
        let day = 86_400;
        for day_number in 1..5 {
            let at = day_number * (day - 10);
            assert_eq!(names(&mut table, at, GROUP), (list(&["db.example"]), true));
            assert!(table.forget(at * SECOND).is_empty());
        }
        let late = 6 * day;
        assert_eq!(names(&mut table, late, GROUP), (list(&[]), false));
        assert_eq!(table.forget(late * SECOND).len(), 1);
        assert!(table.0.is_empty());
    }

    #[test]
    fn what_is_kept_can_be_restored() {
        let mut table = Table::default();
        let name: Arc<str> = "db.example".into();
        let kept = table
            .learn(0, GROUP, address(), &name, Duration::from_secs(60))
            .unwrap();
        let mut next = Table::default();
        next.restore(kept.clone());
        next.restore(kept);
        assert_eq!(names(&mut next, 1, GROUP), (list(&["db.example"]), false));
    }

    #[test]
    fn the_names_of_an_address_are_bounded() {
        let mut table = Table::default();
        for n in 0..100 {
            learn(&mut table, n, &format!("n{n}.example"), 600);
        }
        assert_eq!(names(&mut table, 100, GROUP).0.len(), MAX_NAMES);
    }
}

//! Cgroups by their ids.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use mantled_redirect::{Error, cgroup::Cgroup};

/// Paths that are remembered.
const CAPACITY: usize = 4096;

/// Where cgroups were found: by its id alone, one is found by looking at all of them.
#[derive(Debug, Default)]
pub(super) struct Paths(Mutex<HashMap<u64, PathBuf>>);

impl Paths {
    /// The cgroup of this id.
    ///
    /// # Errors
    /// [`Error::NoSuchCgroup`], [`Error::NoCgroup2`].
    pub(super) fn find(&self, id: u64) -> Result<Cgroup, Error> {
        let known = self.with(|paths| paths.get(&id).cloned());
        let known = known.and_then(|path| Cgroup::open(Path::new(&path)).ok());
        if let Some(cgroup) = known.filter(|cgroup| cgroup.id() == id) {
            return Ok(cgroup);
        }
        let cgroup = Cgroup::by_id(id)?;
        self.with(|paths| {
            if paths.len() >= CAPACITY {
                paths.clear();
            }
            paths.insert(id, cgroup.path().to_owned());
        });
        Ok(cgroup)
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<u64, PathBuf>) -> T) -> T {
        // Nothing panics while it holds the lock; a map is whole after every call in any case.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

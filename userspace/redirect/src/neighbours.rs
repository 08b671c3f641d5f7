//! Programs of others at the hooks that mantled uses.
//!
//! They run beside mantled's and do no harm, but for one kind: a program that was attached without
//! `BPF_F_ALLOW_MULTI` suffers no other at that hook of its cgroup, and without
//! `BPF_F_ALLOW_OVERRIDE` none in the cgroups below it either.

use std::{fmt, io, os::fd::AsFd as _, path::PathBuf};

use aya_obj::generated::{BPF_F_ALLOW_MULTI, BPF_F_ALLOW_OVERRIDE, bpf_attach_type};

use crate::{cgroup::Cgroup, interceptor::Hook, sys};

/// What the names of mantled's own programs begin with.
const OWN: &str = "mantled_";

/// A program at a hook of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The hook.
    pub hook: &'static str,
    /// The cgroup that it is attached to.
    pub cgroup: PathBuf,
    /// Its id.
    pub id: u32,
    /// Its name; None where this process may not ask for it, empty where it has none.
    pub name: Option<String>,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_deref() {
            Some(name) if !name.is_empty() => write!(f, "{name} (program {})", self.id),
            _ => write!(f, "program {}", self.id),
        }
    }
}

impl Neighbour {
    fn is_own(&self) -> bool {
        self.name
            .as_deref()
            .is_some_and(|name| name.starts_with(OWN))
    }
}

/// The programs of others at this hook of this cgroup.
///
/// # Errors
/// As bpf(2).
pub fn at(hook: &Hook, cgroup: &Cgroup) -> io::Result<Vec<Neighbour>> {
    let (ids, _) = sys::attached_programs(cgroup.as_fd(), hook.attach)?;
    Ok(ids
        .into_iter()
        .map(|id| neighbour(hook.name, cgroup, id))
        .filter(|neighbour| !neighbour.is_own())
        .collect())
}

/// Does what is attached there suffer no other program?
pub(crate) fn is_exclusive(hook: &Hook, cgroup: &Cgroup) -> bool {
    sys::attached_programs(cgroup.as_fd(), hook.attach)
        .is_ok_and(|(ids, flags)| !ids.is_empty() && flags & BPF_F_ALLOW_MULTI == 0)
}

/// The program that keeps this hook of this cgroup for itself; None: there is none.
pub(crate) fn obstacle(
    hook: &'static str,
    attach: bpf_attach_type,
    cgroup: &Cgroup,
) -> Option<Neighbour> {
    let root = Cgroup::root().ok()?;
    for (level, path) in cgroup.path().ancestors().enumerate() {
        let place = Cgroup::open(path).ok()?;
        let (ids, flags) = sys::attached_programs(place.as_fd(), attach).ok()?;
        if let Some(id) = ids.first() {
            // As the kernel has it: the nearest cgroup with a program decides.
            let suffers_others =
                flags & BPF_F_ALLOW_MULTI != 0 || (level > 0 && flags & BPF_F_ALLOW_OVERRIDE != 0);
            return (!suffers_others).then(|| neighbour(hook, &place, *id));
        }
        if place.id() == root.id() {
            break;
        }
    }
    None
}

fn neighbour(hook: &'static str, cgroup: &Cgroup, id: u32) -> Neighbour {
    Neighbour {
        hook,
        cgroup: cgroup.path().to_owned(),
        id,
        name: sys::program_name(id).ok(),
    }
}

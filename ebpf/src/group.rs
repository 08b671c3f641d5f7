//! Which enrolled group a task or a packet belongs to: the deepest enrolled ancestor.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_current_ancestor_cgroup_id, generated::bpf_skb_ancestor_cgroup_id},
};
use mantled_abi::{Group, MAX_DEPTH, MODE_RESOLVER};

use crate::maps::GROUPS;

/// An enrolled group and its cgroup id.
pub struct Enrolled {
    /// Cgroup id.
    pub id: u64,
    /// What the operator chose for it.
    pub group: Group,
}

/// The group of the current task. Levels are absolute: 0 is the root, which cannot be enrolled.
#[inline(always)]
pub fn of_task() -> Option<Enrolled> {
    // SAFETY: the helper takes a number and returns 0 where the task has no such ancestor.
    deepest(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// The group of the socket that sends this packet.
#[inline(always)]
pub fn of_packet(skb: *mut __sk_buff) -> Option<Enrolled> {
    // SAFETY: `skb` is the program's context.
    deepest(|level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) })
}

#[inline(always)]
fn deepest(ancestor: impl Fn(i32) -> u64) -> Option<Enrolled> {
    let mut found = None;
    for level in 1..=MAX_DEPTH as i32 {
        let id = ancestor(level);
        if id == 0 {
            break;
        }
        // SAFETY: the value is copied out at once; a concurrent update can at worst mix two
        // settings of the operator's for this one decision.
        if let Some(group) = unsafe { GROUPS.get(id) } {
            // A resolver is found by its name alone. Inside of an enrolled group that is no way
            // out of it: who may make cgroups there could choose the name.
            if group.mode != MODE_RESOLVER || found.is_none() {
                found = Some(Enrolled { id, group: *group });
            }
        }
    }
    found
}

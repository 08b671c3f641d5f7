//! Telling user space.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use mantled_abi::{COUNT_EVENT_LOST, Event, Flow};

use crate::maps::{EVENTS, count};

/// Sends an event about the connection or packet that `flow` describes.
#[inline(always)]
pub fn tell(kind: u32, protocol: u32, flow: &Flow) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(COUNT_EVENT_LOST);
        return;
    };
    entry.write(Event {
        kind,
        protocol,
        group: flow.group,
        cookie: flow.cookie,
        // SAFETY: the helper takes nothing.
        at: unsafe { bpf_ktime_get_ns() },
        destination: flow.destination,
        port: flow.port,
        pid: flow.pid,
        uid: flow.uid,
        pad: 0,
        comm: flow.comm,
    });
    entry.submit(0);
}

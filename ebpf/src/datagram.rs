//! Everything that is not a TCP stream, at connect() and sendto().
//!
//! Nothing of it can be upgraded, so in enforce mode it is refused here, where the caller gets an
//! errno and the event knows the process. The egress program drops what these two calls do not
//! see (raw sockets, sockets connected before).

use aya_ebpf::{bindings::bpf_sock_addr, programs::SockAddrContext};
use mantled_abi::{COUNT_DATAGRAM_REFUSED, EVENT_DATAGRAM_REFUSED, MODE_ENFORCE};

use crate::{
    connect::{PASS, describe, is_bypassed, is_resolver, refuse, stays_here},
    context::{Family, is_local, load},
    event::tell,
    group::{self, Enrolled},
    maps::count,
};

const DNS: u32 = 53;
const EPERM: i32 = 1;

/// sendto() and sendmsg() of an unconnected socket.
#[inline(always)]
pub fn send(ctx: &SockAddrContext, family: Family) -> i32 {
    match group::of_task() {
        Some(enrolled) => judge(ctx, family, &enrolled),
        None => PASS,
    }
}

/// Local, bypassed and DNS to a resolver pass; in enforce mode nothing else does.
#[inline(always)]
pub fn judge(ctx: &SockAddrContext, family: Family, enrolled: &Enrolled) -> i32 {
    if enrolled.group.mode != MODE_ENFORCE {
        return PASS;
    }
    let flow = describe(ctx, family, enrolled);
    if (is_local(&flow.destination) && stays_here(flow.device))
        || is_bypassed(&flow.destination, flow.port as u16)
        || (flow.port == DNS && is_resolver(&flow.destination))
    {
        return PASS;
    }
    count(COUNT_DATAGRAM_REFUSED);
    tell(
        EVENT_DATAGRAM_REFUSED,
        load!(ctx.sock_addr, bpf_sock_addr, protocol),
        &flow,
    );
    refuse(EPERM)
}

//! Everything that is not a TCP stream, at connect() and sendto().
//!
//! Syslog can be upgraded: its datagrams go to the proxy, which carries them over TLS. Nothing else
//! can, so in enforce mode it is refused here, where the caller gets an errno and the event knows
//! the process. The egress program drops what these two calls do not see (raw sockets, sockets
//! connected before). While the daemon is down syslog is refused as well, also where TCP may pass.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::bpf_get_netns_cookie,
    programs::{SkBuffContext, SockAddrContext},
};
use mantled_abi::{
    Address, COUNT_DATAGRAM_REFUSED, COUNT_RELAYED, EVENT_DATAGRAM_REFUSED, Flow, Listener, MAPPED,
    MODE_ENFORCE, Socket, Source, VERDICT_RELAYED,
};

use crate::{
    connect::{
        ENOMEM, PASS, describe, is_alive, is_bypassed, is_resolver, listener_of, refuse, remember,
        stays_here,
    },
    context::{
        Family, LOOPBACK4, LOOPBACK6, is_local, is_mapped, load, set_user, socket, user_address,
        user_port,
    },
    egress::{Packet, full_socket},
    event::tell,
    group::{self, Enrolled},
    maps::{DATAGRAMS, RELAYED, SOCKETS, count, count_bypass_attempt},
};

const DNS: u32 = 53;
const UDP: u32 = 17;
const EPERM: i32 = 1;

/// sendto() and sendmsg() of an unconnected socket.
#[inline(always)]
pub fn send(ctx: &SockAddrContext, family: Family) -> i32 {
    if is_to_proxy(ctx, family) {
        return refuse(EPERM);
    }
    match group::of_task() {
        Some(enrolled) => {
            let mut state = Socket {
                verdict: 0,
                via_port: 0,
                pending: 0,
                flow: describe(ctx, family, &enrolled),
            };
            judge(ctx, family, &enrolled, &mut state)
        }
        None => PASS,
    }
}

/// Does the caller itself name the proxy's socket for datagrams? Nobody on this host may: the proxy
/// knows a datagram's sender by its source, which can be somebody else's a moment later.
#[inline(always)]
pub fn is_to_proxy(ctx: &SockAddrContext, family: Family) -> bool {
    if load!(ctx.sock_addr, bpf_sock_addr, protocol) != UDP || !is_local(&user_address(ctx, family))
    {
        return false;
    }
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    listener_of(netns).is_some_and(|listener| {
        // Without a daemon the port is anybody's.
        user_port(ctx) == listener.proxy_port && is_alive(ctx, listener)
    })
}

/// Local, bypassed and DNS to a resolver pass, syslog goes to the proxy; in enforce mode nothing
/// else leaves.
#[inline(always)]
pub fn judge(
    ctx: &SockAddrContext,
    family: Family,
    enrolled: &Enrolled,
    state: &mut Socket,
) -> i32 {
    if enrolled.group.mode != MODE_ENFORCE {
        return PASS;
    }
    let flow = &state.flow;
    if (is_local(&flow.destination) && stays_here(flow.device))
        || is_bypassed(&flow.destination, flow.port as u16)
        || (flow.port == DNS && is_resolver(&flow.destination))
    {
        return PASS;
    }
    let protocol = load!(ctx.sock_addr, bpf_sock_addr, protocol);
    if protocol == UDP
        && is_relayed(flow.port)
        && let Some(listener) = listener_of(flow.netns)
        && is_alive(ctx, listener)
    {
        return relay(ctx, family, listener, state);
    }
    refuse_datagram(protocol, flow)
}

#[inline(always)]
fn refuse_datagram(protocol: u32, flow: &Flow) -> i32 {
    count(COUNT_DATAGRAM_REFUSED);
    count_bypass_attempt(flow.group);
    tell(EVENT_DATAGRAM_REFUSED, protocol, flow);
    refuse(EPERM)
}

/// Is it one of the ports whose datagrams the proxy takes?
#[inline(always)]
fn is_relayed(port: u32) -> bool {
    // SAFETY: only presence is looked at.
    unsafe { RELAYED.get(port) }.is_some()
}

/// Sends the datagrams of this socket to the proxy. Which server a datagram was for is told by its
/// socket, so a socket keeps the first one: another is refused rather than confused.
#[inline(always)]
fn relay(ctx: &SockAddrContext, family: Family, listener: &Listener, state: &mut Socket) -> i32 {
    let flow = &state.flow;
    let sk = socket(ctx);
    let other = SOCKETS.get(sk).is_some_and(|known| {
        known.verdict == VERDICT_RELAYED
            && (known.flow.destination != flow.destination || known.flow.port != flow.port)
    });
    if other {
        return refuse_datagram(UDP, flow);
    }
    let proxy: Address = if is_mapped(&flow.destination) {
        [0, 0, MAPPED, LOOPBACK4]
    } else {
        LOOPBACK6
    };
    state.via_port = listener.proxy_port;
    if !remember(sk, state, VERDICT_RELAYED) {
        return refuse(ENOMEM);
    }
    set_user(ctx, family, &proxy, listener.proxy_port);
    PASS
}

/// A datagram to the proxy leaves its socket: now its source is known.
#[inline(always)]
pub fn publish(ctx: &SkBuffContext, packet: &Packet) {
    if packet.protocol != UDP as u8 {
        return;
    }
    let sk = full_socket(ctx);
    if sk.is_null() {
        return;
    }
    let Some(state) = SOCKETS.get(sk) else {
        return;
    };
    if state.verdict != VERDICT_RELAYED || packet.port != state.via_port {
        return;
    }
    let key = Source {
        netns: state.flow.netns,
        address: packet.source,
        port: u32::from(packet.source_port),
        pad: 0,
    };
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "a copy would go by the stack, which is small"
    )]
    let published = DATAGRAMS.insert(key, &state.flow, 0);
    if published.is_ok() {
        count(COUNT_RELAYED);
    }
}

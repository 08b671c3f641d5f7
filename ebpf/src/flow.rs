//! The life of a redirected connection: published before its SYN leaves, so that accept() cannot
//! come first; withdrawn when it ends without having been established.
//!
//! An established connection is not withdrawn here, however short it is: connect, write, close
//! must still find its flow at accept(). User space removes it when the record is written.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_ops},
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns},
    programs::SockOpsContext,
};
use mantled_abi::{
    Address, COUNT_MAP_FULL, COUNT_NOT_ESTABLISHED, COUNT_PUBLISHED, MAPPED, Socket, Source,
    VERDICT_REDIRECTED,
};

use crate::{
    connect::listener_of,
    context::{is_local, load, load_pointer},
    maps::{ACCEPTED, FLOWS, SESSIONS, SOCKETS, count},
};

/// `BPF_SOCK_OPS_TCP_CONNECT_CB`: before the SYN.
const TCP_CONNECT: u32 = 3;
/// `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`: the socket that accept() will return.
const PASSIVE_ESTABLISHED: u32 = 5;
/// `BPF_SOCK_OPS_STATE_CB`: args are the old and the new state.
const STATE: u32 = 10;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`: asks for `STATE` calls.
const STATE_FLAG: i32 = 1 << 2;
/// `BPF_TCP_SYN_SENT`.
const SYN_SENT: u32 = 2;
/// `BPF_TCP_CLOSE`.
const CLOSE: u32 = 7;

const AF_INET: u32 = 2;
/// The program's return value is not used for these operations.
const OK: u32 = 1;

/// Entry: see the module.
#[inline(always)]
pub fn watch(ctx: &SockOpsContext) -> u32 {
    match load!(ctx.ops, bpf_sock_ops, op) {
        TCP_CONNECT => publish(ctx),
        PASSIVE_ESTABLISHED => hand_over(ctx),
        STATE => withdraw(ctx),
        _ => {}
    }
    OK
}

#[inline(always)]
fn publish(ctx: &SockOpsContext) {
    if !is_local(&remote_address(ctx)) {
        return;
    }
    let port = u32::from_be(load!(ctx.ops, bpf_sock_ops, remote_port));
    let state = storage(ctx).filter(|state| {
        state.verdict == VERDICT_REDIRECTED
            && state.pending != 0
            && u32::from(state.via_port) == port
    });
    let Some(state) = state else {
        // Nobody sent this one to the proxy. Should a flow have been left under its address, it
        // is not this connection's.
        if listens_on(ctx, port) {
            let _ = FLOWS.remove(local(ctx));
        }
        return;
    };
    state.pending = 0;
    // SAFETY: the helper takes nothing.
    state.flow.at = unsafe { bpf_ktime_get_ns() };
    let id = state.flow.id;
    if SESSIONS.insert(id, state.flow, 0).is_err() {
        count(COUNT_MAP_FULL);
        return;
    }
    if FLOWS.insert(local(ctx), id, 0).is_err() {
        count(COUNT_MAP_FULL);
        let _ = SESSIONS.remove(id);
        return;
    }
    count(COUNT_PUBLISHED);
    let _ = ctx.set_cb_flags(STATE_FLAG);
}

/// The proxy's side of a connection is established: the flow moves from the address, which others
/// can use after this connection, to the socket itself.
#[inline(always)]
fn hand_over(ctx: &SockOpsContext) {
    if !listens_on(ctx, load!(ctx.ops, bpf_sock_ops, local_port)) {
        return;
    }
    let sk = load_pointer!(ctx.ops, bpf_sock_ops, __bindgen_anon_2) as *mut bpf_sock;
    if sk.is_null() {
        return;
    }
    let key = remote(ctx);
    // SAFETY: the value is one word, read once.
    let Some(id) = (unsafe { FLOWS.get(key) }) else {
        return;
    };
    let mut id = *id;
    if ACCEPTED.get_or_insert(sk, &mut id).is_some() {
        let _ = FLOWS.remove(key);
    }
}

/// Is this the proxy's port in the socket's network namespace?
#[inline(always)]
fn listens_on(ctx: &SockOpsContext, port: u32) -> bool {
    listener_of(netns(ctx)).is_some_and(|listener| u32::from(listener.proxy_port) == port)
}

#[inline(always)]
fn withdraw(ctx: &SockOpsContext) {
    let old = load!(ctx.ops, bpf_sock_ops, __bindgen_anon_1, 0);
    let new = load!(ctx.ops, bpf_sock_ops, __bindgen_anon_1, 1);
    if old != SYN_SENT || new != CLOSE {
        return;
    }
    let Some(state) = storage(ctx) else { return };
    let id = state.flow.id;
    if SESSIONS.remove(id).is_err() {
        return;
    }
    count(COUNT_NOT_ESTABLISHED);
    let key = local(ctx);
    // SAFETY: the value is one word, read once.
    if unsafe { FLOWS.get(key) }.is_some_and(|published| *published == id) {
        let _ = FLOWS.remove(key);
    }
}

#[inline(always)]
fn storage(ctx: &SockOpsContext) -> Option<&'static mut Socket> {
    let sk = load_pointer!(ctx.ops, bpf_sock_ops, __bindgen_anon_2) as *mut bpf_sock;
    if sk.is_null() { None } else { SOCKETS.get(sk) }
}

/// This side of the connection.
#[inline(always)]
fn local(ctx: &SockOpsContext) -> Source {
    let p = ctx.ops;
    let address = if load!(p, bpf_sock_ops, family) == AF_INET {
        [0, 0, MAPPED, load!(p, bpf_sock_ops, local_ip4)]
    } else {
        [
            load!(p, bpf_sock_ops, local_ip6, 0),
            load!(p, bpf_sock_ops, local_ip6, 1),
            load!(p, bpf_sock_ops, local_ip6, 2),
            load!(p, bpf_sock_ops, local_ip6, 3),
        ]
    };
    source(ctx, address, load!(p, bpf_sock_ops, local_port))
}

/// The other side of the connection.
#[inline(always)]
fn remote(ctx: &SockOpsContext) -> Source {
    source(
        ctx,
        remote_address(ctx),
        u32::from_be(load!(ctx.ops, bpf_sock_ops, remote_port)),
    )
}

#[inline(always)]
fn source(ctx: &SockOpsContext, address: Address, port: u32) -> Source {
    Source {
        netns: netns(ctx),
        address,
        port,
        pad: 0,
    }
}

#[inline(always)]
fn netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }
}

#[inline(always)]
fn remote_address(ctx: &SockOpsContext) -> Address {
    let p = ctx.ops;
    if load!(p, bpf_sock_ops, family) == AF_INET {
        [0, 0, MAPPED, load!(p, bpf_sock_ops, remote_ip4)]
    } else {
        [
            load!(p, bpf_sock_ops, remote_ip6, 0),
            load!(p, bpf_sock_ops, remote_ip6, 1),
            load!(p, bpf_sock_ops, remote_ip6, 2),
            load!(p, bpf_sock_ops, remote_ip6, 3),
        ]
    }
}

//! The life of a redirected connection: published before its SYN leaves, so that accept() cannot
//! come first; withdrawn when it ends without having been established.
//!
//! An established connection is not withdrawn here, however short it is: connect, write, close
//! must still find its flow at accept(). User space removes it when the record is written.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_ops},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockOpsContext,
};
use mantled_abi::{
    Address, COUNT_MAP_FULL, COUNT_NOT_ESTABLISHED, COUNT_PUBLISHED, MAPPED, Socket, Source,
    VERDICT_REDIRECTED,
};

use crate::{
    context::{is_local, load, load_pointer},
    maps::{FLOWS, SESSIONS, SOCKETS, count},
};

/// `BPF_SOCK_OPS_TCP_CONNECT_CB`: before the SYN.
const TCP_CONNECT: u32 = 3;
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
        STATE => withdraw(ctx),
        _ => {}
    }
    OK
}

#[inline(always)]
fn publish(ctx: &SockOpsContext) {
    let Some(state) = storage(ctx) else { return };
    // A socket that was redirected once and now connects elsewhere keeps its old storage.
    if state.verdict != VERDICT_REDIRECTED
        || u32::from_be(load!(ctx.ops, bpf_sock_ops, remote_port)) != state.via_port
        || !is_local(&remote_address(ctx))
    {
        return;
    }
    let cookie = state.flow.cookie;
    if SESSIONS.insert(cookie, state.flow, 0).is_err() {
        count(COUNT_MAP_FULL);
        return;
    }
    if FLOWS.insert(source(ctx), cookie, 0).is_err() {
        count(COUNT_MAP_FULL);
        let _ = SESSIONS.remove(cookie);
        return;
    }
    count(COUNT_PUBLISHED);
    let _ = ctx.set_cb_flags(STATE_FLAG);
}

#[inline(always)]
fn withdraw(ctx: &SockOpsContext) {
    let old = load!(ctx.ops, bpf_sock_ops, __bindgen_anon_1, 0);
    let new = load!(ctx.ops, bpf_sock_ops, __bindgen_anon_1, 1);
    if old != SYN_SENT || new != CLOSE {
        return;
    }
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    if SESSIONS.remove(cookie).is_err() {
        return;
    }
    count(COUNT_NOT_ESTABLISHED);
    let key = source(ctx);
    // SAFETY: the value is one word, read once.
    if unsafe { FLOWS.get(key) }.is_some_and(|published| *published == cookie) {
        let _ = FLOWS.remove(key);
    }
}

#[inline(always)]
fn storage(ctx: &SockOpsContext) -> Option<&'static Socket> {
    let sk = load_pointer!(ctx.ops, bpf_sock_ops, __bindgen_anon_2) as *mut bpf_sock;
    if sk.is_null() {
        None
    } else {
        SOCKETS.get(sk).map(|state| &*state)
    }
}

#[inline(always)]
fn source(ctx: &SockOpsContext) -> Source {
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
    Source {
        // SAFETY: the helper takes the context.
        netns: unsafe { bpf_get_netns_cookie(p.cast()) },
        address,
        port: load!(p, bpf_sock_ops, local_port),
        pad: 0,
    }
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

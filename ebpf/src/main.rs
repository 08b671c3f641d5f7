//! mantled's kernel programs: entry points, licence and panic handler; the rules are in the
//! modules. What each file decides is written at its head.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod context;
mod datagram;
mod dns;
mod egress;
mod event;
mod flow;
mod group;
mod ingress;
mod maps;
mod peername;
mod survey;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext},
};

/// TCP connect() to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn mantled_connect4(ctx: SockAddrContext) -> i32 {
    connect::connect(&ctx, context::Family::V4)
}

/// TCP connect() to an IPv6 or IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn mantled_connect6(ctx: SockAddrContext) -> i32 {
    connect::connect(&ctx, context::Family::V6)
}

/// sendto() or sendmsg() of an unconnected datagram socket to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn mantled_sendmsg4(ctx: SockAddrContext) -> i32 {
    datagram::send(&ctx, context::Family::V4)
}

/// sendto() or sendmsg() of an unconnected datagram socket to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn mantled_sendmsg6(ctx: SockAddrContext) -> i32 {
    datagram::send(&ctx, context::Family::V6)
}

/// getpeername() of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn mantled_getpeer4(ctx: SockAddrContext) -> i32 {
    peername::answer(&ctx, context::Family::V4)
}

/// getpeername() of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn mantled_getpeer6(ctx: SockAddrContext) -> i32 {
    peername::answer(&ctx, context::Family::V6)
}

/// The life of a TCP connection: start and end.
#[sock_ops]
pub fn mantled_sockops(ctx: SockOpsContext) -> u32 {
    flow::watch(&ctx)
}

/// Creation of a socket by a task of an enrolled group.
#[cgroup_sock(sock_create)]
pub fn mantled_create(ctx: SockContext) -> i32 {
    egress::own(&ctx)
}

/// Every packet that a socket of an enrolled group sends.
#[cgroup_skb(egress)]
pub fn mantled_egress(ctx: SkBuffContext) -> i32 {
    egress::judge(&ctx)
}

/// Every packet that a socket of an enrolled group receives.
#[cgroup_skb(ingress)]
pub fn mantled_ingress(ctx: SkBuffContext) -> i32 {
    ingress::watch(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier proves that no program gets here.
    loop {}
}

/// The kernel gives GPL-only helpers to programs that declare a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! getpeername(): the agent sees the server that it asked for, not the proxy.

use aya_ebpf::programs::SockAddrContext;
use mantled_abi::{VERDICT_REDIRECTED, VERDICT_RELAYED};

use crate::{
    connect::PASS,
    context::{Family, is_local, set_user, socket, user_address, user_port},
    maps::SOCKETS,
};

/// Entry: see the module.
#[inline(always)]
pub fn answer(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(state) = SOCKETS.get(socket(ctx)) else {
        return PASS;
    };
    // The storage outlives a connection; the peer tells whether it speaks of this one.
    if matches!(state.verdict, VERDICT_REDIRECTED | VERDICT_RELAYED)
        && user_port(ctx) == state.via_port
        && is_local(&user_address(ctx, family))
    {
        set_user(ctx, family, &state.flow.destination, state.flow.port as u16);
    }
    PASS
}

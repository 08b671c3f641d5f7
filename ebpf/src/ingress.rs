//! What arrives for an enrolled group: watched, never dropped.

use aya_ebpf::programs::SkBuffContext;

use crate::{
    dns,
    egress::{PASS, read},
    survey,
};

/// Entry for every packet that a socket of an enrolled group receives.
#[inline(always)]
pub fn watch(ctx: &SkBuffContext) -> i32 {
    if let Some(packet) = read(ctx) {
        dns::hear(ctx, &packet);
        survey::received(ctx, &packet);
    }
    PASS
}

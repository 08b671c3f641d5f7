//! Access to context structures.
//!
//! The verifier allows a context field to be read only by an instruction with a constant offset
//! from the unmodified context pointer. LLVM likes to merge such loads (`*(ctx + phi(offset))`),
//! which is rejected as "dereference of modified ctx ptr"; even volatile loads are. The macros
//! here spell the one instruction out.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_skb_load_bytes,
    programs::{SkBuffContext, SockAddrContext},
};
use mantled_abi::{Address, MAPPED};

/// Reads `$field` (32 bits; of an array the `$index`-th word) of the `$type` at `$pointer`.
macro_rules! load {
    ($pointer:expr, $type:ty, $field:ident) => {
        $crate::context::load!($pointer, $type, $field, 0)
    };
    ($pointer:expr, $type:ty, $field:ident, $index:expr) => {{
        let value: u64;
        // SAFETY: one load at a constant offset inside `$type`; the verifier checks pointer and
        // offset.
        unsafe {
            core::arch::asm!("{v} = *(u32 *)({p} + {o})", v = out(reg) value, p = in(reg) $pointer,
                o = const core::mem::offset_of!($type, $field) + 4 * $index,
                options(nostack, readonly))
        };
        value as u32
    }};
}
pub(crate) use load;

/// Reads a pointer field.
macro_rules! load_pointer {
    ($pointer:expr, $type:ty, $field:ident) => {{
        let value: u64;
        // SAFETY: as `load`.
        unsafe {
            core::arch::asm!("{v} = *(u64 *)({p} + {o})", v = out(reg) value, p = in(reg) $pointer,
                o = const core::mem::offset_of!($type, $field), options(nostack, readonly))
        };
        value
    }};
}
pub(crate) use load_pointer;

/// Writes `$value` to `$field` (32 bits; of an array the `$index`-th word).
macro_rules! store {
    ($pointer:expr, $type:ty, $field:ident, $value:expr) => {
        $crate::context::store!($pointer, $type, $field, 0, $value)
    };
    ($pointer:expr, $type:ty, $field:ident, $index:expr, $value:expr) => {
        // SAFETY: one store at a constant offset inside `$type`; the verifier checks pointer,
        // offset and that the field may be written.
        unsafe {
            core::arch::asm!("*(u32 *)({p} + {o}) = {v}", v = in(reg) ($value) as u64,
                p = in(reg) $pointer, o = const core::mem::offset_of!($type, $field) + 4 * $index,
                options(nostack))
        }
    };
}
pub(crate) use store;

/// Which of the twin programs runs: it says which address fields of the context are valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `user_ip4`.
    V4,
    /// `user_ip6`.
    V6,
}

/// `SOCK_STREAM`.
pub const STREAM: u32 = 1;
/// `TCP_LISTEN` of the kernel's socket states.
pub const TCP_LISTEN: u32 = 10;

/// 127.0.0.1 in network order.
pub const LOOPBACK4: u32 = 0x7f00_0001_u32.to_be();

/// Index of the loopback device, the first of every network namespace.
pub const LOOPBACK_DEVICE: u32 = 1;

/// Words of `::1` in network order.
pub const LOOPBACK6: Address = [0, 0, 0, 1_u32.to_be()];

/// Is the address IPv4, in the mapped form?
#[inline(always)]
pub fn is_mapped(address: &Address) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED
}

/// Loopback, or "this host" (`0.0.0.0`, `::`), to which the kernel connects by loopback.
#[inline(always)]
pub fn is_local(address: &Address) -> bool {
    if is_mapped(address) {
        return address[3] as u8 == 127 || address[3] == 0;
    }
    address[0] == 0
        && address[1] == 0
        && address[2] == 0
        && (address[3] == LOOPBACK6[3] || address[3] == 0)
}

/// The socket of a `bpf_sock_addr` context; the kernel never leaves it null.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    load_pointer!(ctx.sock_addr, bpf_sock_addr, __bindgen_anon_1) as *mut bpf_sock
}

/// The address that the caller gave.
#[inline(always)]
pub fn user_address(ctx: &SockAddrContext, family: Family) -> Address {
    let sa = ctx.sock_addr;
    match family {
        Family::V4 => [0, 0, MAPPED, load!(sa, bpf_sock_addr, user_ip4)],
        Family::V6 => [
            load!(sa, bpf_sock_addr, user_ip6, 0),
            load!(sa, bpf_sock_addr, user_ip6, 1),
            load!(sa, bpf_sock_addr, user_ip6, 2),
            load!(sa, bpf_sock_addr, user_ip6, 3),
        ],
    }
}

/// The port that the caller gave, host order.
#[inline(always)]
pub fn user_port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(load!(ctx.sock_addr, bpf_sock_addr, user_port) as u16)
}

/// Replaces address and port. A mapped address goes to an IPv6 socket as it is.
#[inline(always)]
pub fn set_user(ctx: &SockAddrContext, family: Family, address: &Address, port: u16) {
    let sa = ctx.sock_addr;
    match family {
        Family::V4 => store!(sa, bpf_sock_addr, user_ip4, address[3]),
        Family::V6 => {
            store!(sa, bpf_sock_addr, user_ip6, 0, address[0]);
            store!(sa, bpf_sock_addr, user_ip6, 1, address[1]);
            store!(sa, bpf_sock_addr, user_ip6, 2, address[2]);
            store!(sa, bpf_sock_addr, user_ip6, 3, address[3]);
        }
    }
    store!(sa, bpf_sock_addr, user_port, port.to_be());
}

/// Copies `length` bytes of the packet, or as many as fit, and tells how many. None are a failure.
///
/// The verifier has to see both bounds on the register that the helper gets. Before Linux 6.8 it
/// learns nothing from a comparison with zero, so what is compared is the length less one.
#[inline(always)]
pub fn copy_packet<const N: usize>(
    ctx: &SkBuffContext,
    offset: u32,
    length: u64,
    bytes: &mut [u8; N],
) -> Option<u32> {
    let mut length = length.min(N as u64).wrapping_sub(1);
    // SAFETY: a move of the register to itself; the compiler forgets what it knows of the value,
    // and says to the verifier again what it has to know.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) length, options(nostack, nomem)) };
    if length >= N as u64 {
        return None;
    }
    // SAFETY: an addition to the register, which the compiler does not merge with the comparison.
    unsafe { core::arch::asm!("{0} += 1", inout(reg) length, options(nostack, nomem)) };
    // SAFETY: `bytes` has room for `length`.
    let result = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr(),
            offset,
            bytes.as_mut_ptr().cast(),
            length as u32,
        )
    };
    (result == 0).then_some(length as u32)
}

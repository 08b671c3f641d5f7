//! connect(): where does this connection go?
//!
//! Attached at the root of the cgroup tree and decided by the task that calls, not by the cgroup
//! in which the socket was made: a socket that was made before enrolment, or came in as a
//! descriptor, is caught as well. The order of the questions is the policy:
//! not enrolled, this host, bypassed, not of the share, no listener here, known to be unreachable, no
//! daemon; whoever passes them all goes to the proxy.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
        bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_smp_processor_id,
        bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval, bpf_setsockopt, bpf_sk_lookup_tcp,
        bpf_sk_release,
    },
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use mantled_abi::{
    Address, Bypass, COUNT_BYPASSED, COUNT_DOWN_PASSED, COUNT_DOWN_REFUSED, COUNT_LEFT_OUT,
    COUNT_LOCAL, COUNT_NAMESPACE_PASSED, COUNT_NAMESPACE_REFUSED, COUNT_NO_STORAGE,
    COUNT_REDIRECTED, COUNT_UNREACHABLE, DOWN_OPEN, Destination, EVENT_DOWN_PASSED,
    EVENT_DOWN_REFUSED, EVENT_NAMESPACE_PASSED, EVENT_NAMESPACE_REFUSED, Flow, Listener, MAPPED,
    MODE_ENFORCE, MODE_OBSERVE, MODE_RESOLVER, MODE_SURVEY, SHARES, Socket, VERDICT_BYPASSED,
    VERDICT_FAILED_OPEN, VERDICT_REDIRECTED, VERDICT_SURVEYED,
};

use crate::{
    context::{
        Family, LOOPBACK_DEVICE, LOOPBACK4, LOOPBACK6, STREAM, TCP_LISTEN, is_local, is_mapped,
        load, set_user, socket, user_address, user_port,
    },
    datagram,
    event::tell,
    group::{self, Enrolled},
    maps::{
        BYPASS4, BYPASS6, CONFIG, LISTENERS, LIVENESS, RESOLVERS, SOCKETS, UNREACHABLE, count,
        count_left_out,
    },
};

/// The system call goes on.
pub const PASS: i32 = 1;
/// The system call fails with the errno that was set, else with EPERM.
const REFUSE: i32 = 0;

const DNS: u16 = 53;
const TCP: u32 = 6;
const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
pub const ENOMEM: i32 = 12;
const ENETUNREACH: i32 = 101;

/// Entry: see the module.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let stream = load!(ctx.sock_addr, bpf_sock_addr, type_) == STREAM;
    if !stream && datagram::is_to_proxy(ctx, family) {
        return refuse(EPERM);
    }
    let Some(enrolled) = group::of_task() else {
        return PASS;
    };
    if enrolled.group.mode == MODE_RESOLVER {
        return PASS;
    }
    let mut state = Socket {
        verdict: 0,
        via_port: 0,
        pending: 0,
        flow: describe(ctx, family, &enrolled),
    };
    if !stream {
        return datagram::judge(ctx, family, &enrolled, &mut state);
    }
    if enrolled.group.mode == MODE_SURVEY {
        // Without memory the survey lacks a process, nothing else.
        let _ = remember(socket(ctx), &mut state, VERDICT_SURVEYED);
        return PASS;
    }
    let flow = &state.flow;

    // DNS over TCP goes through the proxy like everything else, so that it sees which names are
    // asked; also to a resolver on this host.
    let resolver = flow.port == u32::from(DNS) && is_resolver(&flow.destination);
    if is_local(&flow.destination) && stays_here(flow.device) && !resolver {
        count(COUNT_LOCAL);
        return PASS;
    }
    if is_bypassed(&flow.destination, flow.port as u16) {
        count(COUNT_BYPASSED);
        return pass_as(ctx, &mut state, VERDICT_BYPASSED);
    }
    if enrolled.group.mode == MODE_OBSERVE && is_left_out(flow.cookie, enrolled.group.left_out) {
        count(COUNT_LEFT_OUT);
        count_left_out(enrolled.id);
        return PASS;
    }
    let Some(listener) = listener_of(flow.netns) else {
        if enrolled.group.mode == MODE_ENFORCE {
            count(COUNT_NAMESPACE_REFUSED);
            tell(EVENT_NAMESPACE_REFUSED, TCP, flow);
            return refuse(ECONNREFUSED);
        }
        count(COUNT_NAMESPACE_PASSED);
        tell(EVENT_NAMESPACE_PASSED, TCP, flow);
        return PASS;
    };
    if !is_alive(ctx, listener) {
        if enrolled.group.on_daemon_down == DOWN_OPEN {
            count(COUNT_DOWN_PASSED);
            tell(EVENT_DOWN_PASSED, TCP, flow);
            return pass_as(ctx, &mut state, VERDICT_FAILED_OPEN);
        }
        count(COUNT_DOWN_REFUSED);
        tell(EVENT_DOWN_REFUSED, TCP, flow);
        return refuse(ECONNREFUSED);
    }
    let errno = unreachable_errno(flow);
    if errno != 0 {
        count(COUNT_UNREACHABLE);
        return refuse(errno);
    }

    if flow.device != 0 {
        // A socket bound to a device cannot reach loopback; the proxy dials by that device.
        let mut none: i32 = 0;
        const SOL_SOCKET: i32 = 1;
        const SO_BINDTOIFINDEX: i32 = 62;
        // SAFETY: four bytes at `none`, as the option takes.
        unsafe {
            bpf_setsockopt(
                ctx.as_ptr(),
                SOL_SOCKET,
                SO_BINDTOIFINDEX,
                (&raw mut none).cast(),
                4,
            )
        };
    }
    let mapped = is_mapped(&flow.destination);
    state.via_port = listener.proxy_port;
    state.pending = 1;
    if !remember(socket(ctx), &mut state, VERDICT_REDIRECTED) {
        return refuse(ENOMEM);
    }
    let proxy: Address = if mapped {
        [0, 0, MAPPED, LOOPBACK4]
    } else {
        LOOPBACK6
    };
    set_user(ctx, family, &proxy, listener.proxy_port);
    count(COUNT_REDIRECTED);
    if CONFIG.get(0).is_some_and(|config| config.debug != 0) {
        aya_log_ebpf::debug!(
            ctx,
            "redirected pid {} cookie {} port {}",
            state.flow.pid,
            state.flow.cookie,
            state.flow.port
        );
    }
    PASS
}

/// A socket that is bound to another device than loopback sends even loopback addresses out of it.
#[inline(always)]
pub fn stays_here(device: u32) -> bool {
    device == 0 || device == LOOPBACK_DEVICE
}

/// Is this one of the connections that go past the proxy? By a hash of the socket's cookie, which
/// stays the same for its life; cookies themselves come in runs. The proxy's share is at the low end,
/// so that a share that is raised keeps the sockets that it had.
#[inline(always)]
fn is_left_out(cookie: u64, left_out: u32) -> bool {
    // The finalizer of MurmurHash3: every bit of the cookie changes every bit of the hash.
    let mut hash = cookie ^ (cookie >> 33);
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    hash % u64::from(SHARES) + u64::from(left_out) >= u64::from(SHARES)
}

/// Is the destination, with this port, listed under `bypass`?
#[inline(always)]
pub fn is_bypassed(address: &Address, port: u16) -> bool {
    let entry = if is_mapped(address) {
        BYPASS4.get(Key::new(32, address[3].to_ne_bytes()))
    } else {
        BYPASS6.get(Key::new(128, bytes(address)))
    };
    entry.is_some_and(|entry| has_port(entry, port))
}

#[inline(always)]
fn has_port(entry: &Bypass, port: u16) -> bool {
    if entry.count == 0 {
        return true;
    }
    for (index, listed) in entry.ports.iter().enumerate() {
        if index as u32 >= entry.count {
            return false;
        }
        if *listed == port {
            return true;
        }
    }
    false
}

#[inline(always)]
fn bytes(address: &Address) -> [u8; 16] {
    // SAFETY: same size, no invalid values.
    unsafe { core::mem::transmute::<Address, [u8; 16]>(*address) }
}

/// Is the address one of the resolvers?
#[inline(always)]
pub fn is_resolver(address: &Address) -> bool {
    // SAFETY: only presence is looked at.
    unsafe { RESOLVERS.get(address) }.is_some()
}

/// Who calls, and where to.
#[inline(always)]
pub fn describe(ctx: &SockAddrContext, family: Family, enrolled: &Enrolled) -> Flow {
    let sk = socket(ctx);
    let task = bpf_get_current_pid_tgid();
    let user = bpf_get_current_uid_gid();
    let source = match load!(sk, bpf_sock, family) {
        2 => match load!(sk, bpf_sock, src_ip4) {
            0 => [0; 4],
            address => [0, 0, MAPPED, address],
        },
        _ => [
            load!(sk, bpf_sock, src_ip6, 0),
            load!(sk, bpf_sock, src_ip6, 1),
            load!(sk, bpf_sock, src_ip6, 2),
            load!(sk, bpf_sock, src_ip6, 3),
        ],
    };
    // SAFETY: the helper takes nothing.
    let at = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    let cpu = u64::from(unsafe { bpf_get_smp_processor_id() });
    Flow {
        id: (at & !0x3ff) | (cpu & 0x3ff),
        // SAFETY: these helpers take the context, or nothing.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        netns: unsafe { bpf_get_netns_cookie(ctx.as_ptr()) },
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        group: enrolled.id,
        at,
        destination: user_address(ctx, family),
        source,
        port: u32::from(user_port(ctx)),
        mode: enrolled.group.mode,
        pid: (task >> 32) as u32,
        tid: task as u32,
        uid: user as u32,
        gid: (user >> 32) as u32,
        device: load!(sk, bpf_sock, bound_dev_if),
        mark: load!(sk, bpf_sock, mark),
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}

/// Where the daemon listens in a network namespace; None where it does not.
#[inline(always)]
pub fn listener_of(netns: u64) -> Option<&'static Listener> {
    // SAFETY: an entry is written when its namespace gets a listener; one that replaces it under
    // our eyes could at worst send this connection to a port where nobody listens.
    unsafe { LISTENERS.get(netns) }
}

/// Is a daemon there? Its liveness socket is looked up in the network namespace of the calling
/// socket and must carry the daemon's instance number. The socket is gone the moment the daemon
/// is, so nothing has to be heard from it regularly.
#[inline(always)]
pub fn is_alive(ctx: &SockAddrContext, listener: &Listener) -> bool {
    const CURRENT_NETNS: u64 = u64::MAX;
    // struct bpf_sock_tuple: source address, destination address, source port, destination port.
    let ports = u32::from(listener.liveness_port.to_be()) << 16;
    let mut tuple: [u32; 3] = [LOOPBACK4, LOOPBACK4, ports];
    // SAFETY: the tuple is 12 bytes long, the IPv4 form.
    let socket = unsafe {
        bpf_sk_lookup_tcp(
            ctx.as_ptr(),
            tuple.as_mut_ptr().cast(),
            12,
            CURRENT_NETNS,
            0,
        )
    };
    if socket.is_null() {
        return false;
    }
    let alive = load!(socket, bpf_sock, state) == TCP_LISTEN
        && LIVENESS
            .get(socket)
            .is_some_and(|mark| *mark == listener.instance);
    // SAFETY: releases what the lookup took.
    unsafe { bpf_sk_release(socket.cast()) };
    alive
}

/// The errno of a dial that failed a moment ago; 0 for none.
#[inline(always)]
fn unreachable_errno(flow: &Flow) -> i32 {
    let key = Destination {
        netns: flow.netns,
        address: flow.destination,
        port: flow.port,
        pad: 0,
    };
    // SAFETY: the two words are read once each; a torn read would give one more or one less
    // second of an errno that was true.
    match unsafe { UNREACHABLE.get(key) } {
        Some(entry) if unsafe { bpf_ktime_get_ns() } < entry.until => match entry.errno {
            // Bounded, so that the verifier knows a valid errno.
            errno @ 1..=4095 => errno as i32,
            _ => ENETUNREACH,
        },
        _ => 0,
    }
}

#[inline(always)]
fn pass_as(ctx: &SockAddrContext, state: &mut Socket, verdict: u32) -> i32 {
    if remember(socket(ctx), state, verdict) {
        PASS
    } else {
        refuse(ENOMEM)
    }
}

/// Writes the decision into the socket's storage; false where there is no memory for it.
#[inline(always)]
pub fn remember(sk: *mut bpf_sock, state: &mut Socket, verdict: u32) -> bool {
    state.verdict = verdict;
    let Some(stored) = SOCKETS.get_or_insert(sk, state) else {
        count(COUNT_NO_STORAGE);
        return false;
    };
    *stored = *state;
    true
}

/// The highest number that the kernel takes for one (include/linux/err.h).
const MAX_ERRNO: i64 = 4095;

#[inline(always)]
pub fn refuse(errno: i32) -> i32 {
    let mut errno = i64::from(errno);
    // SAFETY: a move of the register to itself. Newer verifiers want to see on the register that it is
    // an errno; the compiler knows, leaves the mask out, and says it in a way that they do not follow.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) errno, options(nostack, nomem)) };
    let errno = errno & MAX_ERRNO;
    // SAFETY: a number in, a number out.
    unsafe { bpf_set_retval(-errno as i32) };
    REFUSE
}

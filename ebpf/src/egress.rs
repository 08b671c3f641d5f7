//! The backstop: what an enforced group sends past the proxy is dropped.
//!
//! It runs for every packet of the group's sockets (a socket belongs to the cgroup in which it
//! was made). Loopback never leaves the host. Everything else must be covered by a decision of
//! connect() that this very socket carries, or by the operator's list. The mark is trusted for
//! TCP only: a datagram socket can send anywhere at any time.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_fullsock,
    },
    programs::{SkBuffContext, SockContext},
};
use mantled_abi::{
    Address, COUNT_DROPPED, COUNT_INBOUND_DROPPED, EVENT_DROPPED, EVENT_NAMESPACE_SEEN, Flow,
    INBOUND_ALLOW, MAPPED, MODE_ENFORCE, MODE_OBSERVE, MODE_RESOLVER, MODE_SURVEY, Socket,
    VERDICT_BYPASSED, VERDICT_FAILED_OPEN, VERDICT_OWNED,
};

use crate::{
    connect::{is_bypassed, is_resolver, listener_of},
    context::{LOOPBACK_DEVICE, TCP_LISTEN, is_local, load, load_pointer},
    datagram, dns,
    event::tell,
    group,
    maps::{INBOUND, SOCKETS, count, count_bypass_attempt},
    survey,
};

/// The packet goes on.
pub const PASS: i32 = 1;
/// The packet is dropped; a sender in the system call sees EPERM.
pub const DROP: i32 = 0;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const DNS: u16 = 53;

/// `TCP_SYN_RECV` of the kernel's socket states.
const SYN_RECV: u32 = 3;

/// What is read of a packet.
pub struct Packet {
    /// Where from.
    pub source: Address,
    /// Where to.
    pub destination: Address,
    /// Protocol number of IP.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none, or where headers stand before it.
    pub source_port: u16,
    /// Destination port, likewise.
    pub port: u16,
    /// Where the transport's header begins.
    pub transport: usize,
}

/// A socket is made by a task of an enrolled group: note who, for the events of packets that are
/// sent when nobody's system call is running. Where its network namespace has no listener, the
/// daemon is told now, so that it has a good chance to listen before connect() comes.
#[inline(always)]
pub fn own(ctx: &SockContext) -> i32 {
    let task = bpf_get_current_pid_tgid();
    let user = bpf_get_current_uid_gid();
    let mut state = Socket {
        verdict: VERDICT_OWNED,
        flow: Flow {
            pid: (task >> 32) as u32,
            tid: task as u32,
            uid: user as u32,
            gid: (user >> 32) as u32,
            comm: bpf_get_current_comm().unwrap_or_default(),
            ..Flow::default()
        },
        ..Socket::default()
    };
    // SAFETY: the helper takes the context.
    if listener_of(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }).is_none()
        && let Some(enrolled) = group::of_task()
        && matches!(enrolled.group.mode, MODE_OBSERVE | MODE_ENFORCE)
    {
        state.flow.group = enrolled.id;
        tell(EVENT_NAMESPACE_SEEN, 0, &state.flow);
    }
    // Without memory the events lack a process, nothing else.
    let _ = SOCKETS.get_or_insert(ctx.sock, &mut state);
    PASS
}

/// Entry: see the module.
#[inline(always)]
pub fn judge(ctx: &SkBuffContext) -> i32 {
    let Some(packet) = read(ctx) else { return DROP };
    if packet.port == DNS && packet.protocol == UDP && is_resolver(&packet.destination) {
        return dns::ask(ctx, &packet);
    }
    // The address alone does not say so: a socket option can send it out of another device.
    if is_local(&packet.destination) && load!(ctx.skb.skb, __sk_buff, ifindex) == LOOPBACK_DEVICE {
        datagram::publish(ctx, &packet);
        return PASS;
    }
    let Some(enrolled) = group::of_packet(ctx.skb.skb) else {
        return PASS;
    };
    if enrolled.group.mode == MODE_SURVEY {
        survey::sent(ctx, &packet, &enrolled);
        return PASS;
    }
    if enrolled.group.mode == MODE_RESOLVER {
        dns::ask_for_others(ctx, &packet);
        return PASS;
    }
    if enrolled.group.mode != MODE_ENFORCE || is_bypassed(&packet.destination, packet.port) {
        return PASS;
    }

    let sk = full_socket(ctx);
    let mut flow = Flow::default();
    if !sk.is_null() {
        if let Some(state) = SOCKETS.get(sk) {
            if packet.protocol == TCP && covers(state, &packet) {
                return PASS;
            }
            flow.pid = state.flow.pid;
            flow.uid = state.flow.uid;
            flow.comm = state.flow.comm;
        } else if is_neighbour_discovery(ctx, &packet) {
            return PASS;
        }
        if packet.protocol == TCP && is_inbound(sk) {
            if enrolled.group.inbound == INBOUND_ALLOW {
                return PASS;
            }
            count(COUNT_INBOUND_DROPPED);
            return DROP;
        }
    }
    count(COUNT_DROPPED);
    count_bypass_attempt(enrolled.id);
    flow.group = enrolled.id;
    // SAFETY: the helper takes the context.
    flow.cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    flow.destination = packet.destination;
    flow.port = u32::from(packet.port);
    tell(EVENT_DROPPED, u32::from(packet.protocol), &flow);
    DROP
}

/// Is this the kernel asking for a neighbour's link-layer address, or telling its own (RFC 4861)?
/// For IPv6 it does so by a socket of each network namespace, which belongs to the group when a task
/// of the group has made the namespace; without it nobody there reaches anybody, the proxy included.
/// Sockets that the group makes are known by their storage and are not let pass for it.
#[inline(always)]
fn is_neighbour_discovery(ctx: &SkBuffContext, packet: &Packet) -> bool {
    const ICMPV6: u8 = 58;
    const ROUTER_SOLICITATION: u8 = 133;
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    // With one option, an Ethernet address or a nonce.
    const LONGEST: u32 = 40 + 24 + 8;
    packet.protocol == ICMPV6
        && load!(ctx.skb.skb, __sk_buff, len) <= LONGEST
        // Nobody takes such a packet from farther away than the link.
        && ctx.load::<u8>(7).is_ok_and(|hops| hops == 255)
        && ctx.load::<u8>(packet.transport).is_ok_and(|kind| {
            matches!(
                kind,
                ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT
            )
        })
}

/// Does connect()'s decision about this socket cover this packet?
#[inline(always)]
fn covers(state: &Socket, packet: &Packet) -> bool {
    matches!(state.verdict, VERDICT_BYPASSED | VERDICT_FAILED_OPEN)
        && state.flow.destination == packet.destination
        && state.flow.port == u32::from(packet.port)
}

/// Is this the socket of a server inside the group? A listener's SYN-ACK is seen with the
/// listener as its socket; the mark put on it then is inherited by the sockets that accept()
/// returns.
#[inline(always)]
pub fn is_inbound(sk: *mut bpf_sock) -> bool {
    let state = load!(sk, bpf_sock, state);
    if state == TCP_LISTEN || state == SYN_RECV {
        let _ = INBOUND.get_or_insert(sk, &mut 1);
        return true;
    }
    INBOUND.get(sk).is_some()
}

/// The packet's socket; null where it has none.
#[inline(always)]
pub fn full_socket(ctx: &SkBuffContext) -> *mut bpf_sock {
    let sk = load_pointer!(ctx.skb.skb, __sk_buff, __bindgen_anon_2) as *mut bpf_sock;
    if sk.is_null() {
        return sk;
    }
    // SAFETY: not null; the helper gives null for what is no full socket.
    unsafe { bpf_sk_fullsock(sk) }
}

/// Reads the headers; None where they are cut short.
#[inline(always)]
pub fn read(ctx: &SkBuffContext) -> Option<Packet> {
    let first: u8 = ctx.load(0).ok()?;
    let (source, destination, protocol, transport) = if first >> 4 == 4 {
        let source: u32 = ctx.load(12).ok()?;
        let destination: u32 = ctx.load(16).ok()?;
        (
            [0, 0, MAPPED, source],
            [0, 0, MAPPED, destination],
            ctx.load(9).ok()?,
            usize::from(first & 0xf) * 4,
        )
    } else {
        // Extension headers hide the protocol: such a packet is no TCP to this program, so it
        // passes only to a bypassed prefix without ports.
        let source: Address = ctx.load(8).ok()?;
        let destination: Address = ctx.load(24).ok()?;
        (source, destination, ctx.load(6).ok()?, 40)
    };
    let (source_port, port) = match protocol {
        TCP | UDP => {
            let ports: [u16; 2] = ctx.load(transport).ok()?;
            (u16::from_be(ports[0]), u16::from_be(ports[1]))
        }
        _ => (0, 0),
    };
    Some(Packet {
        source,
        destination,
        protocol,
        source_port,
        port,
        transport,
    })
}

//! Survey: who speaks with whom, in clear or in TLS? Nothing is redirected and nothing dropped.
//!
//! For each destination the first payload that went in clear is kept, so that user space can
//! recognise the protocol; here it is only told whether a payload is TLS. A connection that begins
//! in clear and goes on in TLS counts as both.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    programs::SkBuffContext,
};
use mantled_abi::{
    Address, COUNT_SURVEY_FULL, FirstBytes, Flow, MODE_SURVEY, SurveyKey, Surveyed,
    VERDICT_SURVEYED,
};

use crate::{
    context::{LOOPBACK_DEVICE, copy_packet, is_local, load},
    egress::{Packet, TCP, UDP, full_socket, is_inbound},
    group::{self, Enrolled},
    maps::{SEEN, SOCKETS, SURVEY, SURVEYED, count},
};

const UDP_HEADER: u32 = 8;

/// Ports from here on are given to clients (the usual start of the kernel's range): what is left
/// of a connection from before the survey tells by them which side is the server.
const EPHEMERAL: u16 = 32_768;

/// Of a connection: something in clear was seen.
const SAW_CLEAR: u32 = 1;
/// Of a connection: TLS was seen.
const SAW_TLS: u32 = 2;

/// The other side of a packet.
struct Exchange {
    address: Address,
    port: u16,
    own_port: u16,
    sent: bool,
}

/// A packet of a surveyed group.
#[inline(always)]
pub fn sent(ctx: &SkBuffContext, packet: &Packet, enrolled: &Enrolled) {
    let exchange = Exchange {
        address: packet.destination,
        port: packet.port,
        own_port: packet.source_port,
        sent: true,
    };
    let _ = look(ctx, packet, enrolled, &exchange);
}

/// A packet for a group that may be surveyed.
#[inline(always)]
pub fn received(ctx: &SkBuffContext, packet: &Packet) {
    if is_local(&packet.source) && load!(ctx.skb.skb, __sk_buff, ifindex) == LOOPBACK_DEVICE {
        return;
    }
    let Some(enrolled) = group::of_packet(ctx.skb.skb) else {
        return;
    };
    if enrolled.group.mode != MODE_SURVEY {
        return;
    }
    let exchange = Exchange {
        address: packet.source,
        port: packet.source_port,
        own_port: packet.port,
        sent: false,
    };
    let _ = look(ctx, packet, &enrolled, &exchange);
}

#[inline(always)]
fn look(
    ctx: &SkBuffContext,
    packet: &Packet,
    enrolled: &Enrolled,
    exchange: &Exchange,
) -> Option<()> {
    if packet.protocol == TCP {
        return stream(ctx, packet, enrolled, exchange);
    }
    let header = if packet.protocol == UDP {
        UDP_HEADER
    } else {
        0
    };
    let start = packet.transport as u32 + header;
    let length = load!(ctx.skb.skb, __sk_buff, len).checked_sub(start)?;
    let key = key(packet, enrolled, exchange, false);
    let entry = entry(&key, None)?;
    weigh(entry, exchange, length);
    if exchange.sent {
        add(&mut entry.connections, 1);
        add(&mut entry.clear, 1);
    }
    keep(ctx, start, length, first(entry, exchange));
    Some(())
}

#[inline(always)]
fn stream(
    ctx: &SkBuffContext,
    packet: &Packet,
    enrolled: &Enrolled,
    exchange: &Exchange,
) -> Option<()> {
    let words = ctx.load::<u8>(packet.transport + 12).ok()? >> 4;
    let start = packet.transport as u32 + u32::from(words) * 4;
    let length = load!(ctx.skb.skb, __sk_buff, len).checked_sub(start)?;
    if length == 0 {
        return None;
    }
    let sk = full_socket(ctx);
    if sk.is_null() {
        return None;
    }
    let known = SOCKETS
        .get(sk)
        .filter(|state| state.verdict == VERDICT_SURVEYED)
        .map(|state| &state.flow);
    let inbound = known.is_none() && (is_inbound(sk) || exchange.port >= EPHEMERAL);
    let key = key(packet, enrolled, exchange, inbound);
    let entry = entry(&key, known)?;
    weigh(entry, exchange, length);
    classify(ctx, sk, start, length, entry, exchange)
}

#[inline(always)]
fn key(packet: &Packet, enrolled: &Enrolled, exchange: &Exchange, inbound: bool) -> SurveyKey {
    let port = if inbound {
        exchange.own_port
    } else {
        exchange.port
    };
    SurveyKey {
        group: enrolled.id,
        address: exchange.address,
        port: u32::from(port),
        protocol: u32::from(packet.protocol),
        inbound: u32::from(inbound),
        pad: 0,
    }
}

#[inline(always)]
fn weigh(entry: &mut Surveyed, exchange: &Exchange, length: u32) {
    let counter = if exchange.sent {
        &mut entry.sent
    } else {
        &mut entry.received
    };
    add(counter, u64::from(length));
}

/// Counts a connection once for what it carries.
#[inline(always)]
fn classify(
    ctx: &SkBuffContext,
    sk: *mut bpf_sock,
    start: u32,
    length: u32,
    entry: &mut Surveyed,
    exchange: &Exchange,
) -> Option<()> {
    let seen = SEEN.get_or_insert(sk, &mut 0)?;
    if *seen & SAW_TLS != 0 {
        return Some(());
    }
    if *seen == 0 {
        add(&mut entry.connections, 1);
        if !exchange.sent {
            add(&mut entry.server_first, 1);
        }
    }
    if is_tls(ctx, start, length) {
        *seen |= SAW_TLS;
        add(&mut entry.tls, 1);
        return Some(());
    }
    if *seen & SAW_CLEAR == 0 {
        *seen |= SAW_CLEAR;
        add(&mut entry.clear, 1);
    }
    keep(ctx, start, length, first(entry, exchange));
    Some(())
}

/// Does the payload begin with a TLS record (RFC 8446 §5.1)?
#[inline(always)]
fn is_tls(ctx: &SkBuffContext, start: u32, length: u32) -> bool {
    if length < 3 {
        return false;
    }
    match ctx.load::<[u8; 3]>(start as usize) {
        Ok([kind, major, minor]) => (20..=23).contains(&kind) && major == 3 && minor <= 4,
        Err(_) => false,
    }
}

#[inline(always)]
fn first<'a>(entry: &'a mut Surveyed, exchange: &Exchange) -> &'a mut FirstBytes {
    if exchange.sent {
        &mut entry.from_agent
    } else {
        &mut entry.from_server
    }
}

#[inline(always)]
fn keep(ctx: &SkBuffContext, start: u32, length: u32, first: &mut FirstBytes) {
    if first.length != 0 {
        return;
    }
    if let Some(copied) = copy_packet(ctx, start, u64::from(length), &mut first.bytes) {
        first.length = copied;
    }
}

/// The destination's entry, made where there is none.
#[inline(always)]
fn entry(key: &SurveyKey, who: Option<&Flow>) -> Option<&'static mut Surveyed> {
    // SAFETY (of all three): map values, valid while the program runs. Counters are changed
    // atomically; the rest is written once or, in a race, twice.
    if let Some(entry) = SURVEY.get_ptr_mut(key) {
        return Some(unsafe { &mut *entry });
    }
    let fresh = unsafe { &mut *SURVEYED.get_ptr_mut(0)? };
    (fresh.pid, fresh.uid, fresh.comm) = (0, 0, [0; 16]);
    if let Some(flow) = who {
        (fresh.pid, fresh.uid, fresh.comm) = (flow.pid, flow.uid, flow.comm);
    }
    const NO_EXIST: u64 = 1;
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "it does not fit on the stack"
    )]
    // Another CPU may have been faster, which is as good.
    let _ = SURVEY.insert(key, &*fresh, NO_EXIST);
    let Some(entry) = SURVEY.get_ptr_mut(key) else {
        count(COUNT_SURVEY_FULL);
        return None;
    };
    Some(unsafe { &mut *entry })
}

/// Adds atomically.
#[inline(always)]
fn add(counter: &mut u64, number: u64) {
    // SAFETY: one atomic addition to an aligned word of a map's value.
    unsafe {
        core::arch::asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) core::ptr::from_mut(counter),
            v = in(reg) number, options(nostack))
    };
}

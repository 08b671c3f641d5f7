//! Names: which one did the agent ask for before it connected to an address?
//!
//! Queries of an enrolled group to its resolvers are noted as they leave, answers are matched by
//! socket, resolver and id as they arrive, before the agent can read them, and both go to user
//! space, which compares the questions and reads the addresses. So the name of an address is known
//! before the agent can connect to it. Answers that nobody asked for are not looked at, and other
//! resolvers than the operator's teach nothing.
//!
//! In enforce mode only what looks like a DNS query goes to a resolver. That is no guard against
//! who hides words in names.

use aya_ebpf::{
    EbpfContext as _,
    bindings::__sk_buff,
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns},
    programs::SkBuffContext,
};
use mantled_abi::{
    ANSWER_BYTES, Answer, COUNT_ANSWER_LOST, COUNT_ANSWERED, COUNT_NO_QUERY, COUNT_RESOLVER,
    MODE_ENFORCE, MODE_RESOLVER, QUERY_BYTES, QueryKey,
};

use crate::{
    connect::is_resolver,
    context::{copy_packet, load},
    egress::{DNS, DROP, PASS, Packet, UDP},
    group,
    maps::{ANSWERS, QUERIES, QUERY, count},
};

/// Length of a UDP header.
const UDP_HEADER: usize = 8;

/// Longest query over UDP (RFC 1035 §4.2.1): a name is half as long at most. What is longer is
/// something else behind a query's header.
const MAX_QUERY: u32 = 512;

/// Of the header's flags: this is an answer, and what kind of query it is (RFC 1035 §4.1.1).
const RESPONSE_AND_OPCODE: u16 = 0xf800;

/// What a resolver asks.
#[inline(always)]
pub fn ask_for_others(ctx: &SkBuffContext, packet: &Packet) {
    if packet.port == DNS && packet.protocol == UDP {
        let _ = note(ctx, packet, packet.transport + UDP_HEADER);
    }
}

/// A datagram to a resolver.
#[inline(always)]
pub fn ask(ctx: &SkBuffContext, packet: &Packet) -> i32 {
    let Some(enrolled) = group::of_packet(ctx.skb.skb) else {
        return PASS;
    };
    let message = packet.transport + UDP_HEADER;
    if note(ctx, packet, message).is_some() {
        count(COUNT_RESOLVER);
        return PASS;
    }
    if enrolled.group.mode == MODE_ENFORCE {
        count(COUNT_NO_QUERY);
        return DROP;
    }
    PASS
}

/// Keeps a query until its answer comes. None: it is no query.
#[inline(always)]
fn note(ctx: &SkBuffContext, packet: &Packet, message: usize) -> Option<()> {
    // Id, flags, and the numbers of questions, answers, authorities and additional records.
    let header: [u16; 6] = ctx.load(message).ok()?;
    if u16::from_be(header[1]) & RESPONSE_AND_OPCODE != 0
        || header[2] != 1_u16.to_be()
        || header[3] != 0
        || header[4] != 0
    {
        return None;
    }
    if load!(ctx.skb.skb, __sk_buff, len) > message as u32 + MAX_QUERY {
        return None;
    }
    let query = QUERY.get_ptr_mut(0)?;
    // SAFETY: this CPU's slot; programs of one CPU that interrupt each other here would at worst
    // mix two questions, which then match no answer.
    let query = unsafe { &mut *query };
    query.pad = 0;
    query.length = copy(ctx, message, &mut query.bytes)?;
    let key = QueryKey {
        cookie: cookie(ctx),
        resolver: packet.destination,
        id: u32::from(header[0]),
        pad: 0,
    };
    // Full of queries of this very moment: the name stays unknown.
    let _ = QUERIES.insert(key, query, 0);
    Some(())
}

/// A packet that arrives.
#[inline(always)]
pub fn hear(ctx: &SkBuffContext, packet: &Packet) {
    if packet.source_port == DNS && packet.protocol == UDP {
        let _ = pass_on(ctx, packet);
    }
}

#[inline(always)]
fn pass_on(ctx: &SkBuffContext, packet: &Packet) -> Option<()> {
    let enrolled = group::of_packet(ctx.skb.skb)?;
    // A resolver asks whom it likes, and what it hears is everybody's.
    let group = if enrolled.group.mode == MODE_RESOLVER {
        0
    } else if is_resolver(&packet.source) {
        enrolled.id
    } else {
        return None;
    };
    let message = packet.transport + UDP_HEADER;
    let id: u16 = ctx.load(message).ok()?;
    let key = QueryKey {
        cookie: cookie(ctx),
        resolver: packet.source,
        id: u32::from(id),
        pad: 0,
    };
    // SAFETY: the value is copied at once; a query that is overwritten meanwhile matches no
    // answer.
    let query = unsafe { QUERIES.get(key) }?;
    let Some(mut entry) = ANSWERS.reserve::<Answer>(0) else {
        count(COUNT_ANSWER_LOST);
        return None;
    };
    let answer = entry.as_mut_ptr();
    // SAFETY: the entry is as large as an answer, and all of it but the end of `bytes`, which
    // `length` excludes, is written before it is submitted.
    let copied = unsafe {
        (*answer).group = group;
        (*answer).at = bpf_ktime_get_ns();
        (*answer).query = *query;
        copy(ctx, message, &mut (*answer).bytes)
    };
    match copied {
        Some(length) => {
            // SAFETY: as above.
            unsafe { (*answer).length = length };
            count(COUNT_ANSWERED);
            entry.submit(0);
        }
        None => entry.discard(0),
    }
    Some(())
}

#[inline(always)]
fn cookie(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Copies the packet from `offset` to its end, or as much as fits.
#[inline(always)]
fn copy<const N: usize>(ctx: &SkBuffContext, offset: usize, bytes: &mut [u8; N]) -> Option<u32> {
    const { assert!(N == QUERY_BYTES || N == ANSWER_BYTES) };
    let length = u64::from(load!(ctx.skb.skb, __sk_buff, len)).checked_sub(offset as u64)?;
    copy_packet(ctx, offset as u32, length, bytes)
}

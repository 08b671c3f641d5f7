//! Every map, its size, and what happens when it is full.
//!
//! The daemon pins them all, so that a restart finds what the programs know.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
};
use mantled_abi::{
    Address, Bypass, COUNTERS as COUNTER_COUNT, Config, Destination, Flow, Group, GroupCounts,
    Listener, NameEntry, NameKey, Query, QueryKey, Socket, Source, SurveyKey, Surveyed,
    Unreachable,
};

const NO_PREALLOC: usize = 1;
/// `BPF_F_CLONE`: a socket that accept() returns inherits its listener's value.
const CLONE: usize = 1 << 9;

/// A socket storage map, as the loader reads it from BTF. aya's own type of this name knows no
/// flags and only one kind of context.
#[repr(C)]
pub struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are never dereferenced; the loader puts a map in their place.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SkStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The socket's value, which lives as long as the socket does. `sk` must not be null.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<&mut T> {
        self.call(sk, core::ptr::null_mut(), 0)
    }

    /// The socket's value, made from `initial` where there is none; None without memory.
    #[inline(always)]
    pub fn get_or_insert(&self, sk: *mut bpf_sock, initial: &mut T) -> Option<&mut T> {
        self.call(sk, initial, BPF_SK_STORAGE_GET_F_CREATE)
    }

    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "the map is the kernel's, self only names it"
    )]
    fn call(&self, sk: *mut bpf_sock, initial: *mut T, flags: u32) -> Option<&mut T> {
        // SAFETY: the loader put this map, whose values are of `T`, in place of self; the
        // verifier has proven that `sk` is a socket. The programs of one socket do not run at
        // once where they write.
        unsafe {
            let map = core::ptr::from_ref(self).cast_mut().cast();
            (bpf_sk_storage_get(map, sk.cast(), initial.cast(), u64::from(flags)) as *mut T)
                .as_mut()
        }
    }
}

/// The daemon's facts; one entry.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Where the daemon listens, by network namespace. Empty until a daemon has started. Full: the
/// namespace that finds no room has no listener.
#[map]
pub static LISTENERS: HashMap<u64, Listener> = HashMap::with_max_entries(4096, NO_PREALLOC as u32);

/// Enrolled cgroups by id. Full: enrolment fails, and says so.
#[map]
pub static GROUPS: HashMap<u64, Group> = HashMap::with_max_entries(4096, 0);

/// What is counted of each enrolled cgroup, one set a CPU. User space makes the entry before it
/// enrols and takes it after it has withdrawn. Full: enrolment fails, and says so.
#[map]
pub static GROUP_COUNTS: PerCpuHashMap<u64, GroupCounts> =
    PerCpuHashMap::with_max_entries(4096, NO_PREALLOC as u32);

/// What was decided about a socket. Memory that cannot be had: the connection is refused.
#[btf_map]
pub static SOCKETS: SkStorage<Socket, NO_PREALLOC> = SkStorage::new();

/// The daemon's liveness sockets carry its instance number here.
#[btf_map]
pub static LIVENESS: SkStorage<u64, NO_PREALLOC> = SkStorage::new();

/// Servers inside a group: their listeners, and by inheritance what these accept. Memory that
/// cannot be had: the packet counts as one that nothing covers.
#[btf_map]
pub static INBOUND: SkStorage<u32, { NO_PREALLOC | CLONE }> = SkStorage::new();

/// On the proxy's side of a connection: [`mantled_abi::Flow::id`] of the agent that it came from.
/// Memory that cannot be had: the proxy finds the flow by its source, or refuses.
#[btf_map]
pub static ACCEPTED: SkStorage<u64, NO_PREALLOC> = SkStorage::new();

/// Connections whose handshake with the proxy is under way: source to flow id. It does not evict: an evicted
/// connection would be refused though nothing is wrong with it. Full: the new connection is
/// refused by the proxy, and counted.
#[map]
pub static FLOWS: HashMap<Source, u64> = HashMap::with_max_entries(65_536, NO_PREALLOC as u32);

/// Connections that lack a record, by flow id. Full: like `FLOWS`.
#[map]
pub static SESSIONS: HashMap<u64, Flow> = HashMap::with_max_entries(131_072, NO_PREALLOC as u32);

/// UDP ports whose datagrams go to the proxy's socket, which carries them as syslog over TLS. Full:
/// the configuration is refused.
#[map]
pub static RELAYED: HashMap<u32, u32> = HashMap::with_max_entries(64, 0);

/// Datagrams on their way to the proxy: source to what its socket is. Of sockets that have sent
/// nothing for long it may evict; what they send next puts them back.
#[map]
pub static DATAGRAMS: LruHashMap<Source, Flow> = LruHashMap::with_max_entries(8192, 0);

/// Destinations that could not be dialled a moment ago. A cache: it may evict.
#[map]
pub static UNREACHABLE: LruHashMap<Destination, Unreachable> =
    LruHashMap::with_max_entries(4096, 0);

/// Bypassed IPv4 prefixes. Full: the configuration is refused.
#[map]
pub static BYPASS4: LpmTrie<[u8; 4], Bypass> = LpmTrie::with_max_entries(4096, NO_PREALLOC as u32);

/// Bypassed IPv6 prefixes. Full: the configuration is refused.
#[map]
pub static BYPASS6: LpmTrie<[u8; 16], Bypass> = LpmTrie::with_max_entries(4096, NO_PREALLOC as u32);

/// Resolvers that enrolled groups may ask, port 53. Full: the configuration is refused.
#[map]
pub static RESOLVERS: HashMap<Address, u32> = HashMap::with_max_entries(64, 0);

/// DNS queries that wait for their answer. A cache: an evicted query's name stays unknown.
#[map]
pub static QUERIES: LruHashMap<QueryKey, Query> = LruHashMap::with_max_entries(4096, 0);

/// Room to put a query together: it is too large for the stack.
#[map]
pub static QUERY: PerCpuArray<Query> = PerCpuArray::with_max_entries(1, 0);

/// Answers for user space. Full: the answer is lost, which is counted; its name stays unknown.
#[map]
pub static ANSWERS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Names that user space has learnt. A cache: an evicted name is unknown to the next daemon.
#[map]
pub static NAMES: LruHashMap<NameKey, NameEntry> = LruHashMap::with_max_entries(8192, 0);

/// What surveyed groups do, by destination. Full: other destinations are not counted, which is.
#[map]
pub static SURVEY: HashMap<SurveyKey, Surveyed> =
    HashMap::with_max_entries(16_384, NO_PREALLOC as u32);

/// Room to put the first entry of a destination together: it is too large for the stack.
#[map]
pub static SURVEYED: PerCpuArray<Surveyed> = PerCpuArray::with_max_entries(1, 0);

/// What was seen of a surveyed connection. Memory that cannot be had: it counts as a new one with
/// each packet.
#[btf_map]
pub static SEEN: SkStorage<u32, NO_PREALLOC> = SkStorage::new();

/// Counters of `mantled-abi`, one set a CPU.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// Events for user space. Full: the event is lost, which is counted; the decision stands.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

/// Adds one to a counter. Atomically: a program can be preempted by another one of its CPU, and
/// records are reconciled with what is counted here.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        add_one::<0>(counter);
    }
}

/// Counts something that an enrolled group sent past the proxy, which was dropped or refused.
#[inline(always)]
pub fn count_bypass_attempt(group: u64) {
    const AT: usize = core::mem::offset_of!(GroupCounts, bypass_attempts);
    if let Some(counts) = GROUP_COUNTS.get_ptr_mut(group) {
        add_one::<AT>(counts.cast());
    }
}

/// Counts a connection of an enrolled group that went past the proxy, as it should.
#[inline(always)]
pub fn count_left_out(group: u64) {
    const AT: usize = core::mem::offset_of!(GroupCounts, left_out);
    if let Some(counts) = GROUP_COUNTS.get_ptr_mut(group) {
        add_one::<AT>(counts.cast());
    }
}

/// Adds one to the word `AT` bytes into this CPU's slot of a map value.
#[inline(always)]
fn add_one<const AT: usize>(value: *mut u64) {
    // The BPF target of this compiler has no atomic types; the instruction has always existed.
    // SAFETY: one atomic addition inside this CPU's slot of a map value, which is aligned and
    // valid while the program runs.
    unsafe {
        core::arch::asm!("lock *(u64 *)({p} + {o}) += {v}", p = in(reg) value, o = const AT,
            v = in(reg) 1_u64, options(nostack))
    };
}

//! The types that mantled's kernel programs and user space share.
//!
//! Everything here is plain old data with explicit padding: a map's value is copied as bytes
//! between two compilers, so no type may hold a hole, a pointer or a Rust enum. Addresses are
//! always sixteen bytes in network order, IPv4 as `::ffff:a.b.c.d`; ports are in host order.
//!
//! The layout is versioned by [`VERSION`], which is part of the pins' path: a daemon never reads
//! maps that another layout wrote.
#![no_std]
#![forbid(unsafe_code)]

/// Version of this layout; any change to a type below raises it.
pub const VERSION: u32 = 2;

/// An IP address: sixteen bytes in network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
///
/// Words rather than bytes, because that is how the kernel's context structures hold them.
pub type Address = [u32; 4];

/// Third word of an IPv4-mapped [`Address`], `0x0000ffff` in network order.
pub const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// How deep below the root of the cgroup tree an enrolled group may lie. The kernel programs look
/// at this many ancestors of a task; enrolment refuses what lies deeper. The verifier unrolls
/// the loop, so the number is small; Kubernetes' pods lie five deep.
pub const MAX_DEPTH: u32 = 12;

/// What the kernel programs need to know of the daemon: the only entry of map `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Non-zero: programs write to the aya-log ring buffer.
    pub debug: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Where the daemon listens in one network namespace: value of map `LISTENERS`, whose key is the
/// namespace (`SO_NETNS_COOKIE`). Sockets of a namespace without an entry have no proxy to go to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Value that the daemon put into the socket storage of its liveness socket there. Only who
    /// can write the map can be taken for the daemon; holding the port is not enough. Never zero.
    pub instance: u64,
    /// Port of the proxy's listeners on 127.0.0.1 and ::1.
    pub proxy_port: u16,
    /// Port of the liveness socket on 127.0.0.1. It is closed when the daemon dies.
    pub liveness_port: u16,
    /// Explicit padding.
    pub pad: u32,
}

/// An enrolled cgroup: value of map `GROUPS`, whose key is the cgroup's id (`u64`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// One of the `MODE_` constants.
    pub mode: u32,
    /// One of the `DOWN_` constants.
    pub on_daemon_down: u32,
    /// One of the `INBOUND_` constants.
    pub inbound: u32,
    /// How many of [`SHARES`] connections go past the proxy, in observe mode. Zero, which daemons
    /// that did not know this field have written here, sends all of them to it.
    pub left_out: u32,
}

/// What [`Group::left_out`] is a share of.
pub const SHARES: u32 = 10_000;

/// What the kernel alone sees of an enrolled group: value of map `GROUP_COUNTS`, whose key is the
/// cgroup's id; one a CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// Packets and datagrams past the proxy that were dropped or refused.
    pub bypass_attempts: u64,
    /// Connections that went past the proxy because they were [`Group::left_out`].
    pub left_out: u64,
}

/// Connections are redirected; a plaintext way out is allowed and recorded.
pub const MODE_OBSERVE: u32 = 1;
/// Connections are redirected; whatever else the group sends is dropped.
pub const MODE_ENFORCE: u32 = 2;

/// Nothing is redirected or dropped; what the group sends and gets is counted by destination.
pub const MODE_SURVEY: u32 = 3;

/// A resolver that others ask by other ways than DNS: only its own queries are looked at.
pub const MODE_RESOLVER: u32 = 4;

/// Without a daemon, connections are refused.
pub const DOWN_CLOSED: u32 = 0;
/// Without a daemon, connections go where the agent wanted, unprotected.
pub const DOWN_OPEN: u32 = 1;

/// Replies of servers inside the group are dropped.
pub const INBOUND_REFUSE: u32 = 0;
/// Replies of TCP servers inside the group pass.
pub const INBOUND_ALLOW: u32 = 1;

/// What was decided about a socket: value of the socket storage `SOCKETS`.
///
/// The egress program trusts `verdict` together with `destination` and `port`: a packet of this
/// socket to somewhere else is not covered by it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// One of the `VERDICT_` constants.
    pub verdict: u32,
    /// Port of the listener that a redirected socket was sent to.
    pub via_port: u16,
    /// Non-zero from the decision to redirect until the connection is published: the decision is
    /// for one connection, and the socket can make others.
    pub pending: u16,
    /// The connection as the agent asked for it. For `VERDICT_OWNED` only the process is set.
    pub flow: Flow,
}

/// Created by a task of an enrolled group; nothing else decided yet.
pub const VERDICT_OWNED: u32 = 1;
/// Goes to the proxy.
pub const VERDICT_REDIRECTED: u32 = 2;
/// Goes straight to a destination that the operator listed under `bypass`.
pub const VERDICT_BYPASSED: u32 = 3;
/// Goes straight because the daemon is down and the operator chose `open`.
pub const VERDICT_FAILED_OPEN: u32 = 5;

/// Goes where it wants, and is counted.
pub const VERDICT_SURVEYED: u32 = 6;

/// A datagram socket whose datagrams go to the proxy.
pub const VERDICT_RELAYED: u32 = 7;

/// One redirected connection: who made it and where it was going. Value of map `SESSIONS`, whose
/// key is [`Flow::id`].
///
/// An entry is made when the connection starts and removed by user space when the connection's
/// record is written, so at any time the map holds exactly the connections that lack a record;
/// a daemon that was killed finds here what it owes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Names this connection; a socket's cookie does not, since a socket can connect again. The
    /// time of connect() in units of 1.024 us, with the CPU in the low ten bits: no CPU makes two
    /// connections in that time.
    pub id: u64,
    /// `SO_COOKIE` of the agent's socket.
    pub cookie: u64,
    /// `SO_NETNS_COOKIE` of the agent's socket.
    pub netns: u64,
    /// Cgroup of the task that called connect().
    pub cgroup: u64,
    /// The enrolled cgroup that it belongs to: the deepest one.
    pub group: u64,
    /// `CLOCK_MONOTONIC` at connect(), nanoseconds.
    pub at: u64,
    /// Where the agent was going.
    pub destination: Address,
    /// Local address that the agent had bound; all zero where it had not.
    pub source: Address,
    /// Port of `destination`.
    pub port: u32,
    /// Mode of the group at connect().
    pub mode: u32,
    /// Process (thread group) id, in the initial pid namespace.
    pub pid: u32,
    /// Thread id, likewise.
    pub tid: u32,
    /// User id, in the initial user namespace.
    pub uid: u32,
    /// Group id, likewise.
    pub gid: u32,
    /// `SO_BINDTOIFINDEX` of the agent's socket, 0 for none; the proxy dials by the same device.
    pub device: u32,
    /// `SO_MARK` of the agent's socket, 0 for none; the proxy dials with the same mark.
    pub mark: u32,
    /// Name of the task (`/proc/PID/comm`), NUL-padded.
    pub comm: [u8; 16],
}

/// Key of map `FLOWS`: what accept() can know of a peer. The value is [`Flow::id`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// `SO_NETNS_COOKIE`.
    pub netns: u64,
    /// Source address of the connection to the proxy.
    pub address: Address,
    /// Its port.
    pub port: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Key of map `UNREACHABLE`: a destination that the proxy could not dial a moment ago.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Destination {
    /// `SO_NETNS_COOKIE` of the dialling namespace.
    pub netns: u64,
    /// Address.
    pub address: Address,
    /// Port.
    pub port: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Value of map `UNREACHABLE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unreachable {
    /// `CLOCK_MONOTONIC` until which the entry counts, nanoseconds.
    pub until: u64,
    /// The errno (positive) that connect() gives.
    pub errno: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// How many ports one bypassed prefix may name, those of the prefixes around it included.
pub const BYPASS_PORTS: usize = 16;

/// Value of maps `BYPASS4` and `BYPASS6`, keyed by prefix. The kernel finds the longest prefix
/// only, so user space adds to each the ports of those that contain it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bypass {
    /// How many of `ports` count; 0: every port and every protocol.
    pub count: u32,
    /// Ports, host order.
    pub ports: [u16; BYPASS_PORTS],
}

/// Most bytes that are kept of a query: its header (12 bytes) and its question, whose name has 255
/// bytes at most, with type and class.
pub const QUERY_BYTES: usize = 272;

/// Most bytes that are kept of an answer. More than the payload of an Ethernet frame: larger
/// answers than this are asked for again over TCP.
pub const ANSWER_BYTES: usize = 1500;

/// Names a DNS query that waits for its answer: key of map `QUERIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QueryKey {
    /// `SO_COOKIE` of the socket that asked, which stands for its port.
    pub cookie: u64,
    /// The resolver that was asked.
    pub resolver: Address,
    /// The query's id, as it is on the wire.
    pub id: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// A DNS query, as it was sent: value of map `QUERIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// How many of `bytes` count.
    pub length: u32,
    /// Explicit padding.
    pub pad: u32,
    /// The message from its first byte.
    pub bytes: [u8; QUERY_BYTES],
}

/// An answer to a DNS query of an enrolled group, with the query; what the ring buffer `ANSWERS`
/// carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The enrolled cgroup; 0 for one that is a resolver itself.
    pub group: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at: u64,
    /// What was asked.
    pub query: Query,
    /// How many of `bytes` count.
    pub length: u32,
    /// The message, from its first byte; it may be cut short.
    pub bytes: [u8; ANSWER_BYTES],
}

/// Longest DNS name in text, without the last dot (RFC 1035 §2.3.4).
pub const NAME_BYTES: usize = 256;

/// Key of map `NAMES`: a name that a group asked for and an address that it was told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NameKey {
    /// The enrolled cgroup.
    pub group: u64,
    /// The address.
    pub address: Address,
    /// A hash of the name.
    pub hash: u64,
}

/// Value of map `NAMES`. The kernel programs do not look at it: it is where the names survive a
/// restart of the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameEntry {
    /// `CLOCK_MONOTONIC` until which the name is live, nanoseconds.
    pub until: u64,
    /// `CLOCK_MONOTONIC` when it was last learnt or used.
    pub used: u64,
    /// How many of `name` count.
    pub length: u32,
    /// Explicit padding.
    pub pad: u32,
    /// The name, lower case, without the last dot.
    pub name: [u8; NAME_BYTES],
}

/// First bytes of a direction that are kept for user space to recognise a protocol by.
pub const FIRST_BYTES: usize = 64;

/// Whom a surveyed group speaks with: key of map `SURVEY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SurveyKey {
    /// The surveyed cgroup.
    pub group: u64,
    /// The other side.
    pub address: Address,
    /// Its port; of what comes in, the group's own. 0 where the protocol has none.
    pub port: u32,
    /// Protocol number of IP.
    pub protocol: u32,
    /// Non-zero: the other side connects to a server in the group.
    pub inbound: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// The first bytes of a direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstBytes {
    /// How many of `bytes` count.
    pub length: u32,
    /// Explicit padding.
    pub pad: u32,
    /// The bytes.
    pub bytes: [u8; FIRST_BYTES],
}

/// What was seen: value of map `SURVEY`. Bytes are those of the transport's payload.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Connections that carried something; for other protocols than TCP, datagrams sent.
    pub connections: u64,
    /// Connections that carried something in clear.
    pub clear: u64,
    /// Connections that carried TLS; one that began in clear counts in both.
    pub tls: u64,
    /// Connections in which the server spoke first.
    pub server_first: u64,
    /// Bytes from the group.
    pub sent: u64,
    /// Bytes to the group.
    pub received: u64,
    /// A process that made such a connection; 0 where it was there before.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; 16],
    /// The first that a connection sent in clear.
    pub from_agent: FirstBytes,
    /// The first that one got in clear.
    pub from_server: FirstBytes,
}

/// Something that user space should hear of; what the ring buffer `EVENTS` carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    /// IP protocol number.
    pub protocol: u32,
    /// The enrolled cgroup.
    pub group: u64,
    /// `SO_COOKIE` of the socket, 0 where unknown.
    pub cookie: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at: u64,
    /// Destination.
    pub destination: Address,
    /// Its port; 0 where the protocol has none.
    pub port: u32,
    /// Process that owns the socket; 0 where unknown.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
    /// Explicit padding.
    pub pad: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; 16],
}

/// A packet was dropped on its way out.
pub const EVENT_DROPPED: u32 = 1;
/// connect() or sendto() of something other than TCP was refused.
pub const EVENT_DATAGRAM_REFUSED: u32 = 2;
/// connect() was refused because the daemon is down.
pub const EVENT_DOWN_REFUSED: u32 = 3;
/// connect() went out unprotected because the daemon is down.
pub const EVENT_DOWN_PASSED: u32 = 4;
/// connect() was refused because the socket's network namespace has no listener.
pub const EVENT_NAMESPACE_REFUSED: u32 = 5;
/// connect() was left alone, in observe mode, because the socket's network namespace has no
/// listener.
pub const EVENT_NAMESPACE_PASSED: u32 = 6;
/// A socket was made in a network namespace that has no listener: it is time to open one.
pub const EVENT_NAMESPACE_SEEN: u32 = 7;

/// Declares the counters once: their indexes in map `COUNTERS`, their names and their number.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        counters!(@index 0u32; $($(#[$doc])* $name)*);
        /// Name of each counter, by index.
        pub const COUNTER_NAMES: &[&str] = &[$($text),*];
    };
    (@index $n:expr; $(#[$doc:meta])* $name:ident $($rest:tt)*) => {
        $(#[$doc])* pub const $name: u32 = $n;
        counters!(@index $n + 1; $($rest)*);
    };
    (@index $n:expr;) => {
        /// How many counters there are.
        pub const COUNTERS: u32 = $n;
    };
}

counters! {
    /// connect() calls sent to the proxy.
    COUNT_REDIRECTED = "redirected",
    /// connect() calls to the host itself.
    COUNT_LOCAL = "local",
    /// connect() calls to a bypassed destination.
    COUNT_BYPASSED = "bypassed",
    /// DNS queries to a resolver.
    COUNT_RESOLVER = "resolver",
    /// connect() calls refused because the daemon is down.
    COUNT_DOWN_REFUSED = "down_refused",
    /// connect() calls that went unprotected because the daemon is down.
    COUNT_DOWN_PASSED = "down_passed",
    /// connect() calls refused because the network namespace has no listener.
    COUNT_NAMESPACE_REFUSED = "namespace_refused",
    /// connect() calls from another network namespace in observe mode, left alone.
    COUNT_NAMESPACE_PASSED = "namespace_passed",
    /// connect() calls answered from the memory of failed dials.
    COUNT_UNREACHABLE = "unreachable",
    /// connect() calls refused because there was no memory to remember the destination.
    COUNT_NO_STORAGE = "no_storage",
    /// Connections published for the proxy.
    COUNT_PUBLISHED = "published",
    /// Connections that could not be published because a map was full; the proxy refuses them.
    COUNT_MAP_FULL = "map_full",
    /// Published connections that were never established.
    COUNT_NOT_ESTABLISHED = "not_established",
    /// connect() and sendto() calls of other protocols, refused.
    COUNT_DATAGRAM_REFUSED = "datagram_refused",
    /// Packets dropped on their way out.
    COUNT_DROPPED = "dropped",
    /// Packets of servers inside a group, dropped (`inbound = "refuse"`).
    COUNT_INBOUND_DROPPED = "inbound_dropped",
    /// Events lost because the ring buffer was full.
    COUNT_EVENT_LOST = "event_lost",
    /// Answers to DNS queries of a group.
    COUNT_ANSWERED = "answered",
    /// Answers lost because the ring buffer was full: their names stay unknown.
    COUNT_ANSWER_LOST = "answer_lost",
    /// Destinations of a survey that could not be counted because its map was full.
    COUNT_SURVEY_FULL = "survey_full",
    /// Datagrams that went to the proxy.
    COUNT_RELAYED = "relayed",
    /// Datagrams to a resolver that are no DNS query, dropped.
    COUNT_NO_QUERY = "no_query",
    /// connect() calls that went past the proxy because only a share goes to it.
    COUNT_LEFT_OUT = "left_out",
}

//! mantled puts plaintext agents on a Linux host behind verified TLS, policy and a complete
//! record, with no change to the agent.
//!
//! This page is the architecture. It follows one connection from connect() to its record; each
//! step names the module that takes it.
//!
//! 1. The agent calls connect(). A kernel program on the root of the cgroup tree finds the task
//!    in an enrolled group, writes where it was going and who it is into socket storage, and
//!    rewrites the address to the proxy's listener. A second program publishes that under the
//!    connection's source address before the SYN leaves, so accept() cannot come first, and moves
//!    it to the proxy's own socket when the handshake ends, so nobody who gets that address later
//!    can have it. (`ebpf/`, loaded and fed by `mantled-redirect`.)
//! 2. [`proxy`] takes a permit, accepts and spawns [`proxy::session::serve`], which calls what
//!    follows in order and never goes back.
//! 3. [`proxy::origin`] takes the agent's flow of the accepted socket: who, and where to. A peer
//!    that the kernel did not redirect is refused: the proxy is no open relay. [`identity`] adds
//!    what /proc knows of the process.
//! 4. [`proxy::ledger`] opens the session. From here on, whatever happens, there is exactly one
//!    record: a guard writes it when it is dropped.
//! 5. [`names`] tells which name the agent asked DNS for before it connected. [`proxy::plan`]
//!    joins mode, name and route into what may happen: which port is dialled, which name the
//!    certificate must prove, whether clear text may leave.
//! 6. [`proxy::detect`] finds the protocol from whichever side speaks first, while the server is
//!    being dialled.
//! 7. [`proxy::upgrade`] makes an [`proxy::upstream::Upstream`]. Its variants are the only types
//!    that agent bytes can be written to: `Verified` comes out of a TLS handshake that verified
//!    the name, `Syslog` is that again and again while a server comes and goes, `Exposed` needs a
//!    permit that only observe mode or an `exempt` route gives, `Native` is the agent's own TLS and
//!    checks its framing to the last byte. Its server is verified by a handshake of the proxy's own
//!    ([`proxy::checks`]); where a route says so, the agent's TLS ends here instead, by the host's
//!    authority ([`ca`]), and its server is `Verified`.
//! 8. [`proxy::relay`] moves bytes in both directions, where policies judge a session's commands by
//!    way of an inspector (`proxy/inspect.rs`): `mantled-wire` finds the commands, `mantled-sql` tells
//!    what statements do, and a refused one is answered in the protocol's own words. What observe mode alone has allowed ends when
//!    its group is enforced, and what another configuration would plan otherwise when that is loaded
//!    ([`proxy::revocation`]).
//! 9. The session's guard hands one line to `mantled-record`; when it is written, the kernel's
//!    entry of the connection is removed. Entries without a line are what a killed daemon owes,
//!    and its successor writes them as `aborted`.
//!
//! Around it: [`config`] is what the operator wrote, parsed into what cannot be invalid;
//! [`enrollment`] enrols a group, and [`groups`] knows which are to be, follows units from one
//! cgroup to the next, reads the configuration again, and answers the [`admin`] socket, whose changes
//! [`state`] keeps, for good or until they are to be confirmed; [`share`] is the part of a group's
//! connections that a canary takes; [`namespaces`] serves agents in containers, whose servers are
//! dialled from where they are ([`proxy::place`]); [`app`] builds and joins the parts and binds
//! everything, then [`daemon`] runs, until it stops or a [`handover`] gives everything to a new
//! process; [`watchdog`] looks whether it does; [`tls`] is trust, rebuilt when its files change;
//! [`survey`] looks before anything is touched; [`summary`] is a session in one line; [`helper`] does
//! what needs more privilege, in a process of its own; [`policy`] puts sessions to the operator's
//! policies, before they are dialled, when their way out is there, and for each of their commands;
//! [`journal`] is the log under systemd; [`cli`] is the command line.
//!
//! What is enforced even when this process is wrong or dead: the kernel's egress program drops
//! whatever an enforced group sends past the proxy, and connect() finds no daemon when its
//! liveness socket is gone.
#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod ca;
pub mod cli;
pub mod completeness;
pub mod config;
pub mod daemon;
pub mod enrollment;
pub mod error;
pub mod groups;
pub mod handover;
pub mod helper;
pub mod identity;
pub mod journal;
pub mod metrics;
pub mod names;
pub mod namespaces;
pub mod policy;
pub mod proxy;
pub mod share;
pub mod state;
pub mod summary;
pub mod survey;
pub mod time;
pub mod tls;
pub mod watchdog;

//! The record of a session, and its writer.
//!
//! # Format
//!
//! A session log is a text file of JSON objects, one a line, in the order in which sessions
//! ended. Attribute names are OpenTelemetry's semantic conventions (`process.*`, `network.*`,
//! `server.*`, `tls.*`, `error.type`); what these do not name begins with `mantled.`. Attributes
//! without a value are left out. [`SessionRecord`] lists them all.
//!
//! # Invariants
//!
//! - One connection that the proxy accepted is one line, whatever ended it.
//! - A line is complete or absent: what could not be written whole is continued at the next
//!   attempt ([`Sink`]), and a reader ignores a last line without a newline.
//! - No line holds payload, passwords or keys.
//!
//! # Recovery
//!
//! The kernel keeps the list of connections that have no line yet. A daemon that finds some at
//! its start writes a line with the verdict `aborted` for each.
#![forbid(unsafe_code)]

mod session;
mod sink;

pub use session::{Certificate, Path, Process, SessionRecord, TlsFacts, Verdict};
pub use sink::{Fate, Health, OnFailure, Sink, Totals};

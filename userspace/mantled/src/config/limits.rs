//! `[limits]`: how long, and how many.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::error::quoted;
use super::field::{At, Field, Kind};
use super::raw::RawLimits;
use super::reader::Reader;

/// Bounds on what a session may take; none is zero or endless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Waiting for the first bytes that tell the protocol.
    pub detect: Duration,
    /// The dialogue before a handshake.
    pub starttls: Duration,
    /// The TLS handshake.
    pub handshake: Duration,
    /// The TCP connection to the server.
    pub dial: Duration,
    /// How long running sessions may go on when the daemon stops.
    pub drain: Duration,
    /// Concurrent sessions.
    pub sessions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            detect: Duration::from_secs(3),
            starttls: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            dial: Duration::from_secs(10),
            drain: Duration::from_secs(30),
            // With 256 KiB of buffers at most for each, 5 GB in the worst case.
            sessions: 20_000,
        }
    }
}

/// A duration as it is typed: `"500ms"`, `"3s"`, `"2m"`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct Period(#[schemars(regex(pattern = r"^[0-9]+(ms|s|m)$"))] String);

impl Kind for Period {
    fn expected() -> String {
        "a duration in quotes".into()
    }

    fn example(key: &str) -> String {
        format!("{key} = \"3s\"")
    }
}

/// An agent holds a connection open while it waits for these: longer is no limit but a leak.
const STEP_MAX: Duration = Duration::from_secs(5 * 60);
/// A stop that takes longer is a stop that somebody kills.
const DRAIN_MAX: Duration = Duration::from_secs(60 * 60);
/// Far more than one host has ports and memory for.
pub(super) const SESSIONS_MAX: i64 = 1_000_000;

pub(super) fn resolve(reader: &mut Reader, raw: RawLimits) -> Limits {
    let default = Limits::default();
    Limits {
        detect: duration(reader, "detect", raw.detect, STEP_MAX).unwrap_or(default.detect),
        starttls: duration(reader, "starttls", raw.starttls, STEP_MAX).unwrap_or(default.starttls),
        handshake: duration(reader, "handshake", raw.handshake, STEP_MAX)
            .unwrap_or(default.handshake),
        dial: duration(reader, "dial", raw.dial, STEP_MAX).unwrap_or(default.dial),
        drain: duration(reader, "drain", raw.drain, DRAIN_MAX).unwrap_or(default.drain),
        sessions: reader
            .number("sessions", raw.sessions, 1..=SESSIONS_MAX)
            .unwrap_or(default.sessions),
    }
}

fn duration(
    reader: &mut Reader,
    key: &str,
    field: Field<Period>,
    max: Duration,
) -> Option<Duration> {
    let At {
        value: Period(value),
        span,
    } = reader.get(key, field)?;
    let Some(duration) = parse(&value) else {
        let message = format!("`{key}` is {}, which is no duration", quoted(&value));
        reader.error(
            &span,
            &message,
            "write a whole number and `ms`, `s` or `m`, such as `3s`",
        );
        return None;
    };
    if duration.is_zero() || duration > max {
        let message = format!("`{key}` is {}, which is out of range", quoted(&value));
        let hint = format!("write more than 0 and at most `{}m`", max.as_secs() / 60);
        reader.error(&span, &message, &hint);
        return None;
    }
    Some(duration)
}

fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

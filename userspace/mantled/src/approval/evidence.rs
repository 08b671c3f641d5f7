//! The lines of `approvals.jsonl`: one for each question, and one for whatever becomes of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Held, who::Approver};
use crate::time::rfc3339;

/// Now, in milliseconds since 1970: what has to mean the same to the next daemon.
pub(super) fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

/// That as text.
pub(super) fn text(wall: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_millis(wall))
}

/// What has happened to a question.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event<'a> {
    Asked,
    /// An agent has come back to what it asked before a restart.
    AskedAgain,
    Approved {
        by: &'a Approver,
        note: Option<&'a str>,
        /// A grant stands until then.
        until: Option<u64>,
    },
    Denied {
        by: &'a Approver,
        reason: &'a str,
    },
    TimedOut,
    Withdrawn,
    /// An answer that was given while there was no daemon, or no agent, is used up.
    TakenUp {
        approved: bool,
        by: Option<&'a str>,
    },
    /// It was answered, and the agent has not come for it.
    Unused,
    /// Passed by a standing grant.
    Passed {
        by: &'a str,
        grant: &'a str,
    },
    Revoked {
        by: &'a Approver,
    },
}

impl Event<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::AskedAgain => "asked_again",
            Self::Approved { until: None, .. } => "approved",
            Self::Approved { .. } => "granted",
            Self::Denied { .. } => "denied",
            Self::TimedOut => "timed_out",
            Self::Withdrawn => "withdrawn",
            Self::TakenUp { .. } => "taken_up",
            Self::Unused => "unused",
            Self::Passed { .. } => "passed",
            Self::Revoked { .. } => "revoked",
        }
    }
}

/// The line. It has everything but the bound values, of which it has the count.
pub(super) fn line(event: Event<'_>, id: &str, held: &Held, asked: u64) -> Value {
    let mut line = json!({
        "time": text(wall()),
        "event": event.name(),
        "id": id,
        "asked": text(asked),
        "held": held.without_values(),
        "values": held.values.len(),
    });
    let more = match event {
        Event::Asked
        | Event::AskedAgain
        | Event::TimedOut
        | Event::Withdrawn
        | Event::Unused => json!({}),
        Event::Approved { by, note, until } => {
            json!({ "note": note, "until": until.map(text), "approver": approver(by) })
        }
        Event::Denied { by, reason } => json!({ "reason": reason, "approver": approver(by) }),
        Event::TakenUp { approved, by } => json!({ "approved": approved, "by": by }),
        Event::Passed { by, grant } => json!({ "grant": grant, "by": by }),
        Event::Revoked { by } => json!({ "approver": approver(by) }),
    };
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
        if let Some(Value::Object(held)) = line.get_mut("held") {
            held.remove("values");
        }
    }
    line
}

fn approver(by: &Approver) -> Value {
    json!({ "name": by.name, "uid": by.uid, "way": by.way, "from": by.from })
}

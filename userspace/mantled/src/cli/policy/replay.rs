//! What other policies would have said of the sessions that are recorded.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use serde_json::{Value, json};

use super::{super::Exit, cases, in_words};
use crate::{error::Cause, policy::Rules};

/// Sessions whose verdict changes in the same way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    /// The unit, else the process.
    agent: String,
    service: String,
    before: String,
    after: String,
}

/// What becomes of the sessions of a file.
#[derive(Debug, Default)]
struct Replay {
    changes: BTreeMap<Change, u64>,
    same: u64,
    /// Refused for a reason that no policy changes.
    refused_otherwise: u64,
    /// Nobody was asked, or the line is none of a session.
    untold: u64,
}

/// Judges every session of a file at the time at which it was opened, and tells what changes.
pub(super) fn run(rules: &Rules, file: &Path, as_json: bool) -> Result<(), Exit> {
    let failed = |error: std::io::Error| Exit::failed(format!("{}: {error}", file.display()));
    let mut replay = Replay::default();
    for line in BufReader::new(File::open(file).map_err(failed)?).lines() {
        let line = line.map_err(failed)?;
        match serde_json::from_str::<Value>(&line) {
            Ok(record) => replay.judge(rules, &record),
            Err(_) => replay.untold += 1,
        }
    }
    if as_json {
        println!("{}", replay.to_json());
    } else {
        print!("{}", replay.in_words());
    }
    Ok(())
}

impl Replay {
    fn judge(&mut self, rules: &Rules, record: &Value) {
        let by_policy = record["error.type"] == Cause::PolicyDenied.name();
        let was_refused = record["mantled.verdict"] == "refused";
        if was_refused && !by_policy {
            self.refused_otherwise += 1;
            return;
        }
        let Some((connect, open)) = cases(record) else {
            self.untold += 1;
            return;
        };
        let at = record["timestamp"].as_str();
        let decisions = [Some(&connect), open.as_ref()].into_iter().flatten();
        let decided: Vec<_> = decisions
            .filter_map(|case| rules.decide_at(case, at))
            .collect();
        let denied = decided.iter().find(|decision| !decision.allowed);
        let Some(decision) = denied.or(decided.last()) else {
            self.untold += 1;
            return;
        };
        if decision.allowed != was_refused {
            self.same += 1;
            return;
        }
        let text = |key: &str| record[key].as_str().map(str::to_owned);
        let agent = text("mantled.systemd.unit").or_else(|| text("process.executable.name"));
        let change = Change {
            agent: agent.unwrap_or_default(),
            service: format!(
                "{}:{}",
                text("server.address").unwrap_or_default(),
                record["server.port"]
            ),
            before: if was_refused { "refused" } else { "permitted" }.to_owned(),
            after: in_words(decision),
        };
        *self.changes.entry(change).or_default() += 1;
    }

    fn in_words(&self) -> String {
        let mut words = String::new();
        for (change, count) in &self.changes {
            words += &format!(
                "{count} of {} to {}: {} -> {}\n",
                change.agent, change.service, change.before, change.after
            );
        }
        words
            + &format!(
                "{} change, {} stay, {} were refused for other reasons, {} tell too little\n",
                self.changes.values().sum::<u64>(),
                self.same,
                self.refused_otherwise,
                self.untold
            )
    }

    fn to_json(&self) -> Value {
        let changes: Vec<Value> = self
            .changes
            .iter()
            .map(|(change, count)| {
                json!({
                    "agent": change.agent,
                    "service": change.service,
                    "before": change.before,
                    "after": change.after,
                    "sessions": count,
                })
            })
            .collect();
        json!({
            "changes": changes,
            "same": self.same,
            "refused_otherwise": self.refused_otherwise,
            "untold": self.untold,
        })
    }
}

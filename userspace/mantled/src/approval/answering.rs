//! What approvers do: look, answer, grant, revoke. All of it blocks.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Answer, Approvals, Held,
    desk::{Desk, LEFT, Open, Stage, Standing, UNRECORDED, lock},
    disk::KeptGrant,
    evidence::{Event, line, text, wall},
    shown,
    who::{Approver, Caller, approver, is_member},
};

/// Longest time for which a grant may stand: a working day and a night. What is right for longer is
/// a policy's to say.
pub const LONGEST_GRANT: Duration = Duration::from_secs(24 * 3600);

/// Grants at once: more than people keep in mind.
const GRANTS: usize = 256;

/// Letters of a reason or a note that are kept.
const WORDS: usize = 500;

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such thing, for this caller.
    Unknown(String),
    /// The caller may not, or comes too late.
    Refused(String),
    /// It was tried.
    Failed(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(text) | Self::Refused(text) | Self::Failed(text) => f.write_str(text),
        }
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may go on.
    Approve {
        /// What is to be remembered about it.
        note: Option<String>,
        /// The same may go on for so long.
        grant: Option<Duration>,
    },
    /// It may not.
    Deny {
        /// Why, for the agent.
        reason: Option<String>,
    },
}

/// A question, as approvers see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    /// What it is called.
    pub id: String,
    /// When it was asked (RFC 3339).
    pub asked: String,
    /// Seconds until it is denied.
    pub left_s: u64,
    /// Its agent has gone with an earlier daemon, and may come back for the answer.
    pub agent_gone: bool,
    /// The answer, where the agent has not come back for it yet.
    pub answer: Option<Answer>,
    /// SHA-256 of what an approval is bound to.
    pub fingerprint: String,
    /// What is asked.
    pub held: Held,
}

/// A standing grant, as approvers see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Granted {
    /// What the question was called.
    pub id: String,
    /// Who gave it.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// When it was given (RFC 3339).
    pub given: String,
    /// When it ends.
    pub until: String,
    /// SHA-256 of what it is for.
    pub fingerprint: String,
    /// What was asked, without its values.
    pub held: Held,
}

/// What has come of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// What the question is called.
    pub id: String,
    /// It was approved.
    pub approved: bool,
    /// By whom.
    pub by: String,
    /// When the grant ends, where one was given.
    pub until: Option<String>,
    /// The agent has gone; it gets the answer if it comes back in time.
    pub agent_gone: bool,
}

impl Approvals {
    fn desk(&self) -> Result<&Arc<Desk>, Trouble> {
        self.0
            .as_ref()
            .ok_or_else(|| Trouble::Failed("nothing is held here".to_owned()))
    }

    /// The questions that the caller may answer; root sees all. The oldest first.
    ///
    /// # Errors
    /// The caller is nobody.
    pub fn list(&self, caller: Caller) -> Result<Vec<Question>, Trouble> {
        let desk = self.desk()?;
        let groups = desk.groups_of(caller)?;
        let mut state = lock(&desk.state);
        state.expire();
        let open = state.questions.iter();
        let mut seen: Vec<_> = open
            .filter(|(_, open)| groups.contains(&open.held.group))
            .map(|(id, open)| (open.asked, question(id, open)))
            .collect();
        seen.sort_by_key(|(asked, _)| *asked);
        Ok(seen.into_iter().map(|(_, question)| question).collect())
    }

    /// One of them.
    ///
    /// # Errors
    /// There is none, for this caller.
    pub fn show(&self, caller: Caller, id: &str) -> Result<Question, Trouble> {
        let desk = self.desk()?;
        let groups = desk.groups_of(caller)?;
        let mut state = lock(&desk.state);
        state.expire();
        match state.questions.get(id) {
            Some(open) if groups.contains(&open.held.group) => Ok(question(id, open)),
            _ => Err(unknown(id)),
        }
    }

    /// Answers one.
    ///
    /// # Errors
    /// The caller may not, or somebody else has answered.
    pub fn answer(
        &self,
        caller: Caller,
        id: &str,
        decision: Decision,
    ) -> Result<Settled, Trouble> {
        let desk = self.desk()?;
        // Who may not see a question is told nothing of it.
        let groups = desk.groups_of(caller)?;
        let held = {
            let state = lock(&desk.state);
            match state.questions.get(id) {
                Some(open) if groups.contains(&open.held.group) => open.held.clone(),
                Some(_) => return Err(unknown(id)),
                None => return Err(gone(&state.recent, id)),
            }
        };
        let config = desk.config.borrow().clone();
        let group = config.group(&held.group).ok_or_else(|| {
            Trouble::Refused(format!(
                "the group {} is not configured any more",
                held.group
            ))
        })?;
        let by =
            approver(&*desk.accounts, group, caller, &held).map_err(Trouble::Refused)?;
        desk.answer(id, &decision, &by)
    }

    /// The standing grants of the caller's groups; root sees all.
    ///
    /// # Errors
    /// The caller is nobody.
    pub fn grants(&self, caller: Caller) -> Result<Vec<Granted>, Trouble> {
        let desk = self.desk()?;
        let groups = desk.groups_of(caller)?;
        let mut state = lock(&desk.state);
        state.expire();
        let grants = state.grants.values().map(|grant| grant.kept.clone());
        Ok(grants
            .filter(|grant| groups.contains(&grant.held.group))
            .map(granted)
            .collect())
    }

    /// Ends a grant: any member of its group may, and root.
    ///
    /// # Errors
    /// There is none, or it would be there again after a restart.
    pub fn revoke(&self, caller: Caller, id: &str) -> Result<Granted, Trouble> {
        let desk = self.desk()?;
        let groups = desk.groups_of(caller)?;
        let person = caller.person().map_err(Trouble::Refused)?;
        let grant = {
            let mut state = lock(&desk.state);
            match state.grants.get(id) {
                Some(grant) if groups.contains(&grant.kept.held.group) => {}
                _ => return Err(Trouble::Unknown(format!(
                    "there is no grant {id} that you may revoke; `mantled approvals grants` lists them"
                ))),
            }
            let Some(grant) = state.grants.remove(id) else {
                return Err(unknown(id));
            };
            state.changed = true;
            grant.kept
        };
        let by = Approver {
            name: super::who::named(&*desk.accounts, person),
            uid: Some(person),
            way: "cli",
            from: None,
        };
        tracing::info!(id, group = grant.held.group, approver = by.name, "the grant was revoked");
        desk.record(line(Event::Revoked { by: &by }, id, &grant.held, grant.given));
        desk.store().map_err(|error| {
            Trouble::Failed(format!(
                "the grant {id} is revoked, but that could not be kept ({error}), so a restart brings it back; make the state directory writable and revoke it again then"
            ))
        })?;
        Ok(granted(grant))
    }
}

impl Desk {
    /// The groups whose questions this caller may see.
    fn groups_of(&self, caller: Caller) -> Result<Vec<String>, Trouble> {
        let person = caller.person().map_err(Trouble::Refused)?;
        let config = self.config.borrow().clone();
        let sees = |group: &&crate::config::Approvers| {
            caller.uid == 0 || is_member(&*self.accounts, group, person)
        };
        Ok(config
            .groups
            .iter()
            .filter(sees)
            .map(|group| group.name.clone())
            .collect())
    }

    /// Answers; that the approver may was seen to.
    pub(super) fn answer(
        &self,
        id: &str,
        decision: &Decision,
        by: &Approver,
    ) -> Result<Settled, Trouble> {
        if let Decision::Approve { grant: Some(time), .. } = decision {
            self.may_grant(*time, by)?;
        }
        let (held, asked) = self.begin(id, by)?;
        let until = match decision {
            Decision::Approve { grant: Some(time), .. } => Some(wall() + time.as_millis() as u64),
            _ => None,
        };
        let (answer, recorded) = match decision {
            Decision::Approve { note, .. } => {
                let note = note.as_deref().map(|note| shown::short(note, WORDS));
                let event = Event::Approved {
                    by,
                    note: note.as_deref(),
                    until,
                };
                let recorded = self.record(line(event, id, &held, asked));
                let answer = if recorded {
                    Answer::Approved {
                        by: by.name.clone(),
                    }
                } else {
                    Answer::nobody(UNRECORDED)
                };
                (answer, recorded)
            }
            Decision::Deny { reason } => {
                let reason = reason.as_deref().unwrap_or("no reason was given");
                let reason = shown::short(reason, WORDS);
                let event = Event::Denied {
                    by,
                    reason: &reason,
                };
                // A denial counts, written down or not.
                self.record(line(event, id, &held, asked));
                let answer = Answer::Denied {
                    by: Some(by.name.clone()),
                    reason,
                };
                (answer, true)
            }
        };
        let approved = matches!(answer, Answer::Approved { .. });
        let grant = until.filter(|_| approved).and_then(|until| {
            let note = match decision {
                Decision::Approve { note, .. } => note.as_deref(),
                Decision::Deny { .. } => None,
            };
            Some(KeptGrant {
                id: id.to_owned(),
                fingerprint: held.standing(),
                held: held.without_values(),
                by: by.name.clone(),
                uid: by.uid?,
                note: note.map(|note| shown::short(note, WORDS)),
                given: wall(),
                until,
            })
        });
        let verdict = if approved { "approved" } else { "denied" };
        tracing::info!(id, group = held.group, approver = by.name, verdict, "answered");
        let granted = grant.is_some();
        let agent_gone = self.finish(id, answer, grant, by, verdict);
        if !recorded {
            return Err(Trouble::Failed(format!("{id}: {UNRECORDED}")));
        }
        Ok(Settled {
            id: id.to_owned(),
            approved,
            by: by.name.clone(),
            until: until.filter(|_| granted).map(text),
            agent_gone,
        })
    }

    fn may_grant(&self, time: Duration, by: &Approver) -> Result<(), Trouble> {
        if by.uid.is_none() {
            let text = "a link cannot grant; a user of the host can";
            return Err(Trouble::Refused(text.to_owned()));
        }
        if time.is_zero() || time > LONGEST_GRANT {
            return Err(Trouble::Refused(format!(
                "a grant stands for {} h at most; what is right for longer is a policy's to say",
                LONGEST_GRANT.as_secs() / 3600
            )));
        }
        if lock(&self.state).grants.len() >= GRANTS {
            return Err(Trouble::Refused(format!(
                "{GRANTS} grants stand already; revoke some of them first"
            )));
        }
        Ok(())
    }

    /// From here on, nobody else can answer it.
    fn begin(&self, id: &str, by: &Approver) -> Result<(Held, u64), Trouble> {
        let mut state = lock(&self.state);
        let Some(open) = state.questions.get_mut(id) else {
            return Err(gone(&state.recent, id));
        };
        match &open.stage {
            Stage::Answering(other) => {
                return Err(Trouble::Refused(format!(
                    "{id} is being answered by {other}"
                )));
            }
            Stage::Answered(answer) => {
                return Err(Trouble::Refused(format!("{id} was {} already", told(answer))));
            }
            Stage::Waiting if open.deadline <= Instant::now() => {
                return Err(Trouble::Refused(format!("the time of {id} is over")));
            }
            Stage::Waiting => {}
        }
        open.stage = Stage::Answering(by.name.clone());
        Ok((open.held.clone(), open.asked))
    }

    /// Hands the answer over, or leaves it for an agent that comes back; true: it has gone.
    fn finish(
        &self,
        id: &str,
        answer: Answer,
        grant: Option<KeptGrant>,
        by: &Approver,
        verdict: &str,
    ) -> bool {
        let mut state = lock(&self.state);
        match answer {
            Answer::Approved { .. } => state.counts.approved += 1,
            Answer::Denied { by: Some(_), .. } => state.counts.denied += 1,
            Answer::Denied { by: None, .. } => state.counts.refused += 1,
        }
        state.changed = true;
        state.remember(id, format!("{verdict} by {}", by.name));
        if let Some(grant) = grant {
            state.grants.insert(grant.id.clone(), Standing::new(grant));
        }
        let mut sender = None;
        let mut unused = None;
        if let Some(mut open) = state.questions.remove(id) {
            match open.ticket.take() {
                Some((waits, _)) => {
                    sender = Some(waits);
                    unused = Some(line(Event::Unused, id, &open.held, open.asked));
                }
                None => {
                    open.stage = Stage::Answered(answer.clone());
                    state.questions.insert(id.to_owned(), open);
                }
            }
        }
        drop(state);
        // Before the command goes on: nobody must be asked for it again after a restart.
        if let Err(error) = self.store() {
            tracing::error!(%error, id, "an answer could not be kept; a restart would ask again");
        }
        let Some(sender) = sender else {
            return true;
        };
        let gone = sender.send(answer).is_err();
        if let (true, Some(unused)) = (gone, unused) {
            self.record(unused);
        }
        gone
    }
}

fn question(id: &str, open: &Open) -> Question {
    Question {
        id: id.to_owned(),
        asked: text(open.asked),
        left_s: open
            .deadline
            .saturating_duration_since(Instant::now())
            .as_secs(),
        agent_gone: open.ticket.is_none(),
        answer: match &open.stage {
            Stage::Answered(answer) => Some(answer.clone()),
            Stage::Waiting | Stage::Answering(_) => None,
        },
        fingerprint: open.held.fingerprint(),
        held: open.held.clone(),
    }
}

fn granted(grant: KeptGrant) -> Granted {
    Granted {
        id: grant.id,
        by: grant.by,
        note: grant.note,
        given: text(grant.given),
        until: text(grant.until),
        fingerprint: grant.fingerprint,
        held: grant.held,
    }
}

fn told(answer: &Answer) -> String {
    match answer {
        Answer::Approved { by } => format!("approved by {by}"),
        Answer::Denied { by: Some(by), .. } => format!("denied by {by}"),
        Answer::Denied { by: None, .. } => "denied".to_owned(),
    }
}

fn unknown(id: &str) -> Trouble {
    Trouble::Unknown(format!(
        "nothing that you may answer is called {}; `mantled approvals list` lists what waits",
        shown::short(id, 40)
    ))
}

fn gone(recent: &std::collections::VecDeque<(String, String)>, id: &str) -> Trouble {
    match recent.iter().rev().find(|(of, _)| of == id) {
        Some((_, what)) => Trouble::Refused(format!("{id} does not wait any more: {what}")),
        None => unknown(id),
    }
}

/// What a caller is told who comes while the daemon leaves.
pub(super) fn leaving() -> Trouble {
    Trouble::Failed(LEFT.to_owned())
}

//! Between "a command is held" and "a person has answered".
//!
//! An inspector holds a command and gets a [`Ticket`]. The question is shown to the members of its
//! group, by a [`socket`] for every user of the host, and where the configuration says so by a
//! [`webhook`] and a [`link`]. The first answer counts; nobody's answer within `[approval] timeout`
//! denies.
//!
//! 1. An approval is for one command: this statement with these values, of this process, to this
//!    server ([`Held::fingerprint`]). A standing grant is for the same of any process of that name,
//!    user and control group ([`Held::standing`]), until it ends.
//! 2. Nothing is approved that is not written down first, where `[record] on_failure` is `refuse`.
//! 3. Nobody approves their own ([`who`]).
//! 4. What waits outlives the daemon. The agent's connection does not: its question is left to be
//!    answered, and an agent that asks the very same again within its time takes it up, or takes its
//!    answer, once. A daemon that hands over to another does the same.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod answering;
mod desk;
mod disk;
mod evidence;
mod held;
pub mod link;
mod page;
pub mod shown;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod webhook;
pub mod who;

use std::{
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep_until},
};

use crate::config::{self, Config};
use desk::Desk;
use who::{Accounts, HostAccounts};

pub use answering::{Decision, Granted, Question, Settled, Trouble};
pub use held::Held;

/// What has come of a held command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It may go on.
    Approved {
        /// Who said so.
        by: String,
    },
    /// It may not.
    Denied {
        /// Who said so; None: nobody did.
        by: Option<String>,
        /// Why, in words for the agent.
        reason: String,
    },
}

impl Answer {
    fn nobody(reason: impl Into<String>) -> Self {
        Self::Denied {
            by: None,
            reason: reason.into(),
        }
    }
}

/// How many, since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Questions that wait for an answer now.
    pub held: u64,
    /// Approved by a person.
    pub approved: u64,
    /// Approved by a standing grant.
    pub granted: u64,
    /// Denied by a person.
    pub denied: u64,
    /// Nobody has answered in time.
    pub timed_out: u64,
    /// The agent has gone before.
    pub withdrawn: u64,
    /// Denied with nobody asked: too many at once, no such group, no record.
    pub refused: u64,
}

/// The held questions of this host; cheap to clone.
#[derive(Clone, Debug)]
pub struct Approvals(Option<Arc<Desk>>);

impl Approvals {
    /// Where nobody can be asked: everything is denied.
    pub fn nobody() -> Self {
        Self(None)
    }

    /// Takes up what an earlier daemon has left.
    ///
    /// # Errors
    /// A text that says what to do.
    pub fn load(config: &Config) -> Result<Self, String> {
        let records = config.record();
        let strict = records.on_failure == config::OnFailure::Refuse;
        let beside = records.dir.as_deref().unwrap_or(config.state_dir());
        let approval = config.approval().clone();
        Self::open(
            approval,
            config.state_dir(),
            beside,
            strict,
            Arc::new(HostAccounts),
        )
    }

    /// The same, apart from a whole configuration. `strict`: nothing is approved without a record.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn open(
        config: config::Approval,
        state: &Path,
        records: &Path,
        strict: bool,
        accounts: Arc<dyn Accounts>,
    ) -> Result<Self, String> {
        Desk::open(config, state, records, strict, accounts)
            .map(|desk| Self(Some(Arc::new(desk))))
    }

    /// Asks. Never blocks; must be called within the event loop.
    pub fn hold(&self, held: Held) -> Ticket {
        match &self.0 {
            Some(desk) => desk.hold(held),
            None => Ticket::decided(Answer::nobody(
                "nobody can be asked for approval here; enrol the group in the daemon",
            )),
        }
    }

    /// How many.
    pub fn counts(&self) -> Counts {
        self.0
            .as_ref()
            .map(|desk| desk.counts())
            .unwrap_or_default()
    }

    /// The configuration was read again. Questions that wait keep their time; grants of who is not
    /// in their group any more end. Blocks.
    ///
    /// # Errors
    /// The key of links cannot be made; then nothing has changed.
    pub fn reconfigure(&self, config: config::Approval) -> Result<(), String> {
        match &self.0 {
            Some(desk) => desk.reconfigure(config),
            None => Ok(()),
        }
    }

    /// This daemon stops, or another one takes over: the agents that wait are told to ask again, and
    /// their questions are left in the file for the next one.
    pub async fn leave(&self) {
        if let Some(desk) = &self.0 {
            desk.leave().await;
        }
    }

    /// The other one has not taken over: reads the file again. Blocks.
    ///
    /// # Errors
    /// As [`Self::load`]; then everything goes on being denied.
    pub fn take_back(&self) -> Result<(), String> {
        match &self.0 {
            Some(desk) => desk.take_back(),
            None => Ok(()),
        }
    }
}

/// A question on its way. Dropping it withdraws the question.
#[derive(Debug)]
pub struct Ticket {
    id: String,
    /// Whom to tell that it is over, and which of the tickets for this id this is.
    desk: Option<(Arc<Desk>, u64)>,
    answer: oneshot::Receiver<Answer>,
    limit: Option<Pin<Box<Sleep>>>,
    given: Option<Answer>,
}

impl Ticket {
    /// One that was decided at once.
    fn decided(answer: Answer) -> Self {
        Self {
            id: String::new(),
            desk: None,
            answer: oneshot::channel().1,
            limit: None,
            given: Some(answer),
        }
    }

    /// What people call it, such as `a-7f3k2m9q`; empty where nobody was asked.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The answer, as soon as there is one.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        if let Some(given) = &self.given {
            return Poll::Ready(given.clone());
        }
        let answer = match Pin::new(&mut self.answer).poll(cx) {
            Poll::Ready(Ok(answer)) => answer,
            // Who was to answer is gone.
            Poll::Ready(Err(_)) => Answer::nobody("the answer was lost; ask again"),
            Poll::Pending => {
                let over = match &mut self.limit {
                    Some(limit) => limit.as_mut().poll(cx).is_ready(),
                    None => false,
                };
                if !over {
                    return Poll::Pending;
                }
                self.limit = None;
                let timed_out = self
                    .desk
                    .as_ref()
                    .and_then(|(desk, serial)| desk.time_out(&self.id, *serial));
                match timed_out {
                    Some(answer) => answer,
                    // Somebody's answer is being written down, and comes.
                    None => return Poll::Pending,
                }
            }
        };
        self.given = Some(answer.clone());
        Poll::Ready(answer)
    }

    /// The same, to be awaited.
    pub async fn answer(&mut self) -> Answer {
        std::future::poll_fn(|cx| self.poll_answer(cx)).await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let (None, Some((desk, serial))) = (&self.given, &self.desk) {
            desk.withdraw(&self.id, *serial);
        }
    }
}

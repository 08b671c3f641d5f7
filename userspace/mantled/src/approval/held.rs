//! What somebody is asked, and what an answer is bound to.

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// What somebody is asked. Everything that the answer is bound to is in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The group of approvers, as the policy names it.
    pub group: String,
    /// Ids of the policies that want it.
    pub policies: Vec<String>,
    /// Id of the session's record.
    pub session: String,
    /// Name of the process.
    pub process: String,
    /// Its number.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// When it began, in ticks since boot: its number may be another's by now.
    pub start: Option<u64>,
    /// Its systemd unit.
    pub unit: Option<String>,
    /// Its control group.
    pub cgroup: Option<String>,
    /// Its container.
    pub container: Option<String>,
    /// Where it wants to go: `db.example.com:5432`.
    pub destination: String,
    /// SHA-256 of the server's certificate.
    pub certificate: Option<String>,
    /// What is spoken: `postgresql`.
    pub protocol: String,
    /// The policies' action: `sql.write`.
    pub action: String,
    /// The whole statement or request line.
    pub command: String,
    /// Bound values, as text, or `(binary, 12 bytes)`.
    pub values: Vec<String>,
    /// At COMMIT: the statements with their counts of rows.
    pub transaction: Vec<String>,
}

impl Held {
    /// SHA-256 over all that an answer is bound to: this process, and what it wants.
    pub fn fingerprint(&self) -> String {
        let mut digest = self.standing_digest();
        digest.number(self.pid.into());
        digest.optional(self.start.map(|start| start.to_string()).as_deref());
        digest.finish()
    }

    /// The same for whichever process of this name, user and control group: what asks again after a
    /// restart, and what a standing grant is for.
    pub fn standing(&self) -> String {
        self.standing_digest().finish()
    }

    fn standing_digest(&self) -> Digest {
        let mut digest = Digest::new("mantled approval 1");
        digest.text(&self.group);
        digest.list(&self.policies);
        digest.text(&self.process);
        digest.number(self.uid.into());
        digest.optional(self.unit.as_deref());
        digest.optional(self.cgroup.as_deref());
        digest.optional(self.container.as_deref());
        digest.text(&self.destination);
        digest.optional(self.certificate.as_deref());
        digest.text(&self.protocol);
        digest.text(&self.action);
        digest.text(&self.command);
        digest.list(&self.values);
        digest.list(&self.transaction);
        digest
    }

    /// Bytes that an approver would have to read.
    pub(super) fn length(&self) -> usize {
        let lists = self.values.iter().chain(&self.transaction);
        self.command.len() + lists.map(String::len).sum::<usize>()
    }

    /// The same without the bound values, which only approvers are shown.
    #[must_use]
    pub(super) fn without_values(&self) -> Self {
        Self {
            values: Vec::new(),
            ..self.clone()
        }
    }
}

/// Every part goes in with its length, so that no two different questions are the same bytes.
struct Digest(Context);

impl Digest {
    fn new(purpose: &str) -> Self {
        let mut digest = Self(Context::new(&SHA256));
        digest.text(purpose);
        digest
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn optional(&mut self, text: Option<&str>) {
        self.number(text.is_some().into());
        self.text(text.unwrap_or_default());
    }

    fn list(&mut self, texts: &[String]) {
        self.number(texts.len() as u64);
        for text in texts {
            self.text(text);
        }
    }

    fn finish(self) -> String {
        let digest = self.0.finish();
        digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

//! What the operator's policies say of a session.
//!
//! [`mantled_policy`] decides; here its texts are read, and what is known of a session is put to it:
//! before anything is sent to the server, and again when the way out is there. Without `[policy]`
//! nobody is asked.

mod command;
mod key;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use mantled_mask::{Column, Key, Masks};
use mantled_policy::{
    Action, Command, Decision, Facts, Family, Opened, Policies, Service, Tls, Workload,
};
use mantled_record::{Process, SessionRecord, TlsFacts};
use rustls::pki_types::ServerName;

pub use command::{Login, Question, shape_of_request};

use crate::{
    config::Protocol,
    error::{Cause, Failure},
};

/// The policies of this host.
#[derive(Debug, Default)]
pub struct Rules {
    /// None: nobody is asked.
    policies: Option<Policies>,
    /// Where they mask anything.
    masking: Option<Masking>,
}

/// What masks are made with.
#[derive(Clone, Debug)]
pub struct Masking {
    /// Tokens are made of it.
    pub key: Arc<Key>,
    /// All columns that any policy masks.
    pub columns: Arc<[Column]>,
}

/// One session as policies see it.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Who.
    pub process: Process,
    /// The name of the server.
    pub host: Option<String>,
    /// Its address.
    pub destination: Option<SocketAddr>,
    /// "tcp" or "udp".
    pub transport: &'static str,
    /// The way out, once it is there.
    pub opened: Option<Way>,
}

/// The way out.
#[derive(Clone, Debug)]
pub struct Way {
    /// The protocol, as records have it.
    pub protocol: Option<String>,
    /// A route says so; else an agent can pretend.
    pub is_named: bool,
    /// "verified", "native" or "exposed".
    pub path: String,
    /// None: it is in clear.
    pub tls: Option<TlsFacts>,
}

/// The texts of policies in a directory, in the order of their names, each with its path.
///
/// # Errors
/// What cannot be read.
pub fn texts(dir: &Path) -> Result<Vec<(String, String)>, String> {
    let failed = |path: &Path, error: std::io::Error| {
        format!(
            "[policy] dir: {} cannot be read: {error}; make it readable for the user that mantled runs as",
            path.display()
        )
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| failed(dir, error))? {
        let path = entry.map_err(|error| failed(dir, error))?.path();
        if path.extension().is_some_and(|kind| kind == "cedar") {
            files.push(path);
        }
    }
    files.sort_unstable();
    files
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
            Ok((path.display().to_string(), text))
        })
        .collect()
}

impl Rules {
    /// Those of a directory; None: there are none, and nothing is refused by policy.
    ///
    /// # Errors
    /// All that is wrong with them, in lines.
    pub fn load(dir: Option<&Path>) -> Result<Self, String> {
        let Some(dir) = dir else {
            return Ok(Self::default());
        };
        let policies = Policies::load(&texts(dir)?).map_err(|mistakes| {
            let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            lines.join("\n")
        })?;
        if policies.count() == 0 {
            return Err(format!(
                "{} has no policies (*.cedar), so nothing would be permitted; write one, or remove \
                 [policy]",
                dir.display()
            ));
        }
        Ok(Self {
            policies: Some(policies),
            masking: None,
        })
    }

    /// The same with the key of this host, where they mask anything; without a directory, with a key
    /// that nobody keeps.
    ///
    /// # Errors
    /// The key cannot be read or made, and what to do.
    pub fn keyed(mut self, state_dir: Option<&Path>) -> Result<Self, String> {
        if let Some(policies) = self.policies.as_ref().filter(|policies| policies.mask()) {
            let key = match state_dir {
                Some(state_dir) => key::load(state_dir)?,
                None => key::passing()?,
            };
            self.masking = Some(Masking {
                key: Arc::new(key),
                columns: policies.masked_columns().into_iter().collect(),
            });
        }
        Ok(self)
    }

    /// What masks are made with; None: nothing is masked.
    pub fn masking(&self) -> Option<&Masking> {
        self.masking.as_ref()
    }

    /// What is masked in every answer of a session that is open.
    pub fn masks(&self, case: &Case) -> Masks {
        let mut masks = Masks::default();
        if self.masking.is_some() {
            let before = Case {
                opened: None,
                ..case.clone()
            };
            for decision in [self.decide(&before), self.decide(case)]
                .into_iter()
                .flatten()
            {
                masks.merge(&decision.masks);
            }
        }
        masks
    }

    /// How many there are; None: nobody is asked.
    pub fn count(&self) -> Option<usize> {
        self.policies.as_ref().map(Policies::count)
    }

    /// What they say of this, now; None: nobody is asked.
    pub fn decide(&self, case: &Case) -> Option<Decision> {
        self.decide_at(case, None)
    }

    /// Whose commands must be permitted in a session that is open.
    pub fn families(&self, case: &Case) -> Vec<Family> {
        let now = crate::time::rfc3339(SystemTime::now());
        self.policies
            .as_ref()
            .map_or_else(Vec::new, |policies| policies.families(&case.facts(&now)))
    }

    /// What they say of a command in it; None: nobody is asked.
    pub fn decide_command(
        &self,
        case: &Case,
        command: Command<'_>,
        now: Option<&str>,
    ) -> Option<Decision> {
        let policies = self.policies.as_ref()?;
        let way = case.opened.as_ref()?;
        let now = now.map_or_else(|| crate::time::rfc3339(SystemTime::now()), str::to_owned);
        Some(policies.decide(&Facts {
            action: Action::Command(way.facts(), command),
            ..case.facts(&now)
        }))
    }

    /// The same at another time: RFC 3339, UTC.
    pub fn decide_at(&self, case: &Case, now: Option<&str>) -> Option<Decision> {
        let policies = self.policies.as_ref()?;
        let now = now.map_or_else(|| crate::time::rfc3339(SystemTime::now()), str::to_owned);
        Some(policies.decide(&case.facts(&now)))
    }
}

impl Case {
    /// A session that is about to be dialled, whose server has this name.
    pub fn of(record: &SessionRecord, destination: SocketAddr, name: &ServerName<'_>) -> Self {
        Self {
            process: record.process.clone().unwrap_or_default(),
            host: match name {
                ServerName::DnsName(name) => Some(name.as_ref().to_ascii_lowercase()),
                _ => None,
            },
            destination: Some(destination),
            transport: record.transport,
            opened: None,
        }
    }

    /// The same when the way out is there. `named`: the protocol that a route names.
    #[must_use]
    pub fn opened(
        mut self,
        record: &SessionRecord,
        path: mantled_record::Path,
        named: Option<Protocol>,
    ) -> Self {
        self.opened = Some(Way {
            protocol: record.protocol.map(str::to_owned),
            is_named: named.is_some_and(|named| record.protocol == Some(named.name())),
            path: path.name().to_owned(),
            tls: (path != mantled_record::Path::Exposed).then(|| record.tls.clone()),
        });
        self
    }

    /// As the policies take it.
    pub fn facts<'a>(&'a self, now: &'a str) -> Facts<'a> {
        let destination = self
            .destination
            .unwrap_or_else(|| SocketAddr::new(IpAddr::from([0; 4]), 0));
        Facts {
            workload: Workload {
                name: &self.process.name,
                executable: self.process.executable.as_deref(),
                uid: self.process.uid,
                gid: self.process.gid,
                cgroup: self.process.cgroup.as_deref(),
                unit: self.process.unit.as_deref(),
                container: self.process.container.as_deref(),
                pod: self.process.pod.as_deref(),
            },
            service: Service {
                host: self.host.as_deref(),
                address: destination.ip(),
                port: destination.port(),
            },
            action: match &self.opened {
                None => Action::Connect,
                Some(way) => Action::Open(way.facts()),
            },
            now,
            transport: self.transport,
        }
    }
}

impl Way {
    fn facts(&self) -> Opened<'_> {
        Opened {
            protocol: self.protocol.as_deref(),
            path: &self.path,
            tls: self.tls.as_ref().map(|tls| Tls {
                version: tls.version.as_deref(),
                cipher: tls.cipher.as_deref(),
                group: tls.group.as_deref(),
                verified_name: tls.verified_name.as_deref(),
                certificate: tls
                    .certificate
                    .as_ref()
                    .map(|certificate| certificate.sha256.as_str()),
            }),
        }
    }
}

/// Why a decision is no permit.
pub fn denial(decision: &Decision) -> Failure {
    let text = match (decision.errors.first(), decision.policies.as_slice()) {
        (Some(error), _) => format!("a policy cannot be evaluated, which denies: {error}"),
        (None, []) => "no policy permits it".to_owned(),
        (None, policies) => format!("forbidden by policy {}", policies.join(", ")),
    };
    Failure::new(Cause::PolicyDenied, text)
}

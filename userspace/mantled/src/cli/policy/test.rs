//! Cases that say what policies are meant to do.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use mantled_record::{Process, TlsFacts};
use serde::Deserialize;

use super::{super::Exit, in_words};
use crate::policy::{Case, Rules, Way};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Expected>,
}

/// A session, and what is to be said of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    name: String,
    expect: Verdict,
    /// The policy that has to decide.
    policy: Option<String>,
    #[serde(default)]
    process: String,
    executable: Option<String>,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    cgroup: Option<String>,
    unit: Option<String>,
    container: Option<String>,
    pod: Option<String>,
    host: Option<String>,
    address: IpAddr,
    port: u16,
    #[serde(default)]
    transport: Transport,
    protocol: Option<String>,
    #[serde(default)]
    path: PathWord,
    tls_version: Option<String>,
    /// RFC 3339, UTC; now, if it is not said.
    now: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PathWord {
    #[default]
    Verified,
    Native,
    Exposed,
}

impl PathWord {
    fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Native => "native",
            Self::Exposed => "exposed",
        }
    }
}

impl Expected {
    fn connect(&self) -> Case {
        Case {
            process: Process {
                name: self.process.clone(),
                executable: self.executable.clone(),
                uid: self.uid,
                gid: self.gid,
                cgroup: self.cgroup.clone(),
                unit: self.unit.clone(),
                container: self.container.clone(),
                pod: self.pod.clone(),
                ..Process::default()
            },
            host: self.host.clone(),
            destination: Some(SocketAddr::new(self.address, self.port)),
            transport: match self.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            },
            opened: None,
        }
    }

    fn open(&self) -> Case {
        Case {
            opened: Some(Way {
                protocol: self.protocol.clone(),
                path: self.path.name().to_owned(),
                tls: (!matches!(self.path, PathWord::Exposed)).then(|| TlsFacts {
                    version: self.tls_version.clone(),
                    verified_name: self.host.clone(),
                    ..TlsFacts::default()
                }),
            }),
            ..self.connect()
        }
    }

    /// None: it is as expected.
    fn judge(&self, rules: &Rules) -> Option<String> {
        let mut last = None;
        for case in [self.connect(), self.open()] {
            let decision = rules.decide_at(&case, self.now.as_deref())?;
            let allowed = decision.allowed;
            last = Some(decision);
            if !allowed {
                break;
            }
        }
        let decision = last?;
        let verdict = if decision.allowed {
            Verdict::Allow
        } else {
            Verdict::Deny
        };
        let named = self
            .policy
            .as_ref()
            .is_none_or(|policy| decision.policies.contains(policy));
        (verdict != self.expect || !named).then(|| in_words(&decision))
    }
}

/// Runs the cases in every `*.test.toml` of a directory.
pub(super) fn run(dir: &Path, rules: &Rules) -> Result<(), Exit> {
    let failed = |error: std::io::Error| Exit::failed(format!("{}: {error}", dir.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.to_string_lossy().ends_with(".test.toml") {
            files.push(path);
        }
    }
    files.sort_unstable();
    let (mut passed, mut wrong) = (0, 0);
    for path in files {
        let text = fs::read_to_string(&path).map_err(failed)?;
        let file: File = toml::from_str(&text)
            .map_err(|error| Exit::invalid(format!("{}: {error}", path.display())))?;
        for case in &file.case {
            match case.judge(rules) {
                None => passed += 1,
                Some(said) => {
                    wrong += 1;
                    println!("{}: {}: {said}", path.display(), case.name);
                }
            }
        }
    }
    if passed + wrong == 0 {
        return Err(Exit::invalid(format!(
            "{} has no cases; write them into a file whose name ends in .test.toml",
            dir.display()
        )));
    }
    println!("{passed} as expected, {wrong} not");
    if wrong == 0 {
        Ok(())
    } else {
        Err(Exit::code(super::super::FAILED))
    }
}

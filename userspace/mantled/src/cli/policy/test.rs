//! Cases that say what policies are meant to do.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use mantled_policy::Decision;
use mantled_record::{Process, TlsFacts};
use mantled_sql::{Dialect, Statement};
use serde::Deserialize;

use super::{super::Exit, in_words};
use crate::policy::{Case, Login, Question, Rules, Way};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// What every case has that does not say otherwise.
    #[serde(default)]
    defaults: toml::Table,
    case: Vec<toml::Table>,
}

impl File {
    fn cases(self) -> Result<Vec<Expected>, toml::de::Error> {
        let defaults = self.defaults;
        let with_defaults = self.case.into_iter().map(|mut case| {
            for (key, value) in &defaults {
                case.entry(key.clone()).or_insert_with(|| value.clone());
            }
            case.try_into()
        });
        with_defaults.collect()
    }
}

/// A text, or several, each of which is a case of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Texts {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::None => &[],
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
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
    user: Option<String>,
    database: Option<String>,
    /// Statements; of MySQL where that is the protocol, else of PostgreSQL.
    #[serde(default)]
    sql: Texts,
    /// Requests: "GET /path".
    #[serde(default)]
    request: Texts,
    /// Commands: "SET key value".
    #[serde(default)]
    redis: Texts,
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
                protocol: self.protocol(),
                is_named: true,
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

    /// As it is said, or as its commands tell.
    fn protocol(&self) -> Option<String> {
        let told = [
            (&self.sql, "postgresql"),
            (&self.request, "http"),
            (&self.redis, "redis"),
        ];
        self.protocol.clone().or_else(|| {
            let mut told = told.iter();
            let (_, name) = told.find(|(texts, _)| !texts.as_slice().is_empty())?;
            Some((*name).to_owned())
        })
    }

    /// Its commands, each with the questions that it raises.
    fn commands(&self) -> Vec<(&str, Vec<Question>)> {
        let dialect = match self.protocol.as_deref() {
            Some("mysql") => Dialect::Mysql {
                no_backslash_escapes: Some(false),
            },
            _ => Dialect::Postgresql {
                standard_strings: Some(true),
            },
        };
        let sql = self.sql.as_slice().iter().map(|text| {
            let statements = mantled_sql::read(text.as_bytes(), dialect);
            let questions = statements.iter().flat_map(|statement| {
                // What a name stands for nobody knows here.
                let unknown = |_: &str| vec![[Statement::unparsed()].into()];
                Question::of_statement(statement, unknown)
            });
            (text.as_str(), questions.collect())
        });
        let requests = self.request.as_slice().iter().map(|text| {
            let (method, target) = text.split_once(' ').unwrap_or((text, ""));
            let host = self.host.as_deref();
            let questions = Question::of_request(method, host, target, false, false);
            (text.as_str(), questions)
        });
        let redis = self.redis.as_slice().iter().map(|text| {
            let words = text.split_ascii_whitespace();
            let arguments: Vec<_> = words.map(|word| word.as_bytes().into()).collect();
            (text.as_str(), vec![Question::of_redis(&arguments, true)])
        });
        sql.chain(requests).chain(redis).collect()
    }

    /// What is not as expected, in words, and how many are.
    fn judge(&self, rules: &Rules) -> (usize, Vec<String>) {
        let now = self.now.as_deref();
        let mut session = None;
        for case in [self.connect(), self.open()] {
            session = rules.decide_at(&case, now);
            if session.as_ref().is_some_and(|decision| !decision.allowed) {
                break;
            }
        }
        let Some(session) = session else {
            return (0, Vec::new());
        };
        let commands = self.commands();
        if commands.is_empty() || !session.allowed {
            return match self.is_expected(&session) {
                true => (commands.len().max(1), Vec::new()),
                false => (0, vec![format!("{}: {}", self.name, in_words(&session))]),
            };
        }
        let open = self.open();
        let login = Login {
            user: self.user.clone(),
            database: self.database.clone(),
        };
        let (mut expected, mut wrong) = (0, Vec::new());
        for (text, questions) in commands {
            // Each must be permitted; the last one tells, if they are.
            let mut decision = session.clone();
            for question in &questions {
                let asked = question.asked(&login);
                if let Some(decided) = rules.decide_command(&open, asked, now) {
                    decision = decided;
                }
                if !decision.allowed {
                    break;
                }
            }
            if self.is_expected(&decision) {
                expected += 1;
            } else {
                wrong.push(format!("{}: {text:?}: {}", self.name, in_words(&decision)));
            }
        }
        (expected, wrong)
    }

    fn is_expected(&self, decision: &Decision) -> bool {
        let named = self
            .policy
            .as_ref()
            .is_none_or(|policy| decision.policies.contains(policy));
        named && decision.allowed == (self.expect == Verdict::Allow)
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
        let cases = file
            .cases()
            .map_err(|error| Exit::invalid(format!("{}: {error}", path.display())))?;
        for case in &cases {
            let (expected, unexpected) = case.judge(rules);
            passed += expected;
            wrong += unexpected.len();
            for said in unexpected {
                println!("{}: {said}", path.display());
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

//! From a command to the questions that policies are asked, and back to a verdict.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mantled_record::SessionRecord;
use mantled_sql::{Dialect, Statement};
use mantled_wire::command::{Command, Verdict};
use tokio::sync::watch;

use super::Notes;
use crate::{
    policy::{Case, Login, Question, Rules, denial},
    proxy::Terms,
};

/// How long an answer holds for the same question: policies may look at the time.
const FRESH: Duration = Duration::from_secs(1);

/// Most answers that are remembered.
const REMEMBERED: usize = 256;

/// Most prepared statements that are remembered. What a further one does cannot be told when it is
/// executed.
const PREPARED: usize = 1024;

/// Most statements that one name may stand for, as far as anybody can tell.
const READINGS: usize = 16;

/// Whose SQL statements are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Postgresql,
    Mysql,
}

/// Of one session.
#[derive(Debug)]
pub(super) struct Judge {
    language: Language,
    terms: watch::Receiver<Terms>,
    /// The rules that `answers` are of.
    rules: Arc<Rules>,
    case: Case,
    login: Login,
    /// Nothing is refused; the record tells what would have been.
    observes: bool,
    notes: Notes,
    /// Why not, and since when that is known.
    answers: HashMap<Question, (Instant, Option<String>)>,
    /// By name; more than one where it is not certain which one the server has kept.
    prepared: HashMap<Vec<u8>, Vec<Arc<[Statement]>>>,
    /// MySQL gives statements numbers that only the server's answers tell: the policies that have
    /// judged all of them so far.
    prepared_under: Option<Arc<Rules>>,
}

impl Judge {
    pub(super) fn new(
        terms: watch::Receiver<Terms>,
        case: Case,
        record: &SessionRecord,
        observes: bool,
        notes: Notes,
        language: Language,
    ) -> Self {
        let rules = Arc::clone(&terms.borrow().rules);
        Self {
            language,
            terms,
            rules,
            case,
            login: Login {
                user: record.db_user.clone(),
                database: record.db_namespace.clone(),
            },
            observes,
            notes,
            answers: HashMap::new(),
            prepared: HashMap::new(),
            prepared_under: None,
        }
    }

    /// Must all be answered with yes. `shape` is what the record may tell of the command.
    fn verdict(&mut self, questions: Vec<Question>, shape: &str) -> Verdict {
        self.notes.command();
        let refusal = questions
            .into_iter()
            .find_map(|question| self.ask(question));
        let Some(reason) = refusal else {
            return Verdict::Carry;
        };
        self.notes.refused(shape, &reason);
        if self.observes {
            Verdict::Carry
        } else {
            Verdict::Refuse(reason)
        }
    }

    /// Why not; None: it may.
    fn ask(&mut self, question: Question) -> Option<String> {
        let rules = Arc::clone(&self.terms.borrow().rules);
        if !Arc::ptr_eq(&rules, &self.rules) {
            self.rules = rules;
            self.answers.clear();
        }
        if let Some((since, answer)) = self.answers.get(&question)
            && since.elapsed() < FRESH
        {
            return answer.clone();
        }
        let asked = question.asked(&self.login);
        let answer = self
            .rules
            .decide_command(&self.case, asked, None)
            .and_then(|decision| {
                self.notes.decided(&decision.policies);
                let words = || format!("{}: {}", question.words(), denial(&decision).text);
                (!decision.allowed).then(words)
            });
        if self.answers.len() >= REMEMBERED {
            self.answers.clear();
        }
        self.answers
            .insert(question, (Instant::now(), answer.clone()));
        answer
    }

    // ---- SQL

    fn statements(&mut self, statements: &[Statement]) -> Verdict {
        for statement in statements {
            let questions =
                Question::of_statement(statement, |name| self.readings(name.as_bytes()));
            let verdict = self.verdict(questions, &statement.shape);
            if verdict != Verdict::Carry {
                return verdict;
            }
        }
        Verdict::Carry
    }

    /// What a name may stand for.
    fn readings(&self, name: &[u8]) -> Vec<Arc<[Statement]>> {
        let unknown = || vec![Arc::from([Statement::unparsed()])];
        self.prepared.get(name).cloned().unwrap_or_else(unknown)
    }

    /// A name now stands for these statements.
    fn remember(&mut self, name: &[u8], statements: &[Statement]) {
        let is_known = self.prepared.contains_key(name);
        if !is_known && self.prepared.len() >= PREPARED {
            return;
        }
        let readings = self.prepared.entry(name.to_owned()).or_default();
        if name.is_empty() {
            readings.clear();
        }
        if readings.len() >= READINGS {
            *readings = vec![Arc::from([Statement::unparsed()])];
        } else if !readings.iter().any(|known| **known == *statements) {
            readings.push(Arc::from(statements));
        }
    }

    /// MySQL: a statement that was permitted when it was prepared.
    fn prepared_under(&mut self) -> Verdict {
        self.notes.command();
        let rules = Arc::clone(&self.terms.borrow().rules);
        let is_judged = self
            .prepared_under
            .as_ref()
            .is_some_and(|under| Arc::ptr_eq(under, &rules));
        if is_judged {
            return Verdict::Carry;
        }
        let reason = "the policies have changed since it was prepared; connect again";
        self.notes.refused("a prepared statement", reason);
        if self.observes {
            Verdict::Carry
        } else {
            Verdict::Refuse(reason.to_owned())
        }
    }

    fn prepared(&mut self, name: &[u8]) -> Verdict {
        let readings = self.readings(name);
        let verdicts = readings
            .iter()
            .map(|statements| self.statements(statements));
        verdicts
            .into_iter()
            .find(|verdict| *verdict != Verdict::Carry)
            .unwrap_or(Verdict::Carry)
    }
}

impl mantled_wire::command::Judge for Judge {
    fn judge(&mut self, command: &Command<'_>) -> Verdict {
        match command {
            Command::Statement {
                text,
                plain_strings,
                name,
            } => {
                let dialect = match self.language {
                    Language::Postgresql => Dialect::Postgresql {
                        standard_strings: *plain_strings,
                    },
                    Language::Mysql => Dialect::Mysql {
                        no_backslash_escapes: *plain_strings,
                    },
                };
                let statements = match text {
                    Some(text) => mantled_sql::read(text, dialect),
                    None => vec![Statement::unparsed()],
                };
                let verdict = self.statements(&statements);
                if verdict == Verdict::Carry {
                    match (name, self.language) {
                        (Some(name), Language::Postgresql) => self.remember(name, &statements),
                        (Some(_), Language::Mysql) => {
                            let rules = &self.rules;
                            self.prepared_under.get_or_insert_with(|| Arc::clone(rules));
                        }
                        (None, _) => {}
                    }
                    for statement in statements.iter().filter(|known| known.kind == "prepare") {
                        let name = statement.prepared.clone().unwrap_or_default();
                        self.remember(name.as_bytes(), std::slice::from_ref(statement));
                    }
                }
                verdict
            }
            Command::Prepared { name } => match self.language {
                Language::Postgresql => self.prepared(name),
                Language::Mysql => self.prepared_under(),
            },
            Command::Closed { name } => {
                self.prepared.remove(*name);
                Verdict::Carry
            }
            Command::Unknown => self.statements(&[Statement::unparsed()]),
            Command::Request {
                method,
                host,
                target,
                is_more,
                is_ambiguous,
            } => {
                let questions =
                    Question::of_request(method, *host, target, *is_more, *is_ambiguous);
                // What stands behind the question mark may be confidential.
                let path = target.split('?').next().unwrap_or_default();
                self.verdict(questions, &format!("{method} {path}"))
            }
            Command::Redis { arguments, whole } => {
                let question = Question::of_redis(arguments, *whole);
                let name = question.words();
                let shape = name.split(" is ").next().unwrap_or_default();
                self.verdict(vec![question], shape)
            }
        }
    }
}

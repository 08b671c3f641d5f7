//! From a command to the questions that policies are asked, and back to a verdict.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mantled_record::SessionRecord;
use mantled_sql::{Dialect, Statement};
use mantled_wire::command::{Command, Verdict};
use tokio::sync::watch;

use super::Notes;
use crate::{
    policy::{Case, Login, Question, Rules, denial, shape_of_request},
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

/// Most fingerprints of texts that are remembered, and the longest of them in bytes.
const TEXTS: (usize, usize) = (256, 2048);

/// The statements of a text, and since when they are known to be permitted.
#[derive(Debug)]
struct Reading {
    statements: Vec<Statement>,
    permitted: Mutex<Option<Permitted>>,
}

/// By these policies, at that time.
#[derive(Clone, Debug)]
struct Permitted {
    rules: Arc<Rules>,
    since: Instant,
}

impl Reading {
    fn of(statements: Vec<Statement>) -> Arc<Self> {
        Arc::new(Self {
            statements,
            permitted: Mutex::default(),
        })
    }

    /// Have these policies permitted it just now?
    fn is_permitted(&self, rules: &Arc<Rules>) -> bool {
        let permitted = self
            .permitted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        permitted.as_ref().is_some_and(|permitted| {
            Arc::ptr_eq(&permitted.rules, rules) && permitted.since.elapsed() < FRESH
        })
    }

    fn permit(&self, rules: &Arc<Rules>) {
        let mut permitted = self
            .permitted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *permitted = Some(Permitted {
            rules: Arc::clone(rules),
            since: Instant::now(),
        });
    }
}

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
    prepared: HashMap<Vec<u8>, Vec<Arc<Reading>>>,
    /// What was read of texts that come again and again with other values, by their fingerprints.
    texts: HashMap<Vec<u8>, Arc<Reading>>,
    /// Room for a fingerprint.
    fingerprint: Vec<u8>,
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
            texts: HashMap::new(),
            fingerprint: Vec::new(),
            prepared_under: None,
        }
    }

    /// Must all be answered with yes. `shape` is what the record may tell of the command.
    fn verdict(&mut self, questions: Vec<Question>, shape: &str) -> Verdict {
        self.notes.commands(1);
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

    /// What a text says.
    fn read(&mut self, text: Option<&[u8]>, plain_strings: Option<bool>) -> Arc<Reading> {
        let Some(text) = text else {
            return Reading::of(vec![Statement::unparsed()]);
        };
        let dialect = match self.language {
            Language::Postgresql => Dialect::Postgresql {
                standard_strings: plain_strings,
            },
            Language::Mysql => Dialect::Mysql {
                no_backslash_escapes: plain_strings,
            },
        };
        self.fingerprint.clear();
        if !mantled_sql::fingerprint(text, dialect, &mut self.fingerprint) {
            return Reading::of(vec![Statement::unparsed()]);
        }
        if let Some(known) = self.texts.get(&self.fingerprint) {
            return Arc::clone(known);
        }
        let reading = Reading::of(mantled_sql::read(text, dialect));
        let (most, longest) = TEXTS;
        if self.fingerprint.len() <= longest {
            if self.texts.len() >= most {
                self.texts.clear();
            }
            self.texts
                .insert(self.fingerprint.clone(), Arc::clone(&reading));
        }
        reading
    }

    fn statements(&mut self, reading: &Reading) -> Verdict {
        let rules = Arc::clone(&self.terms.borrow().rules);
        if reading.is_permitted(&rules) {
            self.notes.commands(reading.statements.len());
            return Verdict::Carry;
        }
        let mut is_lasting = !self.observes;
        for statement in &reading.statements {
            // What a name stands for may change.
            is_lasting &= statement.prepared.is_none();
            let questions = Question::of_statement(statement, |name| {
                let readings = self.readings(name.as_bytes());
                readings
                    .iter()
                    .map(|reading| reading.statements.as_slice().into())
                    .collect()
            });
            // What nobody can read may be anything, a password that was typed in the wrong place too.
            let shape = match &*statement.kind {
                "unparsed" => "unparsed",
                _ => &statement.shape,
            };
            let verdict = self.verdict(questions, shape);
            if verdict != Verdict::Carry {
                return verdict;
            }
        }
        if is_lasting {
            reading.permit(&rules);
        }
        Verdict::Carry
    }

    /// What a name may stand for.
    fn readings(&self, name: &[u8]) -> Vec<Arc<Reading>> {
        let unknown = || vec![Reading::of(vec![Statement::unparsed()])];
        self.prepared.get(name).cloned().unwrap_or_else(unknown)
    }

    /// A name now stands for this.
    fn remember(&mut self, name: &[u8], reading: Arc<Reading>) {
        let is_known = self.prepared.contains_key(name);
        if !is_known && self.prepared.len() >= PREPARED {
            return;
        }
        let readings = self.prepared.entry(name.to_owned()).or_default();
        if name.is_empty() {
            readings.clear();
        }
        if readings.len() >= READINGS {
            *readings = vec![Reading::of(vec![Statement::unparsed()])];
        } else if !readings
            .iter()
            .any(|known| known.statements == reading.statements)
        {
            readings.push(reading);
        }
    }

    /// MySQL: a statement that was permitted when it was prepared.
    fn prepared_under(&mut self) -> Verdict {
        self.notes.commands(1);
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
        let mut verdicts = self
            .readings(name)
            .into_iter()
            .map(|reading| self.statements(&reading));
        verdicts
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
                let reading = self.read(*text, *plain_strings);
                let verdict = self.statements(&reading);
                if verdict == Verdict::Carry {
                    for statement in &reading.statements {
                        if statement.kind == "prepare"
                            && let Some(name) = &statement.prepared
                        {
                            let own = Reading::of(vec![statement.clone()]);
                            self.remember(name.as_bytes(), own);
                        }
                    }
                    match (name, self.language) {
                        (Some(name), Language::Postgresql) => self.remember(name, reading),
                        (Some(_), Language::Mysql) => {
                            let rules = &self.rules;
                            self.prepared_under.get_or_insert_with(|| Arc::clone(rules));
                        }
                        (None, _) => {}
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
            Command::Unknown => self.statements(&Reading::of(vec![Statement::unparsed()])),
            Command::Request {
                method,
                host,
                target,
                is_more,
                is_ambiguous,
            } => {
                let questions =
                    Question::of_request(method, *host, target, *is_more, *is_ambiguous);
                let name = questions.first().map(Question::words).unwrap_or_default();
                let method = name.split(" is ").next().unwrap_or_default();
                self.verdict(questions, &shape_of_request(method, target))
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

//! From a command to the questions that policies are asked, and back to a verdict.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mantled_mask::{Masker, Masks};
use mantled_record::SessionRecord;
use mantled_sql::{Action, Dialect, Statement};
use mantled_wire::command::{Command, Masked, Reach, Verdict};
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

/// How long the server's tables are taken to be as they were, where the agent's own commands do not tell.
const EPOCH: Duration = Duration::from_secs(60);

/// The statements of a text, and since when they are known to be permitted.
#[derive(Debug)]
struct Reading {
    statements: Vec<Statement>,
    permitted: Mutex<Option<Permitted>>,
    /// What they can have looked at.
    reach: Arc<Reach>,
    /// Others than these can have been meant: a cursor, a prepared statement.
    is_alone: bool,
}

/// By these policies, at that time.
#[derive(Clone, Debug)]
struct Permitted {
    rules: Arc<Rules>,
    since: Instant,
}

impl Reading {
    fn of(statements: Vec<Statement>) -> Arc<Self> {
        let mut reach = nothing();
        for statement in &statements {
            reach.add(&reach_of(statement));
        }
        let is_alone = statements.iter().all(|statement| {
            statement.prepared.is_none()
                && !matches!(&*statement.kind, "declare" | "fetch" | "move")
        });
        Arc::new(Self {
            statements,
            permitted: Mutex::default(),
            reach: Arc::new(reach),
            is_alone,
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

/// Of a command that has looked at nothing.
fn nothing() -> Reach {
    Reach {
        names: Some(BTreeSet::new()),
        ..Reach::default()
    }
}

fn reach_of(statement: &Statement) -> Reach {
    let is_known = !statement.actions.contains(&Action::Unparsed);
    Reach {
        names: is_known.then(|| statement.names.clone()),
        takes_rows: statement.takes_rows,
        writes: statement
            .actions
            .iter()
            .any(|action| *action != Action::Read),
    }
}

/// Whose SQL statements are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Postgresql,
    Mysql,
}

/// What is to be done about a session.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) language: Language,
    /// Nothing is refused; the record tells what would have been.
    pub(super) observes: bool,
    /// Its commands are judged; else all of them are carried.
    pub(super) judges: bool,
    /// Answers of its protocol can be masked.
    pub(super) can_mask: bool,
    /// What is masked in all of them.
    pub(super) masks: Masks,
}

/// Of one session.
#[derive(Debug)]
pub(super) struct Judge {
    language: Language,
    judges: bool,
    can_mask: bool,
    /// What is masked in the answers; None: nothing so far.
    masker: Option<Arc<Masker>>,
    /// What the statements of cursors can have looked at.
    cursors: Reach,
    /// What the command that was judged last can have looked at.
    reach: Arc<Reach>,
    began: Instant,
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
        notes: Notes,
        task: Task,
    ) -> Self {
        let rules = Arc::clone(&terms.borrow().rules);
        let mut judge = Self {
            language: task.language,
            judges: task.judges,
            can_mask: task.can_mask,
            masker: None,
            cursors: nothing(),
            reach: Arc::new(Reach::unknown()),
            began: Instant::now(),
            terms,
            rules,
            case,
            login: Login {
                user: record.db_user.clone(),
                database: record.db_namespace.clone(),
            },
            observes: task.observes,
            notes,
            answers: HashMap::new(),
            prepared: HashMap::new(),
            texts: HashMap::new(),
            fingerprint: Vec::new(),
            prepared_under: None,
        };
        judge.masks(&task.masks);
        judge
    }

    /// This is masked in answers from now on.
    fn masks(&mut self, masks: &Masks) {
        let Some(masking) = self.rules.masking().filter(|_| !masks.is_empty()) else {
            return;
        };
        let known = self.masker.as_ref();
        let masker = match known {
            Some(masker) => masker.and(masks),
            None => Masker::new(masks.clone(), Arc::clone(&masking.key)),
        };
        if known.is_none_or(|known| known.masks() != masker.masks()) {
            let masker = Arc::new(masker);
            self.notes.masks(&masker);
            self.masker = Some(masker);
        }
    }

    /// What statements can have looked at, and those that they name.
    fn reach(&mut self, reading: &Reading) -> Arc<Reach> {
        if reading.is_alone {
            return Arc::clone(&reading.reach);
        }
        let mut reach = Reach::clone(&reading.reach);
        for statement in &reading.statements {
            match &*statement.kind {
                "declare" => self.cursors.add(&reach_of(statement)),
                "fetch" | "move" => reach.add(&self.cursors),
                _ => {}
            }
            let executed = statement.prepared.as_ref();
            if let Some(name) = executed.filter(|_| statement.kind != "prepare") {
                for named in self.readings(name.as_bytes()) {
                    reach.add(&named.reach);
                }
            }
        }
        Arc::new(reach)
    }

    /// Why the answer to this cannot be masked as it must be; None: it can, or need not.
    fn unmaskable(&self, reading: &Reading) -> Option<&'static str> {
        let masks = self.masker.as_ref()?.masks();
        let by_column = masks.columns().next().is_some() || masks.has_fields();
        let copies = reading
            .statements
            .iter()
            .any(|statement| statement.kind == "copy" && statement.actions.contains(&Action::Read));
        (by_column && copies)
            .then_some("what COPY gives cannot be masked by its columns; SELECT it")
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
        let decision = self.rules.decide_command(&self.case, asked, None);
        let answer = decision.and_then(|decision| {
            self.notes.decided(&decision.policies);
            if !decision.allowed {
                let reason = denial(&decision).text;
                return Some(format!("{}: {reason}", question.words()));
            }
            if !self.observes && !decision.masks.is_empty() {
                if !self.can_mask {
                    return Some(format!(
                        "{}: its answer would have to be masked ({}), and mantled cannot mask what \
                         this service speaks",
                        question.words(),
                        decision.masks
                    ));
                }
                self.masks(&decision.masks);
            }
            None
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
        if !self.judges {
            self.notes.commands(reading.statements.len());
            return Verdict::Carry;
        }
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
                let verdict = match self.statements(&reading) {
                    Verdict::Carry => self.unmaskable(&reading).map_or(Verdict::Carry, |reason| {
                        self.notes.refused("copy", reason);
                        Verdict::Refuse(reason.to_owned())
                    }),
                    verdict => verdict,
                };
                if verdict == Verdict::Carry {
                    self.reach = self.reach(&reading);
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
                Language::Postgresql => {
                    let mut reach = nothing();
                    for reading in self.readings(name) {
                        reach.add(&self.reach(&reading));
                    }
                    self.reach = Arc::new(reach);
                    self.prepared(name)
                }
                Language::Mysql => self.prepared_under(),
            },
            Command::Closed { name } => {
                self.prepared.remove(*name);
                Verdict::Carry
            }
            Command::Unknown => {
                self.reach = Arc::new(Reach::unknown());
                self.statements(&Reading::of(vec![Statement::unparsed()]))
            }
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

    fn masked(&self) -> Option<Masked> {
        let masker = self.masker.as_ref().filter(|_| !self.observes)?;
        let masks_columns = masker.masks().columns().next().is_some();
        let columns = self.rules.masking().filter(|_| masks_columns);
        Some(Masked {
            masker: Arc::clone(masker),
            columns: columns.map_or_else(|| Arc::from([]), |masking| Arc::clone(&masking.columns)),
            epoch: self.began.elapsed().as_secs() / EPOCH.as_secs(),
            reach: Arc::clone(&self.reach),
        })
    }
}

//! From a command to the facts that policies look at, and back to a verdict.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mantled_policy::{Command as Asked, Sql, SqlClass};
use mantled_record::SessionRecord;
use mantled_sql::{Action, Dialect, Statement};
use mantled_wire::command::{Command, Verdict};
use tokio::sync::watch;

use super::Notes;
use crate::{
    policy::{Case, Rules, denial},
    proxy::Terms,
};

/// How long a decision holds for the same facts: policies may look at the time.
const FRESH: Duration = Duration::from_secs(1);

/// Most decisions that are remembered.
const REMEMBERED: usize = 256;

/// Most prepared statements that are remembered. What a further one does cannot be told when it is
/// executed.
const PREPARED: usize = 1024;

/// What the commands are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    /// PostgreSQL's SQL.
    Postgresql,
}

/// Of one session.
#[derive(Debug)]
pub(super) struct Judge {
    terms: watch::Receiver<Terms>,
    /// The rules that `decided` is of.
    rules: Arc<Rules>,
    case: Case,
    language: Language,
    user: Option<String>,
    database: Option<String>,
    /// Nothing is refused; the record tells what would have been.
    observes: bool,
    notes: Notes,
    /// By the statement without its shape: why it is refused, and since when that is known.
    decided: HashMap<Statement, (Instant, Option<String>)>,
    /// By name; more than one where it is not certain which one the server has kept.
    prepared: HashMap<Vec<u8>, Vec<Arc<[Statement]>>>,
}

impl Judge {
    pub(super) fn new(
        terms: watch::Receiver<Terms>,
        case: Case,
        language: Language,
        record: &SessionRecord,
        observes: bool,
        notes: Notes,
    ) -> Self {
        let rules = Arc::clone(&terms.borrow().rules);
        Self {
            terms,
            rules,
            case,
            language,
            user: record.db_user.clone(),
            database: record.db_namespace.clone(),
            observes,
            notes,
            decided: HashMap::new(),
            prepared: HashMap::new(),
        }
    }

    fn dialect(&self, plain_strings: Option<bool>) -> Dialect {
        match self.language {
            Language::Postgresql => Dialect::Postgresql {
                standard_strings: plain_strings,
            },
        }
    }

    /// May all of these be carried?
    fn statements(&mut self, statements: &[Statement]) -> Verdict {
        for statement in statements {
            self.notes.command();
            let refusal = self.refusal(statement).or_else(|| {
                // What it executes was judged when it was prepared; by other policies, perhaps.
                let executes = statement.kind == "execute" || statement.kind == "create table";
                let name = statement.prepared.as_ref().filter(|_| executes)?;
                let known = self.prepared.get(name.as_bytes()).cloned();
                let known = known.unwrap_or_else(|| vec![Arc::new([Statement::unparsed()])]);
                known
                    .iter()
                    .flat_map(|known| known.iter())
                    .find_map(|known| self.refusal(known))
            });
            if let Some(reason) = refusal {
                self.notes.refused(&statement.shape, &reason);
                if !self.observes {
                    return Verdict::Refuse(reason);
                }
            }
        }
        Verdict::Carry
    }

    /// Why a statement may not be carried.
    fn refusal(&mut self, statement: &Statement) -> Option<String> {
        let rules = Arc::clone(&self.terms.borrow().rules);
        if !Arc::ptr_eq(&rules, &self.rules) {
            self.rules = rules;
            self.decided.clear();
        }
        let mut key = statement.clone();
        key.shape = String::new();
        if let Some((since, refusal)) = self.decided.get(&key)
            && since.elapsed() < FRESH
        {
            return refusal.clone();
        }
        let refusal = statement
            .actions
            .iter()
            .find_map(|action| self.judged(statement, *action));
        if self.decided.len() >= REMEMBERED {
            self.decided.clear();
        }
        self.decided.insert(key, (Instant::now(), refusal.clone()));
        refusal
    }

    fn judged(&self, statement: &Statement, action: Action) -> Option<String> {
        let asked = Asked::Sql(Sql {
            class: class(action),
            user: self.user.as_deref(),
            database: self.database.as_deref(),
            kind: &statement.kind,
            tables: &statement.tables,
            schemas: &statement.schemas,
            functions: &statement.functions,
            unbounded: statement.unbounded,
        });
        let decision = self.rules.decide_command(&self.case, asked, None)?;
        self.notes.decided(&decision.policies);
        (!decision.allowed).then(|| {
            format!(
                "{} is sql.{}: {}",
                statement.kind,
                action.name(),
                denial(&decision).text
            )
        })
    }

    /// A name now stands for these statements.
    fn remember(&mut self, name: &[u8], statements: &[Statement]) {
        let is_known = self.prepared.contains_key(name);
        if !is_known && self.prepared.len() >= PREPARED {
            return;
        }
        let known = self.prepared.entry(name.to_owned()).or_default();
        let statements: Arc<[Statement]> = statements
            .iter()
            .map(|statement| Statement {
                shape: String::new(),
                ..statement.clone()
            })
            .collect();
        if name.is_empty() {
            known.clear();
        }
        if !known.contains(&statements) {
            known.push(statements);
        }
        if known.len() > 16 {
            *known = vec![Arc::new([Statement::unparsed()])];
        }
    }
}

/// Which action of the schema it is.
pub(crate) fn class(action: Action) -> SqlClass {
    match action {
        Action::Read => SqlClass::Read,
        Action::Write => SqlClass::Write,
        Action::Ddl => SqlClass::Ddl,
        Action::Admin => SqlClass::Admin,
        Action::Unparsed => SqlClass::Unparsed,
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
                let statements = match text {
                    Some(text) => mantled_sql::read(text, self.dialect(*plain_strings)),
                    None => vec![Statement::unparsed()],
                };
                let verdict = self.statements(&statements);
                if verdict == Verdict::Carry {
                    if let Some(name) = name {
                        self.remember(name, &statements);
                    }
                    for statement in statements.iter().filter(|known| known.kind == "prepare") {
                        let name = statement.prepared.clone().unwrap_or_default();
                        self.remember(name.as_bytes(), std::slice::from_ref(statement));
                    }
                }
                verdict
            }
            Command::Prepared { name } => {
                let known = match self.prepared.get(*name) {
                    Some(known) => known.clone(),
                    None => vec![Arc::new([Statement::unparsed()]) as Arc<[Statement]>],
                };
                known
                    .iter()
                    .map(|statements| self.statements(statements))
                    .find(|verdict| *verdict != Verdict::Carry)
                    .unwrap_or(Verdict::Carry)
            }
            Command::Closed { name } => {
                self.prepared.remove(*name);
                Verdict::Carry
            }
            Command::FunctionCall | Command::Request { .. } | Command::Redis(_) => {
                self.statements(&[Statement::unparsed()])
            }
        }
    }
}

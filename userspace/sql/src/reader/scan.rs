//! The tokens of a statement, once from the first to the last: tables, functions, and what writes.

use super::Reader;
use crate::{
    Action,
    functions::{self, Class},
    lexer::{Kind, Token},
};

/// An open parenthesis, or the statement itself.
#[derive(Default)]
pub(super) struct Frame {
    /// A FROM that stands directly in it is of a query. In `extract(year from x)` it is not.
    query: bool,
    /// Commas separate tables.
    tables: bool,
    /// UPDATE or DELETE.
    changes: bool,
    has_where: bool,
    has_set: bool,
    /// DELETE or MERGE, whose USING names tables.
    uses: bool,
    has_target: bool,
    /// Names that WITH has given to queries.
    named: Vec<String>,
    /// It is the body of such a query.
    names: Option<String>,
}

impl Frame {
    /// One in which commas separate tables.
    pub(super) fn of_tables() -> Self {
        Self {
            tables: true,
            ..Self::default()
        }
    }
}

/// Words that are no function's name: keywords that the server reserves, or lets nobody call.
const NO_FUNCTIONS: &[&str] = &[
    "all",
    "and",
    "any",
    "array",
    "as",
    "between",
    "case",
    "check",
    "default",
    "distinct",
    "else",
    "except",
    "exists",
    "for",
    "from",
    "group",
    "having",
    "ilike",
    "in",
    "intersect",
    "into",
    "is",
    "join",
    "lateral",
    "like",
    "limit",
    "not",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "primary",
    "references",
    "returning",
    "row",
    "select",
    "setof",
    "similar",
    "some",
    "table",
    "then",
    "to",
    "union",
    "unique",
    "using",
    "values",
    "when",
    "where",
    "window",
    "with",
];

/// The same for MySQL.
const NO_FUNCTIONS_OF_MYSQL: &[&str] = &[
    "by",
    "index",
    "key",
    "of",
    "over",
    "partition",
    "set",
    "xor",
    "update",
];

/// Words that are followed by a parenthesis of their own where they stand behind one of these, and
/// else may be a function's name.
const CLAUSES: &[(&str, &[&str])] = &[
    ("by", &["group", "order", "partition"]),
    ("conflict", &["on"]),
    ("sets", &["grouping"]),
    ("materialized", &["as", "not"]),
    ("key", &["primary", "foreign", "no"]),
    ("include", &[")"]),
    ("filter", &[")"]),
    ("over", &[")"]),
    ("from", &["rows"]),
];

/// Words that end a list of tables: those that cannot be a table's alias.
const ENDS_TABLES: &[&str] = &[
    "where", "group", "order", "having", "limit", "fetch", "union", "select",
];

/// The same for PostgreSQL alone.
const ENDS_TABLES_OF_POSTGRESQL: &[&str] = &[
    "offset",
    "window",
    "intersect",
    "except",
    "returning",
    "when",
];

impl Reader<'_> {
    pub(super) fn scan(&mut self, at: usize) -> Option<()> {
        self.scan_in(at, Frame::default())
    }

    pub(super) fn scan_in(&mut self, at: usize, frame: Frame) -> Option<()> {
        self.scan_part(at, self.tokens.len(), frame)
    }

    pub(super) fn scan_part(&mut self, from: usize, to: usize, frame: Frame) -> Option<()> {
        let mut frames = vec![frame];
        let mut at = from;
        while at < to {
            let (frame, outer) = frames.split_last_mut()?;
            let token = self.tokens.get(at)?;
            match (token.kind, token.text.as_str()) {
                (Kind::Mark, "(") => {
                    let inner = self.open(at, frame);
                    frames.push(inner);
                    at += 1;
                }
                (Kind::Mark, ")") => {
                    self.close(frame);
                    let closed = frames.pop()?;
                    // One more than were opened.
                    let frame = frames.last_mut()?;
                    if let Some(name) = closed.names {
                        frame.named.push(name);
                        if self.is_mark(at + 1, ",") {
                            at = self.with(at + 2, frame)?;
                            continue;
                        }
                    }
                    at += 1;
                }
                (Kind::Mark, ",") if frame.tables => {
                    at = self.table(at + 1, frame, outer, false)?;
                }
                (Kind::Word, word) => {
                    let word = word.to_owned();
                    at = self.keyword(at, &word, frame, outer)?;
                }
                _ => at += 1,
            }
        }
        let [frame] = frames.as_slice() else {
            return None;
        };
        self.close(frame);
        Some(())
    }

    /// A parenthesis opens.
    fn open(&mut self, at: usize, frame: &mut Frame) -> Frame {
        let mut inner = Frame {
            names: frame.names.take(),
            ..Frame::default()
        };
        if inner.names.is_none() && self.no_call != Some(at) {
            self.call(at);
        }
        // `FROM (a JOIN b)`, `FROM (a, b)`: expects_table has been told by who read FROM.
        if frame.tables && inner.names.is_none() && self.opens_tables(at, frame.uses) {
            inner.tables = true;
        }
        inner
    }

    /// Is this the parenthesis of a list of tables?
    fn opens_tables(&self, at: usize, uses: bool) -> bool {
        let before = self.before(at);
        let behind_table_word = before.is_some_and(|token| {
            token.is(",")
                || token.is("(")
                || match token.word() {
                    Some(
                        "from" | "join" | "straight_join" | "update" | "low_priority" | "ignore"
                        | "only" | "lateral",
                    ) => true,
                    // Else it is JOIN ... USING, of columns.
                    Some("using") => uses,
                    _ => false,
                }
        });
        let is_query = matches!(
            self.word(at + 1),
            Some("select" | "with" | "values" | "table")
        );
        behind_table_word && !is_query
    }

    /// Is this word before a parenthesis a keyword there?
    fn is_clause(&self, at: usize, word: &str) -> bool {
        let before = self.before(at).map(|token| token.text.as_str());
        NO_FUNCTIONS.contains(&word)
            || (self.mysql && NO_FUNCTIONS_OF_MYSQL.contains(&word))
            || CLAUSES.iter().any(|(clause, behind)| {
                *clause == word && before.is_some_and(|before| behind.contains(&before))
            })
    }

    /// Notes the function that is called here.
    fn call(&mut self, at: usize) {
        let Some(name) = self.before(at).filter(|token| token.is_name()) else {
            return;
        };
        if name.word().is_some_and(|word| self.is_clause(at - 1, word)) {
            return;
        }
        let text = name.text.clone();
        let place = at - 1;
        let mut begin = place;
        while begin >= 2
            && self.is_mark(begin - 1, ".")
            && self.tokens.get(begin - 2).is_some_and(Token::is_name)
        {
            begin -= 2;
        }
        // `CAST(x AS varchar(10))`, `x::varchar(10)`, `... AS alias (columns)`
        if self.word_before(begin) == Some("as")
            || begin
                .checked_sub(1)
                .is_some_and(|at| self.is_mark(at, "::"))
        {
            return;
        }
        if begin < place {
            let schema = self
                .tokens
                .get(begin)
                .map(|token| token.text.clone())
                .unwrap_or_default();
            let is_catalog = !self.mysql && schema == "pg_catalog" && begin + 2 == place;
            self.found.schemas.insert(schema);
            if !is_catalog && functions::class(&text, self.mysql) == Class::Harmless {
                // Somebody's own, by the name of a harmless one.
                if !self.changes_schema {
                    self.needs(Action::Write);
                }
            }
        }
        self.found.functions.insert(text);
    }

    fn close(&mut self, frame: &Frame) {
        self.found.unbounded |= frame.changes && !frame.has_where;
    }

    /// A word that may be a keyword; where to go on.
    fn keyword(
        &mut self,
        at: usize,
        word: &str,
        frame: &mut Frame,
        outer: &[Frame],
    ) -> Option<usize> {
        // A column or a field: `t.update`.
        if at.checked_sub(1).is_some_and(|at| self.is_mark(at, ".")) {
            return Some(at + 1);
        }
        if word == "for" && matches!(self.word_before(at), Some("index" | "key")) {
            // An index hint of MySQL's: FOR JOIN, FOR ORDER BY, FOR GROUP BY.
            return Some(self.behind(at + 1, &["join", "order", "group", "by"]));
        }
        // Others than that of a lock are of a table: FOR SYSTEM_TIME, FOR PORTION OF.
        let is_lock = || matches!(self.word(at + 1), Some("update" | "share" | "no" | "key"));
        if ENDS_TABLES.contains(&word)
            || (!self.mysql && ENDS_TABLES_OF_POSTGRESQL.contains(&word))
            || (word == "for" && is_lock())
        {
            frame.tables = false;
        }
        if outer.is_empty() && self.main.is_none() {
            let verbs = [
                "select", "insert", "update", "delete", "merge", "values", "table",
            ];
            self.main = verbs.into_iter().find(|verb| *verb == word);
        }
        match word {
            "set" if frame.changes && !frame.has_set => {
                frame.has_set = true;
                frame.tables = false;
            }
            "select" => {
                frame.query = true;
                // INSERT ... SELECT reads as well.
                self.reads();
            }
            "returning" if !self.mysql => self.reads(),
            "where" => frame.has_where = true,
            "with" => return self.with(at + 1, frame).or(Some(at + 1)),
            "from" if frame.query && !self.is_distinct_from(at) => {
                if frame.has_set {
                    // UPDATE ... FROM
                    self.reads();
                }
                frame.tables = true;
                return self.table(at + 1, frame, outer, false);
            }
            "join" | "straight_join" if frame.tables => {
                self.reads();
                return self.table(at + 1, frame, outer, false);
            }
            // DELETE ... USING t, MERGE ... USING t; ORDER BY x USING > has no name there.
            "using" if frame.query && self.tokens.get(at + 1).is_some_and(Token::is_name) => {
                self.reads();
                frame.tables = true;
                return self.table(at + 1, frame, outer, false);
            }
            "using" if frame.uses && self.is_mark(at + 1, "(") => {
                self.reads();
                frame.tables = true;
                return self.table(at + 1, frame, outer, false);
            }
            // A query of a whole table, wherever one may stand: INSERT INTO a TABLE b.
            "table" if !self.changes_schema || self.begins_query(at) => {
                self.reads();
                return self.table(at + 1, frame, outer, true);
            }
            "on" if self.changes_schema && self.tokens.get(at + 1).is_some_and(Token::is_name) => {
                let name = self.behind(at + 1, &["table", "only"]);
                let is_event = matches!(
                    self.word(name),
                    Some("delete" | "update" | "insert" | "select" | "commit" | "conflict")
                );
                if !is_event && self.tokens.get(name).is_some_and(Token::is_name) {
                    return self.table(name, frame, outer, true);
                }
            }
            "into" => return self.into(at, frame, outer),
            "insert" | "update" | "delete" | "merge" => {
                return self.change(at, word, frame, outer);
            }
            "replace" if self.mysql && at == self.start => {
                return self.change(at, word, frame, outer);
            }
            "share" if matches!(self.word_before(at), Some("for" | "key")) => {
                self.needs(Action::Write);
            }
            "execute" if self.changes_schema && self.word_before(at) == Some("as") => {
                // CREATE TABLE t AS EXECUTE name
                self.found.prepared = Some(self.tokens.get(at + 1)?.text.clone());
                self.no_call = Some(at + 2);
            }
            _ => {}
        }
        Some(at + 1)
    }

    /// What it reads it may show, or write elsewhere.
    fn reads(&mut self) {
        // GRANT SELECT reads nothing.
        if !self.found.actions.contains(&Action::Admin) {
            self.needs(Action::Read);
        }
    }

    /// `a IS [NOT] DISTINCT FROM b`
    fn is_distinct_from(&self, at: usize) -> bool {
        self.word_before(at) == Some("distinct")
            && at
                .checked_sub(1)
                .is_some_and(|at| matches!(self.word_before(at), Some("is" | "not")))
    }

    /// Does a query begin here, behind what may stand before one?
    fn begins_query(&self, at: usize) -> bool {
        let Some(before) = self.before(at) else {
            return true;
        };
        before.is("(")
            || (before.is(")") && !self.changes_schema)
            || matches!(
                before.word(),
                Some("union" | "all" | "except" | "intersect" | "distinct" | "as")
            )
    }

    /// `WITH [RECURSIVE] name [(columns)] AS [[NOT] MATERIALIZED] (`, from the name on. None: it is
    /// another WITH.
    fn with(&mut self, at: usize, frame: &mut Frame) -> Option<usize> {
        let is_recursive = self.is_word(at, "recursive");
        let at = if is_recursive { at + 1 } else { at };
        let name = self.tokens.get(at).filter(|token| token.is_name())?;
        let name = name.text.clone();
        let mut next = at + 1;
        if self.is_mark(next, "(") {
            next = self.closing(next)? + 1;
        }
        if !self.is_word(next, "as") {
            return None;
        }
        next = self.behind(next + 1, &["not", "materialized"]);
        if !self.is_mark(next, "(") {
            return None;
        }
        if is_recursive {
            frame.named.push(name.clone());
        }
        frame.names = Some(name);
        Some(next)
    }

    /// A table, at the place where one is expected; where to go on. `target`: columns may follow it.
    pub(super) fn table(
        &mut self,
        at: usize,
        frame: &mut Frame,
        outer: &[Frame],
        target: bool,
    ) -> Option<usize> {
        let at = self.behind(at, &["only", "lateral"]);
        if self.is_mark(at, "(") {
            // A query or a join; `FROM ((a JOIN b))` is found by its first name.
            let mut inside = at;
            while self.is_mark(inside, "(") {
                inside += 1;
            }
            let is_query = matches!(
                self.word(inside),
                Some("select" | "with" | "values" | "table")
            );
            if is_query {
                return Some(at);
            }
            self.name_at(inside, frame, outer, false)?;
            return Some(at);
        }
        if self.is_word(at, "rows") && self.is_word(at + 1, "from") {
            return Some(at + 2);
        }
        self.name_at(at, frame, outer, target)
    }

    /// A name that may be a table's; where it ends.
    fn name_at(
        &mut self,
        at: usize,
        frame: &mut Frame,
        outer: &[Frame],
        target: bool,
    ) -> Option<usize> {
        let mut parts = vec![self.name(at)?];
        let mut end = at + 1;
        while self.is_mark(end, ".") {
            if self.is_mark(end + 1, "*") {
                // MySQL: DELETE t.* FROM
                return Some(end + 2);
            }
            parts.push(self.name(end + 1)?);
            end += 2;
        }
        if self.is_mark(end, "(") {
            if !target {
                // A function, which its parenthesis will note.
                return Some(end);
            }
            self.no_call = Some(end);
        }
        let name = parts.pop()?;
        if let Some(schema) = parts.pop() {
            self.found.schemas.insert(schema);
        } else {
            let may_be_named = !target && (!frame.changes || frame.has_target);
            frame.has_target = true;
            let mut frames = outer.iter().chain([&*frame]);
            if may_be_named && frames.any(|frame| frame.named.contains(&name)) {
                return Some(end);
            }
        }
        self.found.tables.insert(name);
        Some(end)
    }

    pub(super) fn name(&self, at: usize) -> Option<String> {
        let token = self.tokens.get(at).filter(|token| token.is_name())?;
        Some(token.text.clone())
    }

    /// INSERT INTO, MERGE INTO, SELECT INTO.
    fn into(&mut self, at: usize, frame: &mut Frame, outer: &[Frame]) -> Option<usize> {
        let is_change = matches!(
            self.word_before(at),
            Some(
                "insert"
                    | "merge"
                    | "replace"
                    | "ignore"
                    | "delayed"
                    | "low_priority"
                    | "high_priority"
            )
        );
        if is_change {
            return self.table(at + 1, frame, outer, true);
        }
        if self.changes_schema {
            return Some(at + 1);
        }
        if self.mysql {
            if matches!(self.word(at + 1), Some("outfile" | "dumpfile")) {
                self.needs(Action::Admin);
            } else if !self.is_mark(at + 1, "@") {
                return None;
            }
            return Some(at + 1);
        }
        // SELECT ... INTO t makes a table.
        self.needs(Action::Write);
        self.needs(Action::Ddl);
        let name = self.behind(
            at + 1,
            &["temporary", "temp", "unlogged", "local", "global", "table"],
        );
        self.table(name, frame, outer, true)
    }

    /// INSERT, UPDATE, DELETE, MERGE, or what only looks like one.
    fn change(
        &mut self,
        at: usize,
        word: &str,
        frame: &mut Frame,
        outer: &[Frame],
    ) -> Option<usize> {
        let before = self.before(at).filter(|_| at > self.start).cloned();
        let begins = before
            .as_ref()
            .is_none_or(|token| token.is("(") || token.is(")"));
        if self.is_mark(at + 1, "(") && at > self.start {
            // MySQL's functions insert() and replace(), or MERGE's INSERT (columns).
            if self.word_before(at) == Some("then") {
                self.no_call = Some(at + 1);
            }
            return Some(at + 1);
        }
        if self.changes_schema && !begins {
            return Some(at + 1);
        }
        self.needs(Action::Write);
        match before.as_ref().and_then(Token::word) {
            // FOR UPDATE, FOR NO KEY UPDATE, ON DUPLICATE KEY UPDATE, ON CONFLICT DO UPDATE, and what
            // MERGE does when it has matched.
            Some("for" | "then") => return Some(at + 1),
            Some("key" | "do") => {
                let set = if word == "update" { at + 1 } else { at };
                let is_upsert = self.word_before(at) == Some("key")
                    && at >= 2
                    && self.is_word(at - 2, "duplicate");
                if is_upsert || (self.word_before(at) == Some("do") && self.is_word(set, "set")) {
                    frame.tables = false;
                }
                return Some(at + 1);
            }
            _ if !begins => return None,
            _ => {}
        }
        let modifiers = [
            "low_priority",
            "high_priority",
            "delayed",
            "quick",
            "ignore",
        ];
        let next = self.behind(at + 1, &modifiers);
        match word {
            "insert" | "replace" if !self.is_word(next, "into") => {
                self.table(next, frame, outer, true)
            }
            "update" => {
                frame.query = true;
                frame.changes = true;
                frame.tables = true;
                self.table(next, frame, outer, false)
            }
            "delete" => {
                frame.uses = true;
                frame.query = true;
                frame.changes = true;
                Some(next)
            }
            "merge" => {
                frame.uses = true;
                frame.query = true;
                Some(next)
            }
            _ => Some(next),
        }
    }
}

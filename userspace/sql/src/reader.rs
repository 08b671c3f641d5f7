//! What the tokens of one statement say.
//!
//! The first word tells the kind. Then all tokens are gone through once, with a frame for each open
//! parenthesis: names behind FROM, JOIN, INTO and their like are tables, names before a parenthesis
//! are functions, and INSERT, UPDATE, DELETE, MERGE and INTO write wherever they stand.

mod scan;

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
};

use scan::Frame;

use crate::{
    Action, Dialect, Statement,
    functions::{self, Class},
    lexer::{Kind, Token},
};

/// Reads one statement; `tokens` is not empty.
pub(crate) fn read(tokens: &[Token], dialect: Dialect) -> Statement {
    let shape = shape(tokens, dialect);
    let Some(closings) = closings(tokens) else {
        return Statement {
            shape,
            ..Statement::unparsed()
        };
    };
    let mut reader = Reader {
        tokens,
        mysql: matches!(dialect, Dialect::Mysql { .. }),
        start: 0,
        changes_schema: false,
        no_call: None,
        main: None,
        closings,
        found: Statement {
            actions: BTreeSet::new(),
            shape: shape.clone(),
            ..Statement::unparsed()
        },
    };
    let Some(kind) = reader.statement(0) else {
        return Statement {
            shape,
            ..Statement::unparsed()
        };
    };
    let mut found = reader.found;
    found.kind = kind;
    found
}

/// For each opening parenthesis, in their order, where it is and where it is closed; None: they do not
/// match.
fn closings(tokens: &[Token]) -> Option<HashMap<usize, usize>> {
    let mut open = Vec::new();
    let mut closings = HashMap::new();
    for (at, token) in tokens.iter().enumerate() {
        if token.is("(") {
            open.push(at);
        } else if token.is(")") {
            closings.insert(open.pop()?, at);
        }
    }
    open.is_empty().then_some(closings)
}

/// The statement without its values.
fn shape(tokens: &[Token], dialect: Dialect) -> String {
    let quote = match dialect {
        Dialect::Postgresql { .. } => '"',
        Dialect::Mysql { .. } => '`',
    };
    let mut shape = String::new();
    let mut tight = true;
    for token in tokens {
        let text = match token.kind {
            Kind::Word | Kind::Mark => token.text.clone(),
            Kind::Quoted => {
                let doubled = token.text.replace(quote, &format!("{quote}{quote}"));
                format!("{quote}{doubled}{quote}")
            }
            Kind::Value => "?".to_owned(),
        };
        let joins = matches!(text.as_str(), "," | ")" | "." | "(" | "::" | "]" | "[");
        if !tight && !joins {
            shape.push(' ');
        }
        tight = matches!(text.as_str(), "(" | "." | "::" | "[" | "@");
        shape.push_str(&text);
    }
    shape
}

struct Reader<'a> {
    tokens: &'a [Token],
    mysql: bool,
    /// Where the innermost statement begins: behind EXPLAIN, PREPARE ... AS and their like.
    start: usize,
    /// CREATE, ALTER, DROP, GRANT: words such as INSERT name what is granted, not what is done.
    changes_schema: bool,
    /// The parenthesis here does not call what stands before it.
    no_call: Option<usize>,
    /// The first verb that stands in no parenthesis.
    main: Option<&'static str>,
    closings: HashMap<usize, usize>,
    found: Statement,
}

/// Statements that their first word tells.
const COMMON: &[(&str, Action)] = &[
    ("analyze", Action::Ddl),
    ("begin", Action::Read),
    ("call", Action::Write),
    ("commit", Action::Read),
    ("deallocate", Action::Read),
    ("delete", Action::Write),
    ("grant", Action::Admin),
    ("insert", Action::Write),
    ("release", Action::Read),
    ("revoke", Action::Admin),
    ("rollback", Action::Read),
    ("savepoint", Action::Read),
    ("select", Action::Read),
    ("show", Action::Read),
    ("table", Action::Read),
    ("update", Action::Write),
    ("values", Action::Read),
];

const OF_POSTGRESQL: &[(&str, Action)] = &[
    ("analyse", Action::Ddl),
    ("checkpoint", Action::Admin),
    ("close", Action::Read),
    ("cluster", Action::Ddl),
    ("comment", Action::Ddl),
    ("discard", Action::Read),
    ("fetch", Action::Read),
    ("import", Action::Admin),
    ("listen", Action::Read),
    ("load", Action::Admin),
    ("merge", Action::Write),
    ("move", Action::Read),
    ("notify", Action::Write),
    ("reassign", Action::Admin),
    ("refresh", Action::Ddl),
    ("reindex", Action::Ddl),
    ("reset", Action::Read),
    ("security", Action::Ddl),
    ("unlisten", Action::Read),
    ("vacuum", Action::Ddl),
];

const OF_MYSQL: &[(&str, Action)] = &[
    ("binlog", Action::Admin),
    ("change", Action::Admin),
    ("check", Action::Ddl),
    ("checksum", Action::Ddl),
    ("clone", Action::Admin),
    ("do", Action::Read),
    ("flush", Action::Admin),
    ("install", Action::Admin),
    ("kill", Action::Admin),
    ("load", Action::Admin),
    ("optimize", Action::Ddl),
    ("purge", Action::Admin),
    ("repair", Action::Ddl),
    ("replace", Action::Write),
    ("reset", Action::Admin),
    ("restart", Action::Admin),
    ("shutdown", Action::Admin),
    ("start", Action::Admin),
    ("stop", Action::Admin),
    ("uninstall", Action::Admin),
    ("unlock", Action::Read),
    ("xa", Action::Write),
];

/// What CREATE, ALTER and DROP are about, where that is of the schema.
const SCHEMA_OBJECTS: &[&str] = &[
    "table",
    "index",
    "view",
    "sequence",
    "function",
    "procedure",
    "routine",
    "trigger",
    "type",
    "domain",
    "schema",
    "policy",
    "rule",
    "aggregate",
    "operator",
    "collation",
    "conversion",
    "cast",
    "text",
    "statistics",
];

/// The same of the server.
const SERVER_OBJECTS: &[&str] = &[
    "role",
    "user",
    "group",
    "database",
    "tablespace",
    "extension",
    "language",
    "publication",
    "subscription",
    "server",
    "foreign",
    "event",
    "access",
    "transform",
    "large",
    "owned",
    "system",
    "privileges",
];

impl Reader<'_> {
    fn word(&self, at: usize) -> Option<&str> {
        self.tokens.get(at)?.word()
    }

    fn is_word(&self, at: usize, word: &str) -> bool {
        self.word(at) == Some(word)
    }

    fn is_mark(&self, at: usize, mark: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(mark))
    }

    fn before(&self, at: usize) -> Option<&Token> {
        self.tokens.get(at.checked_sub(1)?)
    }

    /// The word before this place.
    fn word_before(&self, at: usize) -> Option<&str> {
        self.before(at)?.word()
    }

    /// The first place from there on whose word is none of these.
    fn behind(&self, mut at: usize, words: &[&str]) -> usize {
        while self.word(at).is_some_and(|word| words.contains(&word)) {
            at += 1;
        }
        at
    }

    fn needs(&mut self, action: Action) {
        self.found.actions.insert(action);
    }

    /// Reads the statement that begins here, and names its kind. None: nobody can tell.
    fn statement(&mut self, at: usize) -> Option<Cow<'static, str>> {
        self.start = at;
        if self.is_mark(at, "(") {
            self.needs(Action::Read);
            self.scan(at)?;
            return Some("select".into());
        }
        let word = self.word(at)?.to_owned();
        let next = self.word(at + 1).unwrap_or_default().to_owned();
        let kind = match (word.as_str(), self.mysql) {
            ("with", _) => {
                self.needs(Action::Read);
                self.scan(at)?;
                self.main?.into()
            }
            ("explain", _) | ("describe" | "desc", true) => self.explain(at)?,
            ("copy", false) => self.copy(at)?,
            ("prepare", false) if next == "transaction" => {
                self.simple(at, "prepare transaction", Action::Write)?
            }
            ("prepare", false) => self.prepare(at)?,
            ("execute", false) => self.execute(at)?,
            ("declare", false) => self.declare(at)?,
            // Of MariaDB: a block of statements.
            ("begin", true) if !matches!(next.as_str(), "" | "work") => return None,
            ("start", _) if next == "transaction" => {
                self.simple(at, "start transaction", Action::Read)?
            }
            ("end", _) => self.simple(at, "commit", Action::Read)?,
            ("abort", _) => self.simple(at, "rollback", Action::Read)?,
            ("set", _) => self.set(at)?,
            ("lock", _) => self.list(at + 1, &["table", "tables"], "lock", Action::Write)?,
            ("truncate", _) => {
                self.found.unbounded = true;
                self.list(at + 1, &["table"], "truncate", Action::Write)?
            }
            ("use", true) => {
                let name = self.name(at + 1)?;
                self.found.schemas.insert(name);
                self.simple(at, "use", Action::Read)?
            }
            ("handler", true) => self.list(at + 1, &[], "handler", Action::Read)?,
            ("load", true) if matches!(next.as_str(), "data" | "xml") => self.load(at)?,
            ("rename", true) if next == "table" => {
                self.changes_schema = true;
                self.list(at + 1, &["table"], "rename table", Action::Ddl)?
            }
            ("create" | "alter" | "drop", _) => self.object(at, &word)?,
            _ => self.plain(at, &word)?,
        };
        self.judge_functions();
        Some(kind)
    }

    /// A statement that its first word tells.
    fn plain(&mut self, at: usize, word: &str) -> Option<Cow<'static, str>> {
        let own = if self.mysql { OF_MYSQL } else { OF_POSTGRESQL };
        let mut known = COMMON.iter().chain(own);
        // DO of PostgreSQL and PREPARE of MySQL hold statements in strings; the rest nobody knows.
        let (kind, action) = known.find(|(known, _)| *known == word)?;
        self.changes_schema = matches!(action, Action::Ddl | Action::Admin);
        self.simple(at, kind, *action)
    }

    /// A statement whose tokens tell the rest.
    fn simple(
        &mut self,
        at: usize,
        kind: &'static str,
        action: Action,
    ) -> Option<Cow<'static, str>> {
        self.needs(action);
        self.scan(at)?;
        Some(kind.into())
    }

    /// A list of tables follows, behind some of these words.
    fn list(
        &mut self,
        at: usize,
        words: &[&str],
        kind: &'static str,
        action: Action,
    ) -> Option<Cow<'static, str>> {
        self.needs(action);
        let at = self.behind(at, words);
        let at = self.behind(at, &["if", "not", "exists", "concurrently"]);
        let mut frame = Frame::of_tables();
        let at = self.table(at, &mut frame, &[], true)?;
        self.scan_in(at, frame)?;
        Some(kind.into())
    }

    /// EXPLAIN asks for what the statement needs: ANALYZE executes it, and planning may call functions.
    fn explain(&mut self, at: usize) -> Option<Cow<'static, str>> {
        let mut at = at + 1;
        if self.is_mark(at, "(") && !self.mysql {
            // Options; a query in parentheses begins with one of these.
            if !matches!(
                self.word(at + 1),
                Some("select" | "with" | "values" | "table")
            ) && !self.is_mark(at + 1, "(")
            {
                at = self.closing(at)? + 1;
            }
        }
        at = self.behind(
            at,
            &["analyze", "analyse", "verbose", "extended", "partitions"],
        );
        if self.is_word(at, "format") && self.is_mark(at + 1, "=") {
            at += 3;
        }
        self.needs(Action::Read);
        let others = [
            "insert", "update", "delete", "merge", "replace", "create", "execute", "refresh",
        ];
        if self.is_query(at, &others) {
            self.statement(at)?;
        } else if self.mysql && self.tokens.get(at).is_some_and(Token::is_name) {
            // DESCRIBE: of a table.
            let at = self.table(at, &mut Frame::default(), &[], true)?;
            self.scan_in(at, Frame::default())?;
        } else {
            return None;
        }
        Some("explain".into())
    }

    /// The parenthesis that closes the one here.
    fn closing(&self, at: usize) -> Option<usize> {
        self.closings.get(&at).copied()
    }

    /// A query, or what else can be prepared, begins here.
    fn is_query(&self, at: usize, others: &[&str]) -> bool {
        self.is_mark(at, "(")
            || self.word(at).is_some_and(|word| {
                matches!(word, "select" | "with" | "values" | "table") || others.contains(&word)
            })
    }

    /// `COPY t (columns) FROM STDIN`, `COPY (query) TO 'file'`.
    fn copy(&mut self, at: usize) -> Option<Cow<'static, str>> {
        let mut at = self.behind(at + 1, &["binary"]);
        if self.is_mark(at, "(") {
            let end = self.closing(at)?;
            self.needs(Action::Read);
            self.start = at;
            self.no_call = Some(at);
            self.scan_part(at, end + 1, Frame::default())?;
            at = end + 1;
        } else {
            at = self.table(at, &mut Frame::default(), &[], true)?;
            if self.is_mark(at, "(") {
                at = self.closing(at)? + 1;
            }
        }
        let action = match self.word(at)? {
            "from" => Action::Write,
            "to" => Action::Read,
            _ => return None,
        };
        self.needs(action);
        if !matches!(self.word(at + 1), Some("stdin" | "stdout")) {
            // A file or a program of the server's.
            self.needs(Action::Admin);
        }
        // COPY ... FROM ... WHERE may call functions.
        let rest = self.tokens.get(at + 1..)?;
        let condition = rest.iter().position(|token| token.word() == Some("where"));
        if let Some(condition) = condition {
            self.scan_in(at + 1 + condition, Frame::default())?;
        }
        Some("copy".into())
    }

    /// `PREPARE name (types) AS statement`
    fn prepare(&mut self, at: usize) -> Option<Cow<'static, str>> {
        let name = self.tokens.get(at + 1).filter(|token| token.is_name())?;
        self.found.prepared = Some(name.text.clone());
        let mut at = at + 2;
        if self.is_mark(at, "(") {
            at = self.closing(at)? + 1;
        }
        if !self.is_word(at, "as")
            || !self.is_query(at + 1, &["insert", "update", "delete", "merge"])
        {
            return None;
        }
        self.statement(at + 1)?;
        Some("prepare".into())
    }

    /// `DECLARE name CURSOR FOR query`
    fn declare(&mut self, at: usize) -> Option<Cow<'static, str>> {
        let rest = self.tokens.get(at..)?;
        let query = at + rest.iter().position(|token| token.word() == Some("for"))? + 1;
        if !self.is_query(query, &["execute"]) {
            return None;
        }
        self.statement(query)?;
        Some("declare".into())
    }

    /// `EXECUTE name (values)`
    fn execute(&mut self, at: usize) -> Option<Cow<'static, str>> {
        let name = self.tokens.get(at + 1).filter(|token| token.is_name())?;
        self.found.prepared = Some(name.text.clone());
        self.needs(Action::Read);
        self.no_call = Some(at + 2);
        self.scan_in(at + 2, Frame::default())?;
        Some("execute".into())
    }

    fn set(&mut self, at: usize) -> Option<Cow<'static, str>> {
        let names: Vec<&str> = self
            .tokens
            .get(at + 1..)?
            .iter()
            .filter(|token| token.is_name())
            .map(|token| token.text.as_str())
            .collect();
        let is_admin = if self.mysql {
            names.iter().any(|name| {
                matches!(
                    *name,
                    "global" | "persist" | "persist_only" | "password" | "role"
                )
            })
        } else {
            let names = match names.as_slice() {
                ["session" | "local", rest @ ..] if !rest.is_empty() => rest,
                names => names,
            };
            matches!(
                names,
                ["role" | "authorization" | "session_authorization", ..]
                    | ["session", "authorization", ..]
            )
        };
        let action = if is_admin {
            Action::Admin
        } else {
            Action::Read
        };
        self.simple(at + 1, "set", action)?;
        Some("set".into())
    }

    /// `LOAD DATA [LOCAL] INFILE 'file' INTO TABLE t`
    fn load(&mut self, at: usize) -> Option<Cow<'static, str>> {
        self.needs(Action::Write);
        let rest = self.tokens.get(at..)?;
        if !rest.iter().any(|token| token.word() == Some("local")) {
            self.needs(Action::Admin);
        }
        let into = at + rest.iter().position(|token| token.word() == Some("into"))? + 1;
        let at = self.table(
            self.behind(into, &["table"]),
            &mut Frame::default(),
            &[],
            true,
        )?;
        self.no_call = Some(at);
        self.scan_in(at, Frame::default())?;
        Some("load data".into())
    }

    /// CREATE, ALTER, DROP.
    fn object(&mut self, at: usize, verb: &str) -> Option<Cow<'static, str>> {
        // DEFINER = 'who'@'where', OR REPLACE, TEMPORARY, CONCURRENTLY: of some twenty tokens the
        // first that names a kind of object.
        let words = self.tokens.iter().enumerate().skip(at + 1).take(20);
        let (at, object, action) = words
            .filter_map(|(at, token)| Some((at, token.word()?)))
            .find_map(|(at, word)| {
                if SCHEMA_OBJECTS.contains(&word) {
                    Some((at, word.to_owned(), Action::Ddl))
                } else {
                    let is = SERVER_OBJECTS.contains(&word);
                    is.then(|| (at, word.to_owned(), Action::Admin))
                }
            })?;
        self.changes_schema = true;
        self.needs(action);
        let mut frame = Frame::default();
        let mut rest = at + 1;
        if matches!(self.word(at), Some("table" | "view")) {
            if verb == "drop" {
                frame = Frame::of_tables();
            }
            let name = self.behind(at + 1, &["if", "not", "exists", "only", "concurrently"]);
            rest = self.table(name, &mut frame, &[], true)?;
        } else if self.tokens.get(rest).is_some_and(Token::is_name) {
            // The name of a function is not called.
            rest = self.behind(
                rest,
                &["if", "not", "exists", "concurrently", "or", "replace"],
            );
            while self.tokens.get(rest).is_some_and(Token::is_name) && self.is_mark(rest + 1, ".") {
                rest += 2;
            }
            self.no_call = Some(rest + 1);
        }
        self.scan_in(rest, frame)?;
        Some(format!("{verb} {object}").into())
    }

    /// What the functions that were found ask for.
    fn judge_functions(&mut self) {
        for name in self.found.functions.clone() {
            let class = functions::class(&name, self.mysql);
            match class {
                Class::Harmless => {}
                Class::Unknown if self.changes_schema => {}
                Class::Unknown => self.needs(Action::Write),
                Class::Admin => self.needs(Action::Admin),
                Class::Text => self.needs(Action::Unparsed),
            }
        }
    }
}

//! What SQL statements do, as far as their text tells: text in, facts out.
//!
//! This is no parser of SQL. A server's grammar has thousands of productions, and whoever parses
//! another one than the server does is deceived. What is read here is what all of them share: where
//! tokens begin and end, which words are keywords, what stands in parentheses, and which names follow
//! the words that tables follow. Wherever two servers, or two settings of one, could read a text
//! differently, the statement is [`Action::Unparsed`]; wherever a reading is a guess, the guess is the
//! one that asks for more permission. So a statement may be judged more strictly than what it does,
//! and never less.
//!
//! What the text does not tell: what a view, a rule, a trigger, a user's own operator or a column
//! that is really a function does on the server, and which schema a name without one is found in.
//!
//! No statement is held in memory beyond its own length, and reading is linear in it.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod functions;
mod lexer;
mod names;
mod reader;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::BTreeSet};

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL, and what speaks its dialect.
    Postgresql {
        /// `standard_conforming_strings`: a backslash in '...' is a backslash. None: it is not known
        /// what the server will take it for.
        standard_strings: Option<bool>,
    },
    /// MySQL and MariaDB.
    Mysql {
        /// The SQL mode has `NO_BACKSLASH_ESCAPES`. None: it is not known.
        no_backslash_escapes: Option<bool>,
    },
}

/// What has to be permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It reads, or concerns the transaction or the session alone.
    Read,
    /// It changes rows, locks them, or calls what may.
    Write,
    /// It changes what there is: tables, views, functions.
    Ddl,
    /// It concerns the server, its users, its files, or other sessions.
    Admin,
    /// What it does cannot be told.
    Unparsed,
}

/// What a statement does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Statement {
    /// Its first word, or the two that name it: "select", "create table". "unparsed" where it cannot
    /// be told.
    pub kind: Cow<'static, str>,
    /// All of these must be permitted. Never empty.
    pub actions: BTreeSet<Action>,
    /// Tables and views, by their last name as the server folds it.
    pub tables: BTreeSet<String>,
    /// The schemas (MySQL: databases) that are written before them.
    pub schemas: BTreeSet<String>,
    /// Functions and procedures, by their last name.
    pub functions: BTreeSet<String>,
    /// An UPDATE or DELETE without WHERE, or a TRUNCATE.
    pub unbounded: bool,
    /// The statement without its values, each of which is `?`: what may be logged.
    pub shape: String,
    /// PREPARE, EXECUTE and DEALLOCATE: the name of the prepared statement.
    pub prepared: Option<String>,
    /// Every word and name in it, in lower case.
    pub names: BTreeSet<String>,
    /// It may take rows whole, or columns by names that are not their own.
    pub takes_rows: bool,
}

impl Statement {
    /// One of which nothing is known.
    pub fn unparsed() -> Self {
        Self {
            kind: Cow::Borrowed("unparsed"),
            actions: BTreeSet::from([Action::Unparsed]),
            tables: BTreeSet::new(),
            schemas: BTreeSet::new(),
            functions: BTreeSet::new(),
            unbounded: false,
            shape: String::new(),
            prepared: None,
            names: BTreeSet::new(),
            takes_rows: true,
        }
    }
}

impl Action {
    /// As policies name it, after "sql.".
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Ddl => "ddl",
            Self::Admin => "admin",
            Self::Unparsed => "unparsed",
        }
    }
}

/// Appends what tells a text's statements apart from those of every other text that [`read`] reads
/// differently: its tokens without values. False: it is unparsed, and nothing is to be made of what was
/// appended.
pub fn fingerprint(text: &[u8], dialect: Dialect, out: &mut Vec<u8>) -> bool {
    lexer::fingerprint(text, dialect, out).is_some()
}

/// Reads the statements of a text, in their order. A text without any (comments, semicolons) has
/// none.
pub fn read(text: &[u8], dialect: Dialect) -> Vec<Statement> {
    let Some(tokens) = lexer::tokens(text, dialect) else {
        return vec![Statement::unparsed()];
    };
    tokens
        .split(|token| token.is(";"))
        .filter(|statement| !statement.is_empty())
        .map(|statement| Statement {
            names: names::names(statement),
            takes_rows: names::takes_rows(statement),
            ..reader::read(statement, dialect)
        })
        .collect()
}

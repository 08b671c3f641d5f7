//! Reads typed fields and collects what is wrong with them.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use toml::de::DeTable;

use super::Files;
use super::error::{ConfigError, Document, quoted};
use super::field::{At, Field, Kind, Later, Span, Table, Tables, Word, Words};
use super::raw::LATER;

/// The document while it is turned into a [`Config`](super::Config). A method that finds a mistake
/// notes it and answers `None`: the caller goes on, and the configuration is thrown away at the end.
pub(super) struct Reader<'a> {
    document: Document<'a>,
    dir: &'a Path,
    files: &'a dyn Files,
    errors: Vec<ConfigError>,
    /// Lines whose syntax is wrong: what the parser made of them is a guess, and not reported on.
    guessed: BTreeSet<usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, dir: &'a Path, files: &'a dyn Files) -> Self {
        Self {
            document: Document::new(text),
            dir,
            files,
            errors: Vec::new(),
            guessed: BTreeSet::new(),
        }
    }

    /// Parses the syntax; what could be recovered is returned even when there are errors.
    pub(super) fn syntax<T: for<'de> Deserialize<'de> + Default>(&mut self) -> Table<T> {
        let text = self.document.text;
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            // Without a place, it is the end of the text that was not as expected.
            let span = error.span().unwrap_or(text.len()..text.len());
            if self.guessed.insert(self.line(&span)) {
                let hint = match error.message() {
                    "duplicate key" => "a key may stand once in its table; remove one of the two",
                    _ => "the syntax is TOML: `key = \"text\"`, `key = 5`, `[table]`, `[[list]]`",
                };
                let message = format!("not TOML: {}", error.message());
                self.errors.push(self.document.error(&span, &message, hint));
            }
        }
        // Every field takes anything, so this does not fail; if it did, an empty configuration
        // must not pass for what was typed.
        Table::deserialize(toml::Deserializer::from(table)).unwrap_or_else(|error| {
            let message = format!("cannot be read: {}", error.message());
            self.error(&(0..0), &message, "this is a mistake of mantled: report it");
            Table::default()
        })
    }

    /// The line of a place.
    pub(super) fn line(&self, span: &Span) -> usize {
        self.document.line(span.start)
    }

    /// All that was wrong.
    pub(super) fn finish(self) -> Vec<ConfigError> {
        self.errors
    }

    pub(super) fn error(&mut self, span: &Span, message: &str, hint: &str) {
        if !self.guessed.contains(&self.line(span)) {
            self.errors.push(self.document.error(span, message, hint));
        }
    }

    /// As [`error`](Self::error), about something that is not there: no mistake while some line
    /// cannot be read, because it may be that line.
    pub(super) fn missing(&mut self, span: &Span, message: &str, hint: &str) {
        if self.guessed.is_empty() {
            self.error(span, message, hint);
        }
    }

    /// The value of a key, if it is there and of the right type.
    pub(super) fn get<T: Kind>(&mut self, key: &str, field: Field<T>) -> Option<At<T>> {
        match field {
            Field::Absent => None,
            Field::Given(at) => Some(at),
            Field::Wrong(span) => {
                let found = quoted(self.document.text.get(span.clone()).unwrap_or_default());
                let message = format!("`{key}` must be {}, not {found}", T::expected());
                self.error(&span, &message, &format!("write `{}`", T::example(key)));
                None
            }
        }
    }

    /// As [`get`](Self::get), for one element of the list `L` that the key holds.
    pub(super) fn element<L: Kind, T>(&mut self, key: &str, field: Field<T>) -> Option<At<T>> {
        match field {
            Field::Absent => None,
            Field::Given(at) => Some(at),
            Field::Wrong(span) => {
                let found = quoted(self.document.text.get(span.clone()).unwrap_or_default());
                let message = format!("`{key}` must be {}; this is {found}", L::expected());
                self.error(&span, &message, &format!("write `{}`", L::example(key)));
                None
            }
        }
    }

    /// Reports a key that is missing from the table at `table`.
    pub(super) fn required<T>(&mut self, key: &str, field: &Field<T>, table: &Span, example: &str) {
        if matches!(field, Field::Absent) {
            let message = format!("`{key}` is missing");
            self.missing(table, &message, &format!("write `{example}`"));
        }
    }

    /// Reports a table's unknown keys and gives the known ones.
    pub(super) fn known<T>(&mut self, table: Table<T>) -> T {
        for At { value, span } in &table.unknown {
            let known = table
                .known
                .iter()
                .copied()
                .filter(|key| !LATER.contains(key));
            let known: Vec<_> = known.collect();
            let hint = match nearest(value, &known) {
                Some(key) => format!("did you mean `{key}`?"),
                None => format!("known keys here: {}", known.join(", ")),
            };
            self.error(span, &format!("unknown key {}", quoted(value)), &hint);
        }
        table.keys
    }

    /// A table, or an empty one.
    pub(super) fn table<T: Default>(&mut self, key: &str, field: Field<Table<T>>) -> At<T> {
        match self.get(key, field) {
            Some(At { value, span }) => At {
                value: self.known(value),
                span,
            },
            None => At {
                value: T::default(),
                span: 0..0,
            },
        }
    }

    /// The tables written `[[key]]`.
    pub(super) fn tables<T>(&mut self, key: &str, field: Field<Tables<T>>) -> Vec<At<T>> {
        let Some(list) = self.get(key, field) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        for field in list.value {
            if let Some(At { value, span }) = self.element::<Tables<T>, _>(key, field) {
                tables.push(At {
                    value: self.known(value),
                    span,
                });
            }
        }
        tables
    }

    /// A key that has no meaning yet.
    pub(super) fn later(&mut self, key: &str, field: &Field<Later>, hint: &str) {
        if let Some(span) = field.span() {
            self.error(&span, &format!("`{key}` is not available yet"), hint);
        }
    }

    /// The meaning of a word.
    pub(super) fn word<T: Words>(&mut self, key: &str, field: Field<Word<T>>) -> Option<T> {
        let At {
            value: Word { typed, .. },
            span,
        } = self.get(key, field)?;
        if let Some((_, meaning)) = T::WORDS.iter().find(|(word, _)| *word == typed) {
            return Some(*meaning);
        }
        if let Some((word, hint)) = T::LATER.iter().find(|(word, _)| *word == typed) {
            self.error(
                &span,
                &format!("`{key} = \"{word}\"` is not available yet"),
                hint,
            );
            return None;
        }
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        let hint = match nearest(&typed, &words) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => format!("write `{}`", Word::<T>::example(key)),
        };
        let expected = Word::<T>::expected();
        self.error(
            &span,
            &format!("`{key}` must be {expected}, not {}", quoted(&typed)),
            &hint,
        );
        None
    }

    /// A whole number within bounds.
    pub(super) fn number<N: TryFrom<i64>>(
        &mut self,
        key: &str,
        field: Field<i64>,
        bounds: RangeInclusive<i64>,
    ) -> Option<N> {
        let At { value, span } = self.get(key, field)?;
        let number = N::try_from(value).ok().filter(|_| bounds.contains(&value));
        if number.is_none() {
            let message = format!("`{key}` is {value}, which is out of range");
            let hint = format!("write a number in {}..={}", bounds.start(), bounds.end());
            self.error(&span, &message, &hint);
        }
        number
    }

    /// A port that a connection can go to.
    pub(super) fn port(&mut self, key: &str, field: Field<i64>) -> Option<u16> {
        self.number(key, field, 1..=65535)
    }

    /// An address or a network, an IPv4-mapped one as IPv4.
    pub(super) fn cidr(&mut self, key: &str, field: Field<String>) -> Option<At<IpNet>> {
        let At { value, span } = self.get(key, field)?;
        let net = match value.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) => value.parse::<IpNet>().ok(),
        };
        let Some(net) = net else {
            let message = format!(
                "`{key}` is {}, which is no address or network",
                quoted(&value)
            );
            let hint = "write `192.0.2.7`, `192.0.2.0/24` or `2001:db8::/32`";
            self.error(&span, &message, hint);
            return None;
        };
        if net != net.trunc() {
            let message = format!("{} has bits set behind its prefix", quoted(&value));
            let hint = format!(
                "write `{}`, or `{}` for one address",
                net.trunc(),
                net.addr()
            );
            self.error(&span, &message, &hint);
            return None;
        }
        Some(At {
            value: canonical(net),
            span,
        })
    }

    /// A path; a relative one starts at the configuration file's directory.
    pub(super) fn path(&mut self, key: &str, field: Field<String>) -> Option<At<PathBuf>> {
        let at = self.get(key, field)?;
        self.join(key, at)
    }

    /// As [`path`](Self::path), of a path that was read already.
    pub(super) fn join(&mut self, key: &str, path: At<String>) -> Option<At<PathBuf>> {
        let At { value, span } = path;
        if value.is_empty() || value.contains('\0') {
            let message = format!("`{key}` is {}, which is no path", quoted(&value));
            self.error(&span, &message, "write a path");
            return None;
        }
        Some(At {
            value: self.dir.join(value),
            span,
        })
    }

    /// What a file holds.
    pub(super) fn read(&mut self, key: &str, path: &At<PathBuf>) -> Option<Vec<u8>> {
        match self.files.read(&path.value) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let file = path.value.display();
                let message = format!("`{key}` names {file}, which cannot be read: {error}");
                let hint = match error.kind() {
                    ErrorKind::NotFound => {
                        "correct the path; a relative one starts where this file is"
                    }
                    _ => "let the user that mantled runs as read it, or name another file",
                };
                self.error(&path.span, &message, hint);
                None
            }
        }
    }
}

/// The kernel shows an IPv4 peer of an IPv6 socket as `::ffff:a.b.c.d`; here it is always IPv4.
fn canonical(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(address, prefix)
    {
        return IpNet::V4(v4);
    }
    net
}

/// The word that was most likely meant: at most half of it typed wrong, and never more than three
/// letters (two is what a transposition costs).
fn nearest<'w>(typed: &str, words: &[&'w str]) -> Option<&'w str> {
    let candidates = words.iter().map(|word| (distance(typed, word), *word));
    let (distance, word) = candidates.min_by_key(|(distance, _)| *distance)?;
    (distance <= (word.len() / 2).clamp(1, 3)).then_some(word)
}

/// Levenshtein's edit distance, of case-folded words; anything long is far from every key.
fn distance(a: &str, b: &str) -> usize {
    let fold = |word: &str| -> Vec<char> { word.to_lowercase().chars().take(64).collect() };
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for ((to, above), diagonal) in b.iter().zip(row.iter().skip(1)).zip(&row) {
            left = (diagonal + usize::from(from != to))
                .min(above + 1)
                .min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

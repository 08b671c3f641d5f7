//! What is to be masked.

use std::{collections::BTreeMap, fmt};

/// Something that a detector knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An address of e-mail (RFC 5322 `addr-spec`, without comments).
    Email,
    /// The number of a payment card (ISO/IEC 7812), with its check digit.
    Card,
    /// An account number (ISO 13616), with its check digits.
    Iban,
    /// The number by which a state knows a person, with its check digits where it has some.
    NationalId,
    /// A JSON Web Token (RFC 7519), signed or encrypted.
    Jwt,
    /// A key or token of a cloud or service, known by its prefix.
    CloudKey,
    /// A private key in PEM's form (RFC 7468), OpenSSH's, OpenPGP's or age's.
    PrivateKey,
    /// What looks random, and what is given to a name like `password`.
    Secret,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Email,
        Self::Card,
        Self::Iban,
        Self::NationalId,
        Self::Jwt,
        Self::CloudKey,
        Self::PrivateKey,
        Self::Secret,
    ];

    /// Its name in policies, records and tokens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Card => "card",
            Self::Iban => "iban",
            Self::NationalId => "national-id",
            Self::Jwt => "jwt",
            Self::CloudKey => "cloud-key",
            Self::PrivateKey => "private-key",
            Self::Secret => "secret",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What stands in a value's place. The later of two is the stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Style {
    /// A token that is the same for the same value.
    #[default]
    Token,
    /// The same for every value.
    Fixed,
    /// Nothing: NULL, or an empty text.
    Null,
}

impl Style {
    /// Its name in policies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Fixed => "fixed",
            Self::Null => "null",
        }
    }
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Column {
    /// Its schema (a database, in MySQL); None: whatever schema.
    pub schema: Option<String>,
    /// Its table.
    pub table: String,
    /// Its name.
    pub column: String,
}

/// What is to be masked, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    kinds: BTreeMap<Kind, Style>,
    columns: BTreeMap<Column, Style>,
    fields: BTreeMap<String, Style>,
    keys: BTreeMap<String, Style>,
}

/// Why a text is no list of masks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{item:?}: {reason}")]
pub struct Mistake {
    /// The item.
    pub item: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Masks {
    /// Reads a list as policies write it: items with commas between them, each of them a detector's
    /// name, `column:[schema.]table.column`, `field:name` or `key:pattern` (with `*`), and maybe
    /// `=token`, `=fixed` or `=null` behind it.
    ///
    /// # Errors
    /// An item is none of these, or there is none.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let mut masks = Self::default();
        for item in text.split(',') {
            masks.read(item.trim()).map_err(|reason| Mistake {
                item: item.trim().to_owned(),
                reason,
            })?;
        }
        Ok(masks)
    }

    fn read(&mut self, item: &str) -> Result<(), String> {
        let (what, style) = match item.rsplit_once('=') {
            None => (item, Style::Token),
            Some((what, "token")) => (what, Style::Token),
            Some((what, "fixed")) => (what, Style::Fixed),
            Some((what, "null")) => (what, Style::Null),
            Some(_) => return Err("behind \"=\" stands token, fixed or null".into()),
        };
        let what = what.trim_end();
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == what) {
            return strictest(&mut self.kinds, kind, style);
        }
        match what.split_once(':') {
            Some(("column", path)) => {
                let parts: Vec<&str> = path.split('.').collect();
                if parts.iter().any(|part| part.is_empty()) {
                    return Err(
                        "a column is column:table.column or column:schema.table.column".into(),
                    );
                }
                let (schema, table, column) = match *parts.as_slice() {
                    [table, column] => (None, table, column),
                    [schema, table, column] => (Some(schema.to_owned()), table, column),
                    _ => {
                        return Err(
                            "a column is column:table.column or column:schema.table.column; a name \
                             alone is field:name"
                                .into(),
                        );
                    }
                };
                let column = Column {
                    schema,
                    table: table.to_owned(),
                    column: column.to_owned(),
                };
                strictest(&mut self.columns, column, style)
            }
            Some(("field", name)) if !name.is_empty() => {
                strictest(&mut self.fields, name.to_lowercase(), style)
            }
            Some(("key", pattern)) if !pattern.is_empty() => {
                strictest(&mut self.keys, pattern.to_owned(), style)
            }
            _ => {
                let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                Err(format!(
                    "it is no mask; masks are {}, column:table.column, field:name and key:pattern",
                    known.join(", ")
                ))
            }
        }
    }

    /// Masks what `other` masks as well; where both do, in the stricter way.
    pub fn merge(&mut self, other: &Self) {
        for (kind, style) in &other.kinds {
            let _ = strictest(&mut self.kinds, *kind, *style);
        }
        for (column, style) in &other.columns {
            let _ = strictest(&mut self.columns, column.clone(), *style);
        }
        for (name, style) in &other.fields {
            let _ = strictest(&mut self.fields, name.clone(), *style);
        }
        for (pattern, style) in &other.keys {
            let _ = strictest(&mut self.keys, pattern.clone(), *style);
        }
    }

    /// Nothing is masked.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
            && self.columns.is_empty()
            && self.fields.is_empty()
            && self.keys.is_empty()
    }

    /// What its detectors look for.
    pub fn kinds(&self) -> impl Iterator<Item = (Kind, Style)> + '_ {
        self.kinds.iter().map(|(kind, style)| (*kind, *style))
    }

    /// How what a detector finds is masked.
    pub fn kind(&self, kind: Kind) -> Option<Style> {
        self.kinds.get(&kind).copied()
    }

    /// The columns.
    pub fn columns(&self) -> impl Iterator<Item = (&Column, Style)> + '_ {
        self.columns.iter().map(|(column, style)| (column, *style))
    }

    /// How this very column is masked.
    pub fn of_column(&self, column: &Column) -> Option<Style> {
        self.columns.get(column).copied()
    }

    /// How a column of this table is masked. A field of its name counts.
    pub fn column(&self, schema: &str, table: &str, column: &str) -> Option<Style> {
        let is_it = |masked: &Column| {
            masked.table.eq_ignore_ascii_case(table)
                && masked.column.eq_ignore_ascii_case(column)
                && masked
                    .schema
                    .as_ref()
                    .is_none_or(|masked| masked.eq_ignore_ascii_case(schema))
        };
        self.columns()
            .filter(|(masked, _)| is_it(masked))
            .map(|(_, style)| style)
            .chain(self.field(column))
            .max()
    }

    /// How a field of this name is masked: a column of a result, a member of an object of JSON, a field
    /// of a form. Case does not count.
    pub fn field(&self, name: &str) -> Option<Style> {
        if self.fields.is_empty() {
            return None;
        }
        self.fields.get(&name.to_lowercase()).copied()
    }

    /// Are there masks of fields?
    pub fn has_fields(&self) -> bool {
        !self.fields.is_empty()
    }

    /// How the value of a key is masked.
    pub fn key(&self, key: &[u8]) -> Option<Style> {
        self.keys
            .iter()
            .filter(|(pattern, _)| matches(pattern.as_bytes(), key))
            .map(|(_, style)| *style)
            .max()
    }

    /// Are there masks of keys?
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }
}

impl fmt::Display for Masks {
    /// As it is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.kinds().map(|(kind, style)| (kind.to_string(), style));
        let columns = self.columns().map(|(column, style)| {
            let schema = column.schema.as_ref().map(|name| format!("{name}."));
            let schema = schema.unwrap_or_default();
            (
                format!("column:{schema}{}.{}", column.table, column.column),
                style,
            )
        });
        let fields = self
            .fields
            .iter()
            .map(|(name, style)| (format!("field:{name}"), *style));
        let keys = self
            .keys
            .iter()
            .map(|(name, style)| (format!("key:{name}"), *style));
        for (at, (what, style)) in kinds.chain(columns).chain(fields).chain(keys).enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            f.write_str(&what)?;
            if style != Style::Token {
                write!(f, "={}", style.name())?;
            }
        }
        Ok(())
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the last word of a reading")]
fn strictest<K: Ord>(among: &mut BTreeMap<K, Style>, what: K, style: Style) -> Result<(), String> {
    let held = among.entry(what).or_default();
    *held = style.max(*held);
    Ok(())
}

/// Does a pattern, in which `*` is any text, match all of it? Without backtracking over more than one
/// star.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut place) = (0, 0);
    // Where the last star stands, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while place < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(byte) if Some(byte) == text.get(place) => {
                at += 1;
                place += 1;
            }
            _ => {
                let Some((back, taken)) = star else {
                    return false;
                };
                star = Some((back, taken + 1));
                at = back + 1;
                place = taken + 1;
            }
        }
    }
    pattern
        .get(at..)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_written() {
        let text = "email, card=fixed, column:users.ssn, column:public.users.name=null, \
                    field:password, key:session:*=fixed";
        let masks = Masks::parse(text).unwrap();
        assert_eq!(masks.kind(Kind::Email), Some(Style::Token));
        assert_eq!(masks.kind(Kind::Card), Some(Style::Fixed));
        assert_eq!(masks.kind(Kind::Jwt), None);
        assert_eq!(masks.column("any", "USERS", "SSN"), Some(Style::Token));
        assert_eq!(masks.column("public", "users", "name"), Some(Style::Null));
        assert_eq!(masks.column("other", "users", "name"), None);
        assert_eq!(
            masks.column("other", "logins", "Password"),
            Some(Style::Token)
        );
        assert_eq!(masks.key(b"session:7"), Some(Style::Fixed));
        assert_eq!(masks.key(b"sessions"), None);
        assert_eq!(Masks::parse(&masks.to_string()).unwrap(), masks);
    }

    #[test]
    fn mistakes_are_named() {
        for wrong in [
            "",
            "mail",
            "email,",
            "card=stars",
            "column:ssn",
            "column:a..b",
            "column:a.b.c.d",
            "field:",
            "key:",
            "row:a",
        ] {
            let mistake = Masks::parse(wrong).expect_err(wrong);
            assert!(!mistake.reason.is_empty(), "{mistake}");
        }
    }

    #[test]
    fn the_stricter_of_two_holds() {
        let mut masks = Masks::parse("email=fixed, column:a.b").unwrap();
        masks.merge(&Masks::parse("email, jwt, column:a.b=null").unwrap());
        assert_eq!(masks.to_string(), "email=fixed, jwt, column:a.b=null");
    }

    #[test]
    fn stars_are_any_text() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("a*b", "ab", true),
            ("a*b", "a--b-b", true),
            ("a*b", "a--b-", false),
            ("*:token", "x:y:token", true),
            ("a", "ab", false),
            ("**a**", "bab", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                is,
                "{pattern} {text}"
            );
        }
    }
}

//! Where tokens begin and end.
//!
//! PostgreSQL: documentation, chapter "Lexical Structure", and `scan.l`. MySQL: reference manual,
//! chapter "Language Structure", and `sql_lex.cc`.

use crate::Dialect;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A keyword or a name without quotes, in lower case.
    Word,
    /// A name in quotes.
    Quoted,
    /// A value: string, number, placeholder.
    Value,
    /// Everything else, a character each, but for `::`.
    Mark,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// Word: folded; Quoted: without quotes; Mark: itself; Value: empty, for nothing depends on it.
    pub(crate) text: String,
}

impl Token {
    /// This mark?
    pub(crate) fn is(&self, mark: &str) -> bool {
        self.kind == Kind::Mark && self.text == mark
    }

    /// This keyword?
    pub(crate) fn word(&self) -> Option<&str> {
        (self.kind == Kind::Word).then_some(self.text.as_str())
    }

    /// Can it be a name?
    pub(crate) fn is_name(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::Quoted)
    }
}

/// Longest name, in bytes: PostgreSQL cuts off what is more (`NAMEDATALEN`).
const MAX_NAME: usize = 63;

/// The tokens of a text; None where it cannot be told where they end.
pub(crate) fn tokens(text: &[u8], dialect: Dialect) -> Option<Vec<Token>> {
    let mut tokens = Tokens {
        mysql: matches!(dialect, Dialect::Mysql { .. }),
        list: Vec::new(),
    };
    walk(text, dialect, &mut tokens)?;
    Some(tokens.list)
}

/// The same written down so that no two lists of tokens read the same; values are all alike. It
/// allocates nothing for a token.
pub(crate) fn fingerprint(text: &[u8], dialect: Dialect, out: &mut Vec<u8>) -> Option<()> {
    walk(
        text,
        dialect,
        &mut Fingerprint {
            out,
            after_name: false,
        },
    )
}

fn walk<S: Sink>(text: &[u8], dialect: Dialect, sink: &mut S) -> Option<()> {
    let mut lexer = Lexer {
        rest: text,
        dialect,
        sink,
    };
    while lexer.step()? {}
    Some(())
}

/// What becomes of the tokens that are found.
trait Sink {
    /// One more. Of a value the bytes are empty; of a name in quotes the quotes are gone.
    fn push(&mut self, kind: Kind, bytes: &[u8]);

    /// Was the last one a name?
    fn follows_name(&self) -> bool;
}

/// They are kept.
struct Tokens {
    mysql: bool,
    list: Vec<Token>,
}

impl Sink for Tokens {
    fn push(&mut self, kind: Kind, bytes: &[u8]) {
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        // Whether MySQL's names of tables differ by case is the server's setting.
        if kind == Kind::Word || (kind == Kind::Quoted && self.mysql) {
            text.make_ascii_lowercase();
        }
        if !self.mysql && matches!(kind, Kind::Word | Kind::Quoted) {
            while text.len() > MAX_NAME {
                text.pop();
            }
        }
        self.list.push(Token { kind, text });
    }

    fn follows_name(&self) -> bool {
        self.list.last().is_some_and(Token::is_name)
    }
}

/// They are written down: a byte that tells the kind, the text, and NUL, which is in none.
struct Fingerprint<'a> {
    out: &'a mut Vec<u8>,
    after_name: bool,
}

impl Sink for Fingerprint<'_> {
    fn push(&mut self, kind: Kind, bytes: &[u8]) {
        self.after_name = matches!(kind, Kind::Word | Kind::Quoted);
        self.out.push(match kind {
            Kind::Word => 1,
            Kind::Quoted => 2,
            Kind::Value => 3,
            Kind::Mark => 4,
        });
        match kind {
            Kind::Word => self.out.extend(bytes.iter().map(u8::to_ascii_lowercase)),
            _ => self.out.extend_from_slice(bytes),
        }
        self.out.push(0);
    }

    fn follows_name(&self) -> bool {
        self.after_name
    }
}

/// Nothing becomes of them.
struct Nothing;

impl Sink for Nothing {
    fn push(&mut self, _: Kind, _: &[u8]) {}

    fn follows_name(&self) -> bool {
        false
    }
}

struct Lexer<'a, 's, S> {
    rest: &'a [u8],
    dialect: Dialect,
    sink: &'s mut S,
}

fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_name(byte: u8) -> bool {
    begins_name(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c | 0x0b)
}

impl<'a, S: Sink> Lexer<'a, '_, S> {
    fn is_mysql(&self) -> bool {
        matches!(self.dialect, Dialect::Mysql { .. })
    }

    fn at(&self, place: usize) -> Option<u8> {
        self.rest.get(place).copied()
    }

    fn skip(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or((self.rest, &[]));
        self.rest = rest;
        taken
    }

    fn push(&mut self, kind: Kind, bytes: &[u8]) {
        self.sink.push(kind, bytes);
    }

    /// Takes one token, or what stands between two. False at the end; None where nobody can tell.
    fn step(&mut self) -> Option<bool> {
        let Some(first) = self.at(0) else {
            return Some(false);
        };
        match (first, self.at(1)) {
            (byte, _) if is_space(byte) => {
                self.skip(1);
            }
            (b'-', Some(b'-')) if !self.is_mysql() || self.is_mysql_comment() => self.line(),
            // "--" without a space behind it: arithmetic to MySQL, and a comment to everybody else.
            (b'-', Some(b'-')) => return None,
            (b'#', _) if self.is_mysql() => self.line(),
            (b'/', Some(b'*')) => self.comment()?,
            (b'\'', _) => self.string(b'\'', self.plain_strings())?,
            (b'"', _) if self.is_mysql() => self.string(b'"', self.plain_strings())?,
            (b'"', _) => self.quoted(b'"', 0)?,
            (b'`', _) if self.is_mysql() => self.quoted(b'`', 0)?,
            (b'$', Some(b'0'..=b'9')) if !self.is_mysql() => {
                self.skip(1);
                self.number()?;
            }
            (b'$', _) if !self.is_mysql() => self.dollar_quoted()?,
            (b'?', _) if self.is_mysql() => {
                self.skip(1);
                self.push(Kind::Value, &[]);
            }
            (b'0'..=b'9', _) => self.number()?,
            (b'.', Some(b'0'..=b'9')) if !self.sink.follows_name() => self.number()?,
            (byte, _) if begins_name(byte) => self.name()?,
            (b':', Some(b':')) => {
                self.skip(2);
                self.push(Kind::Mark, b"::");
            }
            // Backslashes, braces, control characters, NUL: of no statement, or of a client's own.
            (b'\\' | b'{' | b'}' | ..=b' ' | 0x7f, _) => return None,
            (byte, _) => {
                self.skip(1);
                self.push(Kind::Mark, &[byte]);
            }
        }
        Some(true)
    }

    /// A comment only where a space or a control character follows.
    fn is_mysql_comment(&self) -> bool {
        self.at(2).is_none_or(|byte| byte <= b' ' || byte == 0x7f)
    }

    /// To the end of the line, which for PostgreSQL is a carriage return too.
    fn line(&mut self) {
        let ends = |byte: &u8| *byte == b'\n' || (*byte == b'\r' && !self.is_mysql());
        let length = self.rest.iter().position(ends).unwrap_or(self.rest.len());
        self.skip(length);
    }

    fn comment(&mut self) -> Option<()> {
        let inside = self.rest.get(2..)?;
        if self.is_mysql() {
            // MySQL executes /*! */, and MariaDB /*M! */ too.
            if inside.starts_with(b"!") || inside.starts_with(b"M!") {
                return None;
            }
            let end = inside.windows(2).position(|pair| pair == b"*/")?;
            // MariaDB and MySQL have differed over comments in comments.
            if inside.get(..end)?.windows(2).any(|pair| pair == b"/*") {
                return None;
            }
            self.skip(2 + end + 2);
            return Some(());
        }
        let mut depth = 0_usize;
        loop {
            match (self.at(0)?, self.at(1)) {
                (b'/', Some(b'*')) => {
                    depth += 1;
                    self.skip(2);
                }
                (b'*', Some(b'/')) => {
                    depth -= 1;
                    self.skip(2);
                    if depth == 0 {
                        return Some(());
                    }
                }
                _ => {
                    self.skip(1);
                }
            }
        }
    }

    /// Is a backslash in '...' nothing but a backslash? None: nobody knows.
    fn plain_strings(&self) -> Option<bool> {
        match self.dialect {
            Dialect::Postgresql { standard_strings } => standard_strings,
            Dialect::Mysql {
                no_backslash_escapes,
            } => no_backslash_escapes,
        }
    }

    /// A string, from its quote.
    fn string(&mut self, quote: u8, plain: Option<bool>) -> Option<()> {
        self.skip(1);
        loop {
            match (self.at(0)?, self.at(1)) {
                (byte, Some(next)) if byte == quote && next == quote => {
                    self.skip(2);
                }
                (byte, _) if byte == quote => {
                    self.skip(1);
                    break;
                }
                (b'\\', _) => {
                    let escapes = !plain?;
                    if escapes {
                        self.at(1)?;
                    }
                    self.skip(if escapes { 2 } else { 1 });
                }
                // In some encodings (GBK, Shift JIS) the backslash is the end of a letter.
                (0x80.., Some(b'\\')) if plain != Some(true) => return None,
                (0, _) => return None,
                _ => {
                    self.skip(1);
                }
            }
        }
        self.push(Kind::Value, &[]);
        // A string goes on in the next line, by the rules of its beginning.
        if plain != Some(true) && !self.is_mysql() && self.next_is_quote() {
            return None;
        }
        Some(())
    }

    /// Is the next thing behind spaces and comments a quote?
    fn next_is_quote(&self) -> bool {
        let mut ahead = Lexer {
            rest: self.rest,
            dialect: self.dialect,
            sink: &mut Nothing,
        };
        while let Some(byte) = ahead.at(0) {
            match (byte, ahead.at(1)) {
                (byte, _) if is_space(byte) => {
                    ahead.skip(1);
                }
                (b'-', Some(b'-')) => ahead.line(),
                (b'/', Some(b'*')) if ahead.comment().is_some() => {}
                _ => return byte == b'\'',
            }
        }
        false
    }

    /// A name in quotes, behind a prefix of so many bytes.
    fn quoted(&mut self, quote: u8, prefix: usize) -> Option<()> {
        self.skip(prefix + 1);
        let mut name = Vec::new();
        loop {
            match (self.at(0)?, self.at(1)) {
                (byte, Some(next)) if byte == quote && next == quote => {
                    name.push(quote);
                    self.skip(2);
                }
                (byte, _) if byte == quote => {
                    self.skip(1);
                    break;
                }
                (0x80.., Some(b'`' | b'\\')) if self.is_mysql() => return None,
                (0, _) => return None,
                (byte, _) => {
                    name.push(byte);
                    self.skip(1);
                }
            }
        }
        self.push(Kind::Quoted, &name);
        Some(())
    }

    fn dollar_quoted(&mut self) -> Option<()> {
        let inside = self.rest.get(1..)?;
        let end = inside.iter().position(|byte| *byte == b'$')?;
        let tag = inside.get(..end)?;
        let is_tag = tag.first().is_none_or(|byte| begins_name(*byte))
            && tag
                .iter()
                .all(|byte| continues_name(*byte) && *byte != b'$');
        if !is_tag {
            return None;
        }
        let mark = self.skip(end + 2);
        let length = self
            .rest
            .windows(mark.len())
            .position(|window| window == mark)?;
        self.skip(length + mark.len());
        self.push(Kind::Value, &[]);
        Some(())
    }

    /// A number, behind which something else must stand: some servers read `1from` as two tokens, and
    /// some as one.
    fn number(&mut self) -> Option<()> {
        let length = match (self.at(0)?, self.at(1)) {
            (b'0', Some(b'x' | b'X')) => 2 + self.run(2, |byte| byte.is_ascii_hexdigit()),
            (b'0', Some(b'b' | b'B')) if self.is_mysql() => {
                2 + self.run(2, |byte| matches!(byte, b'0' | b'1'))
            }
            _ => {
                let mut length = self.run(0, |byte| matches!(byte, b'0'..=b'9' | b'.' | b'_'));
                let sign = usize::from(matches!(self.at(length + 1), Some(b'+' | b'-')));
                if matches!(self.at(length), Some(b'e' | b'E')) {
                    let digits = self.run(length + 1 + sign, |byte| byte.is_ascii_digit());
                    if digits == 0 {
                        return None;
                    }
                    length += 1 + sign + digits;
                }
                length
            }
        };
        self.skip(length);
        if self.at(0).is_some_and(continues_name) {
            return None;
        }
        self.push(Kind::Value, &[]);
        Some(())
    }

    /// How many bytes from there are so?
    fn run(&self, from: usize, is: impl Fn(u8) -> bool) -> usize {
        self.rest
            .iter()
            .skip(from)
            .take_while(|byte| is(**byte))
            .count()
    }

    fn name(&mut self) -> Option<()> {
        let length = self.run(0, continues_name);
        let name = self.rest.get(..length)?;
        let next = self.at(length);
        if self.is_mysql() {
            // _utf8'...' and the like leave the string what it is.
            let name = self.skip(length);
            let high_last = name.last().is_some_and(|byte| *byte >= 0x80);
            if high_last && matches!(next, Some(b'\\' | b'`')) {
                return None;
            }
            self.push(Kind::Word, name);
            return Some(());
        }
        match (name, next) {
            ([b'e' | b'E'], Some(b'\'')) => {
                self.skip(1);
                return self.string(b'\'', Some(false));
            }
            ([b'b' | b'B' | b'x' | b'X' | b'n' | b'N'], Some(b'\'')) => {
                self.skip(1);
                return self.string(b'\'', self.plain_strings());
            }
            // Names and strings in which letters are written as numbers.
            ([b'u' | b'U'], Some(b'&')) if matches!(self.at(2), Some(b'\'' | b'"')) => {
                return None;
            }
            _ => {}
        }
        let name = self.skip(length);
        self.push(Kind::Word, name);
        Some(())
    }
}

//! What commands do, and where their keys are: from the key specifications of Redis 7 (COMMAND
//! documentation, "Key specifications").

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It reads, or concerns the connection alone.
    Read,
    /// It changes keys, or tells subscribers.
    Write,
    /// It concerns the server, runs a script, or nobody knows.
    Admin,
}

/// A command, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Understood {
    /// In lower case, with its subcommand behind a space.
    pub name: String,
    /// It is one of Redis' own; else its name may be anything.
    pub is_known: bool,
    /// What it does.
    pub effect: Effect,
    /// Its keys; bytes that are not UTF-8 are replaced.
    pub keys: Vec<String>,
}

/// `name effect specification...`, one a line. A subcommand stands behind `|`. A specification is
/// `i<index>` or `k<keyword>,<from>`, and behind a colon `r<last>,<step>,<limit>` or
/// `n<place of the number>,<first>,<step>`.
static COMMANDS: LazyLock<HashMap<&str, (Effect, Vec<Specification>)>> = LazyLock::new(|| {
    include_str!("commands.txt")
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            let effect = match words.next()? {
                "read" => Effect::Read,
                "write" => Effect::Write,
                _ => Effect::Admin,
            };
            let specifications: Option<Vec<_>> = words.map(Specification::parse).collect();
            Some((name, (effect, specifications?)))
        })
        .collect()
});

/// Where keys are.
#[derive(Debug)]
struct Specification {
    begin: Begin,
    find: Find,
}

#[derive(Debug)]
enum Begin {
    Index(usize),
    /// Behind this word, which is looked for from there on; from the end where it is negative.
    Keyword(&'static str, isize),
}

#[derive(Debug)]
enum Find {
    Range {
        /// Relative to the first key; negative: from the end of the command.
        last: isize,
        step: usize,
        /// Of what is left, one in so many.
        limit: usize,
    },
    Number {
        at: usize,
        first: usize,
        step: usize,
    },
}

impl Specification {
    fn parse(text: &'static str) -> Option<Self> {
        let (begin, find) = text.split_once(':')?;
        let begin = match begin.split_at_checked(1)? {
            ("i", index) => Begin::Index(index.parse().ok()?),
            ("k", rest) => {
                let (word, from) = rest.split_once(',')?;
                Begin::Keyword(word, from.parse().ok()?)
            }
            _ => return None,
        };
        let (kind, numbers) = find.split_at_checked(1)?;
        let numbers: Option<Vec<isize>> = numbers
            .split(',')
            .map(|number| number.parse().ok())
            .collect();
        let [a, b, c] = numbers?.try_into().ok()?;
        let count = |number: isize| usize::try_from(number).ok();
        let find = match kind {
            "r" => Find::Range {
                last: a,
                step: count(b)?,
                limit: count(c)?,
            },
            _ => Find::Number {
                at: count(a)?,
                first: count(b)?,
                step: count(c)?,
            },
        };
        Some(Self { begin, find })
    }

    /// The places of the keys; None: it cannot be told.
    fn places(&self, arguments: &[Cow<'_, [u8]>]) -> Option<Vec<usize>> {
        let begin = match self.begin {
            Begin::Index(index) => index,
            Begin::Keyword(word, from) => {
                let is_it = |place: &usize| {
                    arguments
                        .get(*place)
                        .is_some_and(|argument| argument.eq_ignore_ascii_case(word.as_bytes()))
                };
                let found = match usize::try_from(from) {
                    Ok(from) => (from..arguments.len()).find(is_it),
                    Err(_) => (1..arguments.len()).rev().find(is_it),
                };
                match found {
                    Some(place) => place + 1,
                    // What is optional is not there.
                    None => return Some(Vec::new()),
                }
            }
        };
        let (first, last, step) = match self.find {
            Find::Range { last, step, limit } => {
                let last = match usize::try_from(last) {
                    Ok(last) => begin + last,
                    Err(_) if limit > 1 => {
                        begin + (arguments.len().checked_sub(begin)? / limit).checked_sub(1)?
                    }
                    Err(_) => arguments.len().checked_sub(last.unsigned_abs())?,
                };
                (begin, last, step)
            }
            Find::Number { at, first, step } => {
                let number = arguments.get(begin + at)?;
                let number: usize = std::str::from_utf8(number).ok()?.parse().ok()?;
                let first = begin + first;
                let end = number.checked_mul(step)?.checked_add(first)?;
                (first, end.checked_sub(1)?, step)
            }
        };
        // A command that is too short is one that the server refuses.
        (last < arguments.len() || first >= arguments.len()).then(|| {
            (first..=last.min(arguments.len()))
                .step_by(step.max(1))
                .collect()
        })
    }
}

/// What a command does, from its name and all its arguments. What cannot be told is [`Effect::Admin`].
pub fn understand(arguments: &[Cow<'_, [u8]>]) -> Understood {
    let word = |place: usize| {
        arguments
            .get(place)
            .map(|word| String::from_utf8_lossy(word).to_lowercase())
    };
    let name = word(0).unwrap_or_default();
    let with_subcommand = word(1).map(|sub| format!("{name}|{sub}"));
    let known = with_subcommand
        .as_deref()
        .and_then(|name| COMMANDS.get_key_value(name))
        .or_else(|| COMMANDS.get_key_value(name.as_str()));
    let unknown = |name: &str| Understood {
        name: name.chars().take(64).collect(),
        is_known: false,
        effect: Effect::Admin,
        keys: Vec::new(),
    };
    let Some((name, (effect, specifications))) = known else {
        return unknown(&name);
    };
    let mut keys = Vec::new();
    for specification in specifications {
        let Some(places) = specification.places(arguments) else {
            return unknown(name);
        };
        let named = places.into_iter().filter_map(|place| arguments.get(place));
        keys.extend(named.map(|key| String::from_utf8_lossy(key).into_owned()));
    }
    Understood {
        name: name.replace('|', " "),
        is_known: true,
        effect: *effect,
        keys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found() {
        for (command, effect, keys) in [
            ("GET a", Effect::Read, "a"),
            ("mset a 1 b 2", Effect::Write, "a,b"),
            ("MGET a b c", Effect::Read, "a,b,c"),
            ("zunionstore d 2 a b weights 1 2", Effect::Write, "d,a,b"),
            ("xread count 2 streams a b 0 0", Effect::Read, "a,b"),
            ("memory usage a", Effect::Read, "a"),
            ("georadius a 1 2 3 m store b", Effect::Write, "a,b"),
            ("object encoding a", Effect::Read, "a"),
            ("ping", Effect::Read, ""),
            ("get", Effect::Read, ""),
            ("config get *", Effect::Admin, ""),
            ("eval x 1 a", Effect::Admin, "a"),
            ("eval x 99999999999999999999 a", Effect::Admin, ""),
            ("zunion 18446744073709551615 a", Effect::Admin, ""),
            ("flushall", Effect::Admin, ""),
            ("nobody.knows a", Effect::Admin, ""),
            ("client bogus", Effect::Admin, ""),
            ("sort a by b", Effect::Admin, ""),
            ("", Effect::Admin, ""),
        ] {
            let arguments: Vec<Cow<'_, [u8]>> = command
                .split(' ')
                .map(|word| word.as_bytes().into())
                .collect();
            let understood = understand(&arguments);
            assert_eq!(understood.effect, effect, "{command}");
            assert_eq!(understood.keys.join(","), keys, "{command}");
        }
        assert!(COMMANDS.len() > 300);
    }
}

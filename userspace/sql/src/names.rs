//! What a statement names, for those who must know whether it can have looked at something.

use std::collections::BTreeSet;

use crate::lexer::{Kind, Token};

/// Keywords that no table and no alias can be without quotes (PostgreSQL, appendix "SQL Key Words").
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "cross",
    "current_date",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "table",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

/// All words and names, in lower case.
pub(crate) fn names(tokens: &[Token]) -> BTreeSet<String> {
    let names = tokens.iter().filter(|token| token.is_name());
    names.map(|token| token.text.to_lowercase()).collect()
}

/// May it take rows whole, or columns by other names than their own? `*` (but for `count(*)`), TABLE,
/// a table or an alias as a value, new names for columns. A guess says yes.
pub(crate) fn takes_rows(tokens: &[Token]) -> bool {
    let reads_all = |at: usize| is_star(tokens, at) && !is_count(tokens, at);
    (0..tokens.len())
        .any(|at| reads_all(at) || word(tokens, at) == Some("table") || renames(tokens, at))
        || is_value(tokens)
}

fn word(tokens: &[Token], at: usize) -> Option<&str> {
    tokens.get(at)?.word()
}

fn is_mark(tokens: &[Token], at: Option<usize>, mark: &str) -> bool {
    at.and_then(|at| tokens.get(at))
        .is_some_and(|token| token.is(mark))
}

/// A name that can be a table's, a column's or an alias.
fn is_free(token: &Token) -> bool {
    token.kind == Kind::Quoted || token.word().is_some_and(|word| !RESERVED.contains(&word))
}

/// A star that is no multiplication.
fn is_star(tokens: &[Token], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|at| tokens.get(at));
    let multiplies = before.is_some_and(|token| token.kind == Kind::Value || is_free(token));
    is_mark(tokens, Some(at), "*") && !multiplies
}

fn is_count(tokens: &[Token], star: usize) -> bool {
    is_mark(tokens, star.checked_sub(1), "(")
        && star.checked_sub(2).and_then(|at| word(tokens, at)) == Some("count")
        && is_mark(tokens, Some(star + 1), ")")
}

/// `... AS t (a, b)`, `users t (a, b)`, `WITH t (a, b) AS`.
fn renames(tokens: &[Token], at: usize) -> bool {
    if !tokens.get(at).is_some_and(is_free) {
        return false;
    };
    if !is_mark(tokens, Some(at + 1), "(") {
        return false;
    }
    let before = at.checked_sub(1).and_then(|at| tokens.get(at));
    let is_alias = before.is_some_and(|before| {
        before.is(")") || before.word() == Some("as") || (is_free(before) && !is_by(tokens, at - 1))
    });
    let of_with = before.is_some_and(|before| {
        matches!(before.word(), Some("with" | "recursive")) || before.is(",")
    }) && closes_before_as(tokens, at + 1);
    is_alias || of_with
}

/// Longest list of new names that is looked through, in tokens.
const LIST: usize = 256;

/// Is the parenthesis that opens here closed before AS? A long one may be.
fn closes_before_as(tokens: &[Token], open: usize) -> bool {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open).take(LIST) {
        if token.is("(") {
            depth += 1;
        } else if token.is(")") {
            depth -= 1;
            if depth == 0 {
                return word(tokens, at + 1) == Some("as");
            }
        }
    }
    true
}

/// The BY of GROUP BY, ORDER BY, PARTITION BY.
fn is_by(tokens: &[Token], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|at| word(tokens, at));
    word(tokens, at) == Some("by") && matches!(before, Some("group" | "order" | "partition"))
}

/// Does a name that can be a table's or an alias stand anywhere else without a dot behind it?
fn is_value(tokens: &[Token]) -> bool {
    let mut bare: Vec<String> = Vec::new();
    let mut rows: BTreeSet<String> = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        if !is_free(token) || is_by(tokens, at) {
            continue;
        }
        let name = token.text.to_lowercase();
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        let is_row = before.is_some_and(|before| {
            before.is(")")
                || before.is(",")
                || (is_free(before) && !is_by(tokens, at - 1))
                || matches!(
                    before.word(),
                    Some("as" | "from" | "join" | "only" | "lateral" | "into" | "using")
                )
        });
        // The last part of a name with dots is a table's, or a column's.
        let is_last = is_mark(tokens, at.checked_sub(1), ".");
        if is_row || is_last {
            rows.insert(name.clone());
        }
        if !is_mark(tokens, Some(at + 1), ".") && !is_last {
            bare.push(name);
        } else if is_last
            && at.checked_sub(3).is_some_and(|at| {
                matches!(word(tokens, at), Some("from" | "join" | "only"))
                    || is_mark(tokens, Some(at), ",")
            })
        {
            // FROM schema.table: the table's own place.
            bare.push(name);
        }
    }
    bare.sort_unstable();
    bare.windows(2).any(|pair| {
        pair.first() == pair.last() && pair.first().is_some_and(|name| rows.contains(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dialect, lexer};

    fn tokens(text: &str) -> Vec<Token> {
        let dialect = Dialect::Postgresql {
            standard_strings: Some(true),
        };
        lexer::tokens(text.as_bytes(), dialect).unwrap()
    }

    #[test]
    fn statements_that_take_rows_whole() {
        for text in [
            "select * from users",
            "select u.* from users u",
            "select u from users u",
            "select users from users",
            "select users::text from public.users",
            "select to_jsonb(u) from users as u",
            "select row_to_json(\"U\") from users \"U\"",
            "select q from (select id from users) q",
            "select x + 1 from users as u (x, y)",
            "select x from users u(x)",
            "with q (a, b) as (select id, name from users) select a from q",
            "with recursive q(a) as (select 1) select a from q",
            "table users",
            "select 1 union table users",
            "select array_agg(u) from users u group by id",
            "select count(u.*) from users u",
            "select distinct on (id) * from users",
        ] {
            assert!(takes_rows(&tokens(text)), "{text}");
        }
    }

    #[test]
    fn statements_that_do_not() {
        for text in [
            "select id, name from users",
            "select u.id, u.price * 2 from users u where u.id = $1",
            "select count(*) from users",
            "select count(*), max(u.id) from users u join orders o on o.id = u.id",
            "select id from users order by id",
            "select a.x from a group by a.x order by a.x",
            "select lower(name) from public.users",
        ] {
            assert!(!takes_rows(&tokens(text)), "{text}");
        }
    }

    #[test]
    fn all_words_are_names() {
        let names = names(&tokens(
            "select \"Ssn\", x.NAME from users x where id = 'ssn2'",
        ));
        assert!(names.contains("ssn") && names.contains("name") && names.contains("users"));
        assert!(!names.contains("ssn2"));
    }
}

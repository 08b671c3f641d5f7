//! Whatever a text is, its statements are told in time, and what is told does not depend on comments
//! and spaces around it; an unknown setting makes a reading stricter, never looser.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_sql::{Action, Dialect, fingerprint, read};

fuzz_target!(|input: (bool, &[u8])| {
    let (mysql, text) = input;
    let dialect = |plain: Option<bool>| {
        if mysql {
            Dialect::Mysql {
                no_backslash_escapes: plain,
            }
        } else {
            Dialect::Postgresql {
                standard_strings: plain,
            }
        }
    };
    for plain in [Some(true), Some(false)] {
        let statements = read(text, dialect(plain));
        assert!(statements.iter().all(|statement| !statement.actions.is_empty()));
        let around = [b" /* a */\n", text, b"\n/* b */ "].concat();
        let is_unparsed = |statements: &[mantled_sql::Statement]| {
            statements
                .iter()
                .any(|statement| statement.actions.contains(&Action::Unparsed))
        };
        let again = read(&around, dialect(plain));
        // A comment that the text leaves open, or an operator that meets one, is another text.
        if !is_unparsed(&statements) && !is_unparsed(&again) {
            assert_eq!(again, statements);
        }
        // Whoever has the same fingerprint says the same.
        let print = |text: &[u8]| {
            let mut print = Vec::new();
            fingerprint(text, dialect(plain), &mut print).then_some(print)
        };
        let own = print(text);
        if own.is_none() {
            assert!(is_unparsed(&statements));
        } else if own == print(&around) {
            assert_eq!(again, statements);
        }
        let unknown = read(text, dialect(None));
        assert!(unknown == statements || is_unparsed(&unknown));
    }
});

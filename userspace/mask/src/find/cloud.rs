//! Keys and tokens that tell by a prefix whose they are.

use super::{Found, begins, found, run};
use crate::Kind;

/// A form: a prefix, and what follows it.
struct Form {
    prefix: &'static str,
    of: fn(u8) -> bool,
    /// At least so many characters.
    least: usize,
    /// At most; what is longer is something else.
    most: usize,
}

const fn form(prefix: &'static str, of: fn(u8) -> bool, least: usize, most: usize) -> Form {
    Form {
        prefix,
        of,
        least,
        most,
    }
}

const ANY: usize = 512;

/// As their makers document them, or as the keys are seen to be.
const FORMS: [Form; 46] = [
    form("AKIA", upper, 16, 16),
    form("ASIA", upper, 16, 16),
    form("ABIA", upper, 16, 16),
    form("ACCA", upper, 16, 16),
    form("AIza", word, 35, 35),
    form("ya29.", word, 30, ANY),
    form("GOCSPX-", word, 28, 28),
    form("ghp_", alphanumeric, 36, ANY),
    form("gho_", alphanumeric, 36, ANY),
    form("ghu_", alphanumeric, 36, ANY),
    form("ghs_", alphanumeric, 36, ANY),
    form("ghr_", alphanumeric, 36, ANY),
    form("github_pat_", word, 60, ANY),
    form("glpat-", word, 20, ANY),
    form("gldt-", word, 20, ANY),
    form("glrt-", word, 20, ANY),
    form("xoxb-", word, 24, ANY),
    form("xoxp-", word, 24, ANY),
    form("xoxa-", word, 24, ANY),
    form("xoxr-", word, 24, ANY),
    form("xapp-", word, 24, ANY),
    form("sk_live_", alphanumeric, 20, ANY),
    form("sk_test_", alphanumeric, 20, ANY),
    form("rk_live_", alphanumeric, 20, ANY),
    form("rk_test_", alphanumeric, 20, ANY),
    form("whsec_", base64, 24, ANY),
    form("sk-ant-", word, 24, ANY),
    form("sk-proj-", word, 24, ANY),
    form("sk-", alphanumeric, 32, ANY),
    form("npm_", alphanumeric, 36, 36),
    form("pypi-AgEI", word, 40, ANY),
    form("SG.", dotted, 60, ANY),
    form("dop_v1_", hex, 64, 64),
    form("doo_v1_", hex, 64, 64),
    form("hvs.", word, 24, ANY),
    form("hvb.", word, 24, ANY),
    form("hf_", alphanumeric, 34, 34),
    form("shpat_", hex, 32, 32),
    form("shpss_", hex, 32, 32),
    form("dapi", hex, 32, 32),
    form("AGE-SECRET-KEY-1", upper, 58, 58),
    form("LTAI", alphanumeric, 12, 20),
    form("AKID", alphanumeric, 32, 32),
    form("NRAK-", upper, 27, 27),
    form("PMAK-", word, 59, 59),
    form("AccountKey=", base64, 86, 88),
];

pub(super) fn find(text: &[u8], into: &mut Vec<Found>) {
    let mut from = 0;
    for at in 0..text.len() {
        if at < from || !begins(text, at) {
            continue;
        }
        if let Some(length) = key(text, at) {
            into.push(found(Kind::CloudKey, at..at + length));
            from = at + length;
        }
    }
}

fn key(text: &[u8], at: usize) -> Option<usize> {
    let rest = text.get(at..)?;
    FORMS
        .iter()
        .filter(|form| rest.starts_with(form.prefix.as_bytes()))
        .find_map(|form| {
            let length = run(rest, form.prefix.len(), form.of);
            (form.least..=form.most)
                .contains(&length)
                .then_some(form.prefix.len() + length)
        })
}

fn upper(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn word(byte: u8) -> bool {
    super::is_base64url(byte)
}

fn dotted(byte: u8) -> bool {
    word(byte) || byte == b'.'
}

fn base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)
}

fn hex(byte: u8) -> bool {
    byte.is_ascii_hexdigit()
}

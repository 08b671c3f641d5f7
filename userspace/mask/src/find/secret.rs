//! What looks random, and what is given to a name like `password`.

use super::{Found, begins, found, run, run_back};
use crate::Kind;

pub(super) fn find(text: &[u8], into: &mut Vec<Found>) {
    random(text, into);
    given(text, into);
}

/// A shorter word can be anything.
const SHORTEST: usize = 20;
/// A longer one is data.
const LONGEST: usize = 256;
/// What digests are written behind (Subresource Integrity; OpenSSH's fingerprints): they are told to
/// everybody.
const DIGESTS: [&[u8]; 5] = [b"sha256-", b"sha384-", b"sha512-", b"SHA256:", b"sha256:"];

/// Words of base64's characters that are too irregular for words.
fn random(text: &[u8], into: &mut Vec<Found>) {
    let of_word = |byte: u8| byte.is_ascii_alphanumeric() || b"+/_-".contains(&byte);
    let mut at = 0;
    while at < text.len() {
        let length = run(text, at, of_word);
        let end = at + length + run(text, at + length, |byte| byte == b'=').min(2);
        let word = text.get(at..at + length).unwrap_or_default();
        let before = text.get(..at).unwrap_or_default();
        let is_digest = DIGESTS
            .iter()
            .any(|digest| word.starts_with(digest) || before.ends_with(digest));
        if (SHORTEST..=LONGEST).contains(&length) && !is_digest && is_random(word) {
            into.push(found(Kind::Secret, at..end));
        }
        at += length.max(1);
    }
}

fn is_random(word: &[u8]) -> bool {
    let class = |byte: &u8| match byte {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    let mut counts = [0_u32; 256];
    for byte in word {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    let has = |wanted: u8| word.iter().any(|byte| class(byte) == wanted);
    if !(has(0) && has(1) && has(2)) {
        return false;
    }
    // In random base64 six neighbours of ten are of different classes; in names, fewer than four.
    let changes = word
        .windows(2)
        .filter(|pair| pair.first().map(class) != pair.last().map(class))
        .count();
    if changes * 100 < (word.len() - 1) * 42 {
        return false;
    }
    // Shannon's entropy, in bits a character.
    let length = word.len() as f64;
    let entropy: f64 = counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| {
            let share = f64::from(*count) / length;
            -share * share.log2()
        })
        .sum();
    entropy >= if word.len() < 32 { 3.6 } else { 4.1 }
}

/// What names of secrets end with.
const NAMES: [&[u8]; 20] = [
    b"password",
    b"passwd",
    b"passphrase",
    b"pwd",
    b"secret",
    b"secret_key",
    b"secret-key",
    b"secretkey",
    b"token",
    b"apikey",
    b"api_key",
    b"api-key",
    b"access_key",
    b"access-key",
    b"accesskey",
    b"private_key",
    b"auth_key",
    b"authkey",
    b"credential",
    b"credentials",
];
/// What is no value.
const NOTHING: [&[u8]; 10] = [
    b"null",
    b"none",
    b"true",
    b"false",
    b"undefined",
    b"required",
    b"missing",
    b"invalid",
    b"expired",
    b"redacted",
];
/// A shorter value is a flag or a number of a thing.
const SHORT: usize = 6;

/// `password=...`, `"api_key": "..."`, `Authorization: Bearer ...`.
fn given(text: &[u8], into: &mut Vec<Found>) {
    for at in memchr::memchr2_iter(b'=', b':', text) {
        let quotes = run_back(text, at, |byte| b"\"'` ".contains(&byte));
        let name_end = at - quotes;
        let length = run_back(text, name_end, |byte| {
            byte.is_ascii_alphanumeric() || b"_-".contains(&byte)
        });
        let name = text
            .get(name_end - length..name_end)
            .unwrap_or_default()
            .to_ascii_lowercase();
        if NAMES.iter().any(|secret| name.ends_with(secret)) {
            // "=>", "==" and ":=" give as well.
            let sign = at + 1 + run(text, at + 1, |byte| byte == b'=' || byte == b'>').min(2);
            let from = sign + run(text, sign, |byte| b"\"'` \\".contains(&byte)).min(4);
            let is_spaced = text.get(sign) == Some(&b' ');
            value(text, from, text.get(at) == Some(&b'=') && !is_spaced, into);
        } else if name.ends_with(b"authorization") {
            let from = at + 1 + run(text, at + 1, |byte| b"\"' ".contains(&byte));
            scheme(text, from, into);
        }
    }
    for word in [b"Bearer ".as_slice(), b"bearer "] {
        for at in memchr::memmem::find_iter(text, word) {
            if begins(text, at) {
                scheme(text, at, into);
            }
        }
    }
}

/// A value; `is_tight`: it is given by an equals sign without a space.
fn value(text: &[u8], from: usize, is_tight: bool, into: &mut Vec<Found>) {
    let length = run(text, from, |byte| {
        byte > b' ' && byte != 0x7f && !b"\"'`&,;)]}<".contains(&byte)
    });
    let value = text.get(from..from + length).unwrap_or_default();
    // The full stop of a sentence.
    let stops = run_back(value, value.len(), |byte| byte == b'.');
    let value = value.get(..value.len() - stops).unwrap_or_default();
    let is_prose = value.iter().all(|byte| byte.is_ascii_alphabetic());
    let is_place = value.starts_with(b"$") || value.starts_with(b"{{") || value.starts_with(b"%");
    let is_starred = value.iter().all(|byte| b"*.xX-".contains(byte));
    let is_ours = value.starts_with(b"masked") || value.starts_with(b"secret-");
    let is_nothing = NOTHING
        .iter()
        .any(|nothing| value.eq_ignore_ascii_case(nothing));
    if value.len() >= SHORT
        && (is_tight || !is_prose)
        && !(is_place || is_starred || is_ours || is_nothing)
    {
        into.push(found(Kind::Secret, from..from + value.len()));
    }
}

/// A scheme of HTTP's authentication and its credentials (RFC 9110 section 11.4).
fn scheme(text: &[u8], from: usize, into: &mut Vec<Found>) {
    let name = run(text, from, |byte| byte.is_ascii_alphabetic());
    let spaces = run(text, from + name, |byte| byte == b' ');
    if name == 0 || spaces == 0 {
        return;
    }
    let start = from + name + spaces;
    let length = run(text, start, |byte| {
        byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
    });
    let credentials = text.get(start..start + length).unwrap_or_default();
    let stops = run_back(credentials, credentials.len(), |byte| byte == b'.');
    let length = credentials.len() - stops;
    let is_known = text.get(from..from + name).is_some_and(|name| {
        name.eq_ignore_ascii_case(b"bearer") || name.eq_ignore_ascii_case(b"basic")
    });
    // "bearer authentication" is prose.
    let is_word = credentials.iter().all(|byte| byte.is_ascii_lowercase());
    if is_known && length >= 8 && !is_word && !credentials.starts_with(b"secret-") {
        into.push(found(Kind::Secret, start..start + length));
    }
}

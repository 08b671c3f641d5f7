//! What detectors find.

mod checks;
mod cloud;
mod email;
mod jwt;
mod numbers;
mod pem;
mod secret;

use std::ops::Range;

use crate::Kind;

/// A value in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// Where it stands.
    pub range: Range<usize>,
}

/// Finds what is `wanted` in a text, from its beginning to its end. What overlaps is one value, of the
/// kind that begins first.
pub fn find(text: &[u8], wanted: impl Fn(Kind) -> bool) -> Vec<Found> {
    let mut found = Vec::new();
    // The shortest value of any kind has five characters (a@b.c has an end of two).
    if text.len() < 6 {
        return found;
    }
    if wanted(Kind::Email) {
        email::find(text, &mut found);
    }
    if text.iter().any(u8::is_ascii_digit) {
        numbers::find(text, &wanted, &mut found);
    }
    if wanted(Kind::Jwt) {
        jwt::find(text, &mut found);
    }
    if wanted(Kind::CloudKey) {
        cloud::find(text, &mut found);
    }
    if wanted(Kind::PrivateKey) {
        pem::find(text, &mut found);
    }
    if wanted(Kind::Secret) {
        secret::find(text, &mut found);
    }
    merged(found)
}

fn merged(mut found: Vec<Found>) -> Vec<Found> {
    // Of two that begin together the longer says what it is; of two that are alike, the kind that is
    // told first.
    found.sort_by_key(|one| (one.range.start, usize::MAX - one.range.end, one.kind));
    let mut merged: Vec<Found> = Vec::with_capacity(found.len());
    for one in found {
        match merged.last_mut() {
            Some(last) if one.range.start < last.range.end => {
                last.range.end = last.range.end.max(one.range.end);
            }
            _ => merged.push(one),
        }
    }
    merged
}

fn found(kind: Kind, range: Range<usize>) -> Found {
    Found { kind, range }
}

/// How many bytes from `at` on are such.
fn run(text: &[u8], at: usize, is: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    rest.iter().take_while(|byte| is(**byte)).count()
}

/// How many bytes before `at` are such.
fn run_back(text: &[u8], at: usize, is: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(..at).unwrap_or_default();
    rest.iter().rev().take_while(|byte| is(**byte)).count()
}

/// May a word begin here: does nothing that belongs to a word stand before it?
fn begins(text: &[u8], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).and_then(|at| text.get(at)) else {
        return true;
    };
    !before.is_ascii_alphanumeric() && *before != b'_'
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

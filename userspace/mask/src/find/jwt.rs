//! JSON Web Tokens: three parts (RFC 7515 section 7.1) or five (RFC 7516 section 7.1) of base64url,
//! the first of which is an object that names an algorithm.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{Found, begins, found, is_base64url, run};
use crate::Kind;

/// What an object begins with: `{"`.
const START: &[u8] = b"eyJ";
/// A header that is longer names no algorithm in what is read.
const HEADER: usize = 4096;

pub(super) fn find(text: &[u8], into: &mut Vec<Found>) {
    for at in memchr::memmem::find_iter(text, START) {
        if let Some(length) = token(text, at).filter(|_| begins(text, at)) {
            into.push(found(Kind::Jwt, at..at + length));
        }
    }
}

fn token(text: &[u8], at: usize) -> Option<usize> {
    let header = run(text, at, is_base64url);
    if header > HEADER {
        return None;
    }
    let mut length = header;
    let mut parts = 1;
    while parts < 5 && text.get(at + length) == Some(&b'.') {
        let part = run(text, at + length + 1, is_base64url);
        // The full stop of a sentence is no part; an unsecured token's last one is empty.
        if part == 0 && parts != 2 && parts != 1 {
            break;
        }
        length += 1 + part;
        parts += 1;
    }
    if parts < 3 {
        return None;
    }
    // A last group may be cut where it is not padded.
    let header = text.get(at..at + header)?;
    let header = URL_SAFE_NO_PAD.decode(header).ok()?;
    memchr::memmem::find(&header, b"\"alg\"").map(|_| length)
}

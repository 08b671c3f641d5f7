//! Private keys in PEM (RFC 7468), OpenSSH's and OpenPGP's armour.

use memchr::memmem;

use super::{Found, found};
use crate::Kind;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// The longest label that is looked for ("EC PRIVATE KEY", "PGP PRIVATE KEY BLOCK").
const LABEL: usize = 64;

pub(super) fn find(text: &[u8], into: &mut Vec<Found>) {
    let mut from = 0;
    while let Some(begin) = place(text, from, BEGIN) {
        let label = begin + BEGIN.len();
        from = label;
        let head = text
            .get(label..text.len().min(label + LABEL))
            .unwrap_or_default();
        let Some(length) = memmem::find(head, DASHES) else {
            continue;
        };
        let is_private = head
            .get(..length)
            .is_some_and(|label| memmem::find(label, b"PRIVATE KEY").is_some());
        if !is_private {
            continue;
        }
        // A key that does not end is one to the end.
        from = place(text, label, END)
            .and_then(|end| place(text, end + END.len(), DASHES))
            .map_or(text.len(), |dashes| dashes + DASHES.len());
        into.push(found(Kind::PrivateKey, begin..from));
    }
}

fn place(text: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    memmem::find(text.get(from..)?, what).map(|place| from + place)
}

//! Addresses of e-mail (RFC 5321 section 4.1.2, RFC 6531 for those beyond ASCII).

use super::{Found, found, run, run_back};
use crate::{Kind, masker::NOWHERE};

/// What ends names that hold an at sign and are no addresses: files with a scale, systemd's instances.
const NO_DOMAINS: [&str; 18] = [
    "png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "service", "socket", "timer", "mount",
    "slice", "scope", "target", "device", "swap", "path",
];
/// RFC 5321 section 4.5.3.1.1.
const LOCAL: usize = 64;

pub(super) fn find(text: &[u8], into: &mut Vec<Found>) {
    for at in memchr::memchr_iter(b'@', text) {
        let local = local(text, at);
        let domain = domain(text, at + 1);
        if local > 0 && domain > 0 {
            into.push(found(Kind::Email, at - local..at + 1 + domain));
        }
    }
}

/// How long the local part before an at sign is.
fn local(text: &[u8], at: usize) -> usize {
    if text.get(..at).is_some_and(|before| before.ends_with(b"\"")) {
        // "a b"@example.org
        let quoted = run_back(text, at - 1, |byte| byte != b'"' && byte >= b' ');
        let opens = (at - 1).checked_sub(quoted + 1);
        let is_open = opens.is_some_and(|open| text.get(open) == Some(&b'"'));
        return if is_open && quoted > 0 && quoted <= LOCAL {
            quoted + 2
        } else {
            0
        };
    }
    let longest = run_back(text, at, |byte| {
        byte.is_ascii_alphanumeric() || byte >= 0x80 || b".!#$%&'*+/=?^_`{|}~-".contains(&byte)
    });
    // What leads to an address in texts, and is seldom of it: mailto=, 'a@b.c', /a@b.c, a=b@c.d.
    let word = text.get(at - longest..at).unwrap_or_default();
    let lead = word
        .iter()
        .rposition(|byte| b"=/'`?&|{}!".contains(byte))
        .map_or(0, |place| place + 1);
    let word = word.get(lead..).unwrap_or_default();
    let dots = word.iter().take_while(|byte| **byte == b'.').count();
    let length = word.len() - dots;
    if length == 0 || word.ends_with(b".") {
        return 0;
    }
    length.min(LOCAL)
}

/// How long the domain from here on is.
fn domain(text: &[u8], from: usize) -> usize {
    let mut length = run(text, from, |byte| {
        byte.is_ascii_alphanumeric() || byte >= 0x80 || byte == b'-' || byte == b'.'
    });
    loop {
        let domain = text.get(from..from + length).unwrap_or_default();
        let Some(last) = domain.last() else { return 0 };
        // The full stop of a sentence, and what dangles.
        if *last == b'.' || *last == b'-' {
            length -= 1;
            continue;
        }
        let mut labels = domain.split(|byte| *byte == b'.');
        let top = labels.next_back().unwrap_or_default();
        let whole = labels.clone().count() > 0
            && labels
                .all(|label| !label.is_empty() && label.len() <= 63 && !label.starts_with(b"-"));
        let is_top = top.len() >= 2
            && (top.starts_with(b"xn--")
                || top
                    .iter()
                    .all(|byte| byte.is_ascii_alphabetic() || *byte >= 0x80))
            && !NO_DOMAINS
                .iter()
                .any(|no| top.eq_ignore_ascii_case(no.as_bytes()));
        let is_ours = domain.eq_ignore_ascii_case(NOWHERE.as_bytes());
        return if whole && is_top && !is_ours {
            length
        } else {
            0
        };
    }
}

//! What stands in a value's place.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::{Kind, Masks, Style, find, json};

/// The secret from which tokens are made. It does not show itself.
pub struct Key(hmac::Key);

impl Key {
    /// Of 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        let bytes = Zeroizing::new(*bytes);
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes.as_slice()))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// What stands for any value, where it is fixed.
const FIXED: &str = "masked";
/// The domain of addresses that stand for others: none of it exists (RFC 2606 section 2).
pub(crate) const NOWHERE: &str = "masked.invalid";
/// Characters of a token: 80 bits, so that two of a million million values are alike once in a
/// thousand million million.
const LENGTH: usize = 16;
/// Those of base32hex in lower case (RFC 4648 section 7): no token holds all three classes of
/// characters that a secret is known by.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Masks values, and counts them.
#[derive(Debug)]
pub struct Masker {
    masks: Masks,
    key: Arc<Key>,
    count: Arc<AtomicU64>,
}

impl Masker {
    /// That masks these, with this key.
    pub fn new(masks: Masks, key: Arc<Key>) -> Self {
        Self {
            masks,
            key,
            count: Arc::default(),
        }
    }

    /// One that masks these as well, and counts on.
    #[must_use]
    pub fn and(&self, masks: &Masks) -> Self {
        let mut all = self.masks.clone();
        all.merge(masks);
        Self {
            masks: all,
            key: Arc::clone(&self.key),
            count: Arc::clone(&self.count),
        }
    }

    /// What it masks.
    pub fn masks(&self) -> &Masks {
        &self.masks
    }

    /// How many values it has masked.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// JSON without what detectors find in its strings, numbers and keys, and without what the masks
    /// of fields name; None: it is no JSON.
    pub fn json<'t>(&self, text: &'t [u8]) -> Option<Cow<'t, [u8]>> {
        json::masked(self, text)
    }

    /// A text without what the detectors find in it.
    pub fn text<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let found = find(text, |kind| self.masks.kind(kind).is_some());
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut masked = Vec::with_capacity(text.len() + 32);
        let mut from = 0;
        for one in found {
            masked.extend_from_slice(text.get(from..one.range.start).unwrap_or_default());
            let value = text.get(one.range.clone()).unwrap_or_default();
            let style = self.masks.kind(one.kind).unwrap_or(Style::Null);
            masked.extend_from_slice(self.part(one.kind, value, style).as_bytes());
            from = one.range.end;
        }
        masked.extend_from_slice(text.get(from..).unwrap_or_default());
        Cow::Owned(masked)
    }

    /// How the strictest is masked of what detectors find in it; None: they find nothing.
    pub fn worst(&self, text: &[u8]) -> Option<Style> {
        let found = find(text, |kind| self.masks.kind(kind).is_some());
        found
            .iter()
            .filter_map(|one| self.masks.kind(one.kind))
            .max()
    }

    /// What stands for a whole value; None: NULL.
    pub fn whole(&self, value: &[u8], style: Style) -> Option<String> {
        self.count.fetch_add(1, Ordering::Relaxed);
        match style {
            Style::Token => Some(format!("masked-{}", self.token(value))),
            Style::Fixed => Some(FIXED.to_owned()),
            Style::Null => None,
        }
    }

    /// What stands for a number, below `limit`; None: NULL.
    pub fn number(&self, value: &[u8], style: Style, limit: u64) -> Option<u64> {
        self.count.fetch_add(1, Ordering::Relaxed);
        match style {
            Style::Token => {
                let digest = self.digest(value) % u128::from(limit.max(1));
                Some(u64::try_from(digest).unwrap_or_default())
            }
            Style::Fixed => Some(0),
            Style::Null => None,
        }
    }

    /// A number that is the same for the same value.
    pub fn digest(&self, value: &[u8]) -> u128 {
        let tag = hmac::sign(&self.key.0, value);
        let mut head = [0; 16];
        for (to, from) in head.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        u128::from_be_bytes(head)
    }

    /// What stands for a part of a text.
    fn part(&self, kind: Kind, value: &[u8], style: Style) -> String {
        self.count.fetch_add(1, Ordering::Relaxed);
        match (style, kind) {
            (Style::Null, _) => String::new(),
            (Style::Fixed, Kind::Email) => format!("{FIXED}@{NOWHERE}"),
            (Style::Fixed, _) => FIXED.to_owned(),
            (Style::Token, Kind::Email) => format!("{}@{NOWHERE}", self.token(value)),
            (Style::Token, _) => format!("{}-{}", kind.name(), self.token(value)),
        }
    }

    fn token(&self, value: &[u8]) -> String {
        let mut digest = self.digest(value);
        (0..LENGTH)
            .map(|_| {
                let character = ALPHABET.get((digest % 32) as usize).copied();
                digest /= 32;
                char::from(character.unwrap_or(b'0'))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masks(text: &str, masks: &str) -> String {
        let masked = masker(masks, 7).text(text.as_bytes()).into_owned();
        String::from_utf8(masked).unwrap()
    }

    fn masker(masks: &str, key: u8) -> Masker {
        Masker::new(Masks::parse(masks).unwrap(), Arc::new(Key::new(&[key; 32])))
    }

    #[test]
    fn equal_values_stay_equal_and_others_do_not() {
        let one = masks("ann@example.org", "email");
        assert_eq!(one, masks("ann@example.org", "email"));
        assert_ne!(one, masks("bob@example.org", "email"));
        assert!(one.ends_with("@masked.invalid"), "{one}");
        let masked = masker("email", 8).text(b"ann@example.org").into_owned();
        assert_ne!(masked, one.as_bytes());
    }

    #[test]
    fn styles() {
        let text = "from ann@example.org, card 4111 1111 1111 1111.";
        assert_eq!(
            masks(text, "card=fixed"),
            "from ann@example.org, card masked."
        );
        assert_eq!(masks(text, "card=null"), "from ann@example.org, card .");
        assert_eq!(
            masks(text, "email=fixed,card=null"),
            "from masked@masked.invalid, card ."
        );
        assert!(masks(text, "card").starts_with("from ann@example.org, card card-"));
    }

    #[test]
    fn a_key_does_not_show_itself() {
        assert_eq!(format!("{:?}", Key::new(&[65; 32])), "Key");
    }

    const ALL: &str = "email,card,iban,national-id,jwt,cloud-key,private-key,secret";

    proptest! {
        /// What has been masked is left alone the next time, whatever stands around it.
        #[test]
        fn tokens_are_no_values(before in "[ -~]{0,12}", value in any::<u64>(), after in "[ -~]{0,12}") {
            let masker = masker(ALL, 7);
            for kind in Kind::ALL {
                let token = masker.part(kind, &value.to_be_bytes(), Style::Token);
                prop_assert!(masker.worst(token.as_bytes()).is_none(), "{}", token);
            }
            let whole = masker.whole(&value.to_be_bytes(), Style::Token).unwrap();
            prop_assert!(masker.worst(whole.as_bytes()).is_none(), "{}", whole);
            let text = format!("{before} ann.{value}@example.org {after}");
            let once = masker.text(text.as_bytes()).into_owned();
            prop_assert!(!once.windows(12).any(|part| part == b"@example.org"));
        }

        /// Any bytes at all.
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let masker = masker(ALL, 7);
            let _ = masker.text(&bytes);
            let _ = masker.json(&bytes);
        }
    }
}

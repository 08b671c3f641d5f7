//! Masking inside JSON (RFC 8259), without reading it into a tree: what is not masked stays as it was
//! written, to the space.

use std::borrow::Cow;

use crate::{Masker, Style};

/// Deepest nesting that is followed. What is deeper is no JSON to the caller.
const DEPTH: usize = 512;

/// An open object or array.
struct Open {
    is_object: bool,
    /// A key comes next, not a value.
    wants_key: bool,
    /// How everything in it is masked.
    within: Option<Style>,
    /// How the value is that comes next.
    next: Option<Style>,
}

struct Rewriting<'t> {
    text: &'t [u8],
    at: usize,
    out: Vec<u8>,
    /// Up to here the text is in `out`.
    taken: usize,
    open: Vec<Open>,
}

/// JSON texts, one or several behind one another; None: it is none.
pub(crate) fn masked<'t>(masker: &Masker, text: &'t [u8]) -> Option<Cow<'t, [u8]>> {
    let mut rewriting = Rewriting {
        text,
        at: 0,
        out: Vec::new(),
        taken: 0,
        open: Vec::new(),
    };
    let mut values = 0_usize;
    while let Some(byte) = text.get(rewriting.at).copied() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => rewriting.at += 1,
            b'{' | b'[' => rewriting.open(byte == b'{')?,
            b'}' | b']' => rewriting.close(byte == b'}')?,
            b',' => rewriting.comma()?,
            b':' => rewriting.at += 1,
            b'"' => rewriting.string(masker)?,
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => rewriting.bare(masker)?,
            _ => return None,
        }
        values += 1;
    }
    if values == 0 || !rewriting.open.is_empty() {
        return None;
    }
    if rewriting.taken == 0 && rewriting.out.is_empty() {
        return Some(Cow::Borrowed(text));
    }
    let rest = text.get(rewriting.taken..).unwrap_or_default();
    rewriting.out.extend_from_slice(rest);
    Some(Cow::Owned(rewriting.out))
}

impl Rewriting<'_> {
    /// How the value here is masked.
    fn style(&mut self) -> Option<Style> {
        let top = self.open.last_mut()?;
        if top.is_object {
            top.next.take()
        } else {
            top.within
        }
    }

    fn open(&mut self, is_object: bool) -> Option<()> {
        if self.open.len() >= DEPTH || self.wants_key() {
            return None;
        }
        let within = self.style();
        self.open.push(Open {
            is_object,
            wants_key: is_object,
            within,
            next: None,
        });
        self.at += 1;
        Some(())
    }

    fn close(&mut self, is_object: bool) -> Option<()> {
        self.open.pop().filter(|top| top.is_object == is_object)?;
        self.at += 1;
        Some(())
    }

    fn comma(&mut self) -> Option<()> {
        let top = self.open.last_mut()?;
        top.wants_key = top.is_object;
        self.at += 1;
        Some(())
    }

    fn wants_key(&self) -> bool {
        self.open.last().is_some_and(|top| top.wants_key)
    }

    /// Puts this in the place of what stands from `from` to here.
    fn replace(&mut self, from: usize, with: &[u8]) {
        let before = self.text.get(self.taken..from).unwrap_or_default();
        self.out.extend_from_slice(before);
        self.out.extend_from_slice(with);
        self.taken = self.at;
    }

    fn string(&mut self, masker: &Masker) -> Option<()> {
        let from = self.at;
        let rest = self.text.get(from + 1..)?;
        let mut length = 0;
        loop {
            match rest.get(length)? {
                b'"' => break,
                b'\\' => length += 2,
                _ => length += 1,
            }
        }
        let raw = rest.get(..length)?;
        self.at = from + length + 2;
        let text = unescaped(raw)?;
        if self.wants_key() {
            let top = self.open.last_mut()?;
            top.wants_key = false;
            let named = std::str::from_utf8(&text).ok();
            let named = named.and_then(|name| masker.masks().field(name));
            top.next = top.within.max(named);
        } else if let Some(style) = self.style() {
            let whole = masker.whole(&text, style);
            let whole = whole.map_or("null".to_owned(), |token| format!("\"{token}\""));
            self.replace(from, whole.as_bytes());
            return Some(());
        }
        if let Cow::Owned(masked) = masker.text(&text) {
            self.replace(from, &escaped(&masked));
        }
        Some(())
    }

    /// A number, true, false or null.
    fn bare(&mut self, masker: &Masker) -> Option<()> {
        if self.wants_key() {
            return None;
        }
        let from = self.at;
        let rest = self.text.get(from..)?;
        let length = rest
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
            .count();
        let bare = rest.get(..length)?;
        self.at = from + length;
        let is_number = matches!(bare.first(), Some(b'-' | b'0'..=b'9'));
        let is_known = is_number || [&b"true"[..], b"false", b"null"].contains(&bare);
        if !is_known {
            return None;
        }
        let style = self.style().or_else(|| masker.worst(bare));
        let Some(style) = style.filter(|_| bare != b"null") else {
            return Some(());
        };
        let number = is_number
            .then(|| masker.number(bare, style, NUMBER))
            .flatten();
        let number = number.map_or("null".to_owned(), |number| number.to_string());
        self.replace(from, number.as_bytes());
        Some(())
    }
}

/// Numbers that every reader of JSON takes for what they are (RFC 8259 section 6).
const NUMBER: u64 = 1 << 53;

/// The text that a string's body stands for.
fn unescaped(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !raw.contains(&b'\\') {
        return Some(Cow::Borrowed(raw));
    }
    let mut text = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'\\' {
            text.push(*byte);
            continue;
        }
        let (escape, tail) = rest.split_first()?;
        rest = tail;
        let plain = match escape {
            b'"' | b'\\' | b'/' => *escape,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut unit = hex(&mut rest)?;
                if (0xd800..0xdc00).contains(&unit)
                    && let Some(mut low) = rest.strip_prefix(b"\\u")
                    && let Some(second) =
                        hex(&mut low).filter(|unit| (0xdc00..0xe000).contains(unit))
                {
                    unit = 0x1_0000 + ((unit - 0xd800) << 10) + (second - 0xdc00);
                    rest = low;
                }
                let character = char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER);
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            _ => return None,
        };
        text.push(plain);
    }
    Some(Cow::Owned(text))
}

fn hex(rest: &mut &[u8]) -> Option<u32> {
    let (digits, tail) = rest.split_at_checked(4)?;
    *rest = tail;
    let digits = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| !digits.starts_with('+'))?;
    u32::from_str_radix(digits, 16).ok()
}

fn escaped(text: &[u8]) -> Vec<u8> {
    let mut string = vec![b'"'];
    for byte in text {
        match byte {
            b'"' | b'\\' => string.extend_from_slice(&[b'\\', *byte]),
            0..=0x1f => string.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => string.push(*byte),
        }
    }
    string.push(b'"');
    string
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Key, Masks};

    fn json(text: &str, masks: &str) -> Option<String> {
        let masker = Masker::new(Masks::parse(masks).unwrap(), Arc::new(Key::new(&[7; 32])));
        let masked = masker.json(text.as_bytes())?.into_owned();
        Some(String::from_utf8(masked).unwrap())
    }

    #[test]
    fn values_are_masked_and_the_rest_stays_as_it_was() {
        let text =
            r#" { "id" : 7, "mail":"ann\u0040example.org", "a":[ "x", {"Password": "y"} ] }"#;
        assert_eq!(
            json(text, "email=fixed, field:password=null").unwrap(),
            r#" { "id" : 7, "mail":"masked@masked.invalid", "a":[ "x", {"Password": null} ] }"#
        );
        assert_eq!(json(text, "card").unwrap(), text);
    }

    #[test]
    fn all_that_is_in_a_field_is_masked() {
        let text = r#"{"s":{"a":[1,true,null,"x"],"b":-1.5e3},"t":"x"}"#;
        assert_eq!(
            json(text, "field:s=fixed").unwrap(),
            r#"{"s":{"a":[0,null,null,"masked"],"b":0},"t":"x"}"#
        );
    }

    #[test]
    fn numbers_stay_numbers_and_keys_are_looked_at() {
        let text = r#"[4111111111111111, 12, {"ann@example.org":1}]"#;
        assert_eq!(
            json(text, "card=fixed, email=fixed").unwrap(),
            r#"[0, 12, {"masked@masked.invalid":1}]"#
        );
        let token = json("4111111111111111", "card").unwrap();
        assert!(token.parse::<u64>().unwrap() < NUMBER, "{token}");
        assert_eq!(json("4111111111111111", "card"), Some(token));
    }

    #[test]
    fn lines_of_json_are_json() {
        let text = "{\"a\":\"x\"}\n{\"a\":\"y\"}\n";
        assert_eq!(
            json(text, "field:a=fixed").unwrap(),
            "{\"a\":\"masked\"}\n{\"a\":\"masked\"}\n"
        );
    }

    #[test]
    fn what_is_no_json_is_said_to_be_none() {
        for text in [
            "",
            "x",
            "{",
            "{\"a\":\"",
            "[}",
            "{\"a\":tru}",
            "\"\\x\"",
            "{1:2}",
            "]",
        ] {
            assert_eq!(json(text, "email"), None, "{text}");
        }
        assert_eq!(json(&"[".repeat(600), "email"), None);
    }
}

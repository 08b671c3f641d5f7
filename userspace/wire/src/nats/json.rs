//! The members of one JSON object (RFC 8259 §4), and taking some of them out, with every other
//! byte left as it is. Values are followed to their ends and not otherwise judged: whoever reads
//! them next does that.

/// A member of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member<'a> {
    /// Its name, without quotation marks, escapes as they are.
    pub(super) name: &'a [u8],
    /// Its value, without white space around it.
    pub(super) value: &'a [u8],
}

/// Where a member stands.
struct Place<'a> {
    member: Member<'a>,
    /// From the quotation mark of its name.
    begin: usize,
    /// To the end of its value.
    end: usize,
}

/// The members of the object that `text` is, white space around it aside; None where it is none.
pub(super) fn members(text: &[u8]) -> Option<Vec<Member<'_>>> {
    Some(
        places(text)?
            .into_iter()
            .map(|place| place.member)
            .collect(),
    )
}

/// Appends the object without the members of these names, and without a comma of each.
pub(super) fn without(text: &[u8], names: &[&[u8]], out: &mut Vec<u8>) -> Option<()> {
    let places = places(text)?;
    let goes = |place: &Place<'_>| names.contains(&place.member.name);
    let mut carried = 0;
    let mut kept = false;
    for (n, place) in places.iter().enumerate() {
        if !goes(place) {
            kept = true;
            continue;
        }
        // The comma before it goes as well; for those at the beginning, the one after it.
        let before = n.checked_sub(1).and_then(|n| places.get(n));
        let (from, to) = match (before, places.get(n + 1)) {
            (Some(before), _) if kept => (before.end, place.end),
            (_, Some(after)) => (place.begin, after.begin),
            (_, None) => (place.begin, place.end),
        };
        out.extend_from_slice(text.get(carried..from.max(carried))?);
        carried = to.max(carried);
    }
    out.extend_from_slice(text.get(carried..)?);
    Some(())
}

fn places(text: &[u8]) -> Option<Vec<Place<'_>>> {
    let mut at = expect(text, 0, b'{')?;
    let mut places = Vec::new();
    if let Some(end) = expect(text, at, b'}') {
        return is_blank(text.get(end..)?).then_some(places);
    }
    loop {
        let begin = blank(text, at);
        let name_end = string(text, begin)?;
        let value_begin = blank(text, expect(text, name_end, b':')?);
        let end = value(text, value_begin)?;
        places.push(Place {
            member: Member {
                name: text.get(begin + 1..name_end - 1)?,
                value: text.get(value_begin..end)?,
            },
            begin,
            end,
        });
        match expect(text, end, b',') {
            Some(next) => at = next,
            None => {
                let end = expect(text, end, b'}')?;
                return is_blank(text.get(end..)?).then_some(places);
            }
        }
    }
}

/// Behind the white space that stands at `at`.
fn blank(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    let length = rest.iter().take_while(|byte| is_white(**byte)).count();
    at + length
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn is_blank(text: &[u8]) -> bool {
    text.iter().all(|byte| is_white(*byte))
}

/// Behind this byte, and white space before it.
fn expect(text: &[u8], at: usize, byte: u8) -> Option<usize> {
    let at = blank(text, at);
    (text.get(at) == Some(&byte)).then_some(at + 1)
}

/// Behind the string that begins at `at`.
fn string(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Behind the value that begins at `at`. Nesting is counted, not followed by recursion.
fn value(text: &[u8], begin: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = begin;
    loop {
        match text.get(at)? {
            b'"' => at = string(text, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                at += 1;
            }
            b',' | b'}' | b']' if depth == 0 => return (at > begin).then_some(at),
            byte if depth == 0 && is_white(*byte) => return (at > begin).then_some(at),
            _ => at += 1,
        }
        // A string, an object or an array ends itself.
        let ended = matches!(text.get(begin), Some(b'"' | b'{' | b'[')) && depth == 0;
        if ended {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn less(text: &str) -> Option<String> {
        let mut out = Vec::new();
        without(text.as_bytes(), &[b"t", b"u"], &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn members_are_taken_out_and_the_rest_stays() {
        for (text, expected) in [
            ("{}", "{}"),
            (" { } ", " { } "),
            (r#"{"t":true}"#, "{}"),
            (r#"{ "t" : true }"#, "{  }"),
            (r#"{"t":true,"a":1}"#, r#"{"a":1}"#),
            (r#"{"a":1,"t":true}"#, r#"{"a":1}"#),
            (r#"{"a":1 , "t":true , "b":2}"#, r#"{"a":1 , "b":2}"#),
            (r#"{"t":1,"u":2,"a":3}"#, r#"{"a":3}"#),
            (r#"{"t":1,"a":3,"u":2}"#, r#"{"a":3}"#),
            (r#"{"a":3,"t":1,"u":2}"#, r#"{"a":3}"#),
            (r#"{"a":3,"t":1,"u":2,"b":[]}"#, r#"{"a":3,"b":[]}"#),
            (r#"{"t":1,"u":2}"#, "{}"),
            (r#"{"t":1,"t":2,"a":{"t":1}}"#, r#"{"a":{"t":1}}"#),
            (r#"{"a":"\"t\":1","t":"}"}"#, r#"{"a":"\"t\":1"}"#),
            (
                r#"{"a":[{"t":1},"]"],"t":[1,{"u":2}]}"#,
                r#"{"a":[{"t":1},"]"]}"#,
            ),
        ] {
            assert_eq!(less(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_object() {
        for text in [
            "",
            "1",
            "[]",
            "{",
            "{]",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1"#,
            r#"{"a":1,}"#,
            r#"{"a":1}x"#,
            r#"{a:1}"#,
            r#"{"a":"x}"#,
            r#"{"a":1 2}"#,
            r#"{"a":[1}"#,
        ] {
            assert_eq!(less(text), None, "{text}");
        }
    }
}

//! ManageSieve (RFC 5804): STARTTLS (§2.2), the capabilities inside TLS, and a refusal in its own
//! words.
//!
//! A server greets with its capabilities and OK. Where STARTTLS is among them the proxy asks for
//! it. Inside TLS the server sends its capabilities again, unasked (§2.2), and these are the
//! agent's greeting; of what was said in clear it hears nothing. An agent that asks for STARTTLS
//! itself is answered by the server, which is in TLS already.
//!
//! Of the capabilities inside TLS [`CapabilityFilter`] takes away STARTTLS, should it still be
//! named, and mechanisms of SASL that are bound to a TLS channel: the agent has none. It looks at
//! the first response, which is that list, and at later ones that are such a list beyond doubt,
//! since they begin with the capability IMPLEMENTATION and its value. It lets OK, NO and BYE pass
//! and stops for good at anything else. Scripts come in a literal and their names one a line, so
//! none is ever looked at. The literals of a list and of a response's text are skipped.

use crate::{
    Look, Next, Rewrite, RewriteError,
    line::{self, After, Judge, Lines},
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome},
};

const STARTTLS: Preamble = Preamble::constant(b"STARTTLS\r\n");

/// Does a server's stream begin with a greeting (§1.7): a capability's name in quotes?
pub fn looks_like_greeting(stream: &[u8]) -> Look {
    let Some((first, rest)) = stream.split_first() else {
        return Look::NeedMore;
    };
    if *first != b'"' {
        return Look::No;
    }
    /// The longest that is registered has 15 bytes.
    const MAX_NAME: usize = 40;
    let is_name = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'-';
    let length = rest.iter().take_while(is_name).count();
    match rest.get(length..).unwrap_or_default() {
        _ if length > MAX_NAME => Look::No,
        [] => Look::NeedMore,
        [b'"', ..] if length == 0 => Look::No,
        [b'"'] => Look::NeedMore,
        [b'"', b' ' | b'\r', ..] => Look::Yes,
        _ => Look::No,
    }
}

/// A greeting that refuses (§1.3).
pub fn refusal(reason: &str) -> Vec<u8> {
    format!("BYE \"{}\"\r\n", line::sentence(reason)).into_bytes()
}

/// The way to TLS.
#[derive(Debug, Default)]
pub struct StartTls {
    asked: bool,
}

impl Dialogue for StartTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        let Some(Response {
            names_starttls,
            ending,
            length,
        }) = response(heard)?
        else {
            return Ok(Step::NeedMore);
        };
        if line::after(ending, b"OK").is_none() {
            return Err(DialogueError::declined(ending));
        }
        if self.asked {
            return Ok(Step::Handshake { consumed: length });
        }
        if !names_starttls {
            return Err(DialogueError::NotOffered(
                "STARTTLS is not among its capabilities",
            ));
        }
        if length < heard.len() {
            return Err(DialogueError::Protocol("it answers what nobody asked"));
        }
        self.asked = true;
        Ok(Step::Say {
            consumed: length,
            words: STARTTLS,
        })
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            to_agent: Vec::new(),
            from_agent: None,
            from_server: Some(Box::new(CapabilityFilter::default())),
        }
    }
}

/// Lines up to OK, NO or BYE.
struct Response<'a> {
    names_starttls: bool,
    ending: &'a [u8],
    length: usize,
}

fn response(stream: &[u8]) -> Result<Option<Response<'_>>, DialogueError> {
    let mut names_starttls = false;
    let mut rest = stream;
    while let Some((line, after)) = line::first(rest)? {
        let literal = line::literal(line).unwrap_or_default();
        let literal = usize::try_from(literal).unwrap_or(usize::MAX);
        // The end of the line follows the literal.
        let Some(after) = after.get(literal..) else {
            return Ok(None);
        };
        rest = after;
        if is_ending(line) {
            if line::literal(line).is_some() {
                let Some((_, after)) = line::first(rest)? else {
                    return Ok(None);
                };
                rest = after;
            }
            return Ok(Some(Response {
                names_starttls,
                ending: line,
                length: stream.len() - rest.len(),
            }));
        }
        names_starttls |= is_starttls(line);
    }
    Ok(None)
}

fn is_ending(line: &[u8]) -> bool {
    let word = line::text(line)
        .split(|byte| matches!(byte, b' ' | b'('))
        .next()
        .unwrap_or_default();
    [&b"OK"[..], b"NO", b"BYE"]
        .into_iter()
        .any(|ending| word.eq_ignore_ascii_case(ending))
}

fn is_starttls(line: &[u8]) -> bool {
    line::text(line)
        .trim_ascii_end()
        .eq_ignore_ascii_case(b"\"STARTTLS\"")
}

/// Changes the capabilities that a server names inside TLS; see the module's text.
#[derive(Clone, Debug, Default)]
pub struct CapabilityFilter {
    lines: Lines,
    responses: Responses,
}

impl Rewrite for CapabilityFilter {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.lines.rewrite(input, out, &mut self.responses)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.lines.finish(out);
    }
}

/// Follows the server's responses.
#[derive(Clone, Debug, Default)]
struct Responses(Place);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// In a list of capabilities; the first response is one.
    #[default]
    Capabilities,
    /// Behind a literal of a list: the rest of its line.
    CapabilityGoesOn,
    /// At the beginning of a response.
    Response,
    /// Behind a literal in a response's text: the rest of its line.
    EndingGoesOn,
}

impl Judge for Responses {
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> After {
        let mut kept = Some(line.to_vec());
        let (place, place_after_literal) = match self.0 {
            Place::CapabilityGoesOn => (Place::Capabilities, Place::CapabilityGoesOn),
            Place::EndingGoesOn => (Place::Response, Place::EndingGoesOn),
            _ if is_ending(line) => (Place::Response, Place::EndingGoesOn),
            place if place == Place::Capabilities || begins_list(line) => {
                kept = capability(line);
                (Place::Capabilities, Place::CapabilityGoesOn)
            }
            _ => {
                out.extend_from_slice(line);
                return After::End;
            }
        };
        out.extend_from_slice(&kept.unwrap_or_default());
        match line::literal(line) {
            Some(length) => {
                self.0 = place_after_literal;
                After::Literal(length)
            }
            None => {
                self.0 = place;
                After::Line
            }
        }
    }
}

/// A name of a script is followed by nothing, or by ACTIVE.
fn begins_list(line: &[u8]) -> bool {
    line::after(line, b"\"IMPLEMENTATION\" \"").is_some()
}

/// A capability's line as the agent may see it, if it may.
fn capability(line: &[u8]) -> Option<Vec<u8>> {
    if is_starttls(line) {
        return None;
    }
    // A value in a literal is carried as it is: no server sends this one so.
    let Some((mechanisms, end)) = line::after(line, b"\"SASL\" \"").and_then(|list| {
        let end = list.iter().position(|byte| *byte == b'"')?;
        list.split_at_checked(end)
    }) else {
        return Some(line.to_vec());
    };
    if !line::words(mechanisms).any(line::is_channel_bound) {
        return Some(line.to_vec());
    }
    let before = line.get(..line.len() - mechanisms.len() - end.len())?;
    let kept = line::without(mechanisms, line::is_channel_bound);
    Some([before, &kept, end].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line::tests::{led, seen};

    const DOVECOT: &str = "\"IMPLEMENTATION\" \"Dovecot (Debian) Pigeonhole\"\r\n\"SIEVE\" \"fileinto reject\"\r\n\"NOTIFY\" \"mailto\"\r\n\"SASL\" \"\"\r\n\"STARTTLS\"\r\n\"VERSION\" \"1.0\"\r\nOK \"Dovecot (Debian) ready.\"\r\n";

    #[test]
    fn a_dialogue_with_dovecot() {
        let (said, injected) = led(
            StartTls::default(),
            &[DOVECOT, "OK \"Begin TLS negotiation now.\"\r\n"],
        )
        .unwrap();
        assert_eq!(said, ["STARTTLS\r\n"]);
        assert_eq!(injected, 0);
        assert!(StartTls::default().welcome().to_agent.is_empty());
    }

    #[test]
    fn literals_are_no_lines() {
        let greeting = "\"IMPLEMENTATION\" {4}\r\nOK\r\n\r\n\"STARTTLS\"\r\nOK {5}\r\nre\r\ny\r\n";
        let (said, _) = led(StartTls::default(), &[greeting, "OK\r\n"]).unwrap();
        assert_eq!(said, ["STARTTLS\r\n"]);
    }

    #[test]
    fn servers_without_tls_and_servers_that_decline() {
        let declined = |words: &str| DialogueError::Declined(words.to_owned());
        for (speeches, expected) in [
            (&["BYE \"busy\"\r\n"][..], declined("BYE \"busy\"")),
            (
                &["\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"STARTTLS\"\r\nOK\r\n"],
                DialogueError::NotOffered("STARTTLS is not among its capabilities"),
            ),
            (
                &[DOVECOT, "NO \"TLS is broken\"\r\n"],
                declined("NO \"TLS is broken\""),
            ),
        ] {
            assert_eq!(led(StartTls::default(), speeches), Err(expected));
        }
        assert_eq!(
            StartTls::default().step([DOVECOT, "OK\r\n"].concat().as_bytes()),
            Err(DialogueError::Protocol("it answers what nobody asked"))
        );
    }

    #[test]
    fn capabilities_inside_tls() {
        let list =
            "\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"PLAIN X-PLUS\"\r\n\"STARTTLS\"\r\nOK \"a\"\r\n";
        let shown = "\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"PLAIN\"\r\nOK \"a\"\r\n";
        for (from, to) in [
            (list.to_owned(), shown.to_owned()),
            (
                format!("{list}NO {{2}}\r\n\"S\r\n{list}"),
                format!("{shown}NO {{2}}\r\n\"S\r\n{shown}"),
            ),
            // A list of scripts, a script, and a challenge.
            (
                format!("{list}\"STARTTLS\"\r\n\"IMPLEMENTATION\" ACTIVE\r\nOK\r\n{list}"),
                format!("{shown}\"STARTTLS\"\r\n\"IMPLEMENTATION\" ACTIVE\r\nOK\r\n{list}"),
            ),
            (
                format!("{list}{{12}}\r\n\"STARTTLS\"\r\n\r\nOK\r\n"),
                format!("{shown}{{12}}\r\n\"STARTTLS\"\r\n\r\nOK\r\n"),
            ),
            (
                "\"X\" {14}\r\n\r\n\"STARTTLS\"\r\n\r\n\"STARTTLS\"\r\nOK\r\n".to_owned(),
                "\"X\" {14}\r\n\r\n\"STARTTLS\"\r\n\r\nOK\r\n".to_owned(),
            ),
        ] {
            assert_eq!(
                seen(CapabilityFilter::default(), &[from.as_bytes()]).unwrap(),
                to
            );
        }
    }

    #[test]
    fn greetings_are_told_apart() {
        for (greeting, expected) in [
            (&b"\"IMPLEMENTATION\" \"x\"\r\n"[..], Look::Yes),
            (b"\"STARTTLS\"\r\n", Look::Yes),
            (b"\"IMPL", Look::NeedMore),
            (b"\"SASL\"", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"\"\" ", Look::No),
            (b"\"a b\"", Look::No),
            (b"OK", Look::No),
        ] {
            assert_eq!(looks_like_greeting(greeting), expected);
        }
    }

    #[test]
    fn the_refusal_is_one_response() {
        let words = refusal("a\"\r\nOK \\");
        let found = response(&words).unwrap().unwrap();
        assert_eq!(found.length, words.len());
        assert_eq!(words.iter().filter(|byte| **byte == b'"').count(), 2);
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            stream in "(\"(STARTTLS|SASL|IMPLEMENTATION)\"( \"[A-Z-]{0,3}(-PLUS)?\")?\r?\n|(OK|NO|\"X\")( \\{[0-9]\\})?\r?\n|.){0,12}",
            cut in 0_usize..120,
        ) {
            let stream = stream.as_bytes();
            let (first, second) = stream.split_at(cut.min(stream.len()));
            prop_assert_eq!(
                seen(CapabilityFilter::default(), &[first, second]),
                seen(CapabilityFilter::default(), &[stream])
            );
        }
    }
}

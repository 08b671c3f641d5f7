//! IMAP (RFC 9051, RFC 3501): STARTTLS (§6.2.1), the capabilities inside TLS, and a refusal in its
//! own words.
//!
//! The server greets, the proxy looks for STARTTLS among the capabilities of the greeting or asks
//! for them, and asks for TLS with a tag of its own. Inside TLS the server does not greet again, so
//! the agent gets the greeting of before, but for the capabilities in it: those were told in clear,
//! and hold no more (§6.2.1). An agent that wants them asks, and is answered inside TLS. An agent
//! that asks for STARTTLS itself is answered by the server, which is in TLS already. A server that
//! greets with PREAUTH takes no STARTTLS any more: it is refused (CVE-2020-14093).
//!
//! Of the capabilities inside TLS [`CapabilityFilter`] takes away STARTTLS, LOGINDISABLED, which
//! is said of connections in clear, and mechanisms that are bound to a TLS channel: the agent has
//! none. It looks at CAPABILITY responses and at the response code CAPABILITY of a positive
//! response. It stops for good at the first response that a server sends in the authenticated
//! state alone, which is any but the status responses, CAPABILITY and ID. Messages come in such a
//! response (FETCH), so none is ever looked at; the literals of an ID are skipped.

use crate::{
    Look, Next, Rewrite, RewriteError,
    line::{self, After, Glance, Judge, Lines},
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome},
};

const CAPABILITY: Preamble = Preamble::constant(b"mantled1 CAPABILITY\r\n");
const STARTTLS: Preamble = Preamble::constant(b"mantled2 STARTTLS\r\n");

/// Most bytes of a tag that are waited for; no client comes near.
const MAX_TAG: usize = 256;

/// Does a server's stream begin with a greeting (§7.1: OK, PREAUTH or BYE, untagged)?
pub fn looks_like_greeting(stream: &[u8]) -> Look {
    let looks = [&b"* OK "[..], b"* PREAUTH ", b"* BYE "].map(|begin| line::begins(stream, begin));
    if looks.contains(&Look::Yes) {
        Look::Yes
    } else if looks.contains(&Look::NeedMore) {
        Look::NeedMore
    } else {
        Look::No
    }
}

/// A greeting that refuses (§7.1.5).
pub fn refusal(reason: &str) -> Vec<u8> {
    format!("* BYE {}\r\n", line::sentence(reason)).into_bytes()
}

/// The way to TLS.
#[derive(Debug, Default)]
pub struct StartTls {
    expects: Expects,
    greeting: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Expects {
    #[default]
    Greeting,
    /// An untagged CAPABILITY, then the tagged OK.
    Capabilities {
        offered: bool,
    },
    GoAhead,
}

impl Dialogue for StartTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        let Some((line, _)) = line::first(heard)? else {
            return Ok(Step::NeedMore);
        };
        let consumed = line.len();
        let say = |words| Ok(Step::Say { consumed, words });
        let text = line::text(line);
        if line::after(text, b"* BYE ").is_some() {
            return Err(DialogueError::declined(line));
        }
        match self.expects {
            Expects::Greeting => {
                if line::after(text, b"* PREAUTH ").is_some() {
                    return Err(DialogueError::NotOffered(
                        "it greets with PREAUTH, after which there is no STARTTLS",
                    ));
                }
                let words = line::after(text, b"* OK ")
                    .ok_or(DialogueError::Protocol("it greets with something else"))?;
                self.greeting = without_capabilities(words);
                match response_code(words).map(|(list, _)| line::has_word(list, b"STARTTLS")) {
                    Some(offered) => say(self.request(offered)?),
                    None => {
                        self.expects = Expects::Capabilities { offered: false };
                        say(CAPABILITY)
                    }
                }
            }
            Expects::Capabilities { offered } => {
                if let Some(words) = line::after(text, b"mantled1 ") {
                    if line::after(words, b"OK").is_none() {
                        return Err(DialogueError::NotOffered(
                            "it does not tell its capabilities",
                        ));
                    }
                    return say(self.request(offered)?);
                }
                let words = untagged(text)?;
                if let Some(list) = line::after(words, b"CAPABILITY ") {
                    let offered = line::has_word(list, b"STARTTLS");
                    self.expects = Expects::Capabilities { offered };
                }
                say(Preamble::constant(b""))
            }
            Expects::GoAhead => match line::after(text, b"mantled2 ") {
                Some(words) if line::after(words, b"OK").is_some() => {
                    Ok(Step::Handshake { consumed })
                }
                Some(_) => Err(DialogueError::declined(line)),
                None => {
                    untagged(text)?;
                    say(Preamble::constant(b""))
                }
            },
        }
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            to_agent: std::mem::take(&mut self.greeting),
            from_agent: None,
            from_server: Some(Box::new(CapabilityFilter::default())),
        }
    }
}

impl StartTls {
    fn request(&mut self, offered: bool) -> Result<Preamble, DialogueError> {
        if !offered {
            return Err(DialogueError::NotOffered(
                "STARTTLS is not among its capabilities",
            ));
        }
        self.expects = Expects::GoAhead;
        Ok(STARTTLS)
    }
}

fn untagged(text: &[u8]) -> Result<&[u8], DialogueError> {
    line::after(text, b"* ").ok_or(DialogueError::Protocol(
        "a response that does not belong here",
    ))
}

/// The greeting for the agent: the server's words without the response code CAPABILITY.
fn without_capabilities(words: &[u8]) -> Vec<u8> {
    let mut text = match response_code(words) {
        Some((_, text)) => text,
        None => words,
    };
    if text.is_empty() {
        // The text of a response is never empty (§9, `text`).
        text = b"ready";
    }
    [b"* OK ", text, b"\r\n"].concat()
}

/// The list of the response code CAPABILITY, and the text behind it; None where there is none.
fn response_code(words: &[u8]) -> Option<(&[u8], &[u8])> {
    let list = line::after(words, b"[CAPABILITY ")?;
    let end = list.iter().position(|byte| *byte == b']')?;
    let (list, rest) = list.split_at_checked(end)?;
    Some((list, rest.get(1..)?.trim_ascii_start()))
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
struct Responses {
    /// Behind a literal of an ID, which goes on.
    in_id: bool,
}

impl Judge for Responses {
    fn glance(&mut self, beginning: &[u8]) -> Glance {
        if self.in_id {
            return Glance::Hold;
        }
        match beginning.split_first() {
            None => Glance::Hold,
            Some((b'+', _)) => Glance::Pass,
            Some((b'*', rest)) => match rest.split_first() {
                None => Glance::Hold,
                Some((b' ', response)) => glance_at_untagged(response),
                Some(_) => Glance::End,
            },
            Some(_) => glance_at_tagged(beginning),
        }
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> After {
        if self.in_id || line::after(line, b"* ID ").is_some() {
            out.extend_from_slice(line);
            let literal = line::literal(line);
            self.in_id = literal.is_some();
            return literal.map_or(After::Line, After::Literal);
        }
        let Some(List {
            before,
            words,
            after,
        }) = list(line)
        else {
            out.extend_from_slice(line);
            return After::Line;
        };
        out.extend_from_slice(before);
        if line::words(words).any(is_hidden) {
            out.extend_from_slice(&line::without(words, is_hidden));
        } else {
            out.extend_from_slice(words);
        }
        out.extend_from_slice(after);
        After::Line
    }
}

/// What becomes of an untagged response.
fn glance_at_untagged(response: &[u8]) -> Glance {
    if let Some(words) = line::after(response, b"OK ") {
        return glance_at_code(words);
    }
    let known = [
        (&b"CAPABILITY "[..], Glance::Hold),
        (b"ID ", Glance::Hold),
        (b"NO ", Glance::Pass),
        (b"BAD ", Glance::Pass),
        (b"BYE ", Glance::Pass),
        (b"OK ", Glance::Hold),
    ];
    let looks = known.map(|(word, glance)| (line::begins(response, word), glance));
    match looks.iter().find(|(look, _)| *look != Look::No) {
        Some((Look::Yes, glance)) => *glance,
        Some(_) => Glance::Hold,
        None => Glance::End,
    }
}

/// What becomes of a tagged response. What can be none, such as a stream that is compressed from
/// here on (RFC 4978), is the end.
fn glance_at_tagged(beginning: &[u8]) -> Glance {
    let is_tag = |byte: &u8| byte.is_ascii_graphic() && !b"(){%*\"\\+".contains(byte);
    let length = beginning.iter().take_while(|byte| is_tag(byte)).count();
    if length > MAX_TAG {
        return Glance::End;
    }
    match beginning.get(length..).unwrap_or_default() {
        [] => Glance::Hold,
        [b' ', words @ ..] if length > 0 => match line::begins(words, b"OK ") {
            Look::Yes => glance_at_code(words.get(3..).unwrap_or_default()),
            Look::NeedMore => Glance::Hold,
            Look::No => Glance::Pass,
        },
        _ => Glance::End,
    }
}

/// What becomes of a positive response.
fn glance_at_code(words: &[u8]) -> Glance {
    match line::begins(words, b"[CAPABILITY ") {
        Look::No => Glance::Pass,
        Look::NeedMore | Look::Yes => Glance::Hold,
    }
}

/// A line with a list of capabilities.
struct List<'a> {
    before: &'a [u8],
    words: &'a [u8],
    after: &'a [u8],
}

fn list(line: &[u8]) -> Option<List<'_>> {
    let (start, length) = match line::after(line, b"* CAPABILITY ") {
        Some(list) => (list, line::text(list).len()),
        None => {
            let space = line.iter().position(|byte| *byte == b' ')?;
            let words = line::after(line.get(space + 1..)?, b"OK ")?;
            let (list, _) = response_code(words)?;
            (line::after(words, b"[CAPABILITY ")?, list.len())
        }
    };
    let (before, _) = line.split_at_checked(line.len() - start.len())?;
    let (words, after) = start.split_at_checked(length)?;
    Some(List {
        before,
        words,
        after,
    })
}

fn is_hidden(capability: &[u8]) -> bool {
    capability.eq_ignore_ascii_case(b"STARTTLS")
        || capability.eq_ignore_ascii_case(b"LOGINDISABLED")
        || line::after(capability, b"AUTH=").is_some_and(line::is_channel_bound)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line::tests::{led, seen};

    const DOVECOT: &str = "* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ STARTTLS LOGINDISABLED] Dovecot (Debian) ready.\r\n";

    #[test]
    fn a_dialogue_with_dovecot() {
        let (said, injected) = led(
            StartTls::default(),
            &[DOVECOT, "mantled2 OK Begin TLS negotiation now.\r\n"],
        )
        .unwrap();
        assert_eq!(said, ["mantled2 STARTTLS\r\n"]);
        assert_eq!(injected, 0);
        let mut dialogue = StartTls::default();
        dialogue.step(DOVECOT.as_bytes()).unwrap();
        assert_eq!(
            dialogue.welcome().to_agent,
            b"* OK Dovecot (Debian) ready.\r\n"
        );
    }

    #[test]
    fn a_server_that_is_asked_for_its_capabilities() {
        let (said, _) = led(
            StartTls::default(),
            &[
                "* OK [ALERT] hello\r\n",
                "* OK something\r\n",
                "* CAPABILITY IMAP4rev1 starttls\r\n",
                "mantled1 OK done\r\n",
                "* OK wait\r\n",
                "mantled2 OK now\r\n",
            ],
        )
        .unwrap();
        let said: Vec<_> = said.iter().filter(|words| !words.is_empty()).collect();
        assert_eq!(said, ["mantled1 CAPABILITY\r\n", "mantled2 STARTTLS\r\n"]);
        let mut dialogue = StartTls::default();
        dialogue.step(b"* OK [ALERT] hello\r\n").unwrap();
        assert_eq!(dialogue.welcome().to_agent, b"* OK [ALERT] hello\r\n");
    }

    #[test]
    fn servers_without_tls_and_servers_that_decline() {
        let declined = |words: &str| DialogueError::Declined(words.to_owned());
        let missing = DialogueError::NotOffered("STARTTLS is not among its capabilities");
        for (speeches, expected) in [
            (
                &["* PREAUTH [CAPABILITY STARTTLS] hello\r\n"][..],
                DialogueError::NotOffered(
                    "it greets with PREAUTH, after which there is no STARTTLS",
                ),
            ),
            (&["* BYE busy\r\n"], declined("* BYE busy")),
            (&["* OK [CAPABILITY IMAP4rev1] hello\r\n"], missing.clone()),
            (
                &[
                    "* OK hello\r\n",
                    "* CAPABILITY IMAP4rev1\r\n",
                    "mantled1 OK\r\n",
                ],
                missing.clone(),
            ),
            (&["* OK hello\r\n", "mantled1 OK\r\n"], missing),
            (
                &["* OK hello\r\n", "mantled1 BAD what\r\n"],
                DialogueError::NotOffered("it does not tell its capabilities"),
            ),
            (
                &[DOVECOT, "mantled2 NO later\r\n"],
                declined("mantled2 NO later"),
            ),
            (&[DOVECOT, "* BYE gone\r\n"], declined("* BYE gone")),
            (
                &[DOVECOT, "a OK go\r\n"],
                DialogueError::Protocol("a response that does not belong here"),
            ),
            (
                &["220 x SMTP\r\n"],
                DialogueError::Protocol("it greets with something else"),
            ),
        ] {
            assert_eq!(led(StartTls::default(), speeches), Err(expected));
        }
    }

    #[test]
    fn capabilities_inside_tls() {
        for (from, to) in [
            (
                "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED AUTH=PLAIN AUTH=SCRAM-SHA-1-PLUS ID\r\n",
                "* CAPABILITY IMAP4rev1 AUTH=PLAIN ID\r\n",
            ),
            (
                "a1 OK [CAPABILITY IMAP4rev1 auth=x-plus IDLE] STARTTLS STARTTLS\r\n",
                "a1 OK [CAPABILITY IMAP4rev1 IDLE] STARTTLS STARTTLS\r\n",
            ),
            (
                "* OK [CAPABILITY STARTTLS IMAP4rev1] hello\r\n",
                "* OK [CAPABILITY IMAP4rev1] hello\r\n",
            ),
            // Nothing else changes.
            (
                "* CAPABILITY  IMAP4rev1   X \r\n",
                "* CAPABILITY  IMAP4rev1   X \r\n",
            ),
            (
                "a1 NO [CAPABILITY STARTTLS]\r\n* NO STARTTLS\r\n+ STARTTLS\r\n* OK STARTTLS {5}\r\n",
                "a1 NO [CAPABILITY STARTTLS]\r\n* NO STARTTLS\r\n+ STARTTLS\r\n* OK STARTTLS {5}\r\n",
            ),
            (
                "* ID (\"name\" {23}\r\n* CAPABILITY STARTTLS\r\n {0}\r\n* CAPABILITY STARTTLS)\r\n* CAPABILITY STARTTLS A\r\n",
                "* ID (\"name\" {23}\r\n* CAPABILITY STARTTLS\r\n {0}\r\n* CAPABILITY STARTTLS)\r\n* CAPABILITY A\r\n",
            ),
            // And nothing after the agent is authenticated.
            (
                "* 1 FETCH (BODY[] {23}\r\n* CAPABILITY STARTTLS\r\n)\r\na OK [CAPABILITY STARTTLS]\r\n",
                "* 1 FETCH (BODY[] {23}\r\n* CAPABILITY STARTTLS\r\n)\r\na OK [CAPABILITY STARTTLS]\r\n",
            ),
        ] {
            assert_eq!(
                seen(CapabilityFilter::default(), &[from.as_bytes()]).unwrap(),
                to
            );
        }
    }

    #[test]
    fn nothing_that_can_pass_is_held() {
        for (stream, passes) in [
            (&b"+"[..], true),
            (b"a1 NO", true),
            (b"a1 OK dea", true),
            (b"a1 OK [CAP", false),
            (b"* 23", true),
            (b"* SEARCH 1 2 3", true),
            (b"* FLAGS (", true),
            (b"* CAPAB", false),
            (b"abcdef", false),
            // Deflate's, and TLS' own.
            (b"\x16\x03\x01", true),
            (b"ab\0\0\xff\xff", true),
        ] {
            let mut out = Vec::new();
            CapabilityFilter::default()
                .rewrite(stream, &mut out)
                .unwrap();
            assert_eq!(out == stream, passes, "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn greetings_are_told_apart() {
        for (greeting, expected) in [
            (&b"* OK [CAPABILITY"[..], Look::Yes),
            (b"* ok ready\r\n", Look::Yes),
            (b"* PREAUTH x", Look::Yes),
            (b"* BYE no", Look::Yes),
            (b"* P", Look::NeedMore),
            (b"*", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"*1\r\n$4", Look::No),
            (b"* NO x", Look::No),
            (b"+OK", Look::No),
        ] {
            assert_eq!(looks_like_greeting(greeting), expected);
        }
    }

    #[test]
    fn the_refusal_is_one_line() {
        let words = refusal("a\r\n* OK");
        assert_eq!(words.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            stream in "((\\*|a1) (OK |NO |ID |CAPABILITY )?(\\[CAPABILITY )?(STARTTLS |AUTH=X-PLUS )?[ -~]{0,4}(\\{[0-9]\\})?\r?\n|.){0,8}",
            cut in 0_usize..120,
        ) {
            let stream = stream.as_bytes();
            let (first, second) = stream.split_at(cut.min(stream.len()));
            prop_assert_eq!(
                seen(CapabilityFilter::default(), &[first, second]),
                seen(CapabilityFilter::default(), &[stream])
            );
        }

        #[test]
        fn a_message_is_never_changed(message in "([ -~]{0,20}|\\* CAPABILITY STARTTLS|a OK \\[CAPABILITY STARTTLS\\])(\r\n.{0,20}){0,5}") {
            let stream = format!("* 1 FETCH (BODY[] {{{}}}\r\n{message})\r\na OK done\r\n", message.len());
            prop_assert_eq!(seen(CapabilityFilter::default(), &[stream.as_bytes()]), Some(stream));
        }
    }
}

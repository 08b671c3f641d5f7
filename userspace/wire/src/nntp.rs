//! NNTP (RFC 3977): STARTTLS (RFC 4642), the capabilities inside TLS, and a refusal in its own
//! words.
//!
//! The server greets, the proxy asks for the capabilities and, where STARTTLS is among them, for
//! TLS. Inside TLS the server does not greet again (RFC 4642 §2.2.2), so the agent gets the
//! greeting of before as the server wrote it. An agent that asks for STARTTLS itself is answered
//! by the server, which is in TLS already.
//!
//! Of the capabilities inside TLS [`CapabilitiesFilter`] takes away STARTTLS, should it still be
//! named, and mechanisms of SASL that are bound to a TLS channel: the agent has none. Response
//! codes tell which responses have more than one line, but for 211. The filter looks at lists of
//! capabilities (101), lets those pass that have one line always, and stops for good at any other
//! code. Articles come with such a code (220, 222), so none is ever looked at.

use crate::{
    Look, Next, Rewrite, RewriteError,
    line::{self, After, Judge, Lines},
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome},
};

const CAPABILITIES: Preamble = Preamble::constant(b"CAPABILITIES\r\n");
const STARTTLS: Preamble = Preamble::constant(b"STARTTLS\r\n");

/// Does a server's stream begin with a greeting (RFC 3977 §5.1)?
pub fn looks_like_greeting(stream: &[u8]) -> Look {
    let looks =
        [&b"200 "[..], b"201 ", b"200\r\n", b"201\r\n"].map(|begin| line::begins(stream, begin));
    if looks.contains(&Look::Yes) {
        Look::Yes
    } else if looks.contains(&Look::NeedMore) {
        Look::NeedMore
    } else {
        Look::No
    }
}

/// A greeting that refuses (RFC 3977 §5.1).
pub fn refusal(reason: &str) -> Vec<u8> {
    format!("400 {}\r\n", line::sentence(reason)).into_bytes()
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
    Capabilities,
    GoAhead,
}

impl Dialogue for StartTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        let Some((line, rest)) = line::first(heard)? else {
            return Ok(Step::NeedMore);
        };
        let code = code(line).ok_or(DialogueError::Protocol("a response without a code"))?;
        let (consumed, words) = match (self.expects, code) {
            (Expects::Greeting, 200 | 201) => {
                self.greeting = line.to_vec();
                self.expects = Expects::Capabilities;
                (line.len(), CAPABILITIES)
            }
            (Expects::Capabilities, 101) => {
                let Some(list) = line::capabilities(rest, b"STARTTLS")? else {
                    return Ok(Step::NeedMore);
                };
                if !list.offered {
                    return Err(DialogueError::NotOffered(
                        "STARTTLS is not among its capabilities",
                    ));
                }
                self.expects = Expects::GoAhead;
                (line.len() + list.length, STARTTLS)
            }
            (Expects::Capabilities, 500..=599) => {
                return Err(DialogueError::NotOffered("it has no capabilities"));
            }
            (Expects::GoAhead, 382) => {
                return Ok(Step::Handshake {
                    consumed: line.len(),
                });
            }
            (_, 400..=599) => return Err(DialogueError::declined(line)),
            _ => {
                return Err(DialogueError::Protocol(
                    "a response that does not belong here",
                ));
            }
        };
        if consumed < heard.len() {
            return Err(DialogueError::Protocol("it answers what nobody asked"));
        }
        Ok(Step::Say { consumed, words })
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            to_agent: std::mem::take(&mut self.greeting),
            from_agent: None,
            from_server: Some(Box::new(CapabilitiesFilter::default())),
        }
    }
}

/// A response's code (RFC 3977 §3.2).
fn code(line: &[u8]) -> Option<u16> {
    let (code, rest) = line::text(line).split_first_chunk::<3>()?;
    if !code.iter().all(u8::is_ascii_digit) || !matches!(rest.first(), None | Some(b' ')) {
        return None;
    }
    std::str::from_utf8(code).ok()?.parse().ok()
}

/// Changes the capabilities that a server names inside TLS; see the module's text.
#[derive(Clone, Debug, Default)]
pub struct CapabilitiesFilter {
    lines: Lines,
    responses: Responses,
}

impl Rewrite for CapabilitiesFilter {
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
    in_capabilities: bool,
}

impl Judge for Responses {
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> After {
        if self.in_capabilities {
            self.in_capabilities = line::text(line) != b".";
            if let Some(kept) = line::shown(line, b"STARTTLS") {
                out.extend_from_slice(&kept);
            }
            return After::Line;
        }
        out.extend_from_slice(line);
        match code(line) {
            Some(101) => {
                self.in_capabilities = true;
                After::Line
            }
            // DATE, MODE READER and AUTHINFO (RFC 4643); whatever fails has one line.
            Some(111 | 200 | 201 | 281 | 283 | 381 | 383 | 400..=599) => After::Line,
            _ => After::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line::tests::{led, seen};

    const INN: &str = "101 Capability list:\r\nVERSION 2\r\nIMPLEMENTATION INN 2.7.1\r\nAUTHINFO\r\nSTARTTLS\r\n.\r\n";

    #[test]
    fn a_dialogue_with_inn() {
        let (said, injected) = led(
            StartTls::default(),
            &[
                "200 news.example InterNetNews NNRP server INN 2.7.1 ready (posting ok)\r\n",
                INN,
                "382 Begin TLS negotiation now\r\n",
            ],
        )
        .unwrap();
        assert_eq!(said, ["CAPABILITIES\r\n", "STARTTLS\r\n"]);
        assert_eq!(injected, 0);
        let mut dialogue = StartTls::default();
        dialogue.step(b"201 x\r\n").unwrap();
        assert_eq!(dialogue.welcome().to_agent, b"201 x\r\n");
    }

    #[test]
    fn servers_without_tls_and_servers_that_decline() {
        let declined = |words: &str| DialogueError::Declined(words.to_owned());
        for (speeches, expected) in [
            (&["400 busy\r\n"][..], declined("400 busy")),
            (&["502 go away\r\n"], declined("502 go away")),
            (
                &["200 x\r\n", "500 what\r\n"],
                DialogueError::NotOffered("it has no capabilities"),
            ),
            (
                &["200 x\r\n", "101 y\r\nVERSION 2\r\n.\r\n"],
                DialogueError::NotOffered("STARTTLS is not among its capabilities"),
            ),
            (
                &["200 x\r\n", INN, "580 Can not initiate TLS\r\n"],
                declined("580 Can not initiate TLS"),
            ),
            (
                &["200 x\r\n", INN, "200 y\r\n"],
                DialogueError::Protocol("a response that does not belong here"),
            ),
            (
                &["+OK\r\n"],
                DialogueError::Protocol("a response without a code"),
            ),
        ] {
            assert_eq!(led(StartTls::default(), speeches), Err(expected));
        }
        assert_eq!(
            StartTls::default().step(b"200 x\r\n101 y\r\nSTARTTLS\r\n.\r\n"),
            Err(DialogueError::Protocol("it answers what nobody asked"))
        );
    }

    #[test]
    fn capabilities_inside_tls() {
        for (from, to) in [
            (
                "101 x\r\nVERSION 2\r\nSTARTTLS\r\nSASL PLAIN X-PLUS\r\n.\r\n281 ok\r\n101 x\r\nSASL X-PLUS\r\n.\r\n",
                "101 x\r\nVERSION 2\r\nSASL PLAIN\r\n.\r\n281 ok\r\n101 x\r\n.\r\n",
            ),
            (
                "480 first\r\nSTARTTLS\r\n101 x\r\nSTARTTLS\r\n",
                "480 first\r\nSTARTTLS\r\n101 x\r\nSTARTTLS\r\n",
            ),
            (
                "222 1 <a@b>\r\n101 x\r\nSTARTTLS\r\n.\r\n",
                "222 1 <a@b>\r\n101 x\r\nSTARTTLS\r\n.\r\n",
            ),
            (
                "211 1 1 1 a\r\n1\r\n.\r\n101 x\r\nSTARTTLS\r\n.\r\n",
                "211 1 1 1 a\r\n1\r\n.\r\n101 x\r\nSTARTTLS\r\n.\r\n",
            ),
        ] {
            assert_eq!(
                seen(CapabilitiesFilter::default(), &[from.as_bytes()]).unwrap(),
                to
            );
        }
    }

    #[test]
    fn greetings_are_told_apart() {
        for (greeting, expected) in [
            (&b"200 news ready\r\n"[..], Look::Yes),
            (b"201\r\n", Look::Yes),
            (b"20", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"220 x", Look::No),
            (b"2000", Look::No),
        ] {
            assert_eq!(looks_like_greeting(greeting), expected);
        }
    }

    #[test]
    fn the_refusal_is_one_line() {
        let words = refusal("a\r\n200 ok");
        assert_eq!(words.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            stream in "((101|281|480|220) x\r?\n|STARTTLS\r?\n|SASL( X-PLUS)?\r?\n|\\.\r\n|.){0,12}",
            cut in 0_usize..100,
        ) {
            let stream = stream.as_bytes();
            let (first, second) = stream.split_at(cut.min(stream.len()));
            prop_assert_eq!(
                seen(CapabilitiesFilter::default(), &[first, second]),
                seen(CapabilitiesFilter::default(), &[stream])
            );
        }

        #[test]
        fn an_article_is_never_changed(article in "(101 x\r\n|STARTTLS\r\n|SASL X-PLUS\r\n|.{0,9}\r\n){0,9}") {
            let stream = format!("200 x\r\n220 1 <a@b>\r\n{article}.\r\n");
            prop_assert_eq!(seen(CapabilitiesFilter::default(), &[stream.as_bytes()]), Some(stream));
        }
    }
}

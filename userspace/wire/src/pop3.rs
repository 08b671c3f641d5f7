//! POP3 (RFC 1939): STLS (RFC 2595 §4), the capabilities inside TLS (CAPA, RFC 2449), and a
//! refusal in its own words.
//!
//! The server greets, the proxy asks for the capabilities and, where STLS is among them, for TLS.
//! Inside TLS the server does not greet again, so the agent gets the greeting of before as the
//! server wrote it: the time stamp in it is what APOP digests. An agent that asks for STLS itself
//! is answered by the server, which is in TLS already.
//!
//! Of the capabilities inside TLS [`CapaFilter`] takes away STLS, should it still be named, and
//! mechanisms of SASL that are bound to a TLS channel: the agent has none. An answer does not tell
//! which command it belongs to, so [`CommandWatch`] looks at the agent's commands, changes nothing,
//! and tells the filter which answers are of CAPA. Both stop for good at the first command that is
//! neither CAPA nor one of the few of the AUTHORIZATION state whose answer is always one line.
//! Messages come after such a command (RETR, TOP), so none is ever looked at.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use crate::{
    Look, Next, Rewrite, RewriteError,
    line::{self, After, Judge, Lines},
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome},
};

const CAPA: Preamble = Preamble::constant(b"CAPA\r\n");
const STLS: Preamble = Preamble::constant(b"STLS\r\n");

/// Commands that are sent before the first is answered; with more than that the watch ends.
const MAX_PIPELINED: usize = 64;

/// Longest verb that matters, and one byte more.
const VERB: usize = 5;

/// Does a server's stream begin with a greeting (RFC 1939 §4)?
pub fn looks_like_greeting(stream: &[u8]) -> Look {
    let looks = [&b"+OK "[..], b"+OK\r\n"].map(|begin| line::begins(stream, begin));
    if looks.contains(&Look::Yes) {
        Look::Yes
    } else if looks.contains(&Look::NeedMore) {
        Look::NeedMore
    } else {
        Look::No
    }
}

/// A greeting that refuses.
pub fn refusal(reason: &str) -> Vec<u8> {
    format!("-ERR {}\r\n", line::sentence(reason)).into_bytes()
}

/// The way to TLS.
#[derive(Debug, Default)]
pub struct Stls {
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

impl Dialogue for Stls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        let Some((line, rest)) = line::first(heard)? else {
            return Ok(Step::NeedMore);
        };
        let positive = is_positive(line)?;
        let (consumed, words) = match self.expects {
            Expects::Capabilities if !positive => {
                return Err(DialogueError::NotOffered("it has no capabilities"));
            }
            _ if !positive => return Err(DialogueError::declined(line)),
            Expects::Greeting => {
                self.greeting = line.to_vec();
                self.expects = Expects::Capabilities;
                (line.len(), CAPA)
            }
            Expects::Capabilities => {
                let Some(list) = line::capabilities(rest, b"STLS")? else {
                    return Ok(Step::NeedMore);
                };
                if !list.offered {
                    return Err(DialogueError::NotOffered(
                        "STLS is not among its capabilities",
                    ));
                }
                self.expects = Expects::GoAhead;
                (line.len() + list.length, STLS)
            }
            Expects::GoAhead => {
                return Ok(Step::Handshake {
                    consumed: line.len(),
                });
            }
        };
        if consumed < heard.len() {
            return Err(DialogueError::Protocol("it answers what nobody asked"));
        }
        Ok(Step::Say { consumed, words })
    }

    fn welcome(&mut self) -> Welcome {
        let (watch, filter) = filters();
        Welcome {
            to_agent: std::mem::take(&mut self.greeting),
            from_agent: Some(Box::new(watch)),
            from_server: Some(Box::new(filter)),
        }
    }
}

fn is_positive(line: &[u8]) -> Result<bool, DialogueError> {
    if line::after(line, b"+OK").is_some() {
        Ok(true)
    } else if line::after(line, b"-ERR").is_some() {
        Ok(false)
    } else {
        Err(DialogueError::Protocol(
            "an answer that is neither +OK nor -ERR",
        ))
    }
}

/// What an answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// One line.
    Line,
    /// One line, or a list of capabilities where it is positive.
    Capabilities,
}

/// Watches an agent's commands and tells a [`CapaFilter`] about them; see the module's text. It
/// changes nothing.
#[derive(Debug)]
pub struct CommandWatch {
    asked: Option<SyncSender<Answer>>,
    /// The beginning of a command; at most [`VERB`] bytes.
    verb: Vec<u8>,
}

/// Changes the capabilities that a server names inside TLS; see the module's text.
#[derive(Debug)]
pub struct CapaFilter {
    lines: Lines,
    answers: Answers,
}

/// A watch and the filter that it tells.
pub fn filters() -> (CommandWatch, CapaFilter) {
    let (asked, asks) = sync_channel(MAX_PIPELINED);
    (CommandWatch::new(asked), CapaFilter::new(asks))
}

impl CommandWatch {
    fn new(asked: SyncSender<Answer>) -> Self {
        Self {
            asked: Some(asked),
            verb: Vec::new(),
        }
    }

    /// A command is complete.
    fn command(&mut self) {
        let line = std::mem::take(&mut self.verb);
        let verb = line::words(line::text(&line)).next().unwrap_or_default();
        let answer = match verb.to_ascii_uppercase().as_slice() {
            b"CAPA" => Answer::Capabilities,
            b"USER" | b"STLS" | b"UTF8" => Answer::Line,
            _ => {
                self.asked = None;
                return;
            }
        };
        if let Some(asked) = &self.asked
            && asked.try_send(answer).is_err()
        {
            self.asked = None;
        }
    }
}

impl Rewrite for CommandWatch {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        out.extend_from_slice(input);
        for byte in input {
            // A byte that does not fit makes it a word that is none of those that matter.
            if self.verb.len() < VERB || *byte == b'\n' {
                self.verb.push(*byte);
            }
            if *byte == b'\n' {
                self.command();
            }
            if self.asked.is_none() {
                return Ok(Next::Done);
            }
        }
        Ok(Next::Continue)
    }
}

impl CapaFilter {
    fn new(asks: Receiver<Answer>) -> Self {
        Self {
            lines: Lines::default(),
            answers: Answers {
                asks,
                in_capabilities: false,
            },
        }
    }
}

impl Rewrite for CapaFilter {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.lines.rewrite(input, out, &mut self.answers)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.lines.finish(out);
    }
}

/// Follows the server's answers.
#[derive(Debug)]
struct Answers {
    asks: Receiver<Answer>,
    in_capabilities: bool,
}

impl Judge for Answers {
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> After {
        if self.in_capabilities {
            self.in_capabilities = line::text(line) != b".";
            if let Some(kept) = line::shown(line, b"STLS") {
                out.extend_from_slice(&kept);
            }
            return After::Line;
        }
        out.extend_from_slice(line);
        match self.asks.try_recv() {
            Ok(Answer::Capabilities) => {
                self.in_capabilities = line::after(line, b"+OK").is_some();
                After::Line
            }
            // Nobody asked: what a server says before it closes is one line.
            Ok(Answer::Line) | Err(TryRecvError::Empty) => After::Line,
            Err(TryRecvError::Disconnected) => After::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line::tests::led;

    const CAPABILITIES: &str = "+OK\r\nCAPA\r\nTOP\r\nSTLS\r\nSASL\r\n.\r\n";

    /// What the agent sees after its commands; each list is what it says, then what it is told.
    fn conversation(turns: &[(&str, &str)]) -> String {
        let (mut watch, mut filter) = filters();
        let (mut out, mut done, mut filtered) = (Vec::new(), false, true);
        let mut watching = Some(&mut watch);
        for (commands, answers) in turns {
            if let Some(watch) = watching.as_mut() {
                let mut carried = Vec::new();
                done |= watch.rewrite(commands.as_bytes(), &mut carried).unwrap() == Next::Done;
                assert_eq!(carried, commands.as_bytes());
            }
            if done {
                watching = None;
            }
            if filtered {
                filtered = filter.rewrite(answers.as_bytes(), &mut out).unwrap() == Next::Continue;
            } else {
                out.extend_from_slice(answers.as_bytes());
            }
        }
        filter.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_dialogue_with_dovecot() {
        let (said, injected) = led(
            Stls::default(),
            &[
                "+OK <1.2@x> ready\r\n",
                CAPABILITIES,
                "+OK Begin TLS negotiation now.\r\n",
            ],
        )
        .unwrap();
        assert_eq!(said, ["CAPA\r\n", "STLS\r\n"]);
        assert_eq!(injected, 0);
        let mut dialogue = Stls::default();
        dialogue.step(b"+OK <1.2@x> ready\r\n").unwrap();
        assert_eq!(dialogue.welcome().to_agent, b"+OK <1.2@x> ready\r\n");
    }

    #[test]
    fn servers_without_tls_and_servers_that_decline() {
        let declined = |words: &str| DialogueError::Declined(words.to_owned());
        for (speeches, expected) in [
            (&["-ERR busy\r\n"][..], declined("-ERR busy")),
            (
                &["+OK\r\n", "-ERR what\r\n"],
                DialogueError::NotOffered("it has no capabilities"),
            ),
            (
                &["+OK\r\n", "+OK\r\nUSER\r\n.\r\n"],
                DialogueError::NotOffered("STLS is not among its capabilities"),
            ),
            (
                &["+OK\r\n", CAPABILITIES, "-ERR no\r\n"],
                declined("-ERR no"),
            ),
            (
                &["220 x\r\n"],
                DialogueError::Protocol("an answer that is neither +OK nor -ERR"),
            ),
        ] {
            assert_eq!(led(Stls::default(), speeches), Err(expected));
        }
        assert_eq!(
            Stls::default().step(b"+OK\r\n+OK\r\nSTLS\r\n.\r\n"),
            Err(DialogueError::Protocol("it answers what nobody asked"))
        );
    }

    #[test]
    fn capabilities_inside_tls() {
        assert_eq!(
            conversation(&[
                (
                    "CAPA\r\n",
                    "+OK\r\nTOP\r\nSTLS\r\nSASL PLAIN X-PLUS\r\n.\r\n"
                ),
                ("USER a\r\n", "+OK\r\n"),
                ("capa\r\n", "+OK\r\nSASL X-PLUS\r\nUIDL\r\n.\r\n"),
                ("CAPA\r\n", "-ERR what\r\n"),
                ("STLS\r\nCAPA\r\n", "-ERR in TLS\r\n+OK\r\nSTLS\r\n.\r\n"),
            ]),
            "+OK\r\nTOP\r\nSASL PLAIN\r\n.\r\n+OK\r\n+OK\r\nUIDL\r\n.\r\n-ERR what\r\n-ERR in TLS\r\n+OK\r\n.\r\n"
        );
    }

    #[test]
    fn messages_are_never_changed() {
        let message = "+OK\r\nSTLS\r\nSASL X-PLUS\r\n+OK\r\n.\r\n";
        for turns in [
            &[
                ("USER a\r\nPASS b\r\n", "+OK\r\n+OK\r\n"),
                ("RETR 1\r\n", message),
            ][..],
            &[("RETR 1\r\n", message)],
            &[("CAPAX\r\n", message)],
            &[("  CAPA\r\n", message)],
            &[("AUTH PLAIN\r\nCAPA\r\n", message)],
            &[("\r\n", message)],
        ] {
            let sent: String = turns.iter().map(|(_, answers)| *answers).collect();
            assert_eq!(conversation(turns), sent, "{turns:?}");
        }
        // An agent that sends more at once than is remembered.
        let many = "USER a\r\n".repeat(MAX_PIPELINED + 1) + "CAPA\r\n";
        let answers = "+OK\r\n".repeat(MAX_PIPELINED + 1) + "+OK\r\nSTLS\r\n.\r\n";
        assert_eq!(conversation(&[(&many, &answers)]), answers);
    }

    #[test]
    fn greetings_are_told_apart() {
        for (greeting, expected) in [
            (&b"+OK <1@x>\r\n"[..], Look::Yes),
            (b"+OK\r\n", Look::Yes),
            (b"+O", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"+OKAY\r\n", Look::No),
            (b"-ERR max number of clients reached\r\n", Look::No),
        ] {
            assert_eq!(looks_like_greeting(greeting), expected);
        }
    }

    #[test]
    fn the_refusal_is_one_line() {
        let words = refusal("a\r\n+OK");
        assert_eq!(words.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            commands in "((CAPA|USER|RETR|QUIT|.{0,7})( x)?\r?\n){0,6}",
            answers in "((\\+OK|-ERR|STLS|SASL( X-PLUS)?|\\.)?.?\r?\n){0,12}",
            cut in 0_usize..60,
        ) {
            let split = |text: &str| {
                let at = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
                let (first, second) = text.split_at(at.unwrap_or(0));
                (first.to_owned(), second.to_owned())
            };
            let (some, more) = split(&commands);
            let (first, second) = split(&answers);
            prop_assert_eq!(
                conversation(&[(&some, ""), (&more, &first), ("", &second)]),
                conversation(&[(&commands, &answers)])
            );
        }
    }
}

//! SMTP (RFC 5321) and LMTP (RFC 2033): STARTTLS (RFC 3207), the capabilities inside TLS, and a
//! refusal in their own words.
//!
//! The server greets, the proxy says EHLO (LHLO) as a constant, finds STARTTLS among the
//! capabilities and asks for it. Inside TLS the server starts anew but does not greet again, so
//! the agent gets the greeting of before as the server wrote it, and says its own EHLO there: the
//! capabilities that it sees are those that the server has inside TLS (RFC 3207 §4.2). An agent
//! that asks for STARTTLS itself is answered by the server, which is in TLS already.
//!
//! Of the capabilities inside TLS [`EhloFilter`] takes away STARTTLS, should it still be named,
//! and mechanisms of AUTH that are bound to a TLS channel: the agent has none. Nothing but replies
//! comes from a server, so no message can be changed; of replies only those of several lines with
//! code 250 are looked at, and those only until the agent is authenticated (235) or the server is
//! ready for the first message (354).

use crate::{
    Look, Next, Rewrite, RewriteError, begins,
    line::{self, After, Judge, Lines},
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome},
};

/// An address literal (RFC 5321 §4.1.3) tells nothing of the host, and is valid everywhere.
const EHLO: Preamble = Preamble::constant(b"EHLO [127.0.0.1]\r\n");
const LHLO: Preamble = Preamble::constant(b"LHLO [127.0.0.1]\r\n");
const STARTTLS: Preamble = Preamble::constant(b"STARTTLS\r\n");

/// Does a server's stream begin with a greeting that names SMTP (or ESMTP)? Other services greet
/// with 220 as well.
pub fn looks_like_greeting(stream: &[u8]) -> Look {
    greeting_naming(stream, &[b"SMTP", b"ESMTP"])
}

/// Does it begin with one that names LMTP?
pub fn looks_like_lmtp_greeting(stream: &[u8]) -> Look {
    greeting_naming(stream, &[b"LMTP"])
}

/// Does a server's stream begin with a greeting, or a refusal in place of one, that may be SMTP's
/// but does not say so? FTP's may look the same.
pub fn may_be_greeting(stream: &[u8]) -> bool {
    [b"220", b"421", b"554"]
        .into_iter()
        .any(|code| begins(stream, code) == Look::Yes && matches!(stream.get(3), Some(b' ' | b'-')))
}

fn greeting_naming(stream: &[u8], names: &[&[u8]]) -> Look {
    if !may_be_greeting(stream) {
        let short = stream.len() < 4
            && [b"220 ", b"220-", b"421 ", b"421-", b"554 ", b"554-"]
                .into_iter()
                .any(|begin| begins(stream, begin) == Look::NeedMore);
        return if short { Look::NeedMore } else { Look::No };
    }
    let mut rest = stream;
    loop {
        match line::first(rest) {
            Ok(Some((line, after))) => {
                if names_one_of(line, names) {
                    return Look::Yes;
                }
                if line.get(3) != Some(&b'-') {
                    return Look::No;
                }
                rest = after;
            }
            Ok(None) => return Look::NeedMore,
            Err(_) => return Look::No,
        }
    }
}

/// Is one of the names a word of its own?
fn names_one_of(line: &[u8], names: &[&[u8]]) -> bool {
    line.split(|byte| !byte.is_ascii_alphanumeric())
        .any(|word| names.iter().any(|name| word.eq_ignore_ascii_case(name)))
}

/// A greeting that refuses (RFC 5321 §3.1).
pub fn refusal(reason: &str) -> Vec<u8> {
    format!("554 {}\r\n", line::sentence(reason)).into_bytes()
}

/// The way to TLS.
#[derive(Debug)]
pub struct StartTls {
    hello: Preamble,
    expects: Expects,
    greeting: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Expects {
    Greeting,
    Capabilities,
    GoAhead,
}

impl StartTls {
    /// SMTP's.
    pub fn smtp() -> Self {
        Self::new(EHLO)
    }

    /// LMTP's.
    pub fn lmtp() -> Self {
        Self::new(LHLO)
    }

    fn new(hello: Preamble) -> Self {
        Self {
            hello,
            expects: Expects::Greeting,
            greeting: Vec::new(),
        }
    }
}

impl Dialogue for StartTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        let Some(Reply { code, length }) = reply(heard)? else {
            return Ok(Step::NeedMore);
        };
        let (words, rest) = heard.split_at_checked(length).unwrap_or((heard, &[]));
        let say = match (self.expects, &code) {
            (Expects::GoAhead, b"220") => return Ok(Step::Handshake { consumed: length }),
            _ if !rest.is_empty() => {
                return Err(DialogueError::Protocol("it answers what nobody asked"));
            }
            (Expects::Greeting, b"220") => {
                self.greeting = words.to_vec();
                self.expects = Expects::Capabilities;
                self.hello.clone()
            }
            (Expects::Capabilities, b"250") => {
                if !offers_starttls(words) {
                    return Err(DialogueError::NotOffered(
                        "STARTTLS is not among its capabilities",
                    ));
                }
                self.expects = Expects::GoAhead;
                STARTTLS
            }
            (Expects::Capabilities, [b'5', ..]) => {
                return Err(DialogueError::NotOffered("it has no capabilities"));
            }
            (_, [b'4' | b'5', ..]) => return Err(DialogueError::declined(words)),
            _ => return Err(DialogueError::Protocol("a reply that does not belong here")),
        };
        Ok(Step::Say {
            consumed: length,
            words: say,
        })
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            to_agent: std::mem::take(&mut self.greeting),
            from_agent: None,
            from_server: Some(Box::new(EhloFilter::default())),
        }
    }
}

/// A whole reply (RFC 5321 §4.2.1).
struct Reply {
    code: [u8; 3],
    length: usize,
}

/// The first reply; None where it has not all come.
fn reply(stream: &[u8]) -> Result<Option<Reply>, DialogueError> {
    let mut rest = stream;
    let mut code = None;
    loop {
        let Some((line, after)) = line::first(rest)? else {
            return Ok(None);
        };
        let Some((own, more)) = code_of(line) else {
            return Err(DialogueError::Protocol("a reply without a code"));
        };
        if *code.get_or_insert(own) != own {
            return Err(DialogueError::Protocol("a reply with two codes"));
        }
        rest = after;
        if !more {
            let length = stream.len() - rest.len();
            return Ok(Some(Reply { code: own, length }));
        }
    }
}

/// A line's code, and whether the reply has more lines.
fn code_of(line: &[u8]) -> Option<([u8; 3], bool)> {
    let (code, rest) = line::text(line).split_first_chunk::<3>()?;
    if !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    match rest.first() {
        Some(b'-') => Some((*code, true)),
        Some(b' ') | None => Some((*code, false)),
        Some(_) => None,
    }
}

fn offers_starttls(reply: &[u8]) -> bool {
    // The first line names the server.
    reply
        .split(|byte| *byte == b'\n')
        .skip(1)
        .filter_map(|line| line::text(line).get(4..))
        .any(|capability| {
            line::words(capability)
                .next()
                .is_some_and(|keyword| keyword.eq_ignore_ascii_case(b"STARTTLS"))
        })
}

/// Changes the capabilities that a server names inside TLS; see the module's text.
#[derive(Clone, Debug, Default)]
pub struct EhloFilter {
    lines: Lines,
    replies: Replies,
}

/// Follows the server's replies.
#[derive(Clone, Debug, Default)]
struct Replies {
    /// In the middle of a reply with code 250.
    in_capabilities: bool,
    /// The last line that stays. It may turn out to be the reply's last one, which has a space
    /// behind the code instead of a hyphen.
    pending: Vec<u8>,
}

impl Rewrite for EhloFilter {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.lines.rewrite(input, out, &mut self.replies)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.replies.pending);
        self.lines.finish(out);
    }
}

impl Judge for Replies {
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> After {
        let first = !self.in_capabilities;
        match code_of(line) {
            Some((code, more)) if &code == b"250" => {
                self.in_capabilities = more;
                let kept = if first {
                    Some(line.to_vec())
                } else {
                    capability(line)
                };
                match kept {
                    Some(kept) => {
                        out.append(&mut self.pending);
                        self.pending = kept;
                    }
                    // Another line is the last one now.
                    None if !more => {
                        if let Some(separator) = self.pending.get_mut(3) {
                            *separator = b' ';
                        }
                    }
                    None => {}
                }
                if !more {
                    out.append(&mut self.pending);
                }
                After::Line
            }
            code => {
                self.in_capabilities = false;
                out.append(&mut self.pending);
                out.extend_from_slice(line);
                match code {
                    Some((code, _)) if matches!(&code, b"235" | b"354") => After::End,
                    _ => After::Line,
                }
            }
        }
    }
}

/// A capability's line as the agent may see it, if it may.
fn capability(line: &[u8]) -> Option<Vec<u8>> {
    let (head, text) = line.split_at_checked(4)?;
    let words = line::text(text);
    if words.eq_ignore_ascii_case(b"STARTTLS") {
        return None;
    }
    // Behind an equals sign for clients from before RFC 2554.
    let mechanisms = line::after(words, b"AUTH ").or_else(|| line::after(words, b"AUTH="));
    let Some(mechanisms) = mechanisms.filter(|list| line::words(list).any(line::is_channel_bound))
    else {
        return Some(line.to_vec());
    };
    let kept = line::without(mechanisms, line::is_channel_bound);
    if kept.is_empty() {
        return None;
    }
    let keyword = text.get(..5).unwrap_or_default();
    let end = text.get(words.len()..).unwrap_or_default();
    Some([head, keyword, &kept, end].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::line::tests::{led, seen};

    const POSTFIX: &str = "250-mail.example\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 SMTPUTF8\r\n";

    #[test]
    fn a_dialogue_with_postfix() {
        let (said, injected) = led(
            StartTls::smtp(),
            &[
                "220 mail.example ESMTP Postfix (Debian/GNU)\r\n",
                POSTFIX,
                "220 2.0.0 Ready to start TLS\r\n",
            ],
        )
        .unwrap();
        assert_eq!(said, ["EHLO [127.0.0.1]\r\n", "STARTTLS\r\n"]);
        assert_eq!(injected, 0);
    }

    #[test]
    fn lmtp_says_lhlo_and_a_greeting_of_many_lines_is_passed_on() {
        let greeting = "220-mail.example\r\n220-second line\r\n220 LMTP ready\r\n";
        let mut dialogue = StartTls::lmtp();
        let step = dialogue.step(greeting.as_bytes()).unwrap();
        let consumed = greeting.len();
        assert_eq!(
            step,
            Step::Say {
                consumed,
                words: LHLO
            }
        );
        assert_eq!(dialogue.welcome().to_agent, greeting.as_bytes());
    }

    #[test]
    fn what_is_injected_behind_the_go_ahead_is_seen() {
        let (_, injected) = led(
            StartTls::smtp(),
            &["220 x ESMTP\r\n", POSTFIX, "220 go\r\n"],
        )
        .unwrap();
        assert_eq!(injected, 0);
        let mut dialogue = StartTls::smtp();
        dialogue.step(b"220 x\r\n").unwrap();
        dialogue.step(POSTFIX.as_bytes()).unwrap();
        let heard = b"220 go\r\n250-injected\r\n";
        assert_eq!(
            dialogue.step(heard).unwrap(),
            Step::Handshake { consumed: 8 }
        );
    }

    #[test]
    fn servers_without_tls_and_servers_that_decline() {
        let declined = |words: &str| DialogueError::Declined(words.to_owned());
        for (speeches, expected) in [
            (
                &["554 no service for you\r\n"][..],
                declined("554 no service for you"),
            ),
            (&["421-busy\r\n421 later\r\n"], declined("421-busy")),
            (
                &["220 x\r\n", "250-x\r\n250 STARTTLSX\r\n"],
                DialogueError::NotOffered("STARTTLS is not among its capabilities"),
            ),
            (
                &["220 x\r\n", "250 STARTTLS\r\n"],
                DialogueError::NotOffered("STARTTLS is not among its capabilities"),
            ),
            (
                &["220 x\r\n", "502 unknown command\r\n"],
                DialogueError::NotOffered("it has no capabilities"),
            ),
            (
                &["220 x\r\n", POSTFIX, "454 4.7.0 TLS not available\r\n"],
                declined("454 4.7.0 TLS not available"),
            ),
            (
                &["hello\r\n"],
                DialogueError::Protocol("a reply without a code"),
            ),
            (
                &["220-x\r\n250 y\r\n"],
                DialogueError::Protocol("a reply with two codes"),
            ),
            (
                &["250 x\r\n"],
                DialogueError::Protocol("a reply that does not belong here"),
            ),
        ] {
            assert_eq!(led(StartTls::smtp(), speeches), Err(expected));
        }
    }

    #[test]
    fn a_server_that_answers_before_it_is_asked() {
        assert_eq!(
            StartTls::smtp().step(b"220 x\r\n250-x\r\n250 STARTTLS\r\n"),
            Err(DialogueError::Protocol("it answers what nobody asked"))
        );
    }

    #[test]
    fn capabilities_inside_tls() {
        for (from, to) in [
            (
                "250-x\r\n250-AUTH PLAIN SCRAM-SHA-1-PLUS LOGIN\r\n250 STARTTLS\r\n",
                "250-x\r\n250 AUTH PLAIN LOGIN\r\n",
            ),
            (
                "250-x\r\n250-STARTTLS\r\n250 DSN\r\n",
                "250-x\r\n250 DSN\r\n",
            ),
            ("250-x\r\n250 starttls\r\n", "250 x\r\n"),
            (
                "250-x\r\n250-AUTH SCRAM-SHA-256-PLUS\r\n250-AUTH=PLAIN X-plus\r\n250 AUTH=Y-PLUS\r\n",
                "250-x\r\n250 AUTH=PLAIN\r\n",
            ),
            // Nothing else changes.
            (
                "250-AUTH A-PLUS\r\n250 AUTHOR  B-PLUS\r\n",
                "250-AUTH A-PLUS\r\n250 AUTHOR  B-PLUS\r\n",
            ),
            (
                "214-STARTTLS\r\n214 STARTTLS\r\n",
                "214-STARTTLS\r\n214 STARTTLS\r\n",
            ),
            (
                "334 \r\n503 x\r\nstrange\r\n250",
                "334 \r\n503 x\r\nstrange\r\n250",
            ),
            // And nothing after the agent is authenticated, or has begun a message.
            (
                "235 ok\r\n250-x\r\n250-STARTTLS\r\n250 y\r\n",
                "235 ok\r\n250-x\r\n250-STARTTLS\r\n250 y\r\n",
            ),
            (
                "250 ok\r\n354 go\r\n250-x\r\n250 STARTTLS\r\n",
                "250 ok\r\n354 go\r\n250-x\r\n250 STARTTLS\r\n",
            ),
        ] {
            assert_eq!(seen(EhloFilter::default(), &[from.as_bytes()]).unwrap(), to);
        }
        let long = [b'2'; line::MAX_LINE + 1];
        assert_eq!(seen(EhloFilter::default(), &[&long]), None);
    }

    #[test]
    fn greetings_are_told_apart() {
        for (greeting, smtp, lmtp) in [
            ("220 x ESMTP Postfix\r\n", Look::Yes, Look::No),
            ("220-x\r\n220 Smtp\r\n", Look::Yes, Look::No),
            ("220 x Cyrus LMTP 3\r\n", Look::No, Look::Yes),
            ("220 (vsFTPd 3.0.3)\r\n", Look::No, Look::No),
            ("220 smtps.example ready\r\n", Look::No, Look::No),
            ("220-x\r\n", Look::NeedMore, Look::NeedMore),
            ("220 x ESMTP", Look::NeedMore, Look::NeedMore),
            ("22", Look::NeedMore, Look::NeedMore),
            ("", Look::NeedMore, Look::NeedMore),
            ("221 x SMTP\r\n", Look::No, Look::No),
            ("2201 x SMTP\r\n", Look::No, Look::No),
            ("554 x SMTP\r\n", Look::Yes, Look::No),
            ("* OK\r\n", Look::No, Look::No),
        ] {
            assert_eq!(looks_like_greeting(greeting.as_bytes()), smtp, "{greeting}");
            assert_eq!(
                looks_like_lmtp_greeting(greeting.as_bytes()),
                lmtp,
                "{greeting}"
            );
        }
    }

    #[test]
    fn the_refusal_is_one_reply() {
        let words = refusal("a\r\n250 ok");
        assert!(
            reply(&words)
                .unwrap()
                .is_some_and(|reply| reply.length == words.len())
        );
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            stream in "(250[- ](AUTH |STARTTLS|x)?[A-Z-]{0,3}(-PLUS)?\r?\n|[1-5][0-5]{2}[ -]x\n|.){0,12}",
            cut in 0_usize..100,
        ) {
            let stream = stream.as_bytes();
            let (first, second) = stream.split_at(cut.min(stream.len()));
            prop_assert_eq!(
                seen(EhloFilter::default(), &[first, second]),
                seen(EhloFilter::default(), &[stream])
            );
        }

        #[test]
        fn more_bytes_never_change_a_decision(stream in "(220[- ]|421 )?(SMTP|x)? ?(\r\n)?(220 ESMTP\r\n)?.{0,9}", cut in 0_usize..40) {
            let stream = stream.as_bytes();
            let beginning = &stream[..cut.min(stream.len())];
            match looks_like_greeting(beginning) {
                Look::NeedMore => {}
                decided => prop_assert_eq!(decided, looks_like_greeting(stream)),
            }
        }
    }
}

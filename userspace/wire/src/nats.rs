//! NATS (NATS documentation, "Client Protocol"; server configuration `tls`, `handshake_first`):
//! the server greets with `INFO {json}`, and where that says so a TLS handshake follows at once.
//!
//! The agent is told what the server says inside TLS, less that it needs TLS: `tls_required`,
//! `tls_available`, `tls_verify` (and `ssl_required` of old servers) are taken out of the first
//! INFO and of every later one. Every other byte stays as it is. `connect_urls` names other
//! servers of the cluster; what the agent opens to them is upgraded as this connection is.
//!
//! Unless the server is configured for TLS first, the first INFO crosses the wire in clear, as it
//! does for every client of NATS. The agent gets it when the certificate is verified.

mod json;

use crate::{
    Look, Next, Rewrite, RewriteError, begins,
    starttls::{Dialogue, DialogueError, Step, Welcome},
};

/// Longest line of a server: an INFO with the addresses of a large cluster has a few KiB, and
/// subjects are limited to less than 4 KiB (`max_control_line`) unless configured otherwise.
pub const MAX_LINE: usize = 64 * 1024;

/// Members of INFO that tell a client to speak TLS.
const ABOUT_TLS: [&[u8]; 4] = [
    b"tls_required",
    b"tls_available",
    b"tls_verify",
    b"ssl_required",
];

/// Does a server's stream begin with an INFO? Six bytes decide.
pub fn looks_like_info(stream: &[u8]) -> Look {
    begins(stream, b"INFO {")
}

/// An error with the reason, in which nothing can end the line or the quotation.
pub fn refusal(reason: &str) -> Vec<u8> {
    let reason: String = reason
        .chars()
        .map(|letter| match letter {
            '\'' => '"',
            letter if letter.is_control() => ' ',
            letter => letter,
        })
        .collect();
    format!("-ERR 'mantled refused this connection: {reason}'\r\n").into_bytes()
}

/// The way to TLS of a server that greets in clear.
#[derive(Clone, Debug, Default)]
pub struct Upgrade {
    /// The first INFO, as the agent may see it.
    info: Vec<u8>,
}

impl Dialogue for Upgrade {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        if looks_like_info(heard) == Look::No {
            let words = Operation::of(heard);
            return Err(if words == Some(Operation::Error) {
                DialogueError::declined(heard)
            } else {
                DialogueError::Protocol("it does not greet with INFO")
            });
        }
        let Some(length) = line(heard) else {
            return if heard.len() > MAX_LINE {
                Err(DialogueError::Protocol("its INFO does not end"))
            } else {
                Ok(Step::NeedMore)
            };
        };
        let line = heard.get(..length).unwrap_or_default();
        let members = json::members(object(line))
            .ok_or(DialogueError::Protocol("its INFO is not a JSON object"))?;
        let offered = members.iter().any(|member| {
            member.value == b"true"
                && matches!(
                    member.name,
                    b"tls_required" | b"tls_available" | b"ssl_required"
                )
        });
        if !offered {
            return Err(DialogueError::NotOffered(
                "no tls_required or tls_available in its INFO",
            ));
        }
        self.info =
            without_tls(line).ok_or(DialogueError::Protocol("its INFO is not a JSON object"))?;
        Ok(Step::Handshake { consumed: length })
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            to_agent: std::mem::take(&mut self.info),
            from_agent: None,
            from_server: Some(Box::new(InfoRewrite::default())),
        }
    }
}

/// How many bytes the first line has, its end included.
fn line(stream: &[u8]) -> Option<usize> {
    stream
        .iter()
        .take(MAX_LINE)
        .position(|byte| *byte == b'\n')
        .map(|at| at + 1)
}

/// What follows the operation of an INFO line.
fn object(line: &[u8]) -> &[u8] {
    line.get(4..).unwrap_or_default()
}

/// An INFO line without what tells a client to speak TLS; None where it holds no JSON object.
fn without_tls(line: &[u8]) -> Option<Vec<u8>> {
    let object = object(line);
    let mut out = line.get(..line.len() - object.len())?.to_vec();
    json::without(object, &ABOUT_TLS, &mut out)?;
    Some(out)
}

/// What a line of a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// INFO
    Info,
    /// MSG and HMSG: bytes follow the line, as many as its last field says, and CR LF.
    Message,
    /// -ERR
    Error,
    /// PING, PONG, +OK
    Plain,
}

impl Operation {
    /// By the line's first word, in any case.
    fn of(line: &[u8]) -> Option<Self> {
        let end = line
            .iter()
            .position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
            .unwrap_or(line.len());
        let is = |word: &[u8]| {
            line.get(..end)
                .is_some_and(|w| w.eq_ignore_ascii_case(word))
        };
        if is(b"INFO") {
            Some(Self::Info)
        } else if is(b"MSG") || is(b"HMSG") {
            Some(Self::Message)
        } else if is(b"-ERR") {
            Some(Self::Error)
        } else if is(b"PING") || is(b"PONG") || is(b"+OK") {
            Some(Self::Plain)
        } else {
            None
        }
    }
}

/// Takes what tells a client to speak TLS out of every INFO of a server. Payloads of messages are
/// counted, never looked at.
#[derive(Clone, Debug, Default)]
pub struct InfoRewrite {
    /// The beginning of a line.
    ///
    /// Invariant: at most [`MAX_LINE`] bytes, without an end of line; empty while `payload` is
    /// not 0.
    held: Vec<u8>,
    /// Bytes of a message that are still to come, their CR LF included.
    payload: u64,
}

impl Rewrite for InfoRewrite {
    fn rewrite(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        while !input.is_empty() {
            if self.payload > 0 {
                let length = usize::try_from(self.payload).unwrap_or(usize::MAX);
                let (passed, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
                out.extend_from_slice(passed);
                self.payload -= passed.len() as u64;
                input = rest;
                continue;
            }
            let end = input.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(input.len(), |at| at + 1);
            if self.held.len() + length > MAX_LINE {
                return Err(RewriteError::Protocol(
                    "a line of the NATS server does not end".to_owned(),
                ));
            }
            let (taken, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
            self.held.extend_from_slice(taken);
            input = rest;
            if end.is_some() {
                let line = std::mem::take(&mut self.held);
                self.line(&line, out)?;
            }
        }
        Ok(Next::Continue)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }
}

impl InfoRewrite {
    /// A whole line.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), RewriteError> {
        let wrong = |what: &str| RewriteError::Protocol(format!("the NATS server sends {what}"));
        match Operation::of(line) {
            Some(Operation::Info) => {
                let info = without_tls(line).ok_or_else(|| wrong("an INFO without JSON"))?;
                out.extend_from_slice(&info);
            }
            Some(Operation::Message) => {
                self.payload = payload(line).ok_or_else(|| wrong("a message without a length"))?;
                out.extend_from_slice(line);
            }
            Some(Operation::Error | Operation::Plain) => out.extend_from_slice(line),
            // What follows the line of an unknown operation cannot be told from another line.
            None => return Err(wrong("an operation that mantled does not know")),
        }
        Ok(())
    }
}

/// The last field of a message's line, with the CR LF that ends the message.
fn payload(line: &[u8]) -> Option<u64> {
    let last = line
        .split(|byte| byte.is_ascii_whitespace())
        .rfind(|field| !field.is_empty())?;
    let digits = std::str::from_utf8(last).ok()?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_add(2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of nats-server 2.9.10 with `tls {}`.
    const INFO: &[u8] = b"INFO {\"server_id\":\"NDLXQ7\",\"version\":\"2.9.10\",\"proto\":1,\"host\":\"10.99.0.2\",\"port\":4222,\"headers\":true,\"tls_required\":true,\"max_payload\":1048576,\"client_id\":5,\"connect_urls\":[\"10.99.0.2:4222\",\"10.99.0.3:4222\"]} \r\n";
    const SEEN: &[u8] = b"INFO {\"server_id\":\"NDLXQ7\",\"version\":\"2.9.10\",\"proto\":1,\"host\":\"10.99.0.2\",\"port\":4222,\"headers\":true,\"max_payload\":1048576,\"client_id\":5,\"connect_urls\":[\"10.99.0.2:4222\",\"10.99.0.3:4222\"]} \r\n";

    fn rewrite(pieces: &[&[u8]]) -> Result<Vec<u8>, RewriteError> {
        let mut rewrite = InfoRewrite::default();
        let mut out = Vec::new();
        for piece in pieces {
            rewrite.rewrite(piece, &mut out)?;
        }
        rewrite.finish(&mut out);
        Ok(out)
    }

    #[test]
    fn the_greeting_leads_to_tls() {
        let mut dialogue = Upgrade::default();
        for cut in 0..INFO.len() {
            assert_eq!(dialogue.step(&INFO[..cut]), Ok(Step::NeedMore), "{cut}");
        }
        let consumed = INFO.len();
        assert_eq!(dialogue.step(INFO), Ok(Step::Handshake { consumed }));
        assert_eq!(dialogue.welcome().to_agent, SEEN);
    }

    #[test]
    fn bytes_after_the_greeting_are_left_to_the_driver() {
        let stream = [INFO, b"PING\r\n"].concat();
        let consumed = INFO.len();
        let step = Upgrade::default().step(&stream);
        assert_eq!(step, Ok(Step::Handshake { consumed }));
    }

    #[test]
    fn greetings_without_tls() {
        for info in [
            &b"INFO {}\r\n"[..],
            b"INFO {\"tls_required\":false,\"tls_verify\":true}\r\n",
            b"INFO {\"nested\":{\"tls_required\":true}}\r\n",
            b"INFO {\"name\":\"\\\"tls_required\\\":true\"}\r\n",
        ] {
            let step = Upgrade::default().step(info);
            assert!(
                matches!(step, Err(DialogueError::NotOffered(_))),
                "{}",
                info.escape_ascii()
            );
        }
        let step = Upgrade::default().step(b"-ERR 'maximum connections exceeded'\r\n");
        let said = "-ERR 'maximum connections exceeded'".to_owned();
        assert_eq!(step, Err(DialogueError::Declined(said)));
        for other in [&b"220 ready\r\n"[..], b"INFO {\"a\"\r\n", b"INFO {]\r\n"] {
            let step = Upgrade::default().step(other);
            assert!(matches!(step, Err(DialogueError::Protocol(_))), "{step:?}");
        }
        let endless = [b"INFO {".to_vec(), vec![b' '; MAX_LINE]].concat();
        let step = Upgrade::default().step(&endless);
        assert!(matches!(step, Err(DialogueError::Protocol(_))), "{step:?}");
    }

    #[test]
    fn later_greetings_are_rewritten_and_messages_are_not() {
        let payload = INFO.len();
        let stream = [
            b"PONG\r\n",
            format!("MSG news 1 {payload}\r\n").as_bytes(),
            INFO,
            b"\r\n",
            INFO,
            b"HMSG\tnews 1 _INBOX.7  12 14 \r\nNATS/1.0\r\n\r\nhi\r\n+OK\r\nping\r\n-ERR 'x'\r\nmsg a 1 0\r\n\r\n",
        ]
        .concat();
        let mut expected = stream.clone();
        let at = stream.len() - 74 - INFO.len();
        let at = (at.saturating_sub(20)..=at + 20)
            .find(|at| stream[*at..].starts_with(INFO))
            .unwrap();
        expected.splice(at..at + INFO.len(), SEEN.iter().copied());
        assert_eq!(rewrite(&[&stream]), Ok(expected));
    }

    #[test]
    fn what_cannot_be_followed_ends_the_session() {
        for stream in [
            &b"LMSG a 5\r\nINFO {}\r\n"[..],
            b"MSG a 1 x\r\n",
            b"MSG a 1 99999999999999999999\r\n",
            b"\r\n",
            b"INFO [1]\r\n",
            &[b'a'; MAX_LINE + 1],
        ] {
            assert!(rewrite(&[stream]).is_err(), "{}", stream.escape_ascii());
        }
        assert_eq!(rewrite(&[b"PON"]), Ok(b"PON".to_vec()));
    }

    #[test]
    fn the_refusal_is_one_line() {
        let said = refusal("it's\r\n+OK");
        let expected = "-ERR 'mantled refused this connection: it\"s  +OK'\r\n";
        assert_eq!(String::from_utf8_lossy(&said), expected);
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            lines in proptest::collection::vec("(INFO \\{\"tls_required\":true,\"a\":\\[1\\]\\}|MSG a 1 3\r\nabc|HMSG a 1 1 3\r\nIN\n|PING|[+]OK|INFO \\{\\}|X)\r\n", 0..6),
            cuts in proptest::collection::vec(0_usize..200, 3),
        ) {
            let stream = lines.concat().into_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| *cut.min(&stream.len())).collect();
            cuts.sort_unstable();
            let pieces = [&stream[..cuts[0]], &stream[cuts[0]..cuts[1]], &stream[cuts[1]..cuts[2]], &stream[cuts[2]..]];
            prop_assert_eq!(rewrite(&pieces), rewrite(&[&stream]));
        }
    }
}

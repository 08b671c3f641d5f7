//! Syslog over TCP (RFC 6587), framed for TLS (RFC 5425 §4.3).
//!
//! Over plain TCP a message either ends with LF or is preceded by its length, and a sender may
//! change between the two from one message to the next: one that begins with a digit is counted
//! (RFC 6587 §3.4.1), for a message itself begins with `<`. Over TLS every message is counted:
//! `LEN SP MSG`. [`Framer`] makes the one of the other. The bytes of a message are not touched, so
//! a CR before the LF stays; lines without content are no messages and are left out.

use crate::{Look, begins};

/// Longest message that is framed as one, in bytes; RFC 5425 §4.3.1 asks receivers for 8 KiB.
/// What is longer is carried as several messages, each but the last of this length: nothing is
/// lost, but only the first has a header.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most digits of a length: ten megabytes, a multiple of what any sender is known to send. What
/// has more is text.
const MAX_DIGITS: usize = 7;

/// Does a client's stream begin with a syslog message, `<PRI>` (RFC 5424 §6.2.1, RFC 3164 §4.1.1),
/// counted or not? At most 13 bytes decide.
pub fn looks_like_message(stream: &[u8]) -> Look {
    match count(stream) {
        Count::None => priority(stream),
        Count::NeedMore => Look::NeedMore,
        Count::Of { head, .. } => priority(stream.get(head..).unwrap_or_default()),
    }
}

/// `<`, a number of 0 to 191 without leading zeros, `>`.
fn priority(stream: &[u8]) -> Look {
    let digits = match begins(stream, b"<") {
        Look::Yes => stream.get(1..).unwrap_or_default(),
        undecided => return undecided,
    };
    let mut value = 0_u32;
    for (index, byte) in digits.iter().enumerate() {
        match byte {
            b'>' if index > 0 => return Look::Yes,
            b'0'..=b'9' if index == 0 || value > 0 => value = value * 10 + u32::from(byte - b'0'),
            _ => return Look::No,
        }
        if value > 191 {
            return Look::No;
        }
    }
    Look::NeedMore
}

/// The length that stands before a message.
enum Count {
    /// There is none, whatever follows.
    None,
    /// More bytes are needed to tell.
    NeedMore,
    /// A message of `length` bytes follows after `head` bytes.
    Of { head: usize, length: usize },
}

/// Reads `LEN SP`, where LEN is a number without leading zeros.
fn count(stream: &[u8]) -> Count {
    let mut length = 0;
    for (index, byte) in stream.iter().enumerate() {
        match byte {
            b' ' if index > 0 => {
                return Count::Of {
                    head: index + 1,
                    length,
                };
            }
            b'1'..=b'9' if index < MAX_DIGITS => length = length * 10 + usize::from(byte - b'0'),
            b'0' if index > 0 && index < MAX_DIGITS => length *= 10,
            _ => return Count::None,
        }
    }
    Count::NeedMore
}

/// Makes counted messages of a stream of either kind.
#[derive(Clone, Debug, Default)]
pub struct Framer {
    state: State,
    /// What has come of the message, or of the length before it. Invariant: shorter than
    /// [`MAX_MESSAGE`].
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// At the beginning of a message.
    #[default]
    Beginning,
    /// In one that ends with LF.
    Line,
    /// In one of which so many bytes are still to come.
    Counted(usize),
}

impl Framer {
    /// Takes bytes off the front of `input`, and gives the next message, with its length before
    /// it. None: all of `input` was taken, and more is needed. Splitting the stream in other
    /// pieces changes nothing. Holds less than [`MAX_MESSAGE`] bytes.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Vec<u8>> {
        loop {
            match self.state {
                State::Beginning => match count(&self.held) {
                    Count::NeedMore => self.held.push(take_byte(input)?),
                    Count::None => self.state = State::Line,
                    Count::Of { length, .. } => {
                        self.held.clear();
                        self.state = State::Counted(length);
                    }
                },
                State::Line => {
                    if self.held.last() == Some(&b'\n') {
                        self.held.pop();
                        self.state = State::Beginning;
                        match self.frame() {
                            None => continue,
                            message => return message,
                        }
                    }
                    if self.held.len() >= MAX_MESSAGE {
                        return self.frame();
                    }
                    let room = MAX_MESSAGE - self.held.len();
                    let end = input.iter().take(room).position(|byte| *byte == b'\n');
                    self.take(input, end.map_or(room, |end| end + 1))?;
                }
                State::Counted(0) => {
                    self.state = State::Beginning;
                    return self.frame();
                }
                State::Counted(left) => {
                    if self.held.len() >= MAX_MESSAGE {
                        return self.frame();
                    }
                    let taken = self.take(input, left.min(MAX_MESSAGE - self.held.len()))?;
                    self.state = State::Counted(left - taken);
                }
            }
        }
    }

    /// The stream has ended: what came of a message without its end is one too.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        self.state = State::Beginning;
        self.frame()
    }

    /// Holds at most so many bytes more; None where there is no input.
    fn take(&mut self, input: &mut &[u8], most: usize) -> Option<usize> {
        let (taken, rest) = input.split_at_checked(most).unwrap_or((input, &[]));
        self.held.extend_from_slice(taken);
        *input = rest;
        (!taken.is_empty()).then_some(taken.len())
    }

    /// What is held, as a message with its length (RFC 5425 §4.3), which is never zero.
    fn frame(&mut self) -> Option<Vec<u8>> {
        if self.held.is_empty() {
            return None;
        }
        let mut message = format!("{} ", self.held.len()).into_bytes();
        message.append(&mut self.held);
        Some(message)
    }
}

fn take_byte(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(pieces: &[&[u8]]) -> Vec<String> {
        let mut framer = Framer::default();
        let mut messages = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(message) = framer.next(&mut input) {
                messages.push(message);
            }
            assert!(input.is_empty());
        }
        messages.extend(framer.finish());
        messages
            .iter()
            .map(|message| String::from_utf8_lossy(message).into_owned())
            .collect()
    }

    #[test]
    fn messages_are_told_apart() {
        for (stream, expected) in [
            (&b"<13>Oct 11 22:14:15 host"[..], Look::Yes),
            (b"<0>", Look::Yes),
            (b"<191>1 2024", Look::Yes),
            (b"<192>", Look::No),
            (b"<013>", Look::No),
            (b"<>", Look::No),
            (b"<stream:stream", Look::No),
            (b"<?xml", Look::No),
            (b"<13", Look::NeedMore),
            (b"", Look::NeedMore),
            (b"23 <13>1 a", Look::Yes),
            (b"23 ", Look::NeedMore),
            (b"23", Look::NeedMore),
            (b"23 a", Look::No),
            (b"023 <13>", Look::No),
            (b"12345678 <13>", Look::No),
            (b"1.2", Look::No),
            (b"GET / ", Look::No),
        ] {
            assert_eq!(
                looks_like_message(stream),
                expected,
                "{}",
                stream.escape_ascii()
            );
        }
    }

    #[test]
    fn both_kinds_become_counted() {
        let stream = b"<13>one\n7 <13>two<13>three\r\n\n\n9 <13>fo\nur<13>five\n";
        assert_eq!(
            frames(&[stream]),
            [
                "7 <13>one",
                "7 <13>two",
                "10 <13>three\r",
                "9 <13>fo\nur",
                "8 <13>five"
            ]
        );
    }

    #[test]
    fn what_is_no_length_is_text() {
        for (stream, expected) in [
            (&b"2024-01-01 text\n"[..], &["15 2024-01-01 text"][..]),
            (b"012 x\n", &["5 012 x"]),
            (b"0 x\n", &["3 0 x"]),
            (b"12345678 x\n", &["10 12345678 x"]),
            (b"12\n", &["2 12"]),
            (b" x\n", &["2  x"]),
        ] {
            assert_eq!(frames(&[stream]), expected, "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn an_unfinished_message_is_one() {
        assert_eq!(frames(&[b"<13>one"]), ["7 <13>one"]);
        assert_eq!(frames(&[b"30 <13>one"]), ["7 <13>one"]);
        assert_eq!(frames(&[b"30 "]), [""; 0]);
        assert_eq!(frames(&[b"30"]), ["2 30"]);
        assert_eq!(frames(&[b""]), [""; 0]);
    }

    #[test]
    fn long_messages_are_carried_as_several() {
        let text = "a".repeat(MAX_MESSAGE + 10);
        for stream in [format!("{text}\n"), format!("{} {text}", text.len())] {
            let frames = frames(&[stream.as_bytes(), b"<13>next\n"]);
            assert_eq!(frames.len(), 3);
            assert_eq!(
                frames[0],
                format!("{MAX_MESSAGE} {}", "a".repeat(MAX_MESSAGE))
            );
            assert_eq!(frames[1], format!("10 {}", "a".repeat(10)));
            assert_eq!(frames[2], "8 <13>next");
        }
        // Exactly as long as may be.
        let text = "a".repeat(MAX_MESSAGE);
        for stream in [format!("{text}\n"), format!("{MAX_MESSAGE} {text}")] {
            assert_eq!(
                frames(&[stream.as_bytes()]),
                [format!("{MAX_MESSAGE} {text}")]
            );
        }
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(stream in "(([0-9]{0,3} ?)?<[0-9]{0,3}>[a-c\n]{0,9}\n?){0,6}", cut in 0_usize..60) {
            let stream = stream.as_bytes();
            let (first, second) = stream.split_at(cut.min(stream.len()));
            prop_assert_eq!(frames(&[stream]), frames(&[first, second]));
        }

        #[test]
        fn what_is_framed_stays_as_it_is(stream in "(([0-9]{0,3} ?)?<[0-9]{0,3}>[a-c\n]{0,9}\n?){0,6}") {
            let framed = frames(&[stream.as_bytes()]);
            prop_assert_eq!(&frames(&[framed.concat().as_bytes()]), &framed);
        }

        #[test]
        fn more_bytes_never_change_a_decision(stream in "([0-9]{0,9} ?)?<?[0-9]{0,4}>?.{0,5}", cut in 0_usize..30) {
            let stream = stream.as_bytes();
            let beginning = &stream[..cut.min(stream.len())];
            match looks_like_message(beginning) {
                Look::NeedMore => prop_assert!(beginning.len() < 13),
                decided => prop_assert_eq!(decided, looks_like_message(stream)),
            }
        }
    }
}

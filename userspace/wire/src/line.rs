//! Lines, of which the protocols of mail and news consist: reading them, and changing some of
//! them on their way.

use crate::{Look, Next, RewriteError, starttls::DialogueError};

/// Longest line that is read, in bytes with its end. The longest that a specification allows are
/// IMAP's command lines, of 8192 bytes (RFC 7162 §4); replies of the others have 512.
pub(crate) const MAX_LINE: usize = 8192;

/// A line that no server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl From<TooLong> for DialogueError {
    fn from(_: TooLong) -> Self {
        Self::Protocol("a line is too long")
    }
}

impl From<TooLong> for RewriteError {
    fn from(_: TooLong) -> Self {
        Self::Protocol(format!(
            "the server sent a line of more than {MAX_LINE} bytes"
        ))
    }
}

/// A line with its end, and what follows it.
type Split<'a> = (&'a [u8], &'a [u8]);

/// The first line of a stream; None where it has not all come.
pub(crate) fn first(stream: &[u8]) -> Result<Option<Split<'_>>, TooLong> {
    let end = stream
        .iter()
        .take(MAX_LINE)
        .position(|byte| *byte == b'\n')
        .map(|newline| newline + 1);
    match end.and_then(|end| stream.split_at_checked(end)) {
        Some(split) => Ok(Some(split)),
        None if stream.len() >= MAX_LINE => Err(TooLong),
        None => Ok(None),
    }
}

/// A line without its end. Lines end with CR LF; that of a server which sends LF alone counts.
pub(crate) fn text(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// [`crate::begins`] for words in which case does not matter.
pub(crate) fn begins(stream: &[u8], word: &[u8]) -> Look {
    let differs = |(have, want): (&u8, &u8)| !have.eq_ignore_ascii_case(want);
    if stream.iter().zip(word).any(differs) {
        Look::No
    } else if stream.len() < word.len() {
        Look::NeedMore
    } else {
        Look::Yes
    }
}

/// What follows a word, where a stream begins with it.
pub(crate) fn after<'a>(stream: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    match begins(stream, word) {
        Look::Yes => stream.get(word.len()..),
        _ => None,
    }
}

/// The words of a text.
pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
}

/// Does a text hold this word?
pub(crate) fn has_word(text: &[u8], word: &[u8]) -> bool {
    words(text).any(|one| one.eq_ignore_ascii_case(word))
}

/// Is a SASL mechanism bound to the TLS channel (RFC 5801 §4), which the agent does not have?
pub(crate) fn is_channel_bound(mechanism: &[u8]) -> bool {
    mechanism
        .last_chunk::<5>()
        .is_some_and(|end| end.eq_ignore_ascii_case(b"-PLUS"))
}

/// The words of a list without those that are unwanted, with one space between two.
pub(crate) fn without(list: &[u8], unwanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    words(list)
        .filter(|word| !unwanted(word))
        .collect::<Vec<_>>()
        .join(&b' ')
}

/// The length of the literal that follows a line, `{n}` or `{n+}` at its end (RFC 9051 §4.3,
/// RFC 5804 §1.2).
pub(crate) fn literal(line: &[u8]) -> Option<u64> {
    let inside = text(line).strip_suffix(b"}")?;
    let inside = inside.strip_suffix(b"+").unwrap_or(inside);
    let start = inside.iter().rposition(|byte| *byte == b'{')? + 1;
    let digits = inside.get(start..).filter(|digits| !digits.is_empty())?;
    // Text is cheaper to parse than digits, and `+5` is no number here.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Lines up to one that is a dot (RFC 2449 §5, RFC 3977 §5.2).
pub(crate) struct Capabilities {
    /// Is the word for which they were searched among them?
    pub(crate) offered: bool,
    /// Bytes that they take, the dot's line included.
    pub(crate) length: usize,
}

/// Reads capabilities up to a dot, in search of one; None where they have not all come.
pub(crate) fn capabilities(stream: &[u8], word: &[u8]) -> Result<Option<Capabilities>, TooLong> {
    let mut offered = false;
    let mut rest = stream;
    while let Some((line, after)) = first(rest)? {
        rest = after;
        if text(line) == b"." {
            let length = stream.len() - rest.len();
            return Ok(Some(Capabilities { offered, length }));
        }
        offered |= text(line).eq_ignore_ascii_case(word);
    }
    Ok(None)
}

/// One of these lines as the agent may see it, if it may: the way to TLS is hidden, and of
/// `SASL ` the mechanisms that are bound to a channel.
pub(crate) fn shown(line: &[u8], way_to_tls: &[u8]) -> Option<Vec<u8>> {
    let text = text(line);
    if text.eq_ignore_ascii_case(way_to_tls) {
        return None;
    }
    let mechanisms = after(text, b"SASL ").filter(|list| words(list).any(is_channel_bound));
    let Some(mechanisms) = mechanisms else {
        return Some(line.to_vec());
    };
    let kept = without(mechanisms, is_channel_bound);
    if kept.is_empty() {
        return None;
    }
    let (keyword, end) = (line.get(..5)?, line.get(text.len()..)?);
    Some([keyword, &kept, end].concat())
}

/// A sentence for a refusal of one line: nothing in it ends the line or the quotes around it, or
/// is more than ASCII, and the whole reply stays below the 512 bytes that the protocols allow.
pub(crate) fn sentence(reason: &str) -> String {
    /// Leaves room for what stands around it.
    const MAX: usize = 400;

    let harmless = |letter: char| match letter {
        '"' => '\'',
        '\\' => '/',
        ' '..='~' => letter,
        letter if letter.is_control() => ' ',
        _ => '?',
    };
    format!("mantled refused this connection: {reason}")
        .chars()
        .map(harmless)
        .take(MAX)
        .collect()
}

/// What becomes of a line that has not all come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// It is held until it has.
    Hold,
    /// It passes as it comes.
    Pass,
    /// It passes, and everything after it.
    End,
}

/// What becomes of what follows a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Another line.
    Line,
    /// So many bytes that pass as they are, then a line.
    Literal(u64),
    /// Nothing is looked at any more.
    End,
}

/// Decides about lines.
pub(crate) trait Judge {
    /// Of a line's beginning. What it says of some bytes, it says of all that begin with these,
    /// but for [`Glance::Hold`].
    fn glance(&mut self, _beginning: &[u8]) -> Glance {
        Glance::Hold
    }

    /// Of a whole line, its end included: appends what is carried in its place.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> After;
}

/// Cuts a stream into lines for a [`Judge`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    /// The beginning of a line; at most [`MAX_LINE`] bytes.
    held: Vec<u8>,
    place: Place,
}

/// Where in the stream.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    /// In a line that is held, or at the beginning of one.
    #[default]
    Held,
    /// In a line that passes.
    Passing,
    /// In a literal with so many bytes left.
    Literal(u64),
    /// Behind everything that is judged.
    End,
}

impl Lines {
    /// As [`crate::Rewrite::rewrite`].
    pub(crate) fn rewrite(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        judge: &mut impl Judge,
    ) -> Result<Next, RewriteError> {
        loop {
            match self.place {
                Place::End => {
                    out.extend_from_slice(input);
                    return Ok(Next::Done);
                }
                _ if input.is_empty() => return Ok(Next::Continue),
                Place::Passing => {
                    let (line, rest) = split_behind_newline(input);
                    out.extend_from_slice(line);
                    if line.ends_with(b"\n") {
                        self.place = Place::Held;
                    }
                    input = rest;
                }
                Place::Literal(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX);
                    let (literal, rest) = input.split_at_checked(taken).unwrap_or((input, &[]));
                    out.extend_from_slice(literal);
                    self.place = match left.saturating_sub(literal.len() as u64) {
                        0 => Place::Held,
                        left => Place::Literal(left),
                    };
                    input = rest;
                }
                Place::Held => {
                    let (piece, rest) = split_behind_newline(input);
                    self.held.extend_from_slice(piece);
                    self.judge_held(out, judge)?;
                    input = rest;
                }
            }
        }
    }

    fn judge_held(
        &mut self,
        out: &mut Vec<u8>,
        judge: &mut impl Judge,
    ) -> Result<(), RewriteError> {
        let whole = self.held.ends_with(b"\n");
        self.place = match judge.glance(&self.held) {
            Glance::Hold if self.held.len() > MAX_LINE => return Err(TooLong.into()),
            Glance::Hold if !whole => return Ok(()),
            Glance::Hold => match judge.line(&std::mem::take(&mut self.held), out) {
                After::Line | After::Literal(0) => Place::Held,
                After::Literal(length) => Place::Literal(length),
                After::End => Place::End,
            },
            Glance::Pass if whole => Place::Held,
            Glance::Pass => Place::Passing,
            Glance::End => Place::End,
        };
        out.append(&mut self.held);
        Ok(())
    }

    /// As [`crate::Rewrite::finish`].
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }
}

fn split_behind_newline(input: &[u8]) -> (&[u8], &[u8]) {
    input
        .iter()
        .position(|byte| *byte == b'\n')
        .and_then(|newline| input.split_at_checked(newline + 1))
        .unwrap_or((input, &[]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        Rewrite,
        starttls::{Dialogue, Step},
    };

    /// What the other side sees of a stream that comes in pieces; None: the session ended.
    pub(crate) fn seen(mut filter: impl Rewrite, pieces: &[&[u8]]) -> Option<String> {
        let mut out = Vec::new();
        for piece in pieces {
            match filter.rewrite(piece, &mut out) {
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        filter.finish(&mut out);
        Some(String::from_utf8_lossy(&out).into_owned())
    }

    /// Leads a dialogue: each time a whole speech of the server. Returns what the proxy said.
    pub(crate) fn led(
        mut dialogue: impl Dialogue,
        speeches: &[&str],
    ) -> Result<(Vec<String>, usize), DialogueError> {
        let mut heard = Vec::new();
        let mut said = Vec::new();
        let mut speeches = speeches.iter();
        loop {
            match dialogue.step(&heard)? {
                Step::NeedMore => match speeches.next() {
                    // Byte by byte, so that every splitting is seen.
                    Some(speech) => {
                        for byte in speech.bytes() {
                            assert_eq!(dialogue.step(&heard)?, Step::NeedMore);
                            heard.push(byte);
                        }
                    }
                    None => return Err(DialogueError::Protocol("the test's speeches ended")),
                },
                Step::Say { consumed, words } => {
                    heard.drain(..consumed);
                    said.push(String::from_utf8_lossy(words.bytes()).into_owned());
                }
                Step::Handshake { consumed } => return Ok((said, heard.len() - consumed)),
            }
        }
    }

    #[test]
    fn literals() {
        for (line, expected) in [
            ("* ID (\"name\" {5}\r\n", Some(5)),
            ("{0}\r\n", Some(0)),
            ("{12+}\n", Some(12)),
            ("{+5}\r\n", None),
            ("{}\r\n", None),
            ("5}\r\n", None),
            ("{5} \r\n", None),
            ("{99999999999999999999999}\r\n", None),
        ] {
            assert_eq!(literal(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn a_line_has_a_bound() {
        assert_eq!(first(b"abc"), Ok(None));
        assert_eq!(first(b"abc\r\nd"), Ok(Some((&b"abc\r\n"[..], &b"d"[..]))));
        let mut long = vec![b'a'; MAX_LINE];
        assert_eq!(first(&long), Err(TooLong));
        long[MAX_LINE - 1] = b'\n';
        assert!(first(&long).is_ok_and(|found| found.is_some()));
    }

    #[test]
    fn a_sentence_stays_in_its_line_and_quotes() {
        let text = sentence(&format!("a\r\n\"b\\ü{}", "x".repeat(1000)));
        assert!(text.starts_with("mantled refused this connection: a  'b/?x"));
        assert_eq!(text.len(), 400);
    }
}

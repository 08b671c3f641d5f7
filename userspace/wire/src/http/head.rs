//! Header and trailer sections (RFC 9112 §2.2, §5, §7.1.2), read strictly.
//!
//! What two readers could take for two different things is an error: bare CR or LF, folded lines,
//! whitespace before the colon, names that are no tokens. Requests can be smuggled through such
//! differences (RFC 9112 §11.2).

use crate::RewriteError;

/// Longest section, start line included. Servers accept 8 to 32 KiB by default, and some are
/// configured for more.
pub(super) const MAX_SECTION: usize = 64 * 1024;

/// It is not the protocol that it began as.
pub(super) fn fault<T>(what: &str) -> Result<T, RewriteError> {
    Err(RewriteError::Protocol(format!("HTTP: {what}")))
}

/// Gathers a section up to its empty line.
///
/// Invariants: `held` is never longer than [`MAX_SECTION`], and every line before `line` ends with
/// CR LF.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    held: Vec<u8>,
    /// Where the line that is being read begins.
    line: usize,
}

impl Section {
    /// Has nothing of it come?
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes what belongs to the section off the front of `input`. A whole section is returned,
    /// its empty line included, and the next one begins.
    pub(super) fn take(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, RewriteError> {
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            self.push(input, end + 1)?;
            match self.held.get(self.line..).unwrap_or_default() {
                b"\r\n" => return Ok(Some(std::mem::take(self).held)),
                [.., b'\r', b'\n'] => self.line = self.held.len(),
                _ => return fault("a line ends with LF alone"),
            }
        }
        self.push(input, input.len())?;
        Ok(None)
    }

    fn push(&mut self, input: &mut &[u8], length: usize) -> Result<(), RewriteError> {
        if self.held.len() + length > MAX_SECTION {
            return fault("a header section of more than 64 KiB");
        }
        let (taken, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
        self.held.extend_from_slice(taken);
        *input = rest;
        Ok(())
    }
}

/// A field line (RFC 9112 §5).
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    /// All of it, CR LF included.
    pub(super) line: &'a [u8],
    /// The name, a token.
    pub(super) name: &'a [u8],
    /// The value, without the whitespace around it.
    pub(super) value: &'a [u8],
}

impl Field<'_> {
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// A section's start line, without its CR LF, and the field lines after it.
pub(super) fn start_and_fields(section: &[u8]) -> Option<(&[u8], Fields<'_>)> {
    let end = section.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = section.split_at_checked(end + 1)?;
    Some((line.strip_suffix(b"\r\n")?, Fields(rest)))
}

/// The field lines up to the empty line. The iteration does not go on behind an error.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, RewriteError>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = self.0.split_at_checked(end + 1)?;
        if line == b"\r\n" {
            return None;
        }
        let field = field(line);
        self.0 = if field.is_ok() { rest } else { &[] };
        Some(field)
    }
}

fn field(line: &[u8]) -> Result<Field<'_>, RewriteError> {
    if let [b' ' | b'\t', ..] = line {
        return fault("a folded header line");
    }
    let text = line.strip_suffix(b"\r\n").unwrap_or(line);
    let Some(colon) = text.iter().position(|byte| *byte == b':') else {
        return fault("a header line without colon");
    };
    let (name, value) = text.split_at_checked(colon).unwrap_or_default();
    if !is_token(name) {
        return fault("a header name that is no token");
    }
    let value = trimmed(value.get(1..).unwrap_or_default());
    if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return fault("CR or NUL in a header value");
    }
    Ok(Field { line, name, value })
}

/// Without the whitespace around it (OWS, RFC 9110 §5.6.3).
pub(super) fn trimmed(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// A token (RFC 9110 §5.6.2).
pub(super) fn is_token(text: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_letter)
}

/// What follows `prefix`, whose letters may be of either case.
pub(super) fn after<'a>(text: &'a [u8], prefix: &str) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start
        .eq_ignore_ascii_case(prefix.as_bytes())
        .then_some(rest)
}

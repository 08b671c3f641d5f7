//! ErrorResponse (section "Message Formats" and "Error and Notice Message Fields").

use crate::reader::Reader;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement has failed.
    Error,
    /// The session ends.
    Fatal,
}

/// An ErrorResponse.
///
/// `sqlstate` is five characters (appendix "PostgreSQL Error Codes").
pub fn error_response(
    severity: Severity,
    sqlstate: &str,
    message: &str,
    detail: Option<&str>,
    hint: Option<&str>,
) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut field = |kind: u8, text: &str| {
        fields.push(kind);
        fields.extend(text.bytes().filter(|byte| *byte != 0));
        fields.push(0);
    };
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    field(b'S', severity);
    field(b'V', severity);
    field(b'C', sqlstate);
    field(b'M', message);
    if let Some(detail) = detail {
        field(b'D', detail);
    }
    if let Some(hint) = hint {
        field(b'H', hint);
    }
    fields.push(0);
    let mut response = vec![b'E'];
    response.extend_from_slice(&(fields.len() as u32 + 4).to_be_bytes());
    response.extend_from_slice(&fields);
    response
}

/// Longest ErrorResponse that is read, in bytes. What a server says before TLS is a sentence.
const MAX_ERROR: u32 = 8 * 1024;

/// The message text of an ErrorResponse that stands at the beginning of `stream`; None where it
/// is not whole, has none, or is longer than 8 KiB. At most 1,000 characters of it, without
/// control characters: it goes into logs and terminals.
pub fn error_message(stream: &[u8]) -> Option<String> {
    let mut reader = Reader(stream);
    if reader.u8()? != b'E' {
        return None;
    }
    let length = reader.u32().filter(|length| *length <= MAX_ERROR)?;
    let mut fields = Reader(reader.take((length as usize).checked_sub(4)?)?);
    loop {
        let kind = fields.u8()?;
        let text = fields.cstring()?;
        if kind == b'M' {
            let text = String::from_utf8_lossy(text);
            let clean = |c: char| if c.is_control() { ' ' } else { c };
            return Some(text.chars().take(1000).map(clean).collect());
        }
    }
}

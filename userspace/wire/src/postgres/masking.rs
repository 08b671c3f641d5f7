//! Masking what a server answers.
//!
//! A column is masked by its origin, the table and the column that RowDescription names, so that an
//! alias changes nothing. Which origins these are the server is asked itself, before the first answer
//! that is masked ([`catalogue`]). A column without an origin (an expression) is masked as well, unless
//! the statement cannot have looked at what is masked. In all other columns detectors look for values.
//!
//! What stands in a value's place has its type: [`value`].

pub(super) mod catalogue;
mod value;

use mantled_mask::Style;

use super::session::{fault, framed};
use crate::{RewriteError, command::Masked, reader::Reader};
use catalogue::Catalogue;
use value::Form;

/// What becomes of the values of a result, by column.
#[derive(Debug)]
pub(super) struct Rows(Vec<Treatment>);

/// What becomes of the values of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// They are carried.
    Carry,
    /// Detectors look at them.
    Look(Form),
    /// They are masked.
    Mask(Form, Style),
}

impl Rows {
    /// Of the result that this RowDescription describes.
    pub(super) fn described(
        body: &[u8],
        masked: &Masked,
        catalogue: Option<&Catalogue>,
    ) -> Result<Self, RewriteError> {
        let known = Known::of(masked, catalogue);
        let mut reader = Reader(body);
        let mut columns = Vec::new();
        for _ in 0..reader.u16().unwrap_or_default() {
            let field = (|| {
                let name = reader.cstring()?;
                let origin = (reader.u32()?, reader.u16()?);
                let oid = reader.u32()?;
                reader.take(6)?;
                Some((name, origin, oid, reader.u16()?))
            })();
            let Some((name, origin, oid, format)) = field else {
                return fault("a RowDescription that ends too early");
            };
            let form = Form {
                oid,
                is_binary: format == 1,
            };
            let name = std::str::from_utf8(name).ok();
            let by_name = name.and_then(|name| masked.masker.masks().field(name));
            columns.push(match by_name.max(known.style(origin)) {
                Some(style) => Treatment::Mask(form, style),
                None if known.looks => Treatment::Look(form),
                None => Treatment::Carry,
            });
        }
        Ok(Self(columns))
    }

    /// A result without columns.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Nothing in it is masked.
    pub(super) fn is_carried(&self) -> bool {
        self.0.iter().all(|column| *column == Treatment::Carry)
    }

    /// The DataRow that is carried in this one's place.
    pub(super) fn masked(&self, body: &[u8], masked: &Masked) -> Result<Vec<u8>, RewriteError> {
        let mut reader = Reader(body);
        let count = reader.u16().unwrap_or_default();
        if usize::from(count) != self.0.len() {
            return fault("a row that was not described");
        }
        let mut row = Vec::with_capacity(body.len() + 16);
        row.extend_from_slice(&count.to_be_bytes());
        for treatment in &self.0 {
            let value = match reader.u32() {
                Some(u32::MAX) => None,
                Some(length) => match reader.take(length as usize) {
                    Some(value) => Some(value),
                    None => return fault("a row that ends too early"),
                },
                None => return fault("a row that ends too early"),
            };
            let value = value.and_then(|value| match treatment {
                Treatment::Carry => Some(value.into()),
                Treatment::Look(form) => form.looked_at(value, &masked.masker),
                Treatment::Mask(form, style) => form
                    .masked(value, *style, &masked.masker)
                    .map(std::borrow::Cow::Owned),
            });
            match value {
                None => row.extend_from_slice(&u32::MAX.to_be_bytes()),
                Some(value) => {
                    row.extend_from_slice(&(value.len() as u32).to_be_bytes());
                    row.extend_from_slice(&value);
                }
            }
        }
        if !reader.is_empty() {
            return fault("a row with more in it than its columns");
        }
        Ok(framed(b'D', &row))
    }
}

/// What is known of the columns of an answer.
struct Known<'a> {
    masked: &'a Masked,
    catalogue: Option<&'a Catalogue>,
    /// How what has no origin is masked; None: it cannot be of what is masked.
    unclear: Option<Style>,
    /// So is every column: what is read may be written into another one.
    everything: bool,
    /// There are detectors.
    looks: bool,
}

impl<'a> Known<'a> {
    fn of(masked: &'a Masked, catalogue: Option<&'a Catalogue>) -> Self {
        let unclear = unclear(masked, catalogue);
        Self {
            masked,
            catalogue,
            unclear,
            everything: unclear.is_some() && (masked.reach.writes || catalogue.is_none()),
            looks: masked.masker.masks().kinds().next().is_some(),
        }
    }

    fn style(&self, (table, column): (u32, u16)) -> Option<Style> {
        let by_origin = self
            .catalogue
            .and_then(|catalogue| catalogue.style(table, column, self.masked));
        let unclear = self.unclear.filter(|_| table == 0 || self.everything);
        by_origin.max(unclear)
    }
}

/// How that is masked in an answer of which nobody can say where it is from; None: all of it is from
/// elsewhere than the masked columns.
pub(super) fn unclear(masked: &Masked, catalogue: Option<&Catalogue>) -> Option<Style> {
    let masks = masked.masker.masks();
    let styles = masked.columns.iter().map(|column| masks.of_column(column));
    let concerned = styles.enumerate().filter_map(|(place, style)| {
        let clear = catalogue.is_some_and(|catalogue| catalogue.is_clear(place, &masked.reach));
        style.filter(|_| !clear)
    });
    concerned.max()
}

/// The ErrorResponse or NoticeResponse that is carried in this one's place. Where its words may tell a
/// masked value (`invalid input syntax for type integer: "..."`) they are left out.
pub(super) fn words(
    kind: u8,
    body: &[u8],
    masked: &Masked,
    catalogue: Option<&Catalogue>,
) -> Result<Vec<u8>, RewriteError> {
    let hides = unclear(masked, catalogue).is_some();
    let mut fields = Vec::with_capacity(body.len());
    let mut reader = Reader(body);
    loop {
        let field = match reader.u8() {
            Some(0) => break,
            Some(field) => field,
            None => return fault("an error that does not end"),
        };
        let Some(text) = reader.cstring() else {
            return fault("an error that does not end");
        };
        // Severity, SQLSTATE, position, and where in the server's source it was raised.
        let is_code = b"SVCPpFLRscdnt".contains(&field);
        let text: std::borrow::Cow<'_, [u8]> = match field {
            _ if is_code => text.into(),
            b'M' if hides => b"mantled has masked the words of this message"[..].into(),
            _ if hides => continue,
            _ => masked.masker.text(text),
        };
        fields.push(field);
        fields.extend_from_slice(&text);
        fields.push(0);
    }
    fields.push(0);
    Ok(framed(kind, &fields))
}

/// Rows that are copied out (COPY TO STDOUT, section "COPY Operations").
#[derive(Debug)]
pub(super) struct Copied {
    is_binary: bool,
    /// The header of the binary format has gone by.
    is_begun: bool,
}

/// What the binary format begins with (SQL command COPY, "Binary Format").
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

impl Copied {
    /// Of this CopyOutResponse.
    pub(super) fn described(body: &[u8]) -> Self {
        Self {
            is_binary: body.first() == Some(&1),
            is_begun: false,
        }
    }

    /// The CopyData that is carried in this one's place: a row each, as servers send them.
    pub(super) fn masked(&mut self, body: &[u8], masked: &Masked) -> Result<Vec<u8>, RewriteError> {
        if !self.is_binary {
            return Ok(framed(b'd', &masked.masker.text(body)));
        }
        let mut reader = Reader(body);
        let mut row = Vec::with_capacity(body.len());
        if !self.is_begun {
            let header = reader.take(SIGNATURE.len() + 4);
            let extension = reader.u32().and_then(|length| reader.take(length as usize));
            if extension.is_none() || !header.is_some_and(|header| header.starts_with(SIGNATURE)) {
                return fault("a binary copy without its header");
            }
            self.is_begun = true;
            row.extend_from_slice(body.get(..body.len() - reader.0.len()).unwrap_or_default());
        }
        while let Some(count) = reader.u16() {
            row.extend_from_slice(&count.to_be_bytes());
            // The trailer.
            if count == u16::MAX {
                break;
            }
            for _ in 0..count {
                let length = reader.u32();
                let Some(length) = length.filter(|length| *length != u32::MAX) else {
                    if length.is_none() {
                        return fault("a copied row that ends too early");
                    }
                    row.extend_from_slice(&u32::MAX.to_be_bytes());
                    continue;
                };
                let Some(value) = reader.take(length as usize) else {
                    return fault("a copied row that ends too early");
                };
                // Nothing tells its type.
                match Form::UNKNOWN.looked_at(value, &masked.masker) {
                    None => row.extend_from_slice(&u32::MAX.to_be_bytes()),
                    Some(value) => {
                        row.extend_from_slice(&(value.len() as u32).to_be_bytes());
                        row.extend_from_slice(&value);
                    }
                }
            }
        }
        if !reader.is_empty() {
            return fault("a copied row with more in it than its values");
        }
        Ok(framed(b'd', &row))
    }
}

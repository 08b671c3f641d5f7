//! One value, by its type: what stands in its place is of the same type, or NULL.
//!
//! Documentation, chapter "Data Types"; the binary forms are those of the types' `send` functions.

use std::borrow::Cow;

use mantled_mask::{Masker, Style};

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Its type (`pg_type.oid`).
    pub(super) oid: u32,
    /// In the type's binary format.
    pub(super) is_binary: bool,
}

/// Types that are treated alike (`pg_type.dat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    /// Its binary form is its text.
    Text,
    /// A whole number of so many bytes.
    Integer(usize),
    Float(usize),
    Numeric,
    Uuid,
    Bytea,
    Json,
    /// Its binary form has a byte for its version.
    Jsonb,
    /// No value but NULL can stand for another.
    Other,
}

impl Form {
    pub(super) const UNKNOWN: Self = Self {
        oid: 0,
        is_binary: true,
    };

    fn kind(self) -> Type {
        match self.oid {
            18 | 19 | 25 | 1042 | 1043 | 705 | 2275 | 142 => Type::Text,
            21 => Type::Integer(2),
            23 => Type::Integer(4),
            20 => Type::Integer(8),
            700 => Type::Float(4),
            701 => Type::Float(8),
            1700 => Type::Numeric,
            2950 => Type::Uuid,
            17 => Type::Bytea,
            114 => Type::Json,
            3802 => Type::Jsonb,
            _ => Type::Other,
        }
    }

    /// A value without what detectors find in it; None: NULL.
    pub(super) fn looked_at<'v>(self, value: &'v [u8], masker: &Masker) -> Option<Cow<'v, [u8]>> {
        let whole = |text: &[u8]| match masker.worst(text) {
            Some(style) => self.masked(value, style, masker).map(Cow::Owned),
            None => Some(Cow::Borrowed(value)),
        };
        match self.kind() {
            Type::Text => Some(masker.text(value)),
            Type::Json => Some(json(value, masker)),
            Type::Jsonb if !self.is_binary => Some(json(value, masker)),
            Type::Jsonb => {
                let (version, text) = value.split_first()?;
                match json(text, masker) {
                    Cow::Borrowed(_) => Some(Cow::Borrowed(value)),
                    Cow::Owned(text) => Some(Cow::Owned([&[*version][..], &text].concat())),
                }
            }
            Type::Bytea if !self.is_binary => match unhex(value) {
                Some(bytes) => whole(&bytes),
                None => whole(value),
            },
            Type::Bytea => whole(value),
            Type::Integer(_) | Type::Float(_) | Type::Numeric | Type::Uuid => {
                match self.digits(value) {
                    Some(digits) => whole(digits.as_bytes()),
                    None => whole(value),
                }
            }
            // An array, a type of a user's own: a token fits into its text.
            Type::Other if !self.is_binary => Some(masker.text(value)),
            Type::Other => whole(value),
        }
    }

    /// What stands for a value; None: NULL.
    pub(super) fn masked(self, value: &[u8], style: Style, masker: &Masker) -> Option<Vec<u8>> {
        // The same for the same value in either format, where it can be told.
        let digits = self.digits(value);
        let told = digits.as_ref().map_or(value, String::as_bytes);
        let text = |masker: &Masker| masker.whole(told, style);
        let number = |limit: u64| masker.number(told, style, limit);
        let own = match self.kind() {
            Type::Text => text(masker)?.into_bytes(),
            Type::Json => format!("\"{}\"", text(masker)?).into_bytes(),
            Type::Jsonb if self.is_binary => format!("\u{1}\"{}\"", text(masker)?).into_bytes(),
            Type::Jsonb => format!("\"{}\"", text(masker)?).into_bytes(),
            Type::Bytea if self.is_binary => text(masker)?.into_bytes(),
            Type::Bytea => {
                let token = text(masker)?;
                let hex = token.bytes().map(|byte| format!("{byte:02x}"));
                format!("\\x{}", hex.collect::<String>()).into_bytes()
            }
            Type::Integer(width) => {
                let own = number(1 << (width * 8 - 1))?;
                if self.is_binary {
                    own.to_be_bytes().get(8 - width..)?.to_vec()
                } else {
                    own.to_string().into_bytes()
                }
            }
            // Whole numbers that a float of this width holds.
            Type::Float(4) => {
                let own = number(1 << 24)?;
                if self.is_binary {
                    (own as f32).to_be_bytes().to_vec()
                } else {
                    own.to_string().into_bytes()
                }
            }
            Type::Float(_) => {
                let own = number(1 << 53)?;
                if self.is_binary {
                    (own as f64).to_be_bytes().to_vec()
                } else {
                    own.to_string().into_bytes()
                }
            }
            Type::Numeric => {
                let own = number(1_000_000_000_000)?;
                if self.is_binary {
                    numeric(own)
                } else {
                    own.to_string().into_bytes()
                }
            }
            Type::Uuid => {
                let own = match style {
                    Style::Token => {
                        masker.number(told, style, 1)?;
                        masker.digest(told).to_be_bytes()
                    }
                    _ => {
                        masker.number(told, style, 1)?;
                        [0; 16]
                    }
                };
                if self.is_binary {
                    own.to_vec()
                } else {
                    hyphenated(&own).into_bytes()
                }
            }
            Type::Other => {
                masker.number(told, Style::Null, 1);
                return None;
            }
        };
        Some(own)
    }

    /// A number, or a UUID, as text.
    fn digits(self, value: &[u8]) -> Option<String> {
        if !self.is_binary {
            return None;
        }
        match self.kind() {
            Type::Integer(2) => Some(i16::from_be_bytes(value.try_into().ok()?).to_string()),
            Type::Integer(4) => Some(i32::from_be_bytes(value.try_into().ok()?).to_string()),
            Type::Integer(_) => Some(i64::from_be_bytes(value.try_into().ok()?).to_string()),
            Type::Float(4) => Some(f32::from_be_bytes(value.try_into().ok()?).to_string()),
            Type::Float(_) => Some(f64::from_be_bytes(value.try_into().ok()?).to_string()),
            Type::Uuid => Some(hyphenated(&value.try_into().ok()?)),
            Type::Numeric => {
                // ndigits, weight, sign, dscale, and digits of base 10,000.
                let weight = i16::from_be_bytes(value.get(2..4)?.try_into().ok()?);
                let groups = value.get(8..)?.chunks_exact(2);
                let mut whole: String = groups
                    .take(usize::try_from(weight).ok()? + 1)
                    .map(|group| {
                        let group = group.try_into().map(u16::from_be_bytes);
                        format!("{:04}", group.unwrap_or_default())
                    })
                    .collect();
                let groups = usize::try_from(weight).ok()? + 1;
                while whole.len() < groups.min(64) * 4 {
                    whole.push('0');
                }
                Some(whole.trim_start_matches('0').to_owned())
            }
            _ => None,
        }
    }
}

fn json<'v>(value: &'v [u8], masker: &Masker) -> Cow<'v, [u8]> {
    masker.json(value).unwrap_or_else(|| masker.text(value))
}

/// The bytes of `\x...`.
fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(b"\\x")?;
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
            _ => None,
        })
        .collect()
}

fn hyphenated(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

/// A whole number in `numeric`'s binary form.
fn numeric(mut value: u64) -> Vec<u8> {
    let mut groups = Vec::new();
    while value > 0 {
        groups.push((value % 10_000) as u16);
        value /= 10_000;
    }
    groups.reverse();
    let weight = (groups.len() as i16 - 1).max(0);
    let mut own = Vec::new();
    own.extend_from_slice(&(groups.len() as u16).to_be_bytes());
    own.extend_from_slice(&weight.to_be_bytes());
    own.extend_from_slice(&[0; 4]);
    for group in groups {
        own.extend_from_slice(&group.to_be_bytes());
    }
    own
}

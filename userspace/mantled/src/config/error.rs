//! The error list, and how it prints.

use std::fmt;
use std::path::{Path, PathBuf};

use super::field::Span;

/// Everything that is wrong with a configuration, in the order of the file.
///
/// Prints two lines for each error:
/// ```text
/// /etc/mantled/mantled.toml:7:8: error: `port` is 70000, which is no port
///     hint: write a number in 1..=65535
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: PathBuf,
    errors: Vec<ConfigError>,
}

/// One mistake: where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line and column, both from 1; `None` when the file itself could not be read.
    pub position: Option<(usize, usize)>,
    /// What is wrong; one line.
    pub message: String,
    /// What to do; one line.
    pub hint: String,
}

impl ConfigErrors {
    /// The error of a file that could not be read.
    pub(super) fn unreadable(file: &Path, message: String, hint: String) -> Self {
        let error = ConfigError {
            position: None,
            message: one_line(&message),
            hint,
        };
        Self {
            file: file.to_owned(),
            errors: vec![error],
        }
    }

    pub(super) fn new(file: &Path, mut errors: Vec<ConfigError>) -> Self {
        // Stable: at one place, the order is that of the checks.
        errors.sort_by_key(|error| error.position);
        Self {
            file: file.to_owned(),
            errors,
        }
    }

    /// The file that was read.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The errors; at least one.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let file = self.file.display();
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match error.position {
                Some((line, column)) => write!(f, "{file}:{line}:{column}: ")?,
                None => write!(f, "{file}: ")?,
            }
            write!(f, "error: {}\n    hint: {}", error.message, error.hint)?;
        }
        Ok(())
    }
}

/// A document that knows where its lines begin.
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    /// The first byte of each line.
    lines: Vec<usize>,
}

impl<'a> Document<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let breaks = text.match_indices('\n').map(|(byte, _)| byte + 1);
        Self {
            text,
            lines: std::iter::once(0).chain(breaks).collect(),
        }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, byte: usize) -> usize {
        self.lines.partition_point(|start| *start <= byte)
    }

    /// Line and column of a byte, both from 1; columns are characters.
    fn position(&self, byte: usize) -> (usize, usize) {
        let line = self.line(byte);
        let start = self
            .lines
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or_default();
        let before = self.text.get(start..byte).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    /// The mistake at `span`.
    pub(super) fn error(&self, span: &Span, message: &str, hint: &str) -> ConfigError {
        let position = Some(self.position(span.start));
        ConfigError {
            position,
            message: one_line(message),
            hint: one_line(hint),
        }
    }
}

/// How much of a quoted value is shown: enough to recognise it.
const SHOWN: usize = 60;

/// A piece of the document between backquotes, cut to a length that a terminal shows.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}...`", text.get(..end).unwrap_or(text)),
        None => format!("`{text}`"),
    }
}

/// Values are quoted in messages: none of them may break a line or talk to the terminal.
fn one_line(message: &str) -> String {
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.into()
        }
    };
    message.chars().map(escape).collect()
}

//! The share of a group's connections that goes through the proxy (`--canary`).

use std::{fmt, str::FromStr};

use mantled_redirect::abi::SHARES;
use serde::{Deserialize, Serialize};

/// At least one in ten thousand, at most all of them: in hundredths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Share(u32);

impl Share {
    /// Every connection.
    pub const ALL: Self = Self(SHARES);

    /// Of what goes past the proxy, in the kernel's form.
    pub fn except(left_out: u32) -> Self {
        Self(SHARES.saturating_sub(left_out).max(1))
    }

    /// What goes past the proxy, in the kernel's form.
    pub fn left_out(self) -> u32 {
        SHARES - self.0
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        let parsed = || {
            let number = typed.strip_suffix('%')?;
            let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(whole) || !digits(part) || part.is_empty() || part.len() > 2 {
                return None;
            }
            let part = format!("{part:0<2}").parse::<u32>().ok()?;
            let share = whole.parse::<u32>().ok()?.checked_mul(100)? + part;
            (1..=SHARES).contains(&share).then_some(Self(share))
        };
        parsed().ok_or_else(|| "write a share from 0.01% to 100%, such as 10%".to_owned())
    }
}

impl TryFrom<String> for Share {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        share.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_as_they_are_written() {
        for (text, left_out) in [
            ("100%", 0),
            ("10%", 9_000),
            ("0.5%", 9_950),
            ("0.01%", 9_999),
            ("12.25%", 8_775),
        ] {
            let share: Share = text.parse().unwrap();
            assert_eq!(share.left_out(), left_out, "{text}");
            assert_eq!(share.to_string(), text);
            assert_eq!(Share::except(left_out), share);
        }
        for text in [
            "",
            "%",
            "10",
            "0%",
            "101%",
            "100.01%",
            "-1%",
            "+1%",
            "1.%",
            ".5%",
            "0.001%",
            "99999999999%",
            "1 %",
        ] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}

//! What is sensitive in values, and what stands in its place: bytes in, bytes out. No protocol, no
//! files, no clock.
//!
//! [`Masks`] says what is to be masked: columns, fields and keys by their names, and whatever a
//! detector ([`Kind`]) finds in any value. A [`Masker`] does it. A mask is a token made of the value
//! by a key of this host ([`Key`]), so that equal values stay equal and can be joined and compared,
//! and nobody without the key can try out values; or it is fixed, or nothing at all ([`Style`]).
//!
//! Detectors look at bytes, in any encoding that holds ASCII. They know a value by its form, and by
//! its check digits where it has some; the tests measure how often they are right on labelled lines
//! (`tests/labelled.tsv`). What they find is found again in what a mask leaves: tokens are never taken
//! for values.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod find;
mod json;
mod masker;
mod masks;

pub use find::{Found, find};
pub use masker::{Key, Masker};
pub use masks::{Column, Kind, Masks, Mistake, Style};

//! TLS begins after exactly one byte, and the text of an error can be printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Progress,
    postgres::{SslAnswer, SslAnswerError, parse_ssl_answer},
};

fuzz_target!(|stream: &[u8]| {
    match parse_ssl_answer(stream) {
        Ok(Progress::NeedMore) => assert!(stream.is_empty()),
        Ok(Progress::Done(SslAnswer::Willing)) => assert_eq!(stream, b"S"),
        Ok(Progress::Done(SslAnswer::Unwilling)) => assert_eq!(stream, b"N"),
        Ok(Progress::Done(SslAnswer::Error(text))) => {
            assert_eq!(stream[0], b'E');
            let text = text.unwrap_or_default();
            assert!(text.chars().count() <= 1000 && !text.contains(char::is_control));
        }
        Err(SslAnswerError::InjectedBytes) => assert!(stream.len() > 1),
        Err(SslAnswerError::Unknown(byte)) => assert_eq!(byte, stream[0]),
    }
});

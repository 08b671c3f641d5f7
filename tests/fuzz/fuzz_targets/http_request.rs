//! 24 bytes decide, the decision stands, and a refusal is one response whatever its reason.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::http::{Begins, begins_with, refusal};

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, stream) = input;
    let beginning = &stream[..stream.len().min(cut.into())];
    match begins_with(beginning) {
        Begins::NeedMore => assert!(beginning.len() < 24),
        decided => assert_eq!(decided, begins_with(stream)),
    }
    let response = refusal(&String::from_utf8_lossy(stream));
    let end = response
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap()
        + 4;
    let length = format!("Content-Length: {}\r\n", response.len() - end);
    let head = &response[..end];
    assert!(
        head.windows(length.len())
            .any(|line| line == length.as_bytes())
    );
});

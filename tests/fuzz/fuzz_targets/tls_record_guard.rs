//! The guard agrees with a reader that sees the whole stream at once, however it is split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mantled_wire::tls::RecordGuard;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (sizes, stream) = input;
    let mut whole = RecordGuard::new();
    let result = whole.check(stream);

    let mut pieces = RecordGuard::new();
    let mut rest = stream;
    for size in sizes {
        let (piece, after) = rest.split_at(rest.len().min(size.into()));
        let _ = pieces.check(piece);
        rest = after;
    }
    assert_eq!(pieces.check(rest), result);
    assert_eq!(result.is_ok(), is_beginning_of_records(stream));
});

fn is_beginning_of_records(stream: &[u8]) -> bool {
    let mut at = 0;
    while at < stream.len() {
        let byte = |index: usize| stream.get(at + index).copied();
        let kinds = if at == 0 { 21..=22 } else { 20..=23 };
        let (kind, major, minor) = (stream[at], byte(1).unwrap_or(3), byte(2).unwrap_or(3));
        if !kinds.contains(&kind) || major != 3 || !(1..=3).contains(&minor) {
            return false;
        }
        let (Some(high), Some(low)) = (byte(3), byte(4)) else {
            return true;
        };
        let length = usize::from(high) * 256 + usize::from(low);
        if length > 16384 + 2048 || (length == 0 && kind != 23) {
            return false;
        }
        at += 5 + length;
    }
    true
}

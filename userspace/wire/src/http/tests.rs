mod rewriting;

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn more_bytes_never_change_a_decision(stream in "(GET|PUT|PRI|HEAD|CONNECT|OPTIONS|P)?[ -~]{0,24}", cut in 0_usize..30) {
        let stream = stream.as_bytes();
        let beginning = &stream[..cut.min(stream.len())];
        match begins_with(beginning) {
            Begins::NeedMore => prop_assert!(beginning.len() < 24),
            decided => prop_assert_eq!(decided, begins_with(stream)),
        }
    }
}

#[test]
fn requests_are_told_apart() {
    for (stream, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], Begins::Http1),
        (b"CONNECT db:5432 HTTP/1.1", Begins::Http1),
        (b"OPTIONS * HTTP/1.1", Begins::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Begins::Http2),
        (b"PRI * HTTP/2.0\r\n", Begins::NeedMore),
        (b"P", Begins::NeedMore),
        (b"GET", Begins::NeedMore),
        (b"GETX / ", Begins::No),
        (b"GET http://db/", Begins::Http1),
        (b"CONNECT [2001:db8::1]:443", Begins::Http1),
        (b"HEAD 42\r\n", Begins::No),
        (b"GET * ", Begins::No),
        (b"GET \r\n", Begins::No),
        (b"*1\r\n$4\r\nPING\r\n", Begins::No),
        (b"\x16\x03\x01", Begins::No),
    ] {
        assert_eq!(
            begins_with(stream),
            expected,
            "{}",
            String::from_utf8_lossy(stream)
        );
    }
}

#[test]
fn the_refusal_is_one_response_whatever_the_reason_holds() {
    let response = String::from_utf8(refusal("a\r\n\r\nHTTP/1.1 200 OK")).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
}

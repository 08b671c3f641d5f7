//! HTTP: how it begins (RFC 9112 §3, RFC 9113 §3.4), and a refusal in its own words.

mod host;

pub use host::{MAX_HEAD, host};

use crate::{Look, begins};

/// How an HTTP/2 client without TLS begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods of RFC 9110 §9, RFC 5789, and those of WebDAV that agents use.
const METHODS: [&[u8]; 14] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"PROPFIND",
    b"REPORT",
    b"MKCOL",
    b"MOVE",
    b"COPY",
];

/// Which HTTP a stream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// A request line.
    Http1,
    /// The connection preface.
    Http2,
    /// Neither, whatever follows.
    No,
    /// More bytes are needed to tell.
    NeedMore,
}

/// Looks at the first bytes of a client's stream; at most 24 of them.
pub fn begins_with(stream: &[u8]) -> Begins {
    match begins(stream, PREFACE) {
        Look::Yes => return Begins::Http2,
        Look::NeedMore => return Begins::NeedMore,
        Look::No => {}
    }
    let looks = METHODS.map(|method| request_line(stream, method));
    if looks.contains(&Look::Yes) {
        Begins::Http1
    } else if looks.contains(&Look::NeedMore) {
        Begins::NeedMore
    } else {
        Begins::No
    }
}

/// A method, a space, and the first byte of a request target (RFC 9112 §3.2).
fn request_line(stream: &[u8], method: &[u8]) -> Look {
    match begins(stream, method) {
        Look::Yes => {}
        undecided => return undecided,
    }
    match stream.get(method.len()..).unwrap_or_default() {
        [] | [b' '] => Look::NeedMore,
        [b' ', first, ..] if may_begin_target(method, *first) => Look::Yes,
        _ => Look::No,
    }
}

/// Origin-form, absolute-form of http, authority-form and asterisk-form (RFC 9112 §3.2). NNTP's
/// `HEAD 42` and the like are none.
fn may_begin_target(method: &[u8], first: u8) -> bool {
    match first {
        b'/' | b'h' | b'H' => true,
        b'*' => method == b"OPTIONS",
        _ => method == b"CONNECT" && (first.is_ascii_alphanumeric() || first == b'['),
    }
}

/// A whole response that tells the client why it was refused (RFC 9110 §15.6.3). The reason
/// stands in the body only, so that it cannot add a header.
pub fn refusal(reason: &str) -> Vec<u8> {
    let body = format!("mantled refused this connection: {reason}\n");
    format!(
        "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
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
}

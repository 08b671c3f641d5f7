//! HTTP: how it begins (RFC 9112 §3, RFC 9113 §3.4), what is changed of HTTP/1 on its way into TLS,
//! and a refusal in its own words.

mod body;
mod head;
mod host;
mod origin;
mod rewriting;
mod target;
#[cfg(test)]
mod tests;

pub use host::{MAX_HEAD, host};
pub use origin::Ports;
pub use rewriting::{Expected, Requests, Responses, inspect, rewriting};
pub use target::{Target, target};

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

/// A whole response to a request that was refused, after which the connection goes on (RFC 9110
/// §15.5.4). Clients of Kubernetes get a Status.
fn forbidden(reason: &str, asks: Asks) -> Vec<u8> {
    let text: String = reason
        .chars()
        .filter(|letter| !letter.is_control())
        .collect();
    let text = format!("refused by mantled: {text}");
    let (kind, body) = if asks.kubernetes {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        let status = format!(
            "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\
             \"message\":\"{text}\",\"reason\":\"Forbidden\",\"code\":403}}\n"
        );
        ("application/json", status)
    } else {
        ("text/plain; charset=utf-8", format!("{text}\n"))
    };
    let close = if asks.close {
        "Connection: close\r\n"
    } else {
        ""
    };
    let shown = if asks.head { "" } else { &body };
    format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{close}\r\n{shown}",
        body.len()
    )
    .into_bytes()
}

/// What a request says about its answer.
#[derive(Clone, Copy, Debug, Default)]
struct Asks {
    /// No body follows (RFC 9110 §9.3.2).
    head: bool,
    /// It is the connection's last one.
    close: bool,
    /// Of the Kubernetes API.
    kubernetes: bool,
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

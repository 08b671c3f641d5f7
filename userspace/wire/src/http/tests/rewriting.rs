use proptest::prelude::*;

use crate::{
    Next, Rewrite, RewriteError,
    http::{Expected, Ports, Requests, Responses, rewriting},
};

const PORTS: Ports = Ports {
    agent: 8000,
    server: 8443,
};

fn pair() -> (Requests, Responses) {
    rewriting(Expected::Http, PORTS)
}

/// Carries as the relay does.
fn carry(rewrite: &mut dyn Rewrite, piece: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
    let passed = rewrite.pass(piece)?;
    out.extend_from_slice(&piece[..passed]);
    match &piece[passed..] {
        [] => Ok(Next::Continue),
        rest => rewrite.rewrite(rest, out),
    }
}

/// Carries a stream in pieces of these sizes in turn, until there is nothing to change any more.
fn carry_all(
    rewrite: &mut dyn Rewrite,
    stream: &[u8],
    sizes: &[usize],
) -> Result<String, RewriteError> {
    let mut out = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes
            .next()
            .map_or(rest.len(), |size| (*size).min(rest.len()));
        let (piece, after) = rest.split_at(size);
        rest = after;
        if carry(rewrite, piece, &mut out)? == Next::Done {
            out.extend_from_slice(rest);
            break;
        }
    }
    Ok(out.iter().copied().map(char::from).collect())
}

/// What server and agent see of these streams, the requests first.
fn exchange(requests: &str, responses: &str) -> Result<(String, String), RewriteError> {
    let whole = exchange_in(requests, responses, &[usize::MAX]);
    for sizes in [&[1][..], &[2, 3], &[7, 1, 64]] {
        let pieces = exchange_in(requests, responses, sizes);
        assert_eq!(pieces.is_err(), whole.is_err(), "{pieces:?} {whole:?}");
        if whole.is_ok() {
            assert_eq!(pieces, whole);
        }
    }
    whole
}

fn exchange_in(
    requests: &str,
    responses: &str,
    sizes: &[usize],
) -> Result<(String, String), RewriteError> {
    let (mut asking, mut answering) = pair();
    Ok((
        carry_all(&mut asking, requests.as_bytes(), sizes)?,
        carry_all(&mut answering, responses.as_bytes(), sizes)?,
    ))
}

/// What the agent sees of a response with these fields.
fn answered(host: &str, fields: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let response = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n");
    let (asked, seen) = exchange(&request, &response).unwrap();
    assert_eq!(asked, request);
    let head = seen.strip_prefix("HTTP/1.1 200 OK\r\n").unwrap();
    head.strip_suffix("Content-Length: 0\r\n\r\n")
        .unwrap()
        .to_owned()
}

#[test]
fn locations_of_the_own_host_lead_back_to_the_agents_port() {
    for (host, location, expected) in [
        ("h:8000", "https://h/a?b#c", "http://h:8000/a?b#c"),
        ("h:8000", "https://h:8443/", "http://h:8000/"),
        ("h:8000", "https://h:8000/", "http://h:8000/"),
        ("h:8000", "https://h:443", "http://h:8000"),
        (
            "H.Example:8000",
            "HTTPS://h.example/",
            "http://h.example:8000/",
        ),
        // Without a port in Host it is the one that the agent connected to.
        ("h", "https://h/", "http://h:8000/"),
        ("h:80", "https://h?q", "http://h?q"),
        (
            "[2001:db8::1]:8000",
            "https://[2001:db8::1]/",
            "http://[2001:db8::1]:8000/",
        ),
    ] {
        for name in ["Location", "location", "Content-Location"] {
            assert_eq!(
                answered(host, &format!("{name}:  {location} \r\n")),
                format!("{name}: {expected}\r\n"),
            );
        }
        for (before, after) in [
            ("0;url=", ""),
            ("5 ; URL = \"", "\""),
            ("1, '", "' x"),
            ("3;", ""),
        ] {
            assert_eq!(
                answered(host, &format!("Refresh: {before}{location}{after}\r\n")),
                format!("Refresh: {before}{expected}{after}\r\n"),
            );
        }
    }
}

#[test]
fn other_locations_are_left_alone() {
    for location in [
        "/relative",
        "//h/path",
        "http://h/",
        "https://other/",
        "https://h.other/",
        "https://h:9443/",
        "https://h:99999/",
        "https://h:x/",
        "https://h@other/",
        "https://h:443@other/",
        "https://h\\@other/",
        "https://",
        "https:/h/",
        "ftp://h/",
        "",
    ] {
        let field = format!("Location: {location}\r\n");
        assert_eq!(answered("h:8000", &field), field);
    }
    let field = "Refresh: 0; url=/login?next=https://h/\r\nX-Location: https://h/\r\n";
    assert_eq!(answered("h:8000", field), field);
    let field = "Location: https://a/\r\n";
    assert_eq!(answered("a@b", field), field);
    assert_eq!(answered("a, b", field), field);
}

#[test]
fn locations_are_matched_with_the_request_that_they_answer() {
    let requests = "GET / HTTP/1.1\r\nHost: a\r\n\r\n\
                    HEAD / HTTP/1.1\r\nHost: b\r\n\r\n\
                    GET http://c/ HTTP/1.1\r\nHost: ignored\r\n\r\n\
                    GET / HTTP/1.0\r\n\r\n";
    let redirect = |to: &str, length: &str| {
        format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: {length}\r\n\r\n")
    };
    let responses = [
        "HTTP/1.1 100 Continue\r\nLocation: https://a/\r\n\r\n".to_owned(),
        redirect("https://a/", "2") + "xx",
        // No body follows, whatever its length.
        redirect("https://b/", "2"),
        redirect("https://c/", "0"),
        redirect("https://c/", "0"),
    ];
    let (asked, seen) = exchange(requests, &responses.concat()).unwrap();
    assert_eq!(asked, requests);
    let expected = [
        "HTTP/1.1 100 Continue\r\nLocation: http://a:8000/\r\n\r\n".to_owned(),
        redirect("http://a:8000/", "2") + "xx",
        redirect("http://b:8000/", "2"),
        redirect("http://c:8000/", "0"),
        redirect("https://c/", "0"),
    ];
    assert_eq!(seen, expected.concat());
}

#[test]
fn promises_of_https_are_taken_out() {
    for (fields, expected) in [
        (
            "Strict-Transport-Security: max-age=1\r\nA: b\r\n",
            "A: b\r\n",
        ),
        ("A: b\r\nstrict-transport-security:\r\n", "A: b\r\n"),
        ("Alt-Svc: h2=\":443\"\r\nALT-SVC: clear\r\n", ""),
        ("Set-Cookie: a=b; Secure\r\n", "Set-Cookie: a=b\r\n"),
        (
            "Set-Cookie: a=\"x;secure\"; Path=/;SECURE ;HttpOnly; SameSite=None\r\n",
            "Set-Cookie: a=\"x;secure\"; Path=/;HttpOnly; SameSite=None\r\n",
        ),
        (
            "set-cookie: secure=1; secure=0; x=secure\r\n",
            "set-cookie: secure=1; x=secure\r\n",
        ),
        (
            "Set-Cookie:a=b;  Path=/ \r\n",
            "Set-Cookie:a=b;  Path=/ \r\n",
        ),
        (
            "Set-Cookie: __Secure-a=b; Secure\r\n",
            "Set-Cookie: __Secure-a=b; Secure\r\n",
        ),
        (
            "Set-Cookie: __Host-a=b; Secure\r\n",
            "Set-Cookie: __Host-a=b; Secure\r\n",
        ),
    ] {
        assert_eq!(answered("h", fields), expected);
    }
}

#[test]
fn the_agent_names_itself_as_the_server_knows_it() {
    for (host, value, expected) in [
        ("h:8000", "http://h:8000", "https://h:8000"),
        ("h", "http://h", "https://h"),
        ("h", "http://h:8000", "https://h:8000"),
        ("h:80", "HTTP://H/a?b=http://h", "https://H/a?b=http://h"),
        ("h:8000", "http://h/", "http://h/"),
        ("h:8000", "http://other:8000/", "http://other:8000/"),
        ("h:8000", "http://h:8000@other/", "http://h:8000@other/"),
        ("h:8000", "https://h:8000/", "https://h:8000/"),
        ("h:8000", "null", "null"),
    ] {
        for name in ["Origin", "referer", "Destination"] {
            // The Host field may come later.
            let request =
                |value| format!("POST / HTTP/1.1\r\n{name}: {value}\r\nHost: {host}\r\n\r\n");
            let (asked, _) = exchange(&request(value), "").unwrap();
            assert_eq!(asked, request(expected));
        }
    }
}

#[test]
fn bodies_pass_as_they_are() {
    let requests = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\nGET / HTTP/1\
                    \r\n\r\n\
                    PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n\
                    00a;x=\"\u{e9} y\";z\r\n\r\n\r\n\0\x01ab\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n\
                    GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n\
                    GET /last HTTP/1.1\r\n\r\n";
    let responses = "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n\
                     5\r\nabcde\r\n0\r\nStrict-Transport-Security: x\r\n\r\n\
                     HTTP/1.1 204 No Content\r\n\r\n\
                     HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n\
                     HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nLocation: https://h/\r\n\r\n";
    let latin = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<_>>();
    for sizes in [&[usize::MAX][..], &[1], &[3, 11]] {
        let (mut asking, mut answering) = pair();
        let asked = carry_all(&mut asking, &latin(requests), sizes).unwrap();
        // The empty line that a client sends behind a body is none of the next request.
        assert_eq!(asked, requests.replacen("HTTP/1\r\n\r\n", "HTTP/1", 1));
        let seen = carry_all(&mut answering, &latin(responses), sizes).unwrap();
        assert_eq!(seen, responses);
    }
}

#[test]
fn another_protocol_passes_as_it_is() {
    let upgrade = "GET /chat HTTP/1.1\r\nHost: h:8000\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nOrigin: http://h:8000\r\n\r\n";
    let switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
    let frames = "\u{81}\u{5}\r\nStrict-Transport-Security: x\r\n";
    for (request, response) in [
        (upgrade, switched),
        (
            "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ),
    ] {
        let (mut asking, mut answering) = pair();
        let asked = carry_all(&mut asking, request.as_bytes(), &[]).unwrap();
        assert_eq!(asked, request.replace("Origin: http", "Origin: https"));
        let stream = [response, frames].concat();
        assert_eq!(
            carry_all(&mut answering, stream.as_bytes(), &[9])
                .unwrap()
                .chars()
                .count(),
            stream.len()
        );
        let mut out = Vec::new();
        assert_eq!(
            carry(&mut asking, frames.as_bytes(), &mut out),
            Ok(Next::Done)
        );
        assert_eq!(out, frames.as_bytes());

        // What was sent before the answer was read as HTTP.
        for early in ["x", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"] {
            let requests = [request, early].concat();
            exchange(&requests, response).unwrap_err();
        }
    }
    // An offer that is not taken up.
    let requests = upgrade.repeat(2);
    let (_, seen) = exchange(&requests, &"HTTP/1.1 204 No\r\n\r\n".repeat(2)).unwrap();
    assert_eq!(seen.len(), 38);
    // A body before the switch.
    let body = "POST / HTTP/1.1\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n";
    exchange(&format!("{body}b"), switched).unwrap();
    exchange(body, switched).unwrap_err();
    // Nobody asked for it.
    exchange("GET / HTTP/1.1\r\n\r\n", switched).unwrap_err();
    exchange("", switched).unwrap_err();
}

#[test]
fn the_first_bytes_tell_whether_it_is_http() {
    let redirect = "HTTP/1.1 302 F\r\nLocation: https://h/\r\nContent-Length: 0\r\n\r\n";
    for sizes in [&[usize::MAX][..], &[1], &[2, 5]] {
        let (mut asking, mut answering) = rewriting(Expected::Anything, PORTS);
        let request = "GET / HTTP/1.1\r\nHost: h\r\nOrigin: http://h\r\n\r\n";
        let asked = carry_all(&mut asking, request.as_bytes(), sizes).unwrap();
        assert_eq!(asked, request.replace("http:", "https:"));
        let seen = carry_all(&mut answering, redirect.as_bytes(), sizes).unwrap();
        assert_eq!(seen, redirect.replace("https://h/", "http://h:8000/"));

        for other in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",
            "hello\n",
            "P",
            "POSTGRES",
        ] {
            let (mut asking, mut answering) = rewriting(Expected::Anything, PORTS);
            assert_eq!(
                carry_all(&mut asking, other.as_bytes(), sizes).unwrap(),
                other
            );
            let seen = carry_all(&mut answering, redirect.as_bytes(), sizes).unwrap();
            assert_eq!(seen, redirect);
            // Whoever was not known yet when the server spoke is not known later.
            let more = carry_all(&mut asking, b"GET / HTTP/1.1\nx", sizes).unwrap();
            assert_eq!(more, "GET / HTTP/1.1\nx");
        }
    }
}

#[test]
fn ambiguous_requests_end_the_session() {
    for request in [
        "GET / HTTP/1.1\nHost: h\n\n",
        "GET / HTTP/1.1\r\nHost: h\n\r\n",
        "GET / HTTP/1.1\r\nA: b\rHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\0\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\n A: b\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length : 3\r\n\r\n",
        "GET / HTTP/1.1\r\nContent Length: 3\r\n\r\n",
        "GET / HTTP/1.1\r\n: b\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length:\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        "GET / HTTP/1.1\r\nTransfer-Encoding: , chunked\r\n\r\n",
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET / HTTP/1.10\r\n\r\n",
        "GET / http/1.1\r\n\r\n",
        "GET /\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
        "GET /\t HTTP/1.1\r\n\r\n",
        "GET\t/ HTTP/1.1\r\n\r\n",
        " GET / HTTP/1.1\r\n\r\n",
        "G(T / HTTP/1.1\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "\n",
        "\rG",
    ] {
        let more = format!("{request}GET / HTTP/1.1\r\n\r\n");
        exchange(&more, "").expect_err(request);
        // What is wrong with a request is wrong with a response.
        if let Some(fields) = request.strip_prefix("GET / HTTP/1.1\r\n")
            && !request.contains("Host: a")
        {
            let response = format!("HTTP/1.1 200 OK\r\n{fields}");
            exchange("GET / HTTP/1.1\r\n\r\n", &response).expect_err(&response);
        }
    }
    for chunks in [
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "0x1\r\n",
        "1 \r\n",
        "1\n",
        "1\r\rx",
        "1;\n",
        "1;\0",
        "1\r\nxy",
        "1\r\nx\n",
        "1\r\nx\r\r",
        "11111111111111111\r\n",
        "0\r\n\n",
        "0\r\nA\r\n\r\n",
        "0\r\nContent-Length: 1\r\n\r\n",
        "0\r\ntransfer-encoding: x\r\n\r\n",
        "0\r\nHost: h\r\n\r\n",
        "0\r\nA : b\r\n\r\n",
    ] {
        let chunked = "Transfer-Encoding: chunked\r\n\r\n";
        let request = format!("POST / HTTP/1.1\r\n{chunked}{chunks}");
        exchange(&request, "").expect_err(chunks);
        let response = format!("HTTP/1.1 200 OK\r\n{chunked}{chunks}");
        exchange("GET / HTTP/1.1\r\n\r\n", &response).expect_err(chunks);
    }
}

#[test]
fn responses_that_nobody_asked_for_end_the_session() {
    let get = "GET / HTTP/1.1\r\n\r\n";
    for (requests, responses) in [
        ("", "HTTP/1.1 200 OK\r\n\r\n"),
        ("", "HTTP/1.1 100 Continue\r\n\r\n"),
        (
            get,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ),
        // Behind its goodbye a server is silent.
        (
            "",
            "HTTP/1.1 408 T\r\nContent-Length: 0\r\n\r\nHTTP/1.1 408 T\r\n\r\n",
        ),
        (get, "HTTP/1.1 99 OK\r\n\r\n"),
        (get, "HTTP/1.1 2000 OK\r\n\r\n"),
        (get, "HTTP/1.1  200 OK\r\n\r\n"),
        (get, "HTTP/1.1 200 O\rK\r\n\r\n"),
        (get, "HTTP/2 200 OK\r\n\r\n"),
        (get, "ICY 200 OK\r\n\r\n"),
        (get, "\r\nHTTP/1.1 200 OK\r\n\r\n"),
        (get, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ] {
        exchange(requests, responses).expect_err(responses);
    }
    // A server that does not wait any longer says so, and then no answer is another request's.
    let timeout = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 2\r\n\r\nno";
    assert_eq!(exchange("", timeout).unwrap().1, timeout);
    let (mut asking, mut answering) = pair();
    carry_all(&mut answering, timeout.as_bytes(), &[]).unwrap();
    carry_all(&mut asking, get.as_bytes(), &[]).unwrap();
    carry_all(&mut answering, b"HTTP/1.1 200 OK\r\n\r\n", &[]).unwrap_err();
}

#[test]
fn what_is_held_is_bounded() {
    let long = format!(
        "GET / HTTP/1.1\r\nA: {}\r\n\r\n",
        "a".repeat(64 * 1024 - 23)
    );
    assert_eq!(long.len(), 64 * 1024);
    assert_eq!(exchange(&long, "").unwrap().0, long);
    let longer = long.replace("A: ", "A:  ");
    exchange(&longer, "").unwrap_err();
    exchange(&"a".repeat(64 * 1024 + 1), "").unwrap_err();
    let get = "GET / HTTP/1.1\r\n\r\n";
    exchange_in(&get.repeat(1024), "", &[]).unwrap();
    exchange_in(&get.repeat(1025), "", &[]).unwrap_err();
    exchange(get, &format!("HTTP/1.1 200 OK\r\n{longer}")).unwrap_err();
    let extended = |length| {
        format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;{}\r\n",
            "x".repeat(length)
        )
    };
    exchange(&extended(4095), "").unwrap();
    exchange(&extended(4096), "").unwrap_err();
}

#[test]
fn after_an_error_nothing_is_carried() {
    let (mut asking, _) = pair();
    let mut out = Vec::new();
    asking.rewrite(b"\n", &mut out).unwrap_err();
    asking
        .rewrite(b"GET / HTTP/1.1\r\n\r\n", &mut out)
        .unwrap_err();
    let (mut asking, _) = pair();
    let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    asking.rewrite(chunked, &mut out).unwrap();
    asking.pass(b"x").unwrap_err();
    asking.rewrite(b"0\r\n\r\n", &mut out).unwrap_err();
}

/// A field that is not about framing, and a body with what frames it.
fn message() -> impl Strategy<Value = String> {
    let field = prop_oneof![
        "[A-Za-z-]{1,8}: ?[ -~]{0,12}\r\n".prop_filter("framing", |field| {
            let name = field
                .split(':')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase();
            !["host", "upgrade"].contains(&name.as_str())
        }),
        Just("Location: https://h/x\r\n".to_owned()),
        Just("Set-Cookie: a=b; secure; Path=/\r\n".to_owned()),
        Just("Alt-Svc: x\r\n".to_owned()),
        Just("Origin: http://h\r\n".to_owned()),
    ];
    let body = prop_oneof![
        ".{0,40}".prop_map(|body| format!("Content-Length: {}\r\n\r\n{body}", body.len())),
        proptest::collection::vec(".{1,20}", 0..4).prop_map(|chunks| {
            let chunks: String = chunks
                .iter()
                .map(|chunk| format!("{:x};e\r\n{chunk}\r\n", chunk.len()))
                .collect();
            format!("Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\nT: u\r\n\r\n")
        }),
    ];
    (proptest::collection::vec(field, 0..4), body)
        .prop_map(|(fields, body)| fields.concat() + &body)
}

proptest! {
    #[test]
    fn splitting_changes_nothing_and_what_was_changed_stays(
        messages in proptest::collection::vec((message(), message()), 1..4),
        sizes in proptest::collection::vec(1_usize..30, 1..5),
    ) {
        let requests: String = messages
            .iter()
            .map(|(request, _)| format!("POST / HTTP/1.1\r\nHost: h\r\n{request}"))
            .collect();
        let responses: String = messages
            .iter()
            .map(|(_, response)| format!("HTTP/1.1 200 OK\r\n{response}"))
            .collect();
        let whole = exchange_in(&requests, &responses, &[usize::MAX]);
        let (asked, seen) = whole.clone().unwrap();
        prop_assert_eq!(exchange_in(&requests, &responses, &sizes), whole);
        for header in ["\r\nLocation: https://h/", "secure", "\r\nAlt-Svc", "\r\nOrigin: http://h\r"] {
            prop_assert!(!asked.contains(header) || header != "\r\nOrigin: http://h\r");
            prop_assert!(!seen.contains(header) || header == "\r\nOrigin: http://h\r");
        }
        prop_assert_eq!(latin_twice(&asked, &seen), (asked, seen));
    }

    #[test]
    fn no_bytes_panic(requests: Vec<u8>, responses: Vec<u8>) {
        let (mut asking, mut answering) = pair();
        let _ = carry_all(&mut asking, &requests, &[5]);
        let _ = carry_all(&mut answering, &responses, &[5]);
    }
}

/// Through another pair; the strings hold one byte a character.
fn latin_twice(asked: &str, seen: &str) -> (String, String) {
    let latin = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<_>>();
    let (mut asking, mut answering) = pair();
    (
        carry_all(&mut asking, &latin(asked), &[]).unwrap(),
        carry_all(&mut answering, &latin(seen), &[]).unwrap(),
    )
}

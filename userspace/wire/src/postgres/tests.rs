use proptest::prelude::*;

use super::*;
use crate::Next;

fn startup(parameters: &[u8]) -> Vec<u8> {
    let mut packet = (parameters.len() as u32 + 8).to_be_bytes().to_vec();
    packet.extend(196_608_u32.to_be_bytes());
    packet.extend(parameters);
    packet
}

fn sasl(mechanisms: &[&str]) -> Vec<u8> {
    let list: String = mechanisms
        .iter()
        .map(|name| format!("{name}\0"))
        .collect::<String>()
        + "\0";
    let mut message = vec![b'R'];
    message.extend((list.len() as u32 + 8).to_be_bytes());
    message.extend(10_u32.to_be_bytes());
    message.extend(list.bytes());
    message
}

/// Filters a stream in pieces; the result and what the client saw.
fn filter(pieces: &[&[u8]]) -> (Result<Next, AuthenticationError>, Vec<u8>) {
    let mut filter = AuthenticationFilter::default();
    let mut out = Vec::new();
    let mut last = Ok(Next::Continue);
    for piece in pieces {
        match last {
            Ok(Next::Continue) => last = filter.filter(piece, &mut out),
            Ok(Next::Done) => out.extend_from_slice(piece),
            Err(_) => break,
        }
    }
    (last, out)
}

#[test]
fn startup_packets_are_read() {
    let packet = startup(b"user\0alice\0database\0shop\0application_name\0psql\0\0");
    let expected = Startup::Parameters {
        version: 196_608,
        user: Some("alice".into()),
        database: Some("shop".into()),
        application_name: Some("psql".into()),
    };
    assert_eq!(
        parse_startup(&packet),
        Ok(Progress::Done((expected, packet.len())))
    );
    for cut in 0..packet.len() {
        assert_eq!(
            parse_startup(&packet[..cut]),
            Ok(Progress::NeedMore),
            "cut at {cut}"
        );
    }
    assert_eq!(
        parse_startup(SSL_REQUEST),
        Ok(Progress::Done((Startup::SslRequest, 8)))
    );
    let cancel = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02";
    assert_eq!(
        parse_startup(cancel),
        Ok(Progress::Done((Startup::Cancel, 16)))
    );
    assert_eq!(
        parse_startup(&startup(b"user\0alice")),
        Err(Malformed::Parameters)
    );
    assert_eq!(
        parse_startup(b"\0\0\x40\0\0\x03\0\0"),
        Err(Malformed::Length(0x4000))
    );
    assert_eq!(
        parse_startup(b"\0\0\x27\x14\0\x03\0\0"),
        Ok(Progress::NeedMore),
        "10,004 bytes"
    );
    assert_eq!(
        parse_startup(b"\0\0\0\x08\0\x02\0\0"),
        Err(Malformed::Code(0x0002_0000))
    );
    assert_eq!(looks_like_startup(&packet), Look::Yes);
    assert_eq!(looks_like_startup(b"\0\0\0"), Look::NeedMore);
    assert_eq!(looks_like_startup(b"\x16\x03\x01"), Look::No);
}

#[test]
fn answers_to_ssl_request_are_read() {
    assert_eq!(
        parse_ssl_answer(b"S"),
        Ok(Progress::Done(SslAnswer::Willing))
    );
    assert_eq!(
        parse_ssl_answer(b"N"),
        Ok(Progress::Done(SslAnswer::Unwilling))
    );
    assert_eq!(parse_ssl_answer(b"Sx"), Err(SslAnswerError::InjectedBytes));
    assert_eq!(
        parse_ssl_answer(b"HTTP"),
        Err(SslAnswerError::Unknown(b'H'))
    );
    let error = error_response(Severity::Fatal, "53300", "too many clients", None, None);
    assert_eq!(
        parse_ssl_answer(&error),
        Ok(Progress::Done(SslAnswer::Error(Some(
            "too many clients".into()
        ))))
    );
}

#[test]
fn channel_binding_is_taken_out_of_the_offer() {
    let offer = sasl(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    let after = b"anything";
    let (result, seen) = filter(&[&[&offer[..], after].concat()]);
    assert_eq!(result, Ok(Next::Done));
    assert_eq!(seen, [&sasl(&["SCRAM-SHA-256"])[..], after].concat());
    let (result, seen) = filter(&[&sasl(&["SCRAM-SHA-256-PLUS"])]);
    assert_eq!(
        (result, seen),
        (Err(AuthenticationError::OnlyChannelBinding), vec![])
    );
}

#[test]
fn other_messages_pass_as_they_are() {
    let trust = b"R\0\0\0\x08\0\0\0\0";
    let notice = b"N\0\0\0\x06\0\0";
    let error = error_response(Severity::Fatal, "28000", "no", None, None);
    assert_eq!(filter(&[trust]), (Ok(Next::Done), trust.to_vec()));
    assert_eq!(filter(&[&error]), (Ok(Next::Done), error.clone()));
    let stream = [&notice[..], &sasl(&["SCRAM-SHA-256"])].concat();
    assert_eq!(filter(&[&stream]), (Ok(Next::Done), stream));
}

#[test]
fn nothing_is_held_back_that_is_judged() {
    let mut filter = AuthenticationFilter::default();
    let mut out = Vec::new();
    // A notice of 16 MiB streams through.
    assert_eq!(
        filter.filter(b"N\x01\0\0\0some", &mut out),
        Ok(Next::Continue)
    );
    assert_eq!(out, b"N\x01\0\0\0some");
    let (result, seen) = self::filter(&[b"E"]);
    assert_eq!((result, &seen[..]), (Ok(Next::Done), &b"E"[..]));
    let md5 = b"R\0\0\0\x0c\0\0\0\x05";
    assert_eq!(self::filter(&[md5]), (Ok(Next::Done), md5.to_vec()));
}

#[test]
fn offers_that_clients_would_read_differently_are_refused() {
    for offer in [sasl(&[""]), sasl(&["A", "", "B-PLUS"]), sasl(&[])] {
        let (result, seen) = filter(&[&offer]);
        assert_eq!(
            (result, seen),
            (Err(AuthenticationError::Mechanisms), vec![])
        );
    }
    for (message, length) in [
        (b"R\0\x01\0\x05", 0x1_0005),
        (b"R\0\0\0\x04", 4),
        (b"N\0\0\0\x03", 3),
    ] {
        assert_eq!(
            filter(&[message]).0,
            Err(AuthenticationError::Length(length))
        );
    }
}

#[test]
fn an_error_before_tls_cannot_write_on_the_terminal() {
    let error = error_response(Severity::Fatal, "53300", "a\x1b[2Jb\0\n", None, None);
    assert_eq!(error_message(&error).as_deref(), Some("a [2Jb "));
    assert_eq!(error_message(&error[..error.len() - 1]), None);
    assert_eq!(
        error_message(&error_response(
            Severity::Fatal,
            "53300",
            &"x".repeat(9000),
            None,
            None
        )),
        None
    );
}

proptest! {
    #[test]
    fn the_filter_gives_the_same_however_the_stream_is_split(
        notices in 0_usize..3,
        body in proptest::collection::vec(any::<u8>(), 0..40),
        mechanisms in proptest::collection::vec("[A-Z0-9]{1,12}(-PLUS)?", 1..5),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        cut in 0_usize..300,
    ) {
        let mut stream = Vec::new();
        for _ in 0..notices {
            stream.push(b'N');
            stream.extend((body.len() as u32 + 4).to_be_bytes());
            stream.extend(&body);
        }
        let names: Vec<&str> = mechanisms.iter().map(String::as_str).collect();
        stream.extend(sasl(&names));
        stream.extend(&tail);
        let cut = cut.min(stream.len());
        let whole = filter(&[&stream]);
        let split = filter(&[&stream[..cut], &stream[cut..]]);
        prop_assert_eq!(&whole, &split);
        prop_assert!(!whole.1.windows(6).any(|window| window == b"-PLUS\0") || tail.len() >= 6 || body.len() >= 6);
    }

    #[test]
    fn hostile_bytes_never_panic(stream in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = filter(&[&stream]);
        let _ = parse_ssl_answer(&stream);
        if let (Ok(Progress::Done((_, consumed))), Look::No) = (parse_startup(&stream), looks_like_startup(&stream)) {
            prop_assert!(consumed > 0xffff, "a packet that is read looks like one");
        }
    }
}

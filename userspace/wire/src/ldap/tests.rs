use proptest::prelude::*;

use super::*;

/// ldapsearch's first message: a simple bind as cn=admin,dc=site.
const BIND: &[u8] = b"\x30\x1e\x02\x01\x01\x60\x19\x02\x01\x03\x04\x10cn=admin,dc=site\x80\x02pw";
/// Active Directory's answer, with responseName.
const ACCEPTED: &[u8] =
    b"\x30\x84\0\0\0\x28\x02\x01\x01\x78\x84\0\0\0\x1f\x0a\x01\0\x04\0\x04\0\x8a\x161.3.6.1.4.1.1466.20037";
/// OpenLDAP's.
const ACCEPTED_SHORTLY: &[u8] = b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\0\x04\0\x04\0";
/// OpenLDAP's without a certificate.
const UNSUPPORTED: &[u8] =
    b"\x30\x23\x02\x01\x01\x78\x1e\x0a\x01\x02\x04\0\x04\x17unsupported extended op";

/// Drives a dialogue over what the server says in these pieces.
fn converse(pieces: &[&[u8]]) -> Result<Option<usize>, DialogueError> {
    let mut dialogue = StartTls::default();
    let mut heard = Vec::new();
    assert!(matches!(dialogue.step(&heard), Ok(Step::Say { .. })));
    for piece in pieces {
        heard.extend_from_slice(piece);
        match dialogue.step(&heard)? {
            Step::NeedMore => {}
            Step::Handshake { consumed } => return Ok(Some(heard.len() - consumed)),
            Step::Say { .. } => panic!("it speaks twice"),
        }
    }
    Ok(None)
}

#[test]
fn the_request_is_one_message() {
    assert_eq!(
        parse_request(REQUEST),
        Ok(Progress::Done(Request::StartTls {
            id: 1,
            length: REQUEST.len()
        }))
    );
    assert_eq!(looks_like_request(REQUEST), Look::Yes);
}

#[test]
fn servers_answers() {
    for accepted in [ACCEPTED, ACCEPTED_SHORTLY] {
        assert_eq!(converse(&[accepted]), Ok(Some(0)));
        assert_eq!(converse(&[accepted, b"x"]), Ok(Some(0)));
        assert_eq!(converse(&[&[accepted, b"x"].concat()]), Ok(Some(1)));
    }
    let declined = |words: &str| Err(DialogueError::Declined(words.to_owned()));
    assert_eq!(
        converse(&[UNSUPPORTED]),
        declined("resultCode 2, unsupported extended op")
    );
    assert_eq!(
        converse(&[&response(
            0,
            EXTENDED_RESPONSE,
            51,
            "busy\r\nline",
            Some(DISCONNECTION)
        )]),
        declined("it disconnected, busy")
    );
    for nonsense in [
        &b"HTTP/1.1 400"[..],
        b"\x30\x80",
        b"\x30\x0c\x02\x01\x02\x78\x07\x0a\x01\0\x04\0\x04\0", // another id
        b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\0\x04\0\x04\0", // a bind response
        b"\x30\x05\x02\x01\x01\x78\0",
        b"\x30\x84\x7f\xff\xff\xff\x02\x01\x01\x78\x01",
    ] {
        let result = converse(&[nonsense]);
        assert!(
            matches!(result, Err(DialogueError::Protocol(_))),
            "{nonsense:x?}: {result:?}"
        );
    }
}

#[test]
fn requests_are_told_apart() {
    for (stream, expected) in [
        (BIND, Look::Yes),
        (b"\x30\x05\x02\x01\x03\x42\0", Look::Yes),
        (b"\x30\x06\x02\x01\x03\x4a\x01a", Look::Yes),
        (
            b"\x30\x84\0\0\0\x3b\x02\x04\x7f\xff\xff\xff\x63\x84\0\0\0\x2f",
            Look::Yes,
        ),
        (b"", Look::NeedMore),
        (b"\x30", Look::NeedMore),
        (
            b"\x30\x84\0\0\0\x3b\x02\x04\x7f\xff\xff\xff\x63\x84\0\0\0",
            Look::NeedMore,
        ),
        (b"0123456789", Look::No),
        (b"\x30\x29\x02\x01\x01\x04\x06public", Look::No), // SNMP
        (b"\x30\x0c\x02\x01\x01\x61\x07\x0a", Look::No),   // a response
        (b"\x30\x0c\x02\x01\0\x60\x07\x02", Look::No),     // id 0
        (b"\x30\x06\x02\x01\x01\x60\x07\x02", Look::No),   // longer than its message
        (b"\x30\x80\x02\x01\x01\x60", Look::No),
        (b"\x16\x03\x01", Look::No),
    ] {
        assert_eq!(looks_like_request(stream), expected, "{stream:x?}");
    }
}

#[test]
fn other_extended_operations_are_not_start_tls() {
    // Who am I? (RFC 4532)
    let who = b"\x30\x1e\x02\x01\x01\x77\x19\x80\x171.3.6.1.4.1.4203.1.11.3";
    assert_eq!(parse_request(who), Ok(Progress::Done(Request::Other)));
    assert_eq!(
        parse_request(b"\x30\x05\x02\x01\x02\x42\0"),
        Ok(Progress::Done(Request::Unbind))
    );
}

#[test]
fn refusals_answer_the_first_message() {
    let refused = refusal(BIND, "why");
    let Ok(Progress::Done(envelope)) = envelope(&refused) else {
        panic!("{refused:x?}");
    };
    assert_eq!((envelope.id, envelope.operation), (1, 0x61));
    assert_eq!(envelope.length, refused.len());
    assert_eq!(
        result(&refused[envelope.content.0..]),
        Some((52, &b"mantled refused this connection: why"[..]))
    );
    for head in [&b""[..], b"\x30", b"\x30\x05\x02\x01\x03\x42\0", b"junk"] {
        assert_eq!(
            converse(&[&refusal(head, "why")]),
            Err(DialogueError::Declined(
                "it disconnected, mantled refused this connection: why".to_owned()
            ))
        );
    }
}

#[test]
fn numbers_have_no_needless_zeros() {
    for (number, digits) in [
        (0_u32, &b"\0"[..]),
        (1, b"\x01"),
        (0x7f, b"\x7f"),
        (0x80, b"\0\x80"),
        (0x7fff_ffff, b"\x7f\xff\xff\xff"),
    ] {
        assert_eq!(shortest(&number.to_be_bytes()), digits);
    }
}

/// Messages, and what is nearly one.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let seed = prop_oneof![
        Just(BIND.to_vec()),
        Just(REQUEST.to_vec()),
        Just(ACCEPTED.to_vec()),
        Just(ACCEPTED_SHORTLY.to_vec()),
        Just(UNSUPPORTED.to_vec()),
        any::<Vec<u8>>(),
    ];
    (
        seed,
        any::<prop::sample::Index>(),
        any::<Option<u8>>(),
        any::<Vec<u8>>(),
    )
        .prop_map(|(mut bytes, at, change, more)| {
            if let Some(change) = change
                && !bytes.is_empty()
            {
                let at = at.index(bytes.len());
                bytes[at] = change;
            }
            bytes.extend(more);
            bytes
        })
}

proptest! {
    #[test]
    fn more_bytes_never_change_a_decision(stream in messages(), cut in any::<prop::sample::Index>()) {
        let beginning = &stream[..cut.index(stream.len() + 1)];
        match looks_like_request(beginning) {
            Look::NeedMore => prop_assert!(beginning.len() < 18),
            decided => prop_assert_eq!(decided, looks_like_request(&stream)),
        }
        match parse_request(beginning) {
            Ok(Progress::NeedMore) => prop_assert!(beginning.len() < MAX_MESSAGE),
            decided => prop_assert_eq!(decided, parse_request(&stream)),
        }
    }

    #[test]
    fn splitting_changes_nothing_of_a_dialogue(stream in messages(), cut in any::<prop::sample::Index>()) {
        let (first, second) = stream.split_at(cut.index(stream.len() + 1));
        let (whole, split) = (converse(&[&stream]), converse(&[first, second]));
        match (&whole, &split) {
            // What was injected in a later breath is met by the handshake.
            (Ok(Some(left)), Ok(Some(fewer))) => prop_assert!(fewer <= left),
            _ => prop_assert_eq!(&whole, &split),
        }
    }
}

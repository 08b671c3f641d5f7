use proptest::prelude::*;

use super::*;

/// Of MySQL's documentation of HandshakeV10 (5.5.2), with CLIENT_SSL set in the capabilities.
const GREETING: &[u8] = b"\x36\0\0\0\x0a5.5.2-m2\0\x0b\0\0\0dvH@I-CJ\0\xff\xff\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0*4d|cZwk4^]:\0";

/// Of MySQL's documentation of HandshakeResponse41.
const RESPONSE: &[u8] = b"\x54\0\0\x01\x8d\xa6\x0f\0\0\0\0\x01\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0pam\0\x14\xab\x09\xee\xf6\xbc\xb1\x32\x3e\x61\x14\x38\x65\xc0\x99\x1d\x95\x7d\x75\xd4\x47test\0mysql_native_password\0";

const NONCE: &[u8] = b"a nonce of 20 bytes.";

fn greeting(stream: &[u8]) -> Greeting {
    match FirstWords::parse(stream) {
        Ok(Progress::Done((FirstWords::Greeting(greeting), length))) => {
            assert_eq!(length, stream.len());
            greeting
        }
        other => panic!("{other:?}"),
    }
}

fn response(packet: &[u8]) -> HandshakeResponse {
    match Answer::parse(&packet[HEADER..]) {
        Ok(Answer::Response(response)) => response,
        other => panic!("{other:?}"),
    }
}

/// A greeting of today.
fn modern() -> Greeting {
    let capabilities = 0x003a_aa0d_u32.to_le_bytes();
    let payload = [
        b"\x0a8.0.36\0\x07\0\0\0",
        &NONCE[..8],
        &[0, capabilities[0], capabilities[1], 255, 2, 0],
        &[capabilities[2], capabilities[3], 21],
        &[0; 10],
        &NONCE[8..],
        b"\0caching_sha2_password\0",
    ]
    .concat();
    greeting(&framed(0, &payload))
}

/// An answer to it, with attributes behind.
fn answer(plugin: &[u8], proof: &[u8]) -> HandshakeResponse {
    let payload = [
        &0x003a_a285_u32.to_le_bytes()[..],
        &[0, 0, 0, 1, 45],
        &[0; 23],
        b"alice\0",
        &[proof.len() as u8],
        proof,
        plugin,
        b"\0\x05\x01a\x02bc",
    ]
    .concat();
    response(&framed(1, &payload))
}

fn packet(stream: &[u8]) -> Packet<'_> {
    match Packet::parse(stream) {
        Ok(Progress::Done(packet)) => {
            assert_eq!(packet.length(), stream.len());
            packet
        }
        other => panic!("{other:?}"),
    }
}

fn from_server(authentication: &mut Authentication, sequence: u8, payload: &[u8]) -> ToAgent {
    authentication.hear_server(Packet { sequence, payload })
}

/// What the server gets for a packet of the agent.
fn to_server(authentication: &mut Authentication, sequence: u8, payload: &[u8]) -> Vec<u8> {
    match authentication.hear_agent(Packet { sequence, payload }) {
        Ok(Reply::ToServer(packet)) => packet.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn masked(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let mask = NONCE.iter().cycle();
    Zeroizing::new(password.iter().zip(mask).map(|(a, b)| a ^ b).collect())
}

#[test]
fn the_greeting_loses_one_bit() {
    let greeting = greeting(GREETING);
    assert!(greeting.offers_tls());
    assert_eq!(greeting.scramble(), b"dvH@I-CJ*4d|cZwk4^]:");
    assert_eq!(greeting.packet(), GREETING);
    let seen = greeting.without_tls();
    let changed: Vec<_> = (0..GREETING.len())
        .filter(|n| seen[*n] != GREETING[*n])
        .collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(GREETING[changed[0]] ^ seen[changed[0]], 8);
    let seen = self::greeting(&seen);
    assert!(!seen.offers_tls());
    assert_eq!(modern().scramble(), NONCE);
    for cut in 0..GREETING.len() {
        assert_eq!(
            FirstWords::parse(&GREETING[..cut]),
            Ok(Progress::NeedMore),
            "{cut}"
        );
    }
}

#[test]
fn what_stands_in_place_of_a_greeting() {
    for (payload, text) in [
        (
            &b"\xff\x10\x04Too many connections"[..],
            "Too many connections",
        ),
        (
            b"\xff\x10\x04#08004Too many connections",
            "Too many connections",
        ),
        (b"\xff\x10\x04a\x1b[2J\r\nb", "a[2J"),
    ] {
        let stream = framed(0, payload);
        assert_eq!(looks_like_greeting(&stream), Look::Yes);
        let number = 1040;
        let text = text.to_owned();
        let error = ServerError { number, text };
        assert_eq!(
            FirstWords::parse(&stream),
            Ok(Progress::Done((
                FirstWords::Error(error.clone()),
                stream.len()
            )))
        );
        assert!(
            packet(&error.for_agent())
                .payload
                .starts_with(&payload[..3])
        );
    }
}

#[test]
fn greetings_are_told_apart() {
    for (stream, expected) in [
        (GREETING, Look::Yes),
        (&GREETING[..14], Look::Yes),
        (&GREETING[..13], Look::NeedMore),
        (b"", Look::NeedMore),
        (b"\x36", Look::NeedMore),
        (b"\x36\0\0\0", Look::NeedMore),
        (b"\x36\0\0\0\xff\x10", Look::NeedMore),
        (b"\x36\0\0\0\xff\x10\0", Look::No),
        (b"\x36\0\0\0\x09", Look::No),
        (b"\x36\0\0\0\x0aX", Look::No),
        (b"\x36\0\0\0\x0a\0", Look::No),
        (b"\x36\0\0\0\x0a5\n", Look::No),
        (b"\x36\0\0\x01", Look::No),
        (b"\x36\0\x01", Look::No),
        (b"\x36\x10", Look::No),
        (b"220 ready", Look::No),
        (b"INFO {", Look::No),
        (b"\x16\x03\x03", Look::No),
    ] {
        assert_eq!(
            looks_like_greeting(stream),
            expected,
            "{}",
            stream.escape_ascii()
        );
    }
}

#[test]
fn what_no_server_greets_with() {
    for stream in [
        &b"\0\0\0\0"[..],
        b"\x01\0\0\0\x0a",
        b"\x03\0\0\0\xff\x10\0",
        b"\x03\0\0\x01\xff\x10\x04",
        b"\0\x20\0",
        b"\x04\0\0\0\x095.5",
    ] {
        let parsed = FirstWords::parse(stream);
        assert!(parsed.is_err(), "{}: {parsed:?}", stream.escape_ascii());
    }
}

#[test]
fn the_answer_and_its_request_for_tls() {
    let response = response(RESPONSE);
    assert_eq!(response.user, "pam");
    assert_eq!(response.database.as_deref(), Some("test"));
    assert_eq!(response.plugin(), b"mysql_native_password");
    assert_eq!(response.authentication(), &RESPONSE[41..61]);
    let request = response.ssl_request();
    let mut expected = RESPONSE[..36].to_vec();
    expected[..4].copy_from_slice(&[32, 0, 0, 1]);
    expected[5] |= 8;
    assert_eq!(request.bytes(), expected);
    assert_eq!(
        Answer::parse(&expected[HEADER..]),
        Ok(Answer::SslRequest(request))
    );
    // Nothing that stands in MySQL's filler leaves, but MariaDB's capabilities.
    let mut filled = RESPONSE.to_vec();
    filled[13..36].fill(0x41);
    let request = self::response(&filled).ssl_request();
    assert_eq!(request.bytes()[13..32], [0; 19]);
    assert_eq!(request.bytes()[32..], *b"AAAA");
}

#[test]
fn what_no_client_answers() {
    for (payload, expected) in [
        (&b""[..], Malformed::Response),
        (b"\0\x02\0", Malformed::Response),
        (b"\x05\x02\0\0", Malformed::Response),
        (b"\x05\0\0\0\x01alice\0", Malformed::Old),
        (&RESPONSE[HEADER..50], Malformed::Response),
        (&RESPONSE[HEADER..39], Malformed::Response),
    ] {
        assert_eq!(
            Answer::parse(payload),
            Err(expected),
            "{}",
            payload.escape_ascii()
        );
    }
    let long = [0xff, 0xff, 0xff, 1];
    assert_eq!(Packet::parse(&long), Err(Malformed::Length(0xff_ffff)));
}

#[test]
fn the_answer_inside_tls_differs_by_one_bit() {
    let mut authentication = Authentication::inside_tls(&modern(), response(RESPONSE));
    let Ok(Some(Reply::ToServer(sent))) = authentication.open() else {
        panic!("nothing is sent");
    };
    let mut expected = RESPONSE.to_vec();
    expected[3] = 2;
    expected[5] |= 8;
    assert_eq!(sent.as_slice(), expected);
    // OK.
    let told = from_server(&mut authentication, 3, b"\0\0\0\x02\0\0\0");
    assert!(told.last);
    assert_eq!(packet(&told.words).sequence, 2);
}

#[test]
fn numbers_follow_both_sides() {
    let response = answer(b"mysql_native_password", &[7; 20]);
    let mut authentication = Authentication::inside_tls(&modern(), response);
    assert!(matches!(
        authentication.open(),
        Ok(Some(Reply::ToServer(_)))
    ));
    let switch = b"\xfeclient_ed25519\0nonce of 32 bytes, or whatever\0";
    let told = from_server(&mut authentication, 3, switch);
    assert_eq!(told.words, framed(2, switch).to_vec());
    assert!(!told.last);
    assert_eq!(
        to_server(&mut authentication, 3, b"proof"),
        *framed(4, b"proof")
    );
    // Several rounds, and an empty packet.
    let told = from_server(&mut authentication, 5, b"\x01more");
    assert_eq!(told.words, framed(4, b"\x01more").to_vec());
    assert_eq!(to_server(&mut authentication, 5, b""), *framed(6, b""));
    let told = from_server(&mut authentication, 7, b"\xff\x15\x04#28000no");
    assert_eq!(told.words, framed(6, b"\xff\x15\x04#28000no").to_vec());
    assert!(told.last);
    assert_eq!(authentication.sequence(), 7);
}

#[test]
fn caching_sha2_by_its_hash() {
    let response = answer(b"caching_sha2_password", &[7; 32]);
    let mut authentication = Authentication::inside_tls(&modern(), response);
    assert!(matches!(
        authentication.open(),
        Ok(Some(Reply::ToServer(_)))
    ));
    assert!(!from_server(&mut authentication, 3, &[1, 3]).last);
    let told = from_server(&mut authentication, 4, &[0, 0, 0, 2, 0, 0, 0]);
    assert_eq!((packet(&told.words).sequence, told.last), (3, true));
}

#[test]
fn caching_sha2_by_the_password_itself() {
    let response = answer(b"caching_sha2_password", &[7; 32]);
    let mut authentication = Authentication::inside_tls(&modern(), response);
    assert!(matches!(
        authentication.open(),
        Ok(Some(Reply::ToServer(_)))
    ));
    let told = from_server(&mut authentication, 3, &[1, 4]);
    assert_eq!(told.words, framed(2, &[1, 4]).to_vec());
    let request = Packet {
        sequence: 3,
        payload: &[2],
    };
    assert_eq!(authentication.hear_agent(request), Ok(Reply::OfferKey));
    assert_eq!(authentication.key(b"PEM"), *framed(4, b"\x01PEM"));
    let sealed = Packet {
        sequence: 5,
        payload: &[9; 256],
    };
    assert_eq!(
        authentication.hear_agent(sealed),
        Ok(Reply::Decrypt(vec![9; 256]))
    );
    let password = b"correct horse battery staple\0";
    let sent = authentication.password(masked(password)).unwrap();
    assert_eq!(sent, framed(4, password));
    let told = from_server(&mut authentication, 5, &[0, 0, 0, 2, 0, 0, 0]);
    assert_eq!((packet(&told.words).sequence, told.last), (6, true));
}

#[test]
fn sha256_within_the_answer() {
    let response = answer(b"sha256_password", &[1]);
    let mut authentication = Authentication::inside_tls(&modern(), response);
    assert_eq!(authentication.open(), Ok(Some(Reply::OfferKey)));
    assert_eq!(authentication.key(b"PEM"), *framed(2, b"\x01PEM"));
    let sealed = Packet {
        sequence: 3,
        payload: &[9; 256],
    };
    assert!(matches!(
        authentication.hear_agent(sealed),
        Ok(Reply::Decrypt(_))
    ));
    let sent = authentication.password(masked(b"secret\0")).unwrap();
    assert_eq!(packet(&sent).sequence, 2);
    let sent = self::response(&sent);
    assert_eq!(sent.authentication(), b"secret\0");
    assert_eq!(sent.user, "alice");
    assert_eq!(sent.plugin(), b"sha256_password");
    // Passwords of which the length takes more than one byte.
    for length in [249, 250, 251, 600] {
        let mut authentication =
            Authentication::inside_tls(&modern(), answer(b"sha256_password", &[1]));
        assert_eq!(authentication.open(), Ok(Some(Reply::OfferKey)));
        let password = [vec![b'p'; length], vec![0]].concat();
        let sent = authentication.password(masked(&password)).unwrap();
        assert_eq!(self::response(&sent).authentication(), password, "{length}");
    }
}

#[test]
fn sha256_after_a_switch() {
    let response = answer(b"mysql_native_password", &[7; 20]);
    let mut authentication = Authentication::inside_tls(&modern(), response);
    assert!(matches!(
        authentication.open(),
        Ok(Some(Reply::ToServer(_)))
    ));
    let other = b"ANOTHER NONCE, AS IT";
    let switch = [b"\xfesha256_password\0", &other[..], b"\0"].concat();
    from_server(&mut authentication, 3, &switch);
    let request = Packet {
        sequence: 3,
        payload: &[1],
    };
    assert_eq!(authentication.hear_agent(request), Ok(Reply::OfferKey));
    authentication.key(b"PEM");
    let sealed = Packet {
        sequence: 5,
        payload: &[9; 256],
    };
    assert!(matches!(
        authentication.hear_agent(sealed),
        Ok(Reply::Decrypt(_))
    ));
    let decrypted = b"secret\0".iter().zip(other).map(|(a, b)| a ^ b).collect();
    let sent = authentication.password(Zeroizing::new(decrypted)).unwrap();
    assert_eq!(sent, framed(4, b"secret\0"));
}

#[test]
fn what_cannot_be_brokered() {
    let response = answer(b"caching_sha2_password", &[7; 32]);
    let mut authentication = Authentication::inside_tls(&modern(), response);
    assert!(matches!(
        authentication.open(),
        Ok(Some(Reply::ToServer(_)))
    ));
    from_server(&mut authentication, 3, &[1, 4]);
    let mut again = authentication.clone();
    let sealed = Packet {
        sequence: 3,
        payload: &[9; 256],
    };
    assert_eq!(
        authentication.hear_agent(sealed),
        Err(AuthenticationError::PinnedKey)
    );
    again.key(b"PEM");
    for wrong in [&b""[..], b"no end", b"two\0ends\0", b"\0behind"] {
        assert_eq!(
            again.clone().password(masked(wrong)),
            Err(AuthenticationError::NoPassword)
        );
    }
    // An answer whose length has one byte, and no more.
    let mut old = RESPONSE.to_vec();
    old.splice(40.., b"\x01\x01test\0sha256_password\0".iter().copied());
    let mut authentication = Authentication::inside_tls(&modern(), self::response(&old));
    assert_eq!(authentication.open(), Ok(Some(Reply::OfferKey)));
    let password = [vec![b'p'; 255], vec![0]].concat();
    assert_eq!(
        authentication.password(masked(&password)),
        Err(AuthenticationError::TooLong)
    );
}

#[test]
fn an_answer_is_bound_to_another_connection_in_clear() {
    let response = answer(b"caching_sha2_password", &[7; 32]);
    let (mut authentication, request) =
        Authentication::in_clear(&greeting(GREETING), response).unwrap();
    assert_eq!(
        request,
        framed(2, b"\xfecaching_sha2_password\0dvH@I-CJ*4d|cZwk4^]:\0").to_vec()
    );
    assert_eq!(authentication.open(), Ok(None));
    let sent = to_server(&mut authentication, 3, &[8; 32]);
    assert_eq!(packet(&sent).sequence, 1);
    assert_eq!(sent[HEADER + 1] & 8, 0, "no CLIENT_SSL");
    assert_eq!(self::response(&sent).authentication(), [8; 32]);
    // Nothing is brokered: the server has a key of its own there.
    assert_eq!(
        from_server(&mut authentication, 2, &[1, 4]).words,
        *framed(4, &[1, 4])
    );
    assert_eq!(to_server(&mut authentication, 5, &[2]), *framed(3, &[2]));
    let sealed = to_server(&mut authentication, 7, &[9; 256]);
    assert_eq!(packet(&sealed).payload, [9; 256]);
    // Clients that know no plugins cannot be asked again.
    let old = self::response(&framed(
        1,
        b"\x05\xa2\0\0\0\0\0\x01\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0pam\0\0",
    ));
    assert!(Authentication::in_clear(&modern(), old).is_none());
}

#[test]
fn the_goodbye_is_known() {
    let query = framed(0, b"\x03select 1");
    let tricky = framed(0, b"\x03insert \x01\0\0\0\x01");
    let large = [&[0xff, 0xff, 0xff, 0][..], &vec![1; 0xff_ffff]].concat();
    let quit = framed(0, &[1]);
    for (stream, said) in [
        (vec![], false),
        (query.to_vec(), false),
        (tricky.to_vec(), false),
        (large.clone(), false),
        (framed(1, &[1]).to_vec(), false),
        (framed(0, &[]).to_vec(), false),
        (quit.to_vec(), true),
        ([&query[..], &quit].concat(), true),
        ([&large[..], &framed(1, b"x"), &quit].concat(), true),
        ([&framed(0, &[])[..], &quit].concat(), true),
        ([&quit[..], &query].concat(), false),
        ([&quit[..], &quit[..4]].concat(), false),
    ] {
        let mut goodbye = Goodbye::new(false);
        goodbye.watch(&stream);
        assert_eq!(goodbye.said(), said, "{}", stream.len());
    }
    let mut goodbye = Goodbye::new(true);
    goodbye.watch(b"\x0d\0\0\0\0\0\0\x09\0\0\0\x03select 1\x05\0\0\0\0\0\0\x01\0\0\0");
    assert!(!goodbye.said());
    goodbye.watch(b"\x01");
    assert!(goodbye.said());
}

#[test]
fn the_refusal_is_one_packet() {
    let reason = format!("a\0\r\n{}", "b".repeat(1000));
    for (sequence, sqlstate) in [(0, &b""[..]), (2, b"#08004")] {
        let said = refusal(sequence, &reason);
        let packet = packet(&said);
        assert_eq!(packet.sequence, sequence);
        let text = [sqlstate, b"mantled refused this connection: ab"].concat();
        assert!(packet.payload[3..].starts_with(&text));
        assert!(packet.payload.len() < 520);
    }
}

proptest! {
    #[test]
    fn more_bytes_never_change_a_decision(mut stream in proptest::collection::vec(any::<u8>(), 0..300), shape in 0_usize..6, cut in 0_usize..300) {
        // Otherwise almost none gets past the header.
        let head: [&[u8]; 6] = [b"", b"\x36\0\0\0", b"\x36\0\0\0\x0a", b"\x36\0\0\0\x0a5", b"\x36\0\0\0\xff", GREETING];
        stream.splice(0..0, head[shape].iter().copied());
        let beginning = &stream[..cut.min(stream.len())];
        match looks_like_greeting(beginning) {
            Look::NeedMore => prop_assert!(beginning.len() <= 5 + MAX_VERSION),
            decided => prop_assert_eq!(decided, looks_like_greeting(&stream)),
        }
    }

    #[test]
    fn splitting_changes_nothing_of_the_goodbye(
        lengths in proptest::collection::vec(0_usize..12, 0..6),
        quit in any::<bool>(),
        compressed in any::<bool>(),
        cuts in proptest::collection::vec(0_usize..100, 3),
    ) {
        let mut stream = Vec::new();
        for length in lengths {
            stream.extend_from_slice(&framed(0, &vec![1; length]));
        }
        if quit {
            stream.extend_from_slice(&framed(0, &[1]));
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| *cut.min(&stream.len())).collect();
        cuts.sort_unstable();
        let mut whole = Goodbye::new(compressed);
        whole.watch(&stream);
        let mut pieces = Goodbye::new(compressed);
        for piece in [&stream[..cuts[0]], &stream[cuts[0]..cuts[1]], &stream[cuts[1]..cuts[2]], &stream[cuts[2]..]] {
            pieces.watch(piece);
        }
        prop_assert_eq!(pieces.said(), whole.said());
        if quit && !compressed {
            prop_assert!(whole.said());
        }
    }
}

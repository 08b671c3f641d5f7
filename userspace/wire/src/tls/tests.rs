use proptest::prelude::*;

use super::*;
use crate::Progress;

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [
        &kind.to_be_bytes()[..],
        &(data.len() as u16).to_be_bytes(),
        data,
    ]
    .concat()
}

fn vector16(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u16).to_be_bytes()[..], data].concat()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0][..], &(body.len() as u16).to_be_bytes(), body].concat()
}

/// Cuts a handshake message into records of `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|part| [&[0x16, 3, 1][..], &vector16(part)].concat())
        .collect()
}

fn client_hello() -> Vec<u8> {
    let sni = vector16(&[&[0][..], &vector16(b"DB.example.com")].concat());
    let alpn = vector16(b"\x02\x0a\x0a\x02h2\x08http/1.1");
    let extensions = [
        extension(0x0a0a, &[]),
        extension(0, &sni),
        extension(16, &alpn),
        extension(43, &[6, 0x1a, 0x1a, 3, 4, 3, 3]),
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend(vector16(&[0x13, 0x01]));
    body.extend([1, 0]);
    body.extend(vector16(&extensions));
    message(1, &body)
}

fn server_hello(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.push(0);
    body.extend([0x13, 0x02, 0]);
    body.extend(vector16(extensions));
    message(2, &body)
}

#[test]
fn client_hello_is_read_over_records_of_any_size() {
    for size in [1, 7, 64, 4096] {
        let stream = records(&client_hello(), size);
        let Ok(Progress::Done(hello)) = ClientHello::parse(&stream) else {
            panic!("not read with records of {size} bytes")
        };
        assert_eq!(hello.server_name.as_deref(), Some("db.example.com"));
        assert_eq!(
            hello.versions,
            [ProtocolVersion(0x0304), ProtocolVersion(0x0303)]
        );
        assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        for cut in 0..stream.len() {
            assert_eq!(
                ClientHello::parse(&stream[..cut]),
                Ok(Progress::NeedMore),
                "cut at {cut}"
            );
        }
    }
}

#[test]
fn only_versions_that_exist_count_as_the_highest() {
    let highest = |versions: &[u16]| {
        let hello = ClientHello {
            versions: versions.iter().copied().map(ProtocolVersion).collect(),
            ..ClientHello::default()
        };
        hello.highest_version().map(|version| version.0)
    };
    assert_eq!(highest(&[0x0301, 0x0303, 0x0302]), Some(0x0303));
    assert_eq!(highest(&[0x0304, 0x0303]), Some(0x0304));
    // A draft of TLS 1.3, DTLS 1.2, a version to come.
    assert_eq!(highest(&[0x7f1c, 0xfefd, 0x0305, 0x0302]), Some(0x0302));
    assert_eq!(highest(&[0x7f1c]), None);
}

#[test]
fn server_hello_and_alert_are_read() {
    let stream = records(&server_hello(&extension(43, &[3, 4])), 4096);
    assert_eq!(
        ServerFirst::parse(&stream),
        Ok(Progress::Done(ServerFirst::Hello(ServerHello {
            version: ProtocolVersion(0x0304),
            cipher_suite: 0x1302,
            retry: false
        })))
    );
    assert_eq!(
        ServerFirst::parse(&fatal_alert(ACCESS_DENIED)),
        Ok(Progress::Done(ServerFirst::Alert(Alert {
            level: 2,
            description: 49
        })))
    );
    assert_eq!(
        ServerFirst::parse(b"HTTP/1.1 400"),
        Err(Malformed::NotHandshake)
    );
}

#[test]
fn other_protocols_are_no_client_hello() {
    for stream in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x16\x02\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x01\x00\x02",
    ] {
        assert_eq!(looks_like_client_hello(stream), Look::No, "{stream:x?}");
    }
    assert_eq!(
        looks_like_client_hello(b"\x16\x03\x01\x01\x00\x01"),
        Look::Yes
    );
    assert_eq!(looks_like_client_hello(b"\x16\x03\x01"), Look::NeedMore);
}

#[test]
fn a_handshake_prefix_does_not_open_a_tunnel() {
    let mut guard = RecordGuard::default();
    guard.check(&records(&client_hello(), 4096)).unwrap();
    assert_eq!(
        guard.check(b"SELECT 1"),
        Err(FramingError::ContentType(b'S'))
    );
    assert_eq!(
        RecordGuard::default().check(&[23, 3, 3, 0, 1]),
        Err(FramingError::ContentType(23))
    );
    assert_eq!(
        RecordGuard::default().check(&[22, 3, 0, 0, 9]),
        Err(FramingError::Version(0x0300))
    );
    assert_eq!(
        RecordGuard::default().check(&[22, 3, 3, 0xff, 0xff]),
        Err(FramingError::Length(0xffff))
    );
}

#[test]
fn not_even_the_first_bytes_of_something_else_pass() {
    let mut guard = RecordGuard::new();
    guard.check(&records(&client_hello(), 4096)).unwrap();
    assert_eq!(guard.check(b"S"), Err(FramingError::ContentType(b'S')));
    // And an error is for ever.
    assert_eq!(
        guard.check(&[23, 3, 3, 0, 0]),
        Err(FramingError::ContentType(b'S'))
    );
    for (record, error) in [
        (&[24, 3, 3, 0, 1][..], FramingError::ContentType(24)),
        (&[22, b'E'], FramingError::Version(0x4500)),
        (&[22, 3, 4], FramingError::Version(0x0304)),
        (&[22, 3, 3, 0, 0], FramingError::Length(0)),
        (&[22, 3, 3, 0x48, 1], FramingError::Length(0x4801)),
    ] {
        assert_eq!(RecordGuard::new().check(record), Err(error));
    }
    let mut guard = RecordGuard::new();
    guard.check(&[21, 3, 1, 0, 2, 2, 40]).unwrap();
    guard.check(&[23, 3, 3, 0, 0, 20, 3, 3, 0, 1, 1]).unwrap();
}

/// A ClientHello with these extensions and nothing else.
fn hello_with(extensions: &[Vec<u8>]) -> Result<Progress<ClientHello>, Malformed> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(vector16(&extensions.concat()));
    ClientHello::parse(&records(&message(1, &body), 4096))
}

fn sni(names: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|name| [&[0][..], &vector16(name.as_bytes())].concat())
        .collect();
    extension(0, &vector16(&list))
}

#[test]
fn only_host_names_are_server_names() {
    for (name, valid) in [
        ("db.example.com", true),
        ("_kafka.internal", true),
        ("localhost", true),
        ("192.0.2.1", false),
        ("example.com.", false),
        ("a..b", false),
        ("-a.example", false),
        ("a b", false),
        ("a\0.example", false),
        ("", false),
    ] {
        let Ok(Progress::Done(hello)) = hello_with(&[sni(&[name])]) else {
            panic!("{name:?} is not read")
        };
        assert_eq!(hello.server_name.as_deref(), valid.then_some(name));
        assert_eq!(hello.versions, [ProtocolVersion(0x0303)]);
    }
}

#[test]
fn what_could_be_understood_in_two_ways_is_malformed() {
    for extensions in [
        &[sni(&["a.example"]), sni(&["b.example"])][..],
        &[sni(&["a.example", "b.example"])],
        &[extension(16, &vector16(b"\x00"))],
        &[extension(43, &[3, 3, 4, 3])],
        &[extension(43, &[2, 3, 4, 0])],
        // And what is made to take memory.
        &[extension(16, &vector16(&b"\x01a".repeat(129)))],
        &(1000..1129)
            .map(|kind| extension(kind, &[]))
            .collect::<Vec<_>>(),
    ] {
        assert_eq!(
            hello_with(extensions),
            Err(Malformed::Field),
            "{extensions:x?}"
        );
    }
}

#[test]
fn hellos_that_cannot_be_are_malformed_early() {
    assert_eq!(
        ClientHello::parse(b"\x16\x03\x01\x00\x04\x01\x01\x00\x01"),
        Err(Malformed::TooLong)
    );
    for stream in [
        &b"\x16\x03\x00"[..],
        b"\x15\x03\x01\x00\x01",
        b"\x16\x03\x01\x00\x01\x02\x15\x03\x01\x00\x02",
        b"\x17",
    ] {
        assert_eq!(
            ServerFirst::parse(stream),
            Err(Malformed::NotHandshake),
            "{stream:x?}"
        );
    }
    assert_eq!(alert_name(ACCESS_DENIED), Some("access_denied"));
}

#[test]
fn hello_retry_request_is_told_apart() {
    let mut retry = vec![3, 3];
    retry.extend(b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91");
    retry.extend(b"\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c");
    retry.extend([0, 0x13, 0x01, 0]);
    let parsed = ServerFirst::parse(&records(&message(2, &retry), 9));
    let Ok(Progress::Done(ServerFirst::Hello(hello))) = parsed else {
        panic!("{parsed:?}")
    };
    assert!(hello.retry);
    assert_eq!(hello.version, ProtocolVersion(0x0303));
    assert_eq!(
        cipher_suite_name(hello.cipher_suite),
        Some("TLS_AES_128_GCM_SHA256")
    );
}

proptest! {
    #[test]
    fn framing_is_judged_alike_however_it_is_split(
        stream in proptest::collection::vec(prop_oneof![Just(22_u8), Just(23), Just(3), Just(0), any::<u8>()], 0..200),
        cut in 0_usize..200,
    ) {
        let mut whole = RecordGuard::default();
        let expected = whole.check(&stream);
        let cut = cut.min(stream.len());
        let mut split = RecordGuard::default();
        let result = split.check(&stream[..cut]).and_then(|()| split.check(&stream[cut..]));
        prop_assert_eq!(result, expected);
    }

    #[test]
    fn hellos_never_panic_and_never_change_their_mind(
        flips in proptest::collection::vec((0_usize..120, any::<u8>()), 0..6),
        cut in 0_usize..200,
    ) {
        let mut stream = records(&client_hello(), 50);
        for (at, value) in flips {
            if let Some(byte) = stream.get_mut(at) { *byte = value; }
        }
        let _ = ServerFirst::parse(&stream);
        let whole = ClientHello::parse(&stream);
        // What was decided on a part stays decided.
        match ClientHello::parse(&stream[..cut.min(stream.len())]) {
            Ok(Progress::NeedMore) => {}
            part => prop_assert_eq!(part, whole),
        }
    }
}

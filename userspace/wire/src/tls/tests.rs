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
        Ok(Progress::Done(ServerFirst::Alert(2, 49)))
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
        b"\x16\x03\x01\x00\x02",
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

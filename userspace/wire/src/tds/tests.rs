use proptest::prelude::*;

use super::*;
use crate::{Look, Next, Rewrite as _, RewriteError};

/// What FreeTDS 1.3 sends with `encryption = request`.
const AGENT: &[u8] = b"\x12\x01\x00\x3a\0\0\0\0\0\x00\x1a\x00\x06\x01\x00\x20\x00\x01\x02\x00\x21\
    \x00\x0c\x03\x00\x2d\x00\x04\x04\x00\x31\x00\x01\xff\x09\0\0\0\0\0\x00MSSQLServer\0\x4b\x3d\0\0\0";

/// The answer of MS-TDS §4.1's kind: version 16, MARS off, this encryption.
fn answer(encryption: u8) -> Vec<u8> {
    let mut answer =
        b"\x04\x01\x00\x2b\0\0\x01\0\0\x00\x1a\x00\x06\x01\x00\x20\x00\x01\x02\x00\x21\
        \x00\x01\x03\x00\x22\x00\x00\x04\x00\x22\x00\x01\xff\x10\0\x03\xe8\0\0"
            .to_vec();
    answer.extend([encryption, 0, 0]);
    answer
}

fn agent() -> Prelogin {
    match parse_prelogin(AGENT) {
        Ok(Progress::Done((prelogin, length))) => {
            assert_eq!(length, AGENT.len());
            prelogin
        }
        other => panic!("{other:?}"),
    }
}

/// How much is left behind the go-ahead, and what the agent is told.
fn converse(pieces: &[&[u8]]) -> Result<Option<(usize, Vec<u8>)>, DialogueError> {
    let mut dialogue = StartTls::new(agent());
    let mut heard = Vec::new();
    assert!(matches!(dialogue.step(&heard), Ok(Step::Say { .. })));
    for piece in pieces {
        heard.extend_from_slice(piece);
        match dialogue.step(&heard)? {
            Step::NeedMore => {}
            Step::Handshake { consumed } => {
                return Ok(Some((heard.len() - consumed, dialogue.welcome().to_agent)));
            }
            Step::Say { .. } => panic!("it speaks twice"),
        }
    }
    Ok(None)
}

#[test]
fn the_request_demands_encryption_and_tells_no_thread() {
    let mut expected = AGENT.to_vec();
    expected[40] = 1;
    expected[53..57].fill(0);
    assert_eq!(agent().request(), expected);
    assert!(!agent().insists_on_tls());
}

#[test]
fn servers_answers() {
    for encryption in [1, 3] {
        let (left, told) = converse(&[&answer(encryption)]).unwrap().unwrap();
        assert_eq!(left, 0);
        let mut expected = answer(2);
        expected[6] = 0; // the packet's id
        assert_eq!(told, expected);
    }
    let injected = [answer(1), b"\x04".to_vec()].concat();
    assert_eq!(converse(&[&injected]).unwrap().unwrap().0, 1);
    assert!(matches!(
        converse(&[&answer(2)]),
        Err(DialogueError::NotOffered(_))
    ));
    assert!(matches!(
        converse(&[&answer(0)]),
        Err(DialogueError::Declined(_))
    ));
    for nonsense in [
        &b"220 ready"[..],
        AGENT,
        b"\x04\x00",
        b"\x04\x01\xff\xff\0\0\0\0",
    ] {
        assert!(matches!(
            converse(&[nonsense]),
            Err(DialogueError::Protocol(_))
        ));
    }
}

#[test]
fn first_packets_are_told_apart() {
    for (stream, expected) in [
        (AGENT, Look::Yes),
        (&AGENT[..12], Look::NeedMore),
        (b"", Look::NeedMore),
        (b"\x12\x00", Look::No),
        (b"\x12\x01\0\x08\0\0\0\0", Look::No),
        (b"\x12\x01\0\x2f\0\0\x01\0\x01", Look::No),
        (b"\x10\x01\0\x90\0\0\x01\0", Look::No), // LOGIN7
        (b"\x16\x03\x01", Look::No),
        (b"\0\0\0\x08", Look::No),
    ] {
        assert_eq!(looks_like_prelogin(stream), expected, "{stream:x?}");
    }
}

#[test]
fn what_a_client_may_not_say() {
    // Anything but a name of an instance; an option twice; one outside of the packet.
    for (at, byte) in [(41, b' '), (52, b'x'), (13, 0), (13, 4), (15, 0xff)] {
        let mut changed = AGENT.to_vec();
        changed[at] = byte;
        assert_eq!(parse_prelogin(&changed), Err(Malformed), "{at}");
    }
    for (encryption, insists) in [(0, false), (1, true), (2, false), (3, true), (0x80, true)] {
        let mut changed = AGENT.to_vec();
        changed[40] = encryption;
        let Ok(Progress::Done((prelogin, _))) = parse_prelogin(&changed) else {
            panic!("{encryption}");
        };
        assert_eq!(prelogin.insists_on_tls(), insists);
    }
}

#[test]
fn refusals_are_whole_packets() {
    let long = "\u{1f512}\r\n".repeat(4000);
    for (head, packets) in [(AGENT, 2), (b"".as_slice(), 1), (b"\x10\x01", 1)] {
        let words = refusal(head, &long);
        let mut rest = &words[..];
        let mut count = 0;
        while !rest.is_empty() {
            assert_eq!(rest[..2], [4, 1]);
            let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            assert!(length <= 4096);
            rest = &rest[length..];
            count += 1;
        }
        assert_eq!(count, packets);
    }
    assert!(matches!(
        parse_answer(&refusal(AGENT, "why")),
        Ok(Progress::Done((answer, _))) if answer.encryption() == ENCRYPT_NOT_SUP
    ));
}

/// Unwraps a server's packets, in reads of at most so many bytes.
fn unwrap(mut stream: &[u8], most: usize) -> Result<(Vec<u8>, bool), Malformed> {
    let (mut unwrapper, mut out) = (Unwrapper::default(), Vec::new());
    while !stream.is_empty() {
        let wanted = match unwrapper.wanted() {
            Wanted::Header(wanted) | Wanted::Data(wanted) => wanted,
        };
        assert!(wanted > 0);
        let (read, rest) = stream.split_at(wanted.min(most).min(stream.len()));
        stream = rest;
        match unwrapper.wanted() {
            Wanted::Header(_) => unwrapper.header(read)?,
            Wanted::Data(_) => {
                unwrapper.took(read.len());
                out.extend_from_slice(read);
            }
        }
    }
    Ok((out, unwrapper.is_between_packets()))
}

fn filter(pieces: &[&[u8]]) -> Result<(Vec<u8>, Next), RewriteError> {
    let (mut filter, mut out) = (PreloginFilter::default(), Vec::new());
    let mut next = Next::Continue;
    for piece in pieces {
        if next == Next::Done {
            out.extend_from_slice(piece);
        } else {
            next = filter.rewrite(piece, &mut out)?;
        }
    }
    filter.finish(&mut out);
    Ok((out, next))
}

#[test]
fn inside_tds_8_the_agent_hears_of_no_encryption() {
    let stream = [answer(1), b"\x04\x01more".to_vec()].concat();
    let mut expected = [answer(2), b"\x04\x01more".to_vec()].concat();
    expected[6] = 0;
    assert_eq!(filter(&[&stream]), Ok((expected, Next::Done)));
    assert!(filter(&[b"HTTP/1.1"]).is_err());
}

/// PRELOGINs and answers, or nearly.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let seed = prop_oneof![
        Just(AGENT.to_vec()),
        (0_u8..5).prop_map(answer),
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
        match looks_like_prelogin(beginning) {
            Look::NeedMore => prop_assert!(beginning.len() < 13),
            decided => prop_assert_eq!(decided, looks_like_prelogin(&stream)),
        }
        match parse_prelogin(beginning) {
            Ok(Progress::NeedMore) => prop_assert!(beginning.len() < 4096),
            decided => prop_assert_eq!(decided, parse_prelogin(&stream)),
        }
    }

    #[test]
    fn splitting_changes_nothing(stream in messages(), cut in any::<prop::sample::Index>()) {
        let (first, second) = stream.split_at(cut.index(stream.len() + 1));
        prop_assert_eq!(filter(&[&stream]), filter(&[first, second]));
        match (converse(&[&stream]), converse(&[first, second])) {
            (Ok(Some((left, told))), Ok(Some((fewer, same)))) => {
                prop_assert!(fewer <= left);
                prop_assert_eq!(told, same);
            }
            (whole, split) => prop_assert_eq!(whole, split),
        }
    }

    #[test]
    fn what_is_wrapped_is_unwrapped(flight in prop::collection::vec(any::<u8>(), 0..10_000), most in 1_usize..5000) {
        let wrapped = wrap_handshake(&flight);
        prop_assert_eq!(unwrap(&wrapped, most), Ok((flight, true)));
    }

    #[test]
    fn reads_of_any_size_unwrap_the_same(stream in any::<Vec<u8>>(), most in 1_usize..20) {
        prop_assert_eq!(unwrap(&stream, most).is_ok(), unwrap(&stream, 1000).is_ok());
    }
}

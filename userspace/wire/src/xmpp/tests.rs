use proptest::prelude::*;

use super::*;
use crate::{Next, Rewrite as _, RewriteError};

const AGENT: &[u8] = b"<?xml version='1.0'?>\n<stream:stream to='site.example' version=\"1.0\" \
    xmlns='jabber:client' from='needle@site.example' xmlns:stream='http://etherx.jabber.org/streams'>";
const HEADER: &[u8] = b"<?xml version='1.0'?><stream:stream id='x>y' from='site.example' \
    version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
const FEATURES: &[u8] = b"<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'>\
    <required/></starttls></stream:features>";
const PROCEED: &[u8] = b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

fn start_tls() -> StartTls {
    match parse_header(AGENT) {
        Ok(Progress::Done(header)) => StartTls::new(header),
        other => panic!("{other:?}"),
    }
}

/// What is said to a server that speaks in these pieces, and how much is left behind the
/// go-ahead.
fn converse(pieces: &[&[u8]]) -> Result<(String, Option<usize>), DialogueError> {
    let mut dialogue = start_tls();
    let (mut heard, mut said) = (Vec::new(), String::new());
    for piece in [&[&b""[..]], pieces].concat() {
        heard.extend_from_slice(piece);
        loop {
            match dialogue.step(&heard)? {
                Step::NeedMore => break,
                Step::Say { consumed, words } => {
                    heard.drain(..consumed);
                    said += str::from_utf8(words.bytes()).unwrap();
                }
                Step::Handshake { consumed } => return Ok((said, Some(heard.len() - consumed))),
            }
        }
    }
    Ok((said, None))
}

#[test]
fn a_server_goes_ahead() {
    let (said, left) = converse(&[HEADER, FEATURES, PROCEED]).unwrap();
    assert_eq!(left, Some(0));
    assert_eq!(
        said,
        "<?xml version='1.0'?><stream:stream to='site.example' version='1.0' \
         xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>\
         <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
    );
    let (_, left) = converse(&[HEADER, b"\n", FEATURES, b"\n", PROCEED, b"<more/>"]).unwrap();
    assert_eq!(left, Some(0), "later bytes meet the handshake");
    let (_, left) = converse(&[HEADER, FEATURES, &[PROCEED, b"<iq/>"].concat()]).unwrap();
    assert_eq!(left, Some(5));
}

#[test]
fn servers_that_do_not() {
    let declined = |words: &str| Err(DialogueError::Declined(words.to_owned()));
    assert_eq!(
        converse(&[HEADER, b"<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text>not\x07 here</text></stream:error></stream:stream>"]),
        declined("stream error host-unknown, not here")
    );
    assert_eq!(
        converse(&[
            HEADER,
            FEATURES,
            b"<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>"
        ]),
        declined("it answers starttls with failure")
    );
    assert_eq!(
        converse(&[HEADER, b"</stream:stream>"]),
        declined("it closes the stream")
    );
    assert_eq!(
        converse(&[HEADER, b"<stream:features><mechanisms/></stream:features>"]),
        Err(DialogueError::NotOffered("no starttls in its features"))
    );
    for nonsense in [
        &[&b"220 ready\r\n<"[..]][..],
        &[b"<html>"],
        &[HEADER, b"<message/>"],
        &[HEADER, FEATURES, b"<proceed/>"],
        &[HEADER, b"<stream:features></stream:feature>"],
        &[HEADER, b"<!DOCTYPE"],
        &[b"<?php"],
    ] {
        let result = converse(nonsense);
        assert!(
            matches!(result, Err(DialogueError::Protocol(_))),
            "{result:?}"
        );
    }
}

#[test]
fn headers_are_told_apart() {
    for (stream, expected) in [
        (AGENT, Look::Yes),
        (b"<stream:stream to='x'", Look::Yes),
        (
            b"<?xml version='1.0' encoding='UTF-8'?> <stream:stream\n",
            Look::Yes,
        ),
        (b"<", Look::NeedMore),
        (b"<?xml version='1.0'?>", Look::NeedMore),
        (b"<stream:stream", Look::NeedMore),
        (b"<34>Oct 11 22:14:15 host su: failed", Look::No),
        (b"<?xml version='1.0'?><methodCall>", Look::No),
        (b"<stream:streams ", Look::No),
        (b"<policy-file-request/>", Look::No),
        (b"GET / HTTP/1.1", Look::No),
    ] {
        assert_eq!(
            looks_like_stream(stream),
            expected,
            "{}",
            stream.escape_ascii()
        );
    }
}

#[test]
fn only_a_domain_is_taken_of_the_agents_header() {
    for (to, domain) in [
        ("site.example", true),
        ("b\u{fc}cher.example", true),
        ("10.99.0.2", true),
        ("", false),
        ("a b", false),
        ("a&apos;b", false),
        ("alice@site.example", false),
        ("a/b", false),
    ] {
        let header = format!("<stream:stream xmlns='jabber:server' to='{to}'>");
        let parsed = parse_header(header.as_bytes());
        if domain {
            let expected = Header {
                to: Some(to.to_owned()),
                from_server: true,
            };
            assert_eq!(parsed, Ok(Progress::Done(expected)));
        } else {
            assert_eq!(parsed, Err(Malformed::To), "{to}");
        }
    }
    assert_eq!(
        parse_header(b"<stream:stream to='a' to='b'>"),
        Err(Malformed::Xml)
    );
    let endless = [b"<stream:stream to='", &[b'a'; MAX_HEADER][..]].concat();
    assert_eq!(parse_header(&endless), Err(Malformed::Length));
}

fn filter(pieces: &[&[u8]]) -> Result<(Vec<u8>, Next), RewriteError> {
    let (mut filter, mut out) = (FeaturesFilter::default(), Vec::new());
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

const OFFER: &[u8] = b"<stream:features>\n\
    <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>\
    <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>SCRAM-SHA-1-PLUS</mechanism> \
    <mechanism>PLAIN</mechanism></mechanisms>\
    <authentication xmlns='urn:xmpp:sasl:2'><mechanism>SCRAM-SHA-1-PLUS</mechanism>\
    <mechanism>SCRAM-SHA-1</mechanism><inline><sm xmlns='urn:xmpp:sm:3'/></inline></authentication>\
    <sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'><channel-binding type='tls-exporter'/></sasl-channel-binding>\
    <auth xmlns='http://jabber.org/features/iq-auth'/></stream:features>";

#[test]
fn channel_binding_is_taken_out_of_the_first_features() {
    let stream = [HEADER, OFFER, b"<stream:features>-PLUS"].concat();
    let (seen, next) = filter(&[&stream]).unwrap();
    assert_eq!(next, Next::Done);
    let expected = b"<stream:features>\n\
        <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'> <mechanism>PLAIN</mechanism></mechanisms>\
        <authentication xmlns='urn:xmpp:sasl:2'><mechanism>SCRAM-SHA-1</mechanism>\
        <inline><sm xmlns='urn:xmpp:sm:3'/></inline></authentication>\
        <auth xmlns='http://jabber.org/features/iq-auth'/></stream:features><stream:features>-PLUS";
    assert_eq!(
        String::from_utf8_lossy(&seen),
        String::from_utf8_lossy(&[HEADER, expected].concat())
    );
}

#[test]
fn streams_that_are_not_changed() {
    for stream in [
        &[HEADER, b"<stream:error><x/></stream:error>"].concat()[..],
        &[HEADER, b"<message>-PLUS</message>"].concat(),
        &[HEADER, b"<stream:features/>"].concat(),
        &[HEADER, b"<stream:feat"].concat(),
        b"<html>",
    ] {
        assert_eq!(filter(&[stream]).unwrap().0, stream);
    }
}

#[test]
fn streams_that_cannot_be_carried() {
    let only = b"<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
        <mechanism>SCRAM-SHA-1-PLUS</mechanism></mechanisms></stream:features>";
    assert!(matches!(
        filter(&[HEADER, only]),
        Err(RewriteError::ChannelBinding(_))
    ));
    let long = [b"<stream:features>", &[b' '; 70_000][..]].concat();
    let deep = [HEADER, b"<stream:features>", &b"<a>".repeat(100)].concat();
    for stream in [&[HEADER, &long].concat(), &deep] {
        assert!(matches!(filter(&[stream]), Err(RewriteError::Protocol(_))));
    }
}

#[test]
fn the_refusal_is_a_stream_whatever_the_reason_holds() {
    let refused = refusal("a</text>&\0\u{ffff}b");
    let (_, at) = opening(&refused).unwrap().unwrap();
    let error = element(&refused[at..]).unwrap().unwrap();
    assert_eq!(error.name, b"stream:error");
    let (children, _) = error.children().unwrap();
    assert_eq!(
        children[1].1.content,
        b"mantled refused this connection: a&lt;/text&gt;&amp;  b"
    );
    assert_eq!(&refused[at + error.whole.len()..], b"</stream:stream>");
}

/// Streams of a server, or nearly.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(HEADER.to_vec()),
        Just(FEATURES.to_vec()),
        Just(OFFER.to_vec()),
        Just(PROCEED.to_vec()),
        "[<>/ a-c'?!]{0,9}".prop_map(String::into_bytes),
        any::<Vec<u8>>(),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn more_bytes_never_change_a_decision(stream in "(<\\?xml[ a-z]{0,130}(\\?>)?)?[ \n]{0,9}(<stream:stream)?[ >a]{0,3}", cut in any::<prop::sample::Index>()) {
        let stream = stream.as_bytes();
        let beginning = &stream[..cut.index(stream.len() + 1)];
        match looks_like_stream(beginning) {
            Look::NeedMore => prop_assert!(beginning.len() < 153),
            decided => prop_assert_eq!(decided, looks_like_stream(stream)),
        }
    }

    #[test]
    fn splitting_changes_nothing(stream in streams(), cut in any::<prop::sample::Index>()) {
        let (first, second) = stream.split_at(cut.index(stream.len() + 1));
        match (filter(&[&stream]), filter(&[first, second])) {
            (Ok(whole), Ok(split)) => prop_assert_eq!(whole, split),
            (whole, split) => prop_assert!(whole.is_err() && split.is_err()),
        }
        match (converse(&[&stream]), converse(&[first, second])) {
            (Ok((said, Some(left))), Ok((split, Some(fewer)))) => {
                prop_assert!(fewer <= left);
                prop_assert_eq!(said, split);
            }
            (whole, split) => prop_assert_eq!(whole, split),
        }
    }
}

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::{Next, Rewrite, RewriteError};

/// What was told of data connections.
#[derive(Clone, Debug, Default)]
struct Noted(Arc<Mutex<Vec<String>>>);

impl DataChannels for Noted {
    fn passive(&mut self, port: u16) {
        self.0.lock().unwrap().push(format!("passive {port}"));
    }

    fn active(&mut self, listener: SocketAddr) -> Option<SocketAddr> {
        self.0.lock().unwrap().push(format!("active {listener}"));
        let own = if listener.is_ipv4() {
            "192.0.2.9:50000"
        } else {
            "[2001:db8::9]:50000"
        };
        (listener.port() > 1023).then(|| own.parse().unwrap())
    }
}

fn feed(filter: &mut dyn Rewrite, pieces: &[&[u8]]) -> (Result<Next, RewriteError>, Vec<u8>) {
    let mut out = Vec::new();
    let mut last = Ok(Next::Continue);
    for piece in pieces {
        match last {
            Ok(Next::Continue) => last = filter.rewrite(piece, &mut out),
            Ok(Next::Done) => out.extend_from_slice(piece),
            Err(_) => break,
        }
    }
    if last == Ok(Next::Continue) {
        filter.finish(&mut out);
    }
    (last, out)
}

/// What the server hears of these commands, and what was told of them.
fn commands(role: Role, sent: &[u8]) -> (String, Vec<String>) {
    let noted = Noted::default();
    let (mut filter, _) = filters(noted.clone(), role);
    let (result, out) = feed(&mut filter, &[sent]);
    result.unwrap();
    let told = noted.0.lock().unwrap().clone();
    (String::from_utf8_lossy(&out).into_owned(), told)
}

fn replies(role: Role, sent: &[u8]) -> (String, Vec<String>) {
    let noted = Noted::default();
    let (_, mut filter) = filters(noted.clone(), role);
    let (result, out) = feed(&mut filter, &[sent]);
    result.unwrap();
    let told = noted.0.lock().unwrap().clone();
    (String::from_utf8_lossy(&out).into_owned(), told)
}

#[test]
fn replies_are_cut_out_of_a_stream() {
    let several = b"220-Welcome\r\n220 is not the end? It is.\r\nmore";
    for (stream, expected) in [
        (
            &b"220 (vsFTPd 3.0.3)\r\n331 x"[..],
            Ok(Progress::Done((220, 20))),
        ),
        (several, Ok(Progress::Done((220, 41)))),
        (
            b"220-a\r\n 220 b\r\n220-c\r\n221 d\r\n220 e\r\n",
            Ok(Progress::Done((220, 36))),
        ),
        (b"220 a", Ok(Progress::NeedMore)),
        (b"220-a\r\n220-b\r\n", Ok(Progress::NeedMore)),
        (b"22", Ok(Progress::NeedMore)),
        (b"", Ok(Progress::NeedMore)),
        (b"22x ", Err(NoReply)),
        (b"2200 ", Err(NoReply)),
        (b"SSH-", Err(NoReply)),
    ] {
        let found = Reply::parse(stream).map(|found| match found {
            Progress::Done(Reply { code, length }) => Progress::Done((code, length)),
            Progress::NeedMore => Progress::NeedMore,
        });
        assert_eq!(found, expected, "{}", stream.escape_ascii());
    }
}

#[test]
fn greetings_are_told_from_those_of_mail_servers() {
    for (greeting, tie, expected) in [
        (&b"220 (vsFTPd 3.0.3)\r\n"[..], false, Look::Yes),
        (b"220 ProFTPD Server\r\n", false, Look::Yes),
        (
            b"220---------- Welcome to Pure-FTPd\r\n220-You",
            false,
            Look::Yes,
        ),
        (b"220 mail.example ESMTP Postfix\r\n", true, Look::No),
        (b"220 ftp.example ESMTP\r\n", true, Look::No),
        (b"220 files.example ready\r\n", true, Look::Yes),
        (b"220 files.example ready\r\n", false, Look::No),
        (b"220-files.example\r\n", false, Look::NeedMore),
        (b"220 mail.example ES", true, Look::NeedMore),
        (b"421 Too many connections\r\n", true, Look::Yes),
        (b"554 No\r\n", true, Look::No),
        (b"+OK\r\n", true, Look::No),
        (b"22", true, Look::NeedMore),
    ] {
        assert_eq!(
            looks_like_greeting(greeting, tie),
            expected,
            "{}",
            greeting.escape_ascii()
        );
    }
}

#[test]
fn the_dialogue_ends_with_the_handshake() {
    let mut dialogue = AuthTls::default();
    assert_eq!(dialogue.step(b""), Ok(Step::NeedMore));
    assert_eq!(
        dialogue.step(b"220 (vsFTPd 3.0.3)\r\n"),
        Ok(Step::Say {
            consumed: 20,
            words: Preamble::constant(b"AUTH TLS\r\n")
        })
    );
    assert_eq!(dialogue.step(b"234 Pro"), Ok(Step::NeedMore));
    assert_eq!(
        dialogue.step(b"234 Proceed with negotiation.\r\nxx"),
        Ok(Step::Handshake { consumed: 31 })
    );
    assert_eq!(dialogue.welcome().to_agent, b"220 (vsFTPd 3.0.3)\r\n");
    for (answers, declined) in [
        (
            &[&b"530 Please login with USER and PASS.\r\n"[..]][..],
            true,
        ),
        (&[b"220 x\r\n", b"500 Unknown command.\r\n"], true),
        (&[b"220 x\r\n", b"200 x\r\n"], false),
        (&[b"234 x\r\n"], false),
        (&[b"HTTP/1.1 400"], false),
    ] {
        let mut dialogue = AuthTls::default();
        let last = answers
            .iter()
            .map(|answer| dialogue.step(answer))
            .last()
            .unwrap();
        assert_eq!(
            matches!(last, Err(DialogueError::Declined(_))),
            declined,
            "{last:?}"
        );
        assert_eq!(
            matches!(last, Err(DialogueError::Protocol(_))),
            !declined,
            "{last:?}"
        );
    }
}

#[test]
fn a_secured_agent_cannot_touch_tls() {
    let (heard, told) = commands(
        Role::Secured,
        b"AUTH TLS\r\nuser a\r\nprot c\r\n PBSZ 0\r\nCCC\r\nREIN\r\nRETR AUTH\r\nauth",
    );
    let unknown = "XREFUSED\r\n";
    assert_eq!(
        heard,
        format!("{unknown}user a\r\n{unknown}{unknown}{unknown}{unknown}RETR AUTH\r\n{unknown}")
    );
    assert!(told.is_empty());
    let passed = b"AUTH TLS\r\nPROT P\r\n";
    assert_eq!(commands(Role::Watched, passed).0.as_bytes(), passed);
}

#[test]
fn listeners_are_replaced() {
    let (heard, told) = commands(
        Role::Secured,
        b"PORT 127,0,0,1,4,1\r\neprt |1|127.0.0.1|5000|\r\nEPRT !2!::1!5001!\r\nport 127,0,0,1,0,22\r\nPORT x\r\nPORT\r\n",
    );
    assert_eq!(
        heard,
        "PORT 192,0,2,9,195,80\r\nEPRT |1|192.0.2.9|50000|\r\nEPRT |2|2001:db8::9|50000|\r\n\
         XREFUSED\r\nXREFUSED\r\nXREFUSED\r\n"
    );
    assert_eq!(
        told,
        [
            "active 127.0.0.1:1025",
            "active 127.0.0.1:5000",
            "active [::1]:5001",
            "active 127.0.0.1:22"
        ]
    );
}

#[test]
fn urgent_telnet_commands_are_left_out() {
    let (heard, _) = commands(Role::Secured, b"\xff\xf4\xff\xf2ABOR\r\nRETR \xff\xff\r\n");
    assert_eq!(heard, String::from_utf8_lossy(b"ABOR\r\nRETR \xff\xff\r\n"));
}

#[test]
fn passive_ports_are_announced() {
    let (heard, told) = replies(
        Role::Secured,
        b"227 Entering Passive Mode (10,99,0,2,195,80).\r\n\
          229 Entering Extended Passive Mode (|||6446|)\r\n\
          227 =1,2,3,4,0,21\r\n\
          227 (1,2,3,4,0,0)\r\n227 (1,2,3)\r\n229 (||6446|)\r\n\
          200-227 (1,2,3,4,5,6)\r\n227 (1,2,3,4,5,6)\r\n200 x\r\n",
    );
    assert!(heard.starts_with("227 Entering Passive Mode (10,99,0,2,195,80).\r\n"));
    assert_eq!(told, ["passive 50000", "passive 6446", "passive 21"]);
}

#[test]
fn features_of_tls_are_hidden() {
    // As vsftpd 3.0.3 sends them.
    let features = "211-Features:\r\n AUTH TLS\r\n EPRT\r\n EPSV\r\n MDTM\r\n PASV\r\n PBSZ\r\n PROT\r\n REST STREAM\r\n SIZE\r\n TVFS\r\n211 End\r\n";
    let shown = "211-Features:\r\n EPRT\r\n EPSV\r\n MDTM\r\n PASV\r\n REST STREAM\r\n SIZE\r\n TVFS\r\n211 End\r\n";
    assert_eq!(replies(Role::Secured, features.as_bytes()).0, shown);
    assert_eq!(replies(Role::Watched, features.as_bytes()).0, features);
    let other = "212-\r\n AUTH TLS\r\n212 x\r\n211-AUTH\r\n211-auth ssl;TLS\r\n211 x\r\n AUTH\r\n";
    assert_eq!(
        replies(Role::Secured, other.as_bytes()).0,
        "212-\r\n AUTH TLS\r\n212 x\r\n211-AUTH\r\n211 x\r\n AUTH\r\n"
    );
}

#[test]
fn a_go_ahead_never_reaches_a_secured_agent() {
    let (heard, _) = replies(
        Role::Secured,
        b"234 go\r\n334-a\r\n334 b\r\n220-\r\n234 x\r\n220 x\r\n",
    );
    assert_eq!(
        heard,
        "534 go\r\n534-a\r\n534 b\r\n220-\r\n234 x\r\n220 x\r\n"
    );
}

#[test]
fn an_agents_own_tls_passes_where_it_is_only_watched() {
    let noted = Noted::default();
    let (mut commands, mut replies) = filters(noted.clone(), Role::Watched);
    assert_eq!(feed(&mut commands, &[b"AUTH TLS\r\n"]).1, b"AUTH TLS\r\n");
    let (next, out) = feed(
        &mut replies,
        &[b"234 go\r\n\x16\x03\x03\n227 (1,2,3,4,5,6)\n"],
    );
    assert_eq!(next, Ok(Next::Done));
    assert_eq!(out, b"234 go\r\n\x16\x03\x03\n227 (1,2,3,4,5,6)\n");
    let (next, out) = feed(&mut commands, &[b"\x16\x03\x01\nPORT 1\n"]);
    assert_eq!(
        (next, out),
        (Ok(Next::Done), b"\x16\x03\x01\nPORT 1\n".to_vec())
    );
    assert!(noted.0.lock().unwrap().is_empty());
}

#[test]
fn the_last_reply_is_known() {
    let (_, mut filter) = filters(Noted::default(), Role::Secured);
    let mut out = Vec::new();
    for (sent, ended) in [
        (&b"200 OK\r\n"[..], false),
        (b"221-Bye\r\n", false),
        (b"221 Bye", false),
        (b"\r\n", true),
        (b"4", false),
        (b"21 Timeout\r\n", true),
    ] {
        filter.rewrite(sent, &mut out).unwrap();
        assert_eq!(filter.has_ended(), ended, "{}", sent.escape_ascii());
    }
}

#[test]
fn lines_are_bounded() {
    let long = vec![b'a'; 9000];
    let (mut commands, mut replies) = filters(Noted::default(), Role::Secured);
    assert!(feed(&mut commands, &[&long]).0.is_err());
    assert!(feed(&mut replies, &[&long]).0.is_err());
    let (mut commands, _) = filters(Noted::default(), Role::Watched);
    assert_eq!(feed(&mut commands, &[&long]), (Ok(Next::Done), long));
}

#[test]
fn the_refusal_is_one_reply() {
    let reply = refusal("a\r\n220 welcome");
    assert_eq!(
        Reply::parse(&reply),
        Ok(Progress::Done(Reply {
            code: 421,
            length: reply.len()
        }))
    );
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        "[ -~]{0,12}",
        "(211|220|227|229|234)[- ][ -~]{0,12}",
        " ?(AUTH|PROT|PORT|RETR|EPRT) ?[ -~]{0,8}",
        "(PORT|227 )[(]?127,0,0,1,[0-9]{1,3},[0-9]{1,3}[)]?",
    ];
    let ended = (line, prop_oneof!["\r\n", "\n", ""]).prop_map(|(line, end)| line + &end);
    prop::collection::vec(ended, 0..8).prop_map(|lines| lines.concat().into_bytes())
}

proptest! {
    #[test]
    fn splitting_changes_nothing(stream in stream(), cut in 0_usize..100, secured: bool) {
        let role = if secured { Role::Secured } else { Role::Watched };
        let (first, second) = stream.split_at(cut.min(stream.len()));
        let noted = [Noted::default(), Noted::default()];
        let (mut whole, mut whole_back) = filters(noted[0].clone(), role);
        let (mut cut, mut cut_back) = filters(noted[1].clone(), role);
        prop_assert_eq!(feed(&mut whole, &[&stream]), feed(&mut cut, &[first, second]));
        prop_assert_eq!(feed(&mut whole_back, &[&stream]).1, feed(&mut cut_back, &[first, second]).1);
        prop_assert_eq!(&*noted[0].0.lock().unwrap(), &*noted[1].0.lock().unwrap());
    }

    #[test]
    fn a_whole_reply_stays_the_same_when_more_follows(stream in stream(), cut in 0_usize..100) {
        let beginning = &stream[..cut.min(stream.len())];
        match Reply::parse(beginning) {
            Ok(Progress::NeedMore) => {}
            decided => prop_assert_eq!(decided, Reply::parse(&stream)),
        }
    }
}

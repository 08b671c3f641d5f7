//! DNS (RFC 1035), as much of it as tells which name an address was asked for.
//!
//! A client's name for an address is the one that it asked, never the target of an alias: that is
//! chosen by whoever runs the zone, or by who forges the answer. So the aliases of an answer are
//! followed from the question, and its addresses belong to the question's name. Records that the
//! question does not lead to are not looked at.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Next, Rewrite, RewriteError};

/// Length of the header.
const HEADER: usize = 12;

/// Records of an answer that are looked at: more than any name has that is in use.
const MAX_RECORDS: usize = 256;

/// Aliases that are followed: resolvers give up much earlier.
const MAX_ALIASES: usize = 16;

/// Compression pointers in one name; each must point further back, so there can be no loop.
const MAX_POINTERS: usize = 32;

/// Queries of one stream that may wait for their answer at a time (RFC 7766 §6.2.1.1).
const MAX_PENDING: usize = 64;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// What cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// It is no query.
    #[error("this is no DNS query")]
    NoQuery,
    /// It is no answer, or one to another question.
    #[error("this is no answer to the question")]
    NoAnswer,
    /// The name is none of a host.
    #[error("the name is none that a host can have")]
    Name,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name in lower case, without the last dot.
    pub name: String,
    /// The type of record, RFC 1035 §3.2.2.
    pub kind: u16,
    class: u16,
    id: u16,
}

/// An address of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Seconds for which it may be used: the least of the records that lead to it.
    pub ttl: u32,
}

/// Reads a query with its one question.
///
/// # Errors
/// [`DnsError::NoQuery`], [`DnsError::Name`].
pub fn question(message: &[u8]) -> Result<Question, DnsError> {
    let header = Header::read(message).ok_or(DnsError::NoQuery)?;
    if !header.is_query() {
        return Err(DnsError::NoQuery);
    }
    let (question, _) = read_question(message, header.id).ok_or(DnsError::NoQuery)?;
    if !is_host_name(&question.name) {
        return Err(DnsError::Name);
    }
    Ok(question)
}

/// The addresses that an answer gives to a question. A message that was cut short gives those
/// that are whole.
///
/// # Errors
/// [`DnsError::NoAnswer`]: another id or question, or an error of the resolver.
pub fn addresses(message: &[u8], asked: &Question) -> Result<Vec<Address>, DnsError> {
    let header = Header::read(message).ok_or(DnsError::NoAnswer)?;
    if !header.is_response()
        || header.opcode() != 0
        || header.response_code() != 0
        || header.questions != 1
    {
        return Err(DnsError::NoAnswer);
    }
    let (question, mut at) = read_question(message, header.id).ok_or(DnsError::NoAnswer)?;
    if question != *asked {
        return Err(DnsError::NoAnswer);
    }
    let mut records = Vec::new();
    for _ in 0..usize::from(header.answers).min(MAX_RECORDS) {
        let Some((record, next)) = read_record(message, at) else {
            break;
        };
        records.push(record);
        at = next;
    }
    Ok(follow(&question.name, &records))
}

/// Follows the aliases from `name`, in whichever order the records stand.
fn follow(name: &str, records: &[Record]) -> Vec<Address> {
    let mut names = vec![(name, u32::MAX)];
    let mut at = 0;
    while let Some((name, ttl)) = names.get(at).copied() {
        at += 1;
        for record in records.iter().filter(|record| record.owner == name) {
            if let Data::Alias(target) = &record.data
                && names.len() < MAX_ALIASES
                && names.iter().all(|(known, _)| known != target)
            {
                names.push((target, ttl.min(record.ttl)));
            }
        }
    }
    let mut found = Vec::new();
    for record in records {
        if let Data::Address(address) = record.data
            && let Some((_, ttl)) = names.iter().find(|(name, _)| record.owner == *name)
        {
            found.push(Address {
                address,
                ttl: record.ttl.min(*ttl),
            });
        }
    }
    found
}

struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
    authorities: u16,
}

impl Header {
    fn read(message: &[u8]) -> Option<Self> {
        Some(Self {
            id: word(message, 0)?,
            flags: word(message, 2)?,
            questions: word(message, 4)?,
            answers: word(message, 6)?,
            authorities: word(message, 8)?,
        })
        .filter(|_| message.len() >= HEADER)
    }

    /// A standard query with one question and nothing else.
    fn is_query(&self) -> bool {
        !self.is_response()
            && self.opcode() == 0
            && self.questions == 1
            && self.answers == 0
            && self.authorities == 0
    }

    fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    fn opcode(&self) -> u16 {
        (self.flags >> 11) & 0xf
    }

    fn response_code(&self) -> u16 {
        self.flags & 0xf
    }
}

struct Record {
    owner: String,
    ttl: u32,
    data: Data,
}

enum Data {
    Address(IpAddr),
    Alias(String),
    Other,
}

fn read_question(message: &[u8], id: u16) -> Option<(Question, usize)> {
    let (name, at) = read_name(message, HEADER)?;
    let question = Question {
        name,
        kind: word(message, at)?,
        class: word(message, at + 2)?,
        id,
    };
    Some((question, at + 4))
}

fn read_record(message: &[u8], at: usize) -> Option<(Record, usize)> {
    let (owner, at) = read_name(message, at)?;
    let (kind, class) = (word(message, at)?, word(message, at + 2)?);
    let ttl = u32::from(word(message, at + 4)?) << 16 | u32::from(word(message, at + 6)?);
    let length = usize::from(word(message, at + 8)?);
    let start = at + 10;
    let data = message.get(start..start + length)?;
    let data = match (class, kind) {
        (CLASS_IN, TYPE_A) => Data::Address(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
        (CLASS_IN, TYPE_AAAA) => {
            Data::Address(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into())
        }
        (CLASS_IN, TYPE_CNAME) => Data::Alias(read_name(message, start)?.0),
        _ => Data::Other,
    };
    // RFC 2181 §8: the highest bit set means zero.
    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
    Some((Record { owner, ttl, data }, start + length))
}

/// Reads a name (§4.1.4) as lower-case text without the last dot; where a label holds something
/// else than printable ASCII, or a dot, no text could stand for it.
fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut after = None;
    let mut pointers = 0;
    loop {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((name, after.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                for byte in label {
                    if !byte.is_ascii_graphic() || *byte == b'.' {
                        return None;
                    }
                    name.push(char::from(byte.to_ascii_lowercase()));
                }
                if name.len() > 253 {
                    return None;
                }
                at += 1 + length;
            }
            0xc0.. => {
                let target = usize::from(word(message, at)? & 0x3fff);
                pointers += 1;
                if target >= at || pointers > MAX_POINTERS {
                    return None;
                }
                after.get_or_insert(at + 2);
                at = target;
            }
            _ => return None,
        }
    }
}

/// Letters, digits, hyphens and, as in use, underscores.
fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Is told of queries and their answers.
pub trait Learner: Send + Sync + std::fmt::Debug {
    /// An answer has come, and nobody has seen it yet.
    fn learn(&self, query: &[u8], answer: &[u8]);
}

/// Queries of a stream that wait for their answer, by id.
type Pending = Arc<Mutex<HashMap<u16, Vec<u8>>>>;

/// The two directions of DNS over TCP (RFC 7766): each message follows its length. What is no
/// query does not pass; answers are shown to `learner` before the client gets them.
pub fn over_tcp(learner: Arc<dyn Learner>) -> (Queries, Answers) {
    let pending = Pending::default();
    (
        Queries {
            frames: Frames::default(),
            pending: Arc::clone(&pending),
        },
        Answers {
            frames: Frames::default(),
            pending,
            learner,
        },
    )
}

/// The client's side of DNS over TCP.
#[derive(Debug)]
pub struct Queries {
    frames: Frames,
    pending: Pending,
}

/// The server's side.
#[derive(Debug)]
pub struct Answers {
    frames: Frames,
    pending: Pending,
    learner: Arc<dyn Learner>,
}

impl Rewrite for Queries {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let Self { frames, pending } = self;
        frames.each(input, out, |message| {
            let refused = |error: DnsError| RewriteError::Protocol(error.to_string());
            let header = Header::read(message)
                .ok_or(DnsError::NoQuery)
                .map_err(refused)?;
            match question(message) {
                Ok(_) | Err(DnsError::Name) => {}
                Err(error) => return Err(refused(error)),
            }
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            if pending.len() >= MAX_PENDING {
                // Of those nobody has answered; their names stay unknown.
                pending.clear();
            }
            pending.insert(header.id, message.to_vec());
            Ok(())
        })?;
        // What is no DNS must not wait for the length that its first bytes spell.
        match frames.held.get(2..).and_then(Header::read) {
            Some(header) if !header.is_query() => {
                Err(RewriteError::Protocol(DnsError::NoQuery.to_string()))
            }
            _ => Ok(Next::Continue),
        }
    }
}

impl Rewrite for Answers {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        let Self {
            frames,
            pending,
            learner,
        } = self;
        frames.each(input, out, |message| {
            let id = word(message, 0);
            let query = id.and_then(|id| {
                let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
                pending.remove(&id)
            });
            if let Some(query) = query {
                learner.learn(&query, message);
            }
            Ok(())
        })
    }
}

/// Messages with their length before them. What is held is the beginning of one message.
#[derive(Debug, Default)]
struct Frames {
    held: Vec<u8>,
}

impl Frames {
    fn each(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut judge: impl FnMut(&[u8]) -> Result<(), RewriteError>,
    ) -> Result<Next, RewriteError> {
        self.held.extend_from_slice(input);
        let mut at = 0;
        while let Some(length) = word(&self.held, at) {
            let Some(message) = self.held.get(at + 2..at + 2 + usize::from(length)) else {
                break;
            };
            judge(message)?;
            at += 2 + message.len();
        }
        out.extend(self.held.drain(..at));
        Ok(Next::Continue)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in text.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        bytes
    }

    fn message(id: u16, flags: u16, asked: &str, records: &[(&str, u16, u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [id, flags, 1, records.len() as u16, 0, 0] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(name(asked));
        bytes.extend([0, 1, 0, 1]);
        for (owner, kind, ttl, data) in records {
            bytes.extend(name(owner));
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(ttl.to_be_bytes());
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    const QUERY: u16 = 0x0100;
    const ANSWER: u16 = 0x8180;

    fn asked(text: &str) -> Question {
        question(&message(7, QUERY, text, &[])).unwrap()
    }

    #[test]
    fn aliases_belong_to_the_name_that_was_asked() {
        let answer = message(
            7,
            ANSWER,
            "DB.example",
            &[
                ("deep.example", TYPE_A, 60, vec![192, 0, 2, 9]),
                ("db.example", TYPE_CNAME, 300, name("alias.example")),
                ("alias.example", TYPE_CNAME, 20, name("deep.example")),
                ("bank.example", TYPE_A, 60, vec![192, 0, 2, 66]),
            ],
        );
        assert_eq!(
            addresses(&answer, &asked("db.example")),
            Ok(vec![Address {
                address: [192, 0, 2, 9].into(),
                ttl: 20
            }])
        );
    }

    #[test]
    fn what_does_not_answer_the_question_teaches_nothing() {
        let record = ("db.example", TYPE_A, 60, vec![192, 0, 2, 9]);
        for (what, answer) in [
            (
                "another name",
                message(7, ANSWER, "bank.example", std::slice::from_ref(&record)),
            ),
            (
                "another id",
                message(8, ANSWER, "db.example", std::slice::from_ref(&record)),
            ),
            ("a query", message(7, QUERY, "db.example", &[])),
            ("an error", message(7, ANSWER | 3, "db.example", &[record])),
        ] {
            assert_eq!(
                addresses(&answer, &asked("db.example")),
                Err(DnsError::NoAnswer),
                "{what}"
            );
        }
    }

    #[test]
    fn compressed_names_are_read_and_loops_are_not_followed() {
        let mut answer = message(7, ANSWER, "db.example", &[]);
        answer[7] = 2;
        let owner = [0xc0, 12];
        for address in [[192, 0, 2, 1], [192, 0, 2, 2]] {
            answer.extend(owner);
            answer.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address);
        }
        assert_eq!(addresses(&answer, &asked("db.example")).unwrap().len(), 2);
        // The second record's owner points to itself.
        let at = answer.len() - 16;
        answer[at + 1] = at as u8;
        assert_eq!(addresses(&answer, &asked("db.example")).unwrap().len(), 1);
    }

    #[test]
    fn only_queries_pass() {
        for bad in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &message(7, 0x2800, "db.example", &[]), // UPDATE
            &message(7, ANSWER, "db.example", &[]),
            b"",
        ] {
            assert_eq!(question(bad), Err(DnsError::NoQuery));
        }
    }

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<(Vec<u8>, Vec<u8>)>>);

    impl Learner for Heard {
        fn learn(&self, query: &[u8], answer: &[u8]) {
            self.0
                .lock()
                .unwrap()
                .push((query.to_vec(), answer.to_vec()));
        }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u16).to_be_bytes()[..], message].concat()
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = question(&bytes);
            let _ = addresses(&bytes, &asked("db.example"));
        }

        #[test]
        fn pieces_do_not_matter(cut in 0_usize..60, other in 0_usize..60) {
            let query = message(7, QUERY, "db.example", &[]);
            let answer = message(7, ANSWER, "db.example", &[("db.example", TYPE_A, 60, vec![192, 0, 2, 9])]);
            let heard = Arc::new(Heard::default());
            let (mut queries, mut answers) = over_tcp(Arc::clone(&heard) as Arc<dyn Learner>);
            for (rewrite, stream) in [
                (&mut queries as &mut dyn Rewrite, framed(&query)),
                (&mut answers as &mut dyn Rewrite, framed(&answer)),
            ] {
                let mut cuts = [cut.min(stream.len()), other.min(stream.len())];
                cuts.sort_unstable();
                let mut out = Vec::new();
                for piece in [&stream[..cuts[0]], &stream[cuts[0]..cuts[1]], &stream[cuts[1]..]] {
                    prop_assert_eq!(rewrite.rewrite(piece, &mut out), Ok(Next::Continue));
                }
                prop_assert_eq!(out, stream);
            }
            prop_assert_eq!(&*heard.0.lock().unwrap(), &[(query, answer)]);
        }
    }
}

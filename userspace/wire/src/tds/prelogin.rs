//! PRELOGIN (MS-TDS §2.2.6.5).

use super::packet::{END_OF_MESSAGE, HEADER, MAX_PACKET, PRELOGIN, TABULAR_RESULT, packet};
use crate::{Look, Progress, begins, reader::Reader};

const VERSION: u8 = 0;
const ENCRYPTION: u8 = 1;
const INSTANCE: u8 = 2;
const THREAD: u8 = 3;
const MARS: u8 = 4;
const FEDERATED: u8 = 6;
const NONCE: u8 = 7;
const TERMINATOR: u8 = 0xff;

/// Values of ENCRYPTION.
const ENCRYPT_OFF: u8 = 0;
pub(super) const ENCRYPT_ON: u8 = 1;
pub(super) const ENCRYPT_NOT_SUP: u8 = 2;
pub(super) const ENCRYPT_REQ: u8 = 3;

/// Longest name of an instance, in bytes. SQL Server's own have at most 16 letters.
const MAX_INSTANCE: usize = 64;

/// Not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed TDS PRELOGIN")]
pub struct Malformed;

/// Does a client's stream begin with a PRELOGIN of one packet whose first option is VERSION, as it
/// must be? 13 bytes decide.
pub fn looks_like_prelogin(stream: &[u8]) -> Look {
    // The length of the packet, its id, and the place of the version may be any.
    let fixed: [(usize, &[u8]); 4] = [
        (0, &[PRELOGIN, END_OF_MESSAGE]),
        (4, &[0, 0]),
        (7, &[0, VERSION]),
        (11, &[0, 6]),
    ];
    let mut look = Look::Yes;
    for (at, with) in fixed {
        match begins(stream.get(at..).unwrap_or_default(), with) {
            Look::No => return Look::No,
            Look::NeedMore => look = Look::NeedMore,
            Look::Yes => {}
        }
    }
    match header(stream, PRELOGIN) {
        Err(Malformed) => Look::No,
        Ok(_) => look,
    }
}

/// What one side says before it logs in: the options that a session depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prelogin {
    version: [u8; 6],
    encryption: u8,
    /// A client's is a name that ends with NUL, a server's 0 (the same) or 1.
    instance: Option<Vec<u8>>,
    thread: bool,
    mars: Option<u8>,
    federated: Option<u8>,
    nonce: Option<[u8; 32]>,
}

impl Prelogin {
    /// Does the sender want TLS of its own whatever the server says? It sends ENCRYPT_ON,
    /// ENCRYPT_REQ, or wants to show a certificate.
    pub fn insists_on_tls(&self) -> bool {
        !matches!(self.encryption, ENCRYPT_OFF | ENCRYPT_NOT_SUP)
    }

    pub(super) fn encryption(&self) -> u8 {
        self.encryption
    }

    /// What refuses an agent begins with it: the newest version, for that decides how the agent
    /// reads the error.
    pub(super) fn of_refusal() -> Self {
        Self {
            version: [16, 0, 0, 0, 0, 0],
            encryption: ENCRYPT_NOT_SUP,
            instance: Some(vec![0]),
            thread: true,
            mars: Some(0),
            federated: None,
            nonce: None,
        }
    }

    /// A client's, that demands encryption.
    pub(super) fn request(&self) -> Vec<u8> {
        packet(PRELOGIN, &self.options(ENCRYPT_ON, &[0; 4]))
    }

    /// A server's, that has no encryption.
    pub(super) fn response(&self) -> Vec<u8> {
        packet(TABULAR_RESULT, &self.options(ENCRYPT_NOT_SUP, &[]))
    }

    fn options(&self, encryption: u8, thread: &[u8]) -> Vec<u8> {
        let encryption = [encryption];
        let mars = self.mars.map(|mars| [mars]);
        let federated = self.federated.map(|federated| [federated]);
        let options: Vec<(u8, &[u8])> = [
            (VERSION, Some(&self.version[..])),
            (ENCRYPTION, Some(&encryption[..])),
            (INSTANCE, self.instance.as_deref()),
            (THREAD, self.thread.then_some(thread)),
            (MARS, mars.as_ref().map(|mars| &mars[..])),
            (
                FEDERATED,
                federated.as_ref().map(|federated| &federated[..]),
            ),
            (NONCE, self.nonce.as_ref().map(|nonce| &nonce[..])),
        ]
        .into_iter()
        .filter_map(|(token, data)| Some((token, data?)))
        .collect();
        let mut out = Vec::new();
        let mut offset = options.len() * 5 + 1;
        for (token, data) in &options {
            out.push(*token);
            out.extend_from_slice(&(offset as u16).to_be_bytes());
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            offset += data.len();
        }
        out.push(TERMINATOR);
        for (_, data) in options {
            out.extend_from_slice(data);
        }
        out
    }
}

/// Reads the PRELOGIN that a client begins with, and how many bytes it takes.
///
/// # Errors
/// [`Malformed`].
pub fn parse_prelogin(stream: &[u8]) -> Result<Progress<(Prelogin, usize)>, Malformed> {
    let parsed = parse(stream, PRELOGIN)?;
    if let Progress::Done((prelogin, _)) = &parsed
        && !prelogin.instance.as_deref().is_none_or(is_name)
    {
        return Err(Malformed);
    }
    Ok(parsed)
}

/// The name of an instance that may be said to a server of which nothing is proven.
fn is_name(name: &[u8]) -> bool {
    name.strip_suffix(&[0]).is_some_and(|name| {
        name.len() <= MAX_INSTANCE
            && name
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_$#-".contains(byte))
    })
}

/// Reads a server's answer, and how many bytes it takes.
pub(super) fn parse_answer(stream: &[u8]) -> Result<Progress<(Prelogin, usize)>, Malformed> {
    parse(stream, TABULAR_RESULT)
}

/// The length of the packet; None while the header is not complete.
fn header(stream: &[u8], kind: u8) -> Result<Option<usize>, Malformed> {
    if begins(stream, &[kind, END_OF_MESSAGE]) == Look::No {
        return Err(Malformed);
    }
    let Some([_, _, high, low, ..]) = stream.get(..HEADER) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if (HEADER + 1..=MAX_PACKET).contains(&length) {
        Ok(Some(length))
    } else {
        Err(Malformed)
    }
}

fn parse(stream: &[u8], kind: u8) -> Result<Progress<(Prelogin, usize)>, Malformed> {
    let Some(length) = header(stream, kind)? else {
        return Ok(Progress::NeedMore);
    };
    let Some(data) = stream.get(HEADER..length) else {
        return Ok(Progress::NeedMore);
    };
    let prelogin = options(data).ok_or(Malformed)?;
    Ok(Progress::Done((prelogin, length)))
}

fn options(data: &[u8]) -> Option<Prelogin> {
    let mut reader = Reader(data);
    let mut seen: Vec<u8> = Vec::new();
    let (mut version, mut encryption, mut instance, mut thread) = (None, None, None, false);
    let (mut mars, mut federated, mut nonce) = (None, None, None);
    loop {
        let token = reader.u8()?;
        if token == TERMINATOR {
            break;
        }
        // VERSION is first, and nothing comes twice.
        if seen.is_empty() != (token == VERSION) || seen.contains(&token) {
            return None;
        }
        seen.push(token);
        let offset = usize::from(reader.u16()?);
        let length = usize::from(reader.u16()?);
        let value = data.get(offset..offset + length)?;
        let byte = || value.first().copied().filter(|_| value.len() == 1);
        match token {
            VERSION => version = Some(value.try_into().ok()?),
            ENCRYPTION => encryption = Some(byte()?),
            INSTANCE => instance = Some(value.to_vec()),
            THREAD => thread = true,
            MARS => mars = Some(byte()?),
            FEDERATED => federated = Some(byte()?),
            NONCE => nonce = Some(value.try_into().ok()?),
            _ => {}
        }
    }
    Some(Prelogin {
        version: version?,
        encryption: encryption?,
        instance,
        thread,
        mars,
        federated,
        nonce,
    })
}

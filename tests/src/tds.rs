//! A peer that speaks TDS as MS-TDS describes it, for want of a server that could be installed:
//! PRELOGIN, the handshake inside packets (7.x) or before everything (8), LOGIN7 and SQL batches.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};

use crate::{Lab, Leaf, SITE_V4, Server};

const BATCH: u8 = 0x01;
const TABULAR_RESULT: u8 = 0x04;
const LOGIN7: u8 = 0x10;
const PRELOGIN: u8 = 0x12;

/// Which way it comes to TLS; it serves nothing without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdsVersion {
    /// PRELOGIN, then TLS 1.2 inside packets.
    Seven,
    /// TLS 1.3 with ALPN `tds/8.0`, then PRELOGIN.
    Eight,
}

/// The peer, on port 1433.
#[derive(Debug)]
pub struct TdsPeer {
    /// Its listener.
    pub server: Server,
    heard: Arc<Mutex<Vec<String>>>,
}

impl TdsPeer {
    /// Starts it.
    ///
    /// # Errors
    /// As bind(2), or the certificate is unusable.
    pub fn start(lab: &Lab, leaf: &Leaf, version: TdsVersion) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?;
        let versions = match version {
            TdsVersion::Seven => [&TLS12],
            TdsVersion::Eight => [&TLS13],
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        if version == TdsVersion::Eight {
            config.alpn_protocols = vec![b"tds/8.0".to_vec()];
        }
        let config = Arc::new(config);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heard);
        let server = Server::start(&lab.site, SITE_V4, 1433, move |stream| {
            let tls = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
            let mut note = |words: String| noted.lock().unwrap().push(words);
            match version {
                TdsVersion::Seven => serve_seven(stream, tls, &mut note),
                TdsVersion::Eight => {
                    let mut stream = StreamOwned::new(tls, stream);
                    prelogin(&mut stream)?;
                    if stream.conn.alpn_protocol() != Some(b"tds/8.0") {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    serve(&mut stream, &mut note)
                }
            }
        })?;
        Ok(Self { server, heard })
    }

    /// Users who have logged in, and batches.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

fn serve_seven(
    mut stream: TcpStream,
    mut tls: ServerConnection,
    note: &mut dyn FnMut(String),
) -> io::Result<()> {
    if prelogin(&mut stream)? != 1 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut packets = InPackets {
        stream,
        flight: Vec::new(),
        data: Vec::new(),
    };
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut packets)?;
        packets.flush()?;
    }
    let mut stream = StreamOwned::new(tls, packets.stream);
    serve(&mut stream, note)
}

/// Answers the client's PRELOGIN with ENCRYPT_ON; what it has said of encryption.
fn prelogin(stream: &mut (impl Read + Write)) -> io::Result<u8> {
    let (kind, data) = read_message(stream)?;
    if kind != PRELOGIN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let options = data.chunks(5).take_while(|option| option[0] != 0xff);
    let place = |option: &[u8]| usize::from(u16::from_be_bytes([option[1], option[2]]));
    let said = options
        .filter(|option| option[0] == 1)
        .map(|option| data[place(option)])
        .next();
    let mut answer = b"\0\0\x15\0\x06\x01\0\x1b\0\x01\x02\0\x1c\0\x01\x04\0\x1d\0\x01\xff".to_vec();
    answer.extend([16, 0, 0x03, 0xe8, 0, 0, 1, 0, 0]);
    write_message(stream, &answer)?;
    said.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A session, from LOGIN7 on.
fn serve(stream: &mut (impl Read + Write), note: &mut dyn FnMut(String)) -> io::Result<()> {
    loop {
        let (kind, data) = match read_message(stream) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            message => message?,
        };
        match kind {
            LOGIN7 => {
                let place = |at: usize| usize::from(u16::from_le_bytes([data[at], data[at + 1]]));
                let user = &data[place(40)..place(40) + 2 * place(42)];
                note(text(user));
                write_message(stream, &login_ack())?;
            }
            BATCH => {
                // ALL_HEADERS come first.
                let headers = u32::from_le_bytes([data[0], data[1], data[2], data[3]]) as usize;
                let batch = text(&data[headers..]);
                let count = if batch.contains("many") { 20_000 } else { 1 };
                write_message(stream, &result(&format!("answer to {batch}"), count))?;
                note(batch);
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn text(utf16: &[u8]) -> String {
    let units: Vec<u16> = utf16
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .collect();
    String::from_utf16_lossy(&units).trim().to_owned()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// LOGINACK (§2.2.7.14) of TDS 7.4, and DONE.
fn login_ack() -> Vec<u8> {
    let name = utf16("peer");
    let mut body = vec![1, 0x74, 0, 0, 4, (name.len() / 2) as u8];
    body.extend(name);
    body.extend([16, 0, 3, 0xe8]);
    let mut tokens = vec![0xad];
    tokens.extend((body.len() as u16).to_le_bytes());
    tokens.extend(body);
    tokens.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    tokens
}

/// COLMETADATA (§2.2.7.4) of one column, NVARCHAR(4000); so many ROWs of it (§2.2.7.19); DONE.
fn result(value: &str, count: u64) -> Vec<u8> {
    let mut tokens = vec![0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0xe7, 0x40, 0x1f];
    tokens.extend([0x09, 0x04, 0xd0, 0, 0x34]); // collation
    tokens.push(4);
    tokens.extend(utf16("said"));
    let value = utf16(value);
    for _ in 0..count {
        tokens.push(0xd1);
        tokens.extend((value.len() as u16).to_le_bytes());
        tokens.extend(&value);
    }
    tokens.extend([0xfd, 0x10, 0, 0xc1, 0]); // DONE_COUNT, SELECT
    tokens.extend(count.to_le_bytes());
    tokens
}

/// Type and data of a message.
fn read_message(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut message = Vec::new();
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let mut data = vec![0; length.saturating_sub(8)];
        stream.read_exact(&mut data)?;
        message.extend(data);
        if header[1] & 1 == 1 {
            return Ok((header[0], message));
        }
    }
}

fn write_message(stream: &mut impl Write, data: &[u8]) -> io::Result<()> {
    stream.write_all(&packets(TABULAR_RESULT, data))?;
    stream.flush()
}

fn packets(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut pieces = data.chunks(4088).peekable();
    while let Some(piece) = pieces.next() {
        out.extend([kind, u8::from(pieces.peek().is_none())]);
        out.extend((8 + piece.len() as u16).to_be_bytes());
        out.extend([0, 0, 1, 0]);
        out.extend(piece);
    }
    out
}

/// A handshake inside PRELOGIN packets (§2.2.6.5). Whatever comes bare is an error.
struct InPackets {
    stream: TcpStream,
    flight: Vec<u8>,
    data: Vec<u8>,
}

impl Read for InPackets {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.data.is_empty() {
            let (kind, data) = read_message(&mut self.stream)?;
            if kind != PRELOGIN {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.data = data;
        }
        let length = buffer.len().min(self.data.len());
        buffer[..length].copy_from_slice(&self.data[..length]);
        self.data.drain(..length);
        Ok(length)
    }
}

impl Write for InPackets {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flight.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&packets(PRELOGIN, &self.flight))?;
        self.flight.clear();
        Ok(())
    }
}

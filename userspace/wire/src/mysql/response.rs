//! What a client answers to the greeting: Protocol::SSLRequest or Protocol::HandshakeResponse41.

use std::ops::Range;

use zeroize::{Zeroize as _, Zeroizing};

use super::{Malformed, capability, framed};
use crate::{reader::Reader, starttls::Preamble};

/// Capabilities, packet size, character set and filler; alone they are SSLRequest.
const FIXED: usize = 32;

/// Where MariaDB's clients have capabilities of their own in what is filler for MySQL.
const EXTENDED: Range<usize> = 28..32;

/// A client's answer to the greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It asks for TLS of its own; the packet.
    SslRequest(Preamble),
    /// It goes on in clear.
    Response(HandshakeResponse),
}

impl Answer {
    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let [a, b, c, d, ..] = *payload else {
            return Err(Malformed::Response);
        };
        let capabilities = u32::from_le_bytes([a, b, c, d]);
        if capabilities & capability::PROTOCOL_41 == 0 {
            return Err(Malformed::Old);
        }
        if payload.len() == FIXED && capabilities & capability::SSL != 0 {
            return Ok(Self::SslRequest(ssl_request(payload)));
        }
        HandshakeResponse::parse(payload, capabilities)
            .map(Self::Response)
            .ok_or(Malformed::Response)
    }
}

/// Protocol::SSLRequest with what an answer begins with. None of it is confidential: flags, a
/// size and numbers of a character set.
fn ssl_request(payload: &[u8]) -> Preamble {
    let mut request = [0; FIXED];
    // Capabilities, packet size, character set; then MariaDB's capabilities.
    for range in [0..9, EXTENDED] {
        if let (Some(to), Some(from)) = (request.get_mut(range.clone()), payload.get(range)) {
            to.copy_from_slice(from);
        }
    }
    with_tls(&mut request);
    Preamble::built(framed(1, &request).to_vec())
}

/// Sets CLIENT_SSL.
fn with_tls(payload: &mut [u8]) {
    if let Some(byte) = payload.get_mut(1) {
        *byte |= (capability::SSL >> 8) as u8;
    }
}

/// Protocol::HandshakeResponse41. It is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct HandshakeResponse {
    payload: Vec<u8>,
    capabilities: u32,
    /// Where what proves the password stands, its length before it included.
    ///
    /// Invariant: inside of `payload`.
    field: Range<usize>,
    /// What proves the password; in `field`, at its end.
    authentication: Range<usize>,
    /// The account that is asked for.
    pub user: String,
    /// The database that is asked for.
    pub database: Option<String>,
    /// How the client would authenticate; empty where it does not say.
    plugin: Vec<u8>,
}

impl std::fmt::Debug for HandshakeResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandshakeResponse")
    }
}

impl Drop for HandshakeResponse {
    fn drop(&mut self) {
        self.payload.zeroize();
    }
}

impl HandshakeResponse {
    fn parse(payload: &[u8], capabilities: u32) -> Option<Self> {
        let has = |flag| capabilities & flag != 0;
        let at = |reader: Reader<'_>| payload.len().saturating_sub(reader.0.len());
        let mut reader = Reader(payload.get(FIXED..)?);
        let user = text(reader.cstring()?);
        let begin = at(reader);
        let (authentication, end) = if has(capability::PLUGIN_AUTH_LENENC_CLIENT_DATA) {
            let length = length_encoded(&mut reader)?;
            let begin = at(reader);
            reader.take(length)?;
            (begin..at(reader), at(reader))
        } else if has(capability::SECURE_CONNECTION) {
            let length = reader.u8()?;
            let begin = at(reader);
            reader.take(length.into())?;
            (begin..at(reader), at(reader))
        } else {
            let length = reader.cstring()?.len();
            (begin..begin + length, at(reader))
        };
        // Some clients leave out what they have nothing to say to.
        let mut named = |flag| has(flag).then(|| reader.cstring()).flatten();
        let database = named(capability::CONNECT_WITH_DB).map(text);
        let plugin = named(capability::PLUGIN_AUTH);
        Some(Self {
            payload: payload.to_vec(),
            capabilities,
            field: begin..end,
            authentication,
            user,
            database: database.filter(|name| !name.is_empty()),
            plugin: plugin.unwrap_or_default().to_vec(),
        })
    }

    /// The request for TLS that goes before it.
    pub fn ssl_request(&self) -> Preamble {
        ssl_request(&self.payload)
    }

    pub(super) fn plugin(&self) -> &[u8] {
        &self.plugin
    }

    pub(super) fn has_multi_factor(&self) -> bool {
        self.capabilities & capability::MULTI_FACTOR_AUTHENTICATION != 0
    }

    /// Does it ask for nothing that would hide commands? See [`super::Greeting::legible`].
    pub fn is_legible(&self) -> bool {
        self.capabilities & capability::ILLEGIBLE == 0
    }

    /// Are packets compressed after the authentication, with a server of these capabilities?
    pub(super) fn is_compressed(&self, server: u32) -> bool {
        let methods = capability::COMPRESS | capability::ZSTD_COMPRESSION;
        self.capabilities & server & methods != 0
    }

    /// What proves the password.
    pub(super) fn authentication(&self) -> &[u8] {
        self.payload
            .get(self.authentication.clone())
            .unwrap_or_default()
    }

    /// What is sent inside TLS.
    pub(super) fn inside_tls(&self) -> Zeroizing<Vec<u8>> {
        let mut payload = Zeroizing::new(self.payload.clone());
        with_tls(&mut payload);
        payload
    }

    /// The same answer with another proof of the password; None where that does not fit into it.
    pub(super) fn with_authentication(&self, proof: &[u8]) -> Option<Self> {
        let (head, tail) = (
            self.payload.get(..self.field.start)?,
            self.payload.get(self.field.end..)?,
        );
        let has = |flag| self.capabilities & flag != 0;
        let short = u8::try_from(proof.len()).ok();
        let mut length = Vec::new();
        let mut end: &[u8] = &[];
        if has(capability::PLUGIN_AUTH_LENENC_CLIENT_DATA) {
            // Below 251 a length stands for itself.
            match short.filter(|length| *length < 251) {
                Some(short) => length.push(short),
                None => {
                    length.push(0xfc);
                    length.extend_from_slice(&u16::try_from(proof.len()).ok()?.to_le_bytes());
                }
            }
        } else if has(capability::SECURE_CONNECTION) {
            length.push(short?);
        } else {
            if proof.contains(&0) {
                return None;
            }
            end = &[0];
        }
        let parts = [head, &length, proof, end, tail];
        // Exactly, so that no other copy is left behind.
        let mut payload = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            payload.extend_from_slice(part);
        }
        let begin = head.len() + length.len();
        Some(Self {
            payload,
            capabilities: self.capabilities,
            field: head.len()..begin + proof.len() + end.len(),
            authentication: begin..begin + proof.len(),
            user: self.user.clone(),
            database: self.database.clone(),
            plugin: self.plugin.clone(),
        })
    }

    /// What is sent where the server has no TLS.
    pub(super) fn in_clear(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.payload.clone())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A length-encoded integer (section "Integer Types"), as far as it counts bytes of a packet.
fn length_encoded(reader: &mut Reader<'_>) -> Option<usize> {
    match reader.u8()? {
        short @ ..=250 => Some(short.into()),
        0xfc => reader.u16().map(|length| length.swap_bytes().into()),
        _ => None,
    }
}

//! The authentication, between an agent that speaks no TLS and a server that does.
//!
//! Most methods do not care: what they exchange passes, renumbered. Two do (sections
//! "Caching_sha2_password information" and "sha256_password"). Where the server needs the
//! password itself, a client inside TLS sends it as it is, ended by NUL; a client without TLS
//! asks for the server's RSA key (with a packet of one byte: 2 for caching_sha2_password, 1 for
//! sha256_password) and sends the password masked with the nonce and encrypted with that key. So
//! the proxy answers with a key of its own, decrypts, unmasks, and sends the password the other
//! way, inside the TLS that it has verified.
//!
//! An agent that was given the server's key beforehand does not ask. What it encrypts nobody
//! but the server can read, and the server does not decrypt inside TLS: it is told so.
//!
//! COM_CHANGE_USER authenticates again, later in the session. There nothing is brokered: where the
//! server needs the password itself, it takes the one byte for a wrong one and refuses.

use zeroize::Zeroizing;

use super::{
    ERR, Goodbye, Greeting, HandshakeResponse, LastWords, Packet, framed, greeting::SCRAMBLE,
};

/// First byte of OK_Packet.
const OK: u8 = 0x00;

/// First byte of Protocol::AuthMoreData.
const MORE: u8 = 0x01;

/// First byte of Protocol::AuthNextFactor.
const NEXT_FACTOR: u8 = 0x02;

/// First byte of Protocol::AuthSwitchRequest.
const SWITCH: u8 = 0xfe;

/// caching_sha2_password: the server needs the password itself.
const FULL: [u8; 2] = [MORE, 0x04];

const CACHING_SHA2: &[u8] = b"caching_sha2_password";
const SHA256: &[u8] = b"sha256_password";

/// What cannot be brokered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// It encrypted the password with a key that it had before.
    #[error(
        "the agent encrypts its password with a public key of the server that it was configured \
         with, which nobody can translate for a server that speaks TLS; let the agent ask for the \
         key (without --server-public-key-path, with --get-server-public-key)"
    )]
    PinnedKey,
    /// What it encrypted is no password.
    #[error("what the agent encrypted with the key that it was given is no password")]
    NoPassword,
    /// The password does not fit into the agent's answer.
    #[error("the agent's password is too long for its answer to the greeting")]
    TooLong,
}

/// A packet for the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToAgent {
    /// The packet.
    pub words: Vec<u8>,
    /// The authentication has ended with it, well or not: what follows passes as it is.
    pub last: bool,
}

/// What to do with a packet of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Send this to the server.
    ToServer(Zeroizing<Vec<u8>>),
    /// Answer the agent with a public key, by [`Authentication::key`].
    OfferKey,
    /// Decrypt this with the key that was offered, and give the outcome to
    /// [`Authentication::password`].
    Decrypt(Vec<u8>),
}

/// The authentication of one session. Splitting what either side sends in other pieces changes
/// nothing, since it is given whole packets.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// The answer to the greeting, until it is sent.
    response: Option<HandshakeResponse>,
    /// The method that is spoken.
    plugin: Vec<u8>,
    /// Its nonce.
    scramble: Vec<u8>,
    multi_factor: bool,
    compressed: bool,
    tls: bool,
    expects: Expects,
    /// It has ended with an ERR.
    refused: bool,
    /// The number of the next packet to the agent, or from it.
    agent: u8,
    /// The same at the server.
    server: u8,
}

/// What the agent may say next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    /// What passes.
    Anything,
    /// The password, in some way, or the request for a key, which is this byte.
    Password { request: u8 },
    /// The password, encrypted with the key that it was given.
    Ciphertext,
    /// Another proof of the password, for the answer to the greeting.
    Proof,
}

impl Authentication {
    /// Of an agent that has answered the server's greeting, where SSLRequest was sent and TLS is
    /// verified. [`Self::open`] comes first.
    pub fn inside_tls(greeting: &Greeting, response: HandshakeResponse) -> Self {
        Self {
            plugin: response.plugin().to_vec(),
            scramble: greeting.scramble().to_vec(),
            multi_factor: response.has_multi_factor(),
            compressed: response.is_compressed(greeting.capabilities()),
            tls: true,
            expects: Expects::Anything,
            refused: false,
            agent: 2,
            server: 2,
            response: Some(response),
        }
    }

    /// Of an agent that has answered a greeting of another connection, which did not come to TLS,
    /// while this one goes on in clear; and what the agent is told: to prove the password again,
    /// with this connection's nonce (Protocol::AuthSwitchRequest). None where it cannot.
    pub fn in_clear(greeting: &Greeting, response: HandshakeResponse) -> Option<(Self, Vec<u8>)> {
        let plugin = response.plugin().to_vec();
        if plugin.is_empty() || greeting.scramble().len() != SCRAMBLE {
            return None;
        }
        let switch = [&[SWITCH], &plugin[..], &[0], greeting.scramble(), &[0]].concat();
        let words = framed(2, &switch).to_vec();
        let authentication = Self {
            plugin,
            scramble: greeting.scramble().to_vec(),
            multi_factor: response.has_multi_factor(),
            compressed: response.is_compressed(greeting.capabilities()),
            tls: false,
            expects: Expects::Proof,
            refused: false,
            agent: 3,
            server: 1,
            response: Some(response),
        };
        Some((authentication, words))
    }

    /// Begins with the agent's answer to the greeting, where it waits for nothing else.
    ///
    /// # Errors
    /// [`AuthenticationError`].
    pub fn open(&mut self) -> Result<Option<Reply>, AuthenticationError> {
        let Some(response) = self.response.as_ref().filter(|_| self.tls) else {
            return Ok(None);
        };
        if self.plugin == SHA256 {
            self.expects = Expects::Password { request: 1 };
        }
        let proof = Zeroizing::new(response.authentication().to_vec());
        self.judge(&proof).map(Some)
    }

    /// What follows of the server's, where it has refused the agent: it hangs up, as it likes.
    pub fn last_words(&self) -> Option<LastWords> {
        self.refused.then_some(LastWords)
    }

    /// Takes a packet of the server.
    pub fn hear_server(&mut self, packet: Packet<'_>) -> ToAgent {
        let payload = packet.payload;
        let mut last = false;
        match payload {
            [OK | ERR, ..] => {
                last = true;
                self.refused = payload.first() == Some(&ERR);
            }
            [SWITCH, named @ ..] => self.switch(named),
            [NEXT_FACTOR, named @ ..] if self.multi_factor => self.switch(named),
            _ if payload == FULL && self.plugin == CACHING_SHA2 => {
                self.expects = Expects::Password { request: 2 };
            }
            _ => {}
        }
        self.server = packet.sequence.wrapping_add(1);
        ToAgent {
            words: self.tell(payload),
            last,
        }
    }

    /// Another method begins: its name, ended by NUL, and its nonce, ended by NUL as well. A
    /// packet that names none (Protocol::OldAuthSwitchRequest) passes.
    fn switch(&mut self, named: &[u8]) {
        let mut parts = named.splitn(2, |byte| *byte == 0);
        self.plugin = parts.next().unwrap_or_default().to_vec();
        let nonce = parts.next().unwrap_or_default();
        self.scramble = nonce.get(..SCRAMBLE).unwrap_or(nonce).to_vec();
        self.expects = if self.plugin == SHA256 {
            Expects::Password { request: 1 }
        } else {
            Expects::Anything
        };
    }

    /// Takes a packet of the agent.
    ///
    /// # Errors
    /// [`AuthenticationError`].
    pub fn hear_agent(&mut self, packet: Packet<'_>) -> Result<Reply, AuthenticationError> {
        self.agent = packet.sequence.wrapping_add(1);
        self.judge(packet.payload)
    }

    fn judge(&mut self, payload: &[u8]) -> Result<Reply, AuthenticationError> {
        match self.expects {
            Expects::Password { request } if self.tls && payload == [request] => {
                return Ok(Reply::OfferKey);
            }
            Expects::Password { .. } if self.tls && looks_encrypted(payload) => {
                return Err(AuthenticationError::PinnedKey);
            }
            Expects::Ciphertext => return Ok(Reply::Decrypt(payload.to_vec())),
            Expects::Anything | Expects::Password { .. } | Expects::Proof => {}
        }
        self.expects = Expects::Anything;
        self.say(payload).map(Reply::ToServer)
    }

    /// The packet with a public key (PEM of a SubjectPublicKeyInfo) for the agent.
    pub fn key(&mut self, pem: &[u8]) -> Vec<u8> {
        self.expects = Expects::Ciphertext;
        self.tell(&[&[MORE], pem].concat())
    }

    /// The packet with the password for the server, from what the agent had encrypted.
    ///
    /// # Errors
    /// [`AuthenticationError`].
    pub fn password(
        &mut self,
        mut decrypted: Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, AuthenticationError> {
        for (byte, mask) in decrypted.iter_mut().zip(self.scramble.iter().cycle()) {
            *byte ^= mask;
        }
        if !is_terminated(&decrypted) {
            return Err(AuthenticationError::NoPassword);
        }
        self.expects = Expects::Anything;
        self.say(&decrypted)
    }

    /// To the server: in the answer to the greeting while that is not sent, else by itself.
    fn say(&mut self, proof: &[u8]) -> Result<Zeroizing<Vec<u8>>, AuthenticationError> {
        let sequence = self.server;
        self.server = sequence.wrapping_add(1);
        let packet = match self.response.take() {
            None => framed(sequence, proof),
            Some(response) => {
                let response = response
                    .with_authentication(proof)
                    .ok_or(AuthenticationError::TooLong)?;
                if self.tls {
                    framed(sequence, &response.inside_tls())
                } else {
                    framed(sequence, &response.in_clear())
                }
            }
        };
        Ok(packet)
    }

    fn tell(&mut self, payload: &[u8]) -> Vec<u8> {
        let sequence = self.agent;
        self.agent = sequence.wrapping_add(1);
        framed(sequence, payload).to_vec()
    }

    /// Watches for the agent's goodbye in what follows the authentication.
    pub fn goodbye(&self) -> Goodbye {
        Goodbye::new(self.compressed)
    }

    /// The number that the agent expects of the next packet.
    pub fn sequence(&self) -> u8 {
        self.agent
    }
}

/// Has it the length of an RSA ciphertext, and is it no string?
fn looks_encrypted(payload: &[u8]) -> bool {
    matches!(payload.len(), 128 | 256 | 384 | 512) && !is_terminated(payload)
}

/// Is it one string that ends with NUL?
fn is_terminated(bytes: &[u8]) -> bool {
    bytes.iter().position(|byte| *byte == 0).map(|at| at + 1) == Some(bytes.len())
}

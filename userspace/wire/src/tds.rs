//! TDS, the protocol of Microsoft SQL Server (MS-TDS): how versions 7.x come to TLS (§2.2.6.5), how
//! a client begins, and an error in the server's place.
//!
//! Client and server each say in a PRELOGIN whether they encrypt; where they do, the TLS handshake
//! travels inside TDS packets and TLS runs bare after it. The proxy builds a PRELOGIN of its own
//! that demands encryption. It carries what the session depends on and nothing else of the
//! agent's: version, instance name, MARS and the options of federated authentication, and neither
//! thread nor trace ids. The agent is answered with what the server said, less encryption, so that
//! it goes on in clear on its host. As with any client of TDS 7.x, that answer was not protected
//! on its way; only what is known of it is carried.
//!
//! TDS 8 begins with TLS, and inside it encryption is no option (§2.2.6.5); see
//! [`PreloginFilter`].

mod filter;
mod packet;
mod prelogin;
#[cfg(test)]
mod tests;

pub use filter::PreloginFilter;
pub use packet::{Unwrapper, Wanted, wrap_handshake};
pub use prelogin::{Malformed, Prelogin, looks_like_prelogin, parse_prelogin};

use packet::{TABULAR_RESULT, packet};
use prelogin::{ENCRYPT_NOT_SUP, ENCRYPT_ON, ENCRYPT_REQ, parse_answer};

use crate::{
    Progress,
    starttls::{Dialogue, DialogueError, Preamble, Step, Welcome},
};

/// Most UTF-16 units of a refusal: with them it fits in the smallest packet that clients take
/// before they have logged in, of 4,096 bytes.
const MAX_REASON: usize = 1000;

/// Asks for encryption in the agent's place, and keeps the answer for it. The handshake that
/// follows belongs into packets, see [`Unwrapper`] and [`wrap_handshake`].
#[derive(Debug)]
pub struct StartTls {
    agent: Prelogin,
    asked: bool,
    answer: Option<Prelogin>,
}

impl StartTls {
    /// For an agent that has said this.
    pub fn new(agent: Prelogin) -> Self {
        Self {
            agent,
            asked: false,
            answer: None,
        }
    }
}

impl Dialogue for StartTls {
    fn step(&mut self, heard: &[u8]) -> Result<Step, DialogueError> {
        if !self.asked {
            self.asked = true;
            return Ok(Step::Say {
                consumed: 0,
                words: Preamble::built(self.agent.request()),
            });
        }
        let (answer, consumed) = match parse_answer(heard) {
            Ok(Progress::Done(answer)) => answer,
            Ok(Progress::NeedMore) => return Ok(Step::NeedMore),
            Err(_) => {
                return Err(DialogueError::Protocol(
                    "it answers PRELOGIN with something else",
                ));
            }
        };
        match answer.encryption() {
            ENCRYPT_ON | ENCRYPT_REQ => {
                self.answer = Some(answer);
                Ok(Step::Handshake { consumed })
            }
            ENCRYPT_NOT_SUP => Err(DialogueError::NotOffered(
                "ENCRYPT_NOT_SUP in its answer to PRELOGIN",
            )),
            other => Err(DialogueError::Declined(format!(
                "encryption {other} in its answer to PRELOGIN"
            ))),
        }
    }

    fn welcome(&mut self) -> Welcome {
        Welcome {
            to_agent: self
                .answer
                .take()
                .map(|answer| answer.response())
                .unwrap_or_default(),
            ..Welcome::default()
        }
    }
}

/// What an agent that begins with `head` is told in the server's place: an ERROR (§2.2.7.10) that
/// ends the session. An agent that is waiting for the answer to its PRELOGIN takes nothing else,
/// so it gets one; the error is then what it finds after its login, which goes nowhere.
pub fn refusal(head: &[u8], reason: &str) -> Vec<u8> {
    let mut words = match parse_prelogin(head) {
        Ok(Progress::Done(_)) => Prelogin::of_refusal().response(),
        _ => Vec::new(),
    };
    words.extend(packet(TABULAR_RESULT, &error(reason)));
    words
}

/// ERROR and DONE (§2.2.7.6) as of TDS 7.2.
fn error(reason: &str) -> Vec<u8> {
    /// Numbers from 50,000 on are no server's own.
    const NUMBER: i32 = 50_000;
    /// The connection ends with it.
    const CLASS: u8 = 20;

    let mut text = Vec::new();
    for letter in format!("mantled refused this connection: {reason}").chars() {
        let letter = if letter.is_control() { ' ' } else { letter };
        if text.len() + letter.len_utf16() > MAX_REASON {
            break;
        }
        text.extend_from_slice(letter.encode_utf16(&mut [0; 2]));
    }
    let mut body = Vec::new();
    body.extend_from_slice(&NUMBER.to_le_bytes());
    body.extend_from_slice(&[1, CLASS]); // state, class
    body.extend_from_slice(&(text.len() as u16).to_le_bytes());
    body.extend(text.iter().flat_map(|unit| unit.to_le_bytes()));
    body.extend_from_slice(&[0, 0, 0, 0, 0, 0]); // no server, no procedure, no line

    let mut tokens = vec![0xaa];
    tokens.extend_from_slice(&(body.len() as u16).to_le_bytes());
    tokens.extend(body);
    tokens.extend_from_slice(&[0xfd, 0x02, 0, 0, 0]); // DONE_ERROR, no command
    tokens.extend_from_slice(&[0; 8]); // no rows
    tokens
}

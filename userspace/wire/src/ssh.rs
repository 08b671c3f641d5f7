//! SSH (RFC 4253) encrypts by itself, so it is not upgraded: it is recognised, and passed where that
//! is allowed. What comes in clear before the encryption is checked, so that nothing else passes
//! behind an SSH banner: the banner itself (§4.2) and the first packet, which is KEXINIT (§7.1).

use crate::{Look, begins};

/// How a banner begins; 1.99 is a server that speaks 1.x as well (§5.1).
const BANNERS: [&[u8]; 2] = [b"SSH-2.0-", b"SSH-1.99-"];

/// Longest line, CR LF included (§4.2).
const MAX_LINE: usize = 255;

/// Lines that a server may send before its banner (§4.2): more than any says.
const MAX_LINES: usize = 64;

/// Longest packet that everybody must take (§6.1).
const MAX_PACKET: u32 = 35_000;

/// Length, length of the padding, and the message's number.
const PACKET_HEAD: usize = 6;

/// SSH_MSG_KEXINIT.
const KEXINIT: u8 = 20;

/// Does a stream begin with an SSH banner? At most 9 bytes decide.
pub fn looks_like_banner(stream: &[u8]) -> Look {
    let looks = BANNERS.map(|banner| begins(stream, banner));
    if looks.contains(&Look::Yes) {
        Look::Yes
    } else if looks.contains(&Look::NeedMore) {
        Look::NeedMore
    } else {
        Look::No
    }
}

/// What is no SSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSsh {
    /// Too long a line, or too many, before a banner.
    #[error("no SSH banner")]
    Banner,
    /// The first packet is not what it has to be.
    #[error("an SSH banner without a key exchange after it")]
    Packet,
}

/// Checks one direction of a stream until the encryption begins.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    state: State,
    banner: Option<String>,
}

/// Where the stream is. What is held is a line or the head of a packet.
#[derive(Clone, Debug)]
enum State {
    Lines { held: Vec<u8>, lines: usize },
    Packet { held: Vec<u8> },
    Encrypted,
    Failed(NotSsh),
}

impl Default for State {
    fn default() -> Self {
        Self::Lines {
            held: Vec::new(),
            lines: 0,
        }
    }
}

impl Guard {
    /// Takes the next bytes; they may be carried if there is no error.
    ///
    /// # Errors
    /// It is no SSH; every later call says so, too.
    pub fn check(&mut self, chunk: &[u8]) -> Result<(), NotSsh> {
        for byte in chunk {
            match &mut self.state {
                State::Encrypted => return Ok(()),
                State::Failed(error) => return Err(*error),
                State::Lines { held, lines } => {
                    held.push(*byte);
                    let ended = *byte == b'\n';
                    let banner = looks_like_banner(held) == Look::Yes;
                    if held.len() > MAX_LINE || *lines >= MAX_LINES {
                        self.state = State::Failed(NotSsh::Banner);
                    } else if ended && banner {
                        self.banner = Some(shown(held));
                        self.state = State::Packet { held: Vec::new() };
                    } else if ended {
                        held.clear();
                        *lines += 1;
                    }
                }
                State::Packet { held } => {
                    held.push(*byte);
                    if held.len() == PACKET_HEAD {
                        self.state = match is_key_exchange(held) {
                            true => State::Encrypted,
                            false => State::Failed(NotSsh::Packet),
                        };
                    }
                }
            }
        }
        match self.state {
            State::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    /// The banner without its line's end, printable, once it has come.
    pub fn banner(&self) -> Option<&str> {
        self.banner.as_deref()
    }
}

fn is_key_exchange(head: &[u8]) -> bool {
    let [a, b, c, d, _, message] = head else {
        return false;
    };
    let length = u32::from_be_bytes([*a, *b, *c, *d]);
    (12..=MAX_PACKET).contains(&length) && *message == KEXINIT
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line.trim_ascii_end())
        .chars()
        .filter(|letter| !letter.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEX: &[u8] = b"\0\0\x05\xdc\x07\x14";

    fn check(pieces: &[&[u8]]) -> (Result<(), NotSsh>, Option<String>) {
        let mut guard = Guard::default();
        let mut result = Ok(());
        for piece in pieces {
            result = result.and_then(|()| guard.check(piece));
        }
        (result, guard.banner().map(str::to_owned))
    }

    #[test]
    fn what_is_ssh_passes_and_nothing_else() {
        let good = [b"SSH-2.0-OpenSSH_9.2\r\n", KEX, b"and then anything"].concat();
        assert_eq!(
            check(&[&good]),
            (Ok(()), Some("SSH-2.0-OpenSSH_9.2".to_owned()))
        );
        let greeted = [b"welcome\r\nSSH-1.99-x\n", KEX].concat();
        assert_eq!(check(&[&greeted]), (Ok(()), Some("SSH-1.99-x".to_owned())));
        for (bad, error) in [
            (&b"SSH-2.0-x\r\nGET / HTTP/1.1\r\n"[..], NotSsh::Packet),
            (b"SSH-2.0-x\r\n\0\0\x05\xdc\x07\x15", NotSsh::Packet),
            (&[b'a'; 300], NotSsh::Banner),
            (&[b'\n'; 70], NotSsh::Banner),
        ] {
            assert_eq!(check(&[bad]).0, Err(error), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn banners_are_told_apart() {
        for (stream, expected) in [
            (&b"SSH-2.0-x"[..], Look::Yes),
            (b"SSH-1.99-", Look::Yes),
            (b"SSH-1", Look::NeedMore),
            (b"SSH-1.5-", Look::No),
            (b"SMTP", Look::No),
        ] {
            assert_eq!(looks_like_banner(stream), expected);
        }
    }

    proptest! {
        #[test]
        fn splitting_changes_nothing(
            text in "(a\n){0,3}(SSH-2.0-[a-z]{0,9}\r?\n)?",
            rest in proptest::collection::vec(any::<u8>(), 0..12),
            whole in any::<bool>(),
            cut in 0_usize..40,
        ) {
            let packet = if whole { KEX } else { &[] };
            let stream = [text.as_bytes(), packet, &rest].concat();
            let (first, second) = stream.split_at(cut.min(stream.len()));
            prop_assert_eq!(check(&[&stream]), check(&[first, second]));
        }
    }
}

//! The features that a server lists when the stream begins inside TLS.
//!
//! The agent has no TLS of its own: mechanisms that bind the authentication to a TLS channel
//! (-PLUS, RFC 5802 §6) and the list of channel bindings (XEP-0440) are taken out, as are those of
//! SASL2 (XEP-0388), and STARTTLS itself should it still be listed. Later features come after
//! authentication (RFC 6120 §6.4.6) and pass.

use super::{
    STARTTLS, STREAM,
    xml::{BadXml, Element, Token, element, token},
};
use crate::{Next, Rewrite, RewriteError};

/// Longest header or list of features, in bytes. Both have a few hundred to a few thousand.
const MAX_FEATURES: usize = 64 * 1024;

const SASL: &[u8] = b"urn:ietf:params:xml:ns:xmpp-sasl";
const SASL2: &[u8] = b"urn:xmpp:sasl:2";
const MECHANISM: &[u8] = b"mechanism";
const CHANNEL_BINDING: &[u8] = b"urn:xmpp:sasl-cb:0";

/// Filters the server's stream from its first byte to the end of its first features.
#[derive(Clone, Debug, Default)]
pub struct FeaturesFilter {
    /// What is not judged yet. Invariant: not longer than [`MAX_FEATURES`] between calls.
    held: Vec<u8>,
    /// The header has passed.
    opened: bool,
}

/// What the held bytes begin with.
enum Judgement {
    /// Not enough to tell.
    NeedMore,
    /// So many bytes pass; the next ones are judged.
    Pass(usize),
    /// The same, and the stream is open.
    Open(usize),
    /// Everything passes from here on.
    PassAll,
    /// A whole list of features of so many bytes, and what is passed in its place.
    Replace(usize, Vec<u8>),
}

impl Rewrite for FeaturesFilter {
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError> {
        self.held.extend_from_slice(input);
        loop {
            let judgement = judge(&self.held, self.opened)?;
            let length = match judgement {
                Judgement::NeedMore => self.held.len(),
                Judgement::Pass(length)
                | Judgement::Open(length)
                | Judgement::Replace(length, _) => length,
                Judgement::PassAll => 0,
            };
            if length > MAX_FEATURES {
                return Err(RewriteError::Protocol(
                    "the server's list of features does not end".to_owned(),
                ));
            }
            match judgement {
                Judgement::NeedMore => return Ok(Next::Continue),
                Judgement::Pass(length) => self.pass(length, out),
                Judgement::Open(length) => {
                    self.pass(length, out);
                    self.opened = true;
                }
                Judgement::Replace(length, features) => {
                    self.held.drain(..length.min(self.held.len()));
                    out.extend_from_slice(&features);
                    out.append(&mut self.held);
                    return Ok(Next::Done);
                }
                Judgement::PassAll => {
                    out.append(&mut self.held);
                    return Ok(Next::Done);
                }
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }
}

impl FeaturesFilter {
    fn pass(&mut self, length: usize, out: &mut Vec<u8>) {
        out.extend(self.held.drain(..length.min(self.held.len())));
    }
}

fn judge(held: &[u8], opened: bool) -> Result<Judgement, RewriteError> {
    let malformed =
        |BadXml| RewriteError::Protocol("the server's stream is not XMPP's XML".to_owned());
    let Some((token, length)) = token(held).map_err(malformed)? else {
        return Ok(Judgement::NeedMore);
    };
    Ok(match token {
        Token::Declaration | Token::Text(_) => Judgement::Pass(length),
        Token::Open {
            name: STREAM,
            empty: false,
            ..
        } if !opened => Judgement::Open(length),
        Token::Open {
            name: b"stream:features",
            ..
        } if opened => match element(held).map_err(malformed)? {
            None => Judgement::NeedMore,
            Some(features) => {
                let mut replacement = Vec::new();
                let length = features.whole.len();
                if !copy(&features, &mut replacement).map_err(malformed)? {
                    return Err(RewriteError::ChannelBinding(
                        "the server offers only mechanisms with channel binding (-PLUS)".to_owned(),
                    ));
                }
                Judgement::Replace(length, replacement)
            }
        },
        _ => Judgement::PassAll,
    })
}

/// Appends an element without the children that are not kept. False: it lists mechanisms, and
/// none of a list is left.
fn copy(parent: &Element<'_>, out: &mut Vec<u8>) -> Result<bool, BadXml> {
    let (children, tail) = parent.children()?;
    let mut whole = true;
    out.extend_from_slice(parent.start_tag);
    for (text, child) in &children {
        out.extend_from_slice(text);
        if child.is(b"mechanisms", SASL) || child.is(b"authentication", SASL2) {
            whole &= copy(child, out)?;
        } else if is_kept(child) {
            out.extend_from_slice(child.whole);
        }
    }
    out.extend_from_slice(tail);
    out.extend_from_slice(parent.end_tag);
    let mut mechanisms = children.iter().filter(|(_, child)| child.name == MECHANISM);
    let listed = mechanisms.clone().next().is_some();
    Ok(whole && (!listed || mechanisms.any(|(_, child)| is_kept(child))))
}

fn is_kept(child: &Element<'_>) -> bool {
    let binds = child.name == MECHANISM && child.content.trim_ascii().ends_with(b"-PLUS");
    !(binds
        || child.is(b"starttls", STARTTLS)
        || child.is(b"sasl-channel-binding", CHANNEL_BINDING))
}

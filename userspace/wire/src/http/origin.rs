//! Whose URL is it? The agent knows its server as `http://host:port`, the server knows itself as
//! `https://`.

use std::sync::Arc;

use super::head::after;

/// The ports of a session: what tells the URLs of this server from those of its neighbours.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// The port that the agent connected to.
    pub agent: u16,
    /// The port that the server listens on.
    pub server: u16,
}

/// Most bytes of a host's name that is remembered: no name of DNS is longer (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;

/// A host, and its port where one is written (RFC 3986 §3.2.2, §3.2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    name: Vec<u8>,
    port: Option<u16>,
}

/// An authority at the beginning of a URL's rest, and what follows it. User information, and what
/// clients that are lenient take for the end of an authority, makes it none.
fn authority(text: &[u8]) -> Option<(&[u8], Option<u16>, &[u8])> {
    let end = text
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(text.len());
    let (authority, rest) = text.split_at_checked(end)?;
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%:[]".contains(byte);
    if !authority.iter().all(is_letter) {
        return None;
    }
    let colon = match authority.iter().position(|byte| *byte == b']') {
        Some(bracket) => bracket + 1,
        None => authority
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(authority.len()),
    };
    let (name, port) = authority.split_at_checked(colon)?;
    let port = match port {
        [] | [b':'] => None,
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            Some(std::str::from_utf8(digits).ok()?.parse().ok()?)
        }
        _ => return None,
    };
    (!name.is_empty()).then_some((name, port, rest))
}

impl Host {
    /// The value of a Host field, or the authority of a request target in absolute form.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (name, port, rest) = authority(text)?;
        (rest.is_empty() && name.len() <= MAX_NAME).then(|| Self {
            name: name.to_vec(),
            port,
        })
    }

    /// The host of a request target in absolute form (RFC 9112 §3.2.2); None: another form.
    pub(super) fn of_target(target: &[u8]) -> Option<Self> {
        let rest = after(target, "http://").or_else(|| after(target, "https://"))?;
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
        Self::parse(rest.get(..end.unwrap_or(rest.len()))?)
    }

    /// The name in lower case; bytes that no name has are replaced.
    pub(super) fn lower_case(&self) -> String {
        String::from_utf8_lossy(&self.name).to_ascii_lowercase()
    }

    fn is(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// The port in the agent's URLs: the one that it wrote, else the one that it connected to.
    fn agent_port(&self, ports: Ports) -> u16 {
        self.port.unwrap_or(ports.agent)
    }

    /// A URL of the agent's that is this host's, as the server knows it; None: another's. Only the
    /// scheme changes: servers compare the rest with the Host field.
    pub(super) fn as_https(&self, url: &[u8], ports: Ports) -> Option<Vec<u8>> {
        let own = after(url, "http://")?;
        let (name, port, _) = authority(own)?;
        let port = port.unwrap_or(80);
        let is_own = port == self.port.unwrap_or(80) || port == self.agent_port(ports);
        (self.is(name) && is_own).then(|| [b"https://", own].concat())
    }

    /// A URL of the server's that is this host's, as the agent knows it; None: another's.
    ///
    /// It is the server's own with no port at all (many applications know only their name), with
    /// the server's port, or with the one that the agent wrote into its Host field.
    pub(super) fn as_http(&self, url: &[u8], ports: Ports) -> Option<Vec<u8>> {
        let (name, port, rest) = authority(after(url, "https://")?)?;
        let agent_port = self.agent_port(ports);
        let is_own = [443, ports.server, agent_port].contains(&port.unwrap_or(443));
        if !(self.is(name) && is_own) {
            return None;
        }
        let mut own = [b"http://", name].concat();
        if agent_port != 80 {
            own.extend_from_slice(format!(":{agent_port}").as_bytes());
        }
        own.extend_from_slice(rest);
        Some(own)
    }
}

/// The hosts of requests in a row are mostly the same one, which is then kept once.
pub(super) fn shared(host: Option<Host>, before: &Option<Arc<Host>>) -> Option<Arc<Host>> {
    match (host, before) {
        (Some(host), Some(before)) if host == **before => Some(Arc::clone(before)),
        (host, _) => host.map(Arc::new),
    }
}

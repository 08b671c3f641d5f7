//! Addresses of data connections: RFC 959 §4.1.2 and §4.2.2, RFC 2428.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Reads the argument of PORT: `h1,h2,h3,h4,p1,p2`.
pub fn parse_port(argument: &[u8]) -> Option<SocketAddr> {
    let [a, b, c, d, high, low] = six_bytes(argument)?;
    Some(SocketAddr::new(
        Ipv4Addr::new(a, b, c, d).into(),
        u16::from_be_bytes([high, low]),
    ))
}

/// Reads the argument of EPRT (RFC 2428 §2): `|1|address|port|`, with any printable delimiter.
pub fn parse_eprt(argument: &[u8]) -> Option<SocketAddr> {
    let (delimiter, rest) = argument.split_first()?;
    let rest = rest.strip_suffix(&[*delimiter])?;
    let mut fields = rest.split(|byte| byte == delimiter);
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let address = match field()? {
        "1" => field()?.parse::<Ipv4Addr>().ok()?.into(),
        "2" => field()?.parse::<Ipv6Addr>().ok()?.into(),
        _ => return None,
    };
    let port = number(field()?.as_bytes())?;
    fields
        .next()
        .is_none()
        .then_some(SocketAddr::new(address, port))
}

/// The command that names a listener: PORT where the agent used it and the address fits, else
/// EPRT.
pub(super) fn active_command(listener: SocketAddr, prefer_port: bool) -> String {
    let port = listener.port();
    match listener.ip() {
        IpAddr::V4(ip) if prefer_port => {
            let [a, b, c, d] = ip.octets();
            let [high, low] = port.to_be_bytes();
            format!("PORT {a},{b},{c},{d},{high},{low}\r\n")
        }
        IpAddr::V4(ip) => format!("EPRT |1|{ip}|{port}|\r\n"),
        IpAddr::V6(ip) => format!("EPRT |2|{ip}|{port}|\r\n"),
    }
}

/// The port of a 227 reply. Where the address begins is not specified, so it is the first digit
/// after the code (RFC 1123 §4.1.2.6). The host that it names is not read: nobody connects there
/// because of this reply but the agent itself.
pub(super) fn passive_port(line: &[u8]) -> Option<u16> {
    let text = line.get(3..)?;
    let begin = text.iter().position(u8::is_ascii_digit)?;
    let text = text.get(begin..)?;
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit() && *byte != b',')
        .unwrap_or(text.len());
    let [_, _, _, _, high, low] = six_bytes(text.get(..end)?)?;
    Some(u16::from_be_bytes([high, low]))
}

/// The port of a 229 reply (RFC 2428 §3): `(|||port|)`.
pub(super) fn extended_passive_port(line: &[u8]) -> Option<u16> {
    let begin = line.iter().position(|byte| *byte == b'(')?;
    let (delimiter, rest) = line.get(begin + 1..)?.split_first()?;
    let rest = rest.strip_prefix(&[*delimiter, *delimiter])?;
    let end = rest.iter().position(|byte| byte == delimiter)?;
    number(rest.get(..end)?)
}

fn six_bytes(text: &[u8]) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut fields = text.split(|byte| *byte == b',');
    for byte in &mut bytes {
        *byte = number(fields.next()?)?.try_into().ok()?;
    }
    fields.next().is_none().then_some(bytes)
}

fn number(digits: &[u8]) -> Option<u16> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

//! `[dns]`: whom enrolled groups may ask for names.

use std::net::IpAddr;

use super::error::quoted;
use super::field::{At, Strings};
use super::raw::RawDns;
use super::reader::Reader;

/// The resolvers; DNS to any other is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Those that the file lists; `None`: the host's own, see [`Dns::from_resolv_conf`].
    pub resolvers: Option<Vec<IpAddr>>,
}

impl Dns {
    /// The nameservers in the text of an `/etc/resolv.conf`.
    pub fn from_resolv_conf(text: &str) -> Self {
        let nameserver = |line: &str| -> Option<IpAddr> {
            let mut words = line.split_whitespace();
            let address = words
                .next()
                .filter(|word| *word == "nameserver")
                .and(words.next())?;
            // A link-local resolver is written with its interface: fe80::1%eth0.
            let address = address
                .split_once('%')
                .map_or(address, |(address, _)| address);
            address
                .parse::<IpAddr>()
                .ok()
                .map(|address| address.to_canonical())
        };
        Self {
            resolvers: Some(distinct(text.lines().filter_map(nameserver))),
        }
    }

    /// The resolvers: those listed, else those of the `resolv.conf` given.
    pub fn resolvers_or(&self, resolv_conf: &str) -> Vec<IpAddr> {
        match &self.resolvers {
            Some(listed) => listed.clone(),
            None => Self::from_resolv_conf(resolv_conf)
                .resolvers
                .unwrap_or_default(),
        }
    }
}

fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut list = Vec::new();
    for address in addresses {
        if !list.contains(&address) {
            list.push(address);
        }
    }
    list
}

pub(super) fn resolve(reader: &mut Reader, raw: RawDns) -> Dns {
    let Some(list) = reader.get("resolvers", raw.resolvers) else {
        return Dns::default();
    };
    let mut addresses = Vec::new();
    for field in list.value {
        let element = reader.element::<Strings, _>("resolvers", field);
        let Some(At { value, span }) = element else {
            continue;
        };
        match value.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => {
                let message = format!("{} is no address of a resolver", quoted(&value));
                reader.error(&span, &message, "write an IP address, without port");
            }
        }
    }
    Dns {
        resolvers: Some(distinct(addresses.into_iter())),
    }
}

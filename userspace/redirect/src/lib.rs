//! The kernel side of mantled, as user space sees it.
//!
//! [`Interceptor`] loads the kernel programs, attaches them and enrols cgroups; [`Flows`] tells
//! the proxy who a peer of its listener is and where it wanted to go; [`Names`] what the agent
//! asked DNS before; [`Listeners`] are the sockets that the programs send connections to, and a
//! [`Watch`] opens them where containers are. The rest is what these need: [`cgroup`]s, the bpf file
//! system ([`bpffs`]), connections that were there before ([`existing`]), what /proc tells of a
//! [`process`], and other network [`namespaces`].
//!
//! This crate and the kernel programs are the only places with unsafe code: system calls that no
//! library wraps ([`sys`]), and the one closure that runs between fork and exec ([`spawn`]).

pub mod bpffs;
pub mod cgroup;
pub mod descriptors;
pub mod doctor;
mod error;
pub mod events;
pub mod existing;
mod flows;
mod interceptor;
mod link;
mod listener;
mod map;
mod names;
pub mod namespaces;
pub mod neighbours;
mod object;
mod pins;
pub mod process;
pub mod spawn;
pub mod sys;
mod watch;

pub use error::Error;
pub use flows::{Flows, Peer};
pub use interceptor::{Counters, Hook, Interceptor};
pub use link::Link;
pub use listener::{Listeners, Liveness, Parts, Served};
pub use mantled_abi::{self as abi, SurveyKey, Surveyed};
pub use names::{Kept, Names, Readiness};
pub use pins::Pins;
pub use watch::{Change, Watch};

use std::net::{IpAddr, Ipv6Addr};

/// The kernel's form of an address: network order, IPv4 mapped.
pub fn to_abi(address: IpAddr) -> abi::Address {
    let bytes = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().expect("chunks of four"));
    }
    words
}

/// The address behind the kernel's form; a mapped one is IPv4.
pub fn from_abi(address: abi::Address) -> IpAddr {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(address) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.7", "2001:db8::1", "::1", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(from_abi(to_abi(address)), address);
        }
        assert_eq!(to_abi("1.2.3.4".parse().unwrap())[2], abi::MAPPED);
    }
}

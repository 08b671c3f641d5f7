//! What the kernel programs tell: refusals and drops, with process and destination.

use std::io;

use aya::maps::{MapData, RingBuf};
use mantled_abi as abi;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{Error, from_abi, map::from_bytes};

/// The stream of events.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// Protocol number of IP.
    pub protocol: u32,
    /// Id of the enrolled cgroup.
    pub group: u64,
    /// Where to.
    pub address: std::net::IpAddr,
    /// The port; 0 where the protocol has none.
    pub port: u16,
    /// The process, 0 where the kernel could not tell.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub comm: String,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet was dropped on its way out.
    Dropped,
    /// connect() or sendto() of a protocol that cannot be upgraded was refused.
    DatagramRefused,
    /// connect() was refused because no daemon was there.
    DownRefused,
    /// connect() went out unprotected because no daemon was there and the operator chose `open`.
    DownPassed,
    /// connect() was refused: the proxy does not listen in that network namespace.
    NamespaceRefused,
    /// connect() was left alone, in observe mode, for the same reason.
    NamespacePassed,
    /// A socket was made in a network namespace in which the proxy does not listen.
    NamespaceSeen,
}

impl Kind {
    /// A name for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::DatagramRefused => "datagram_refused",
            Self::DownRefused => "down_refused",
            Self::DownPassed => "down_passed",
            Self::NamespaceRefused => "namespace_refused",
            Self::NamespacePassed => "namespace_passed",
            Self::NamespaceSeen => "namespace_seen",
        }
    }
}

impl Events {
    pub(crate) fn new(ring: RingBuf<MapData>) -> Result<Self, Error> {
        // SAFETY: the ring owns its descriptor, keeps it open until it is dropped and always
        // returns the same.
        unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map(Self)
            .map_err(|error| Error::io("watching the kernel's events", error.into()))
    }

    /// Waits for the next event. It can be cancelled without losing one.
    ///
    /// # Errors
    /// As epoll(7).
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut guard = self.0.readable_mut().await?;
            let event = guard
                .get_inner_mut()
                .next()
                .and_then(|item| from_bytes::<abi::Event>(&item));
            match event.map(Event::try_from) {
                Some(Ok(event)) => return Ok(event),
                Some(Err(())) => {}
                None => guard.clear_ready(),
            }
        }
    }
}

impl TryFrom<abi::Event> for Event {
    type Error = ();

    fn try_from(event: abi::Event) -> Result<Self, ()> {
        let kind = match event.kind {
            abi::EVENT_DROPPED => Kind::Dropped,
            abi::EVENT_DATAGRAM_REFUSED => Kind::DatagramRefused,
            abi::EVENT_DOWN_REFUSED => Kind::DownRefused,
            abi::EVENT_DOWN_PASSED => Kind::DownPassed,
            abi::EVENT_NAMESPACE_REFUSED => Kind::NamespaceRefused,
            abi::EVENT_NAMESPACE_PASSED => Kind::NamespacePassed,
            abi::EVENT_NAMESPACE_SEEN => Kind::NamespaceSeen,
            _ => return Err(()),
        };
        Ok(Self {
            kind,
            protocol: event.protocol,
            group: event.group,
            address: from_abi(event.destination),
            port: event.port as u16,
            pid: event.pid,
            uid: event.uid,
            comm: text(&event.comm),
        })
    }
}

/// A task's name as text.
pub fn text(comm: &[u8; 16]) -> String {
    let end = comm
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

//! What looks at bytes on their way through the relay.

use mantled_wire::{
    Next, Progress, Rewrite, RewriteError,
    mysql::Goodbye,
    ssh::Guard,
    tls::{MAX_HANDSHAKE, ProtocolVersion, RecordGuard, ServerFirst},
};

use crate::error::{Cause, Failure};

/// One direction's filter.
#[derive(Debug, Default)]
pub enum Filter {
    /// Carries everything.
    #[default]
    None,
    /// The agent's own TLS: every byte must belong to a record.
    Records(RecordGuard),
    /// SSH until its encryption begins.
    Ssh(Guard),
    /// The same from the server, whose first message is remembered.
    ServerRecords(ServerRecords),
    /// A codec changes it.
    Rewrite(Box<dyn Rewrite>),
    /// MySQL: carries everything, and notes the agent's goodbye.
    Goodbye(Goodbye),
    /// The second gets what the first carries.
    Both(Box<(Filter, Filter)>),
}

/// Checks a server's records until its choice is known, and after.
#[derive(Debug, Default)]
pub struct ServerRecords {
    guard: RecordGuard,
    /// The first bytes, until `first` is known.
    head: Vec<u8>,
    /// What the server answered first.
    pub first: Option<ServerFirst>,
    /// The lowest version that it may choose.
    minimum: Option<ProtocolVersion>,
}

impl From<Option<Box<dyn Rewrite>>> for Filter {
    fn from(rewrite: Option<Box<dyn Rewrite>>) -> Self {
        rewrite.map_or(Self::None, Self::Rewrite)
    }
}

impl Filter {
    /// This one, and then another.
    #[must_use]
    pub fn then(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, other) => other,
            (first, Self::None) => first,
            both => Self::Both(Box::new(both)),
        }
    }

    /// Judges a chunk; what it returns may be carried. `scratch` is used where that differs from
    /// the chunk.
    ///
    /// # Errors
    /// The session must end, and nothing of the chunk may be carried.
    pub fn pass<'a>(
        &mut self,
        chunk: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Failure> {
        match self {
            Self::None => Ok(chunk),
            Self::Records(guard) => {
                guard.check(chunk).map_err(|error| {
                    Failure::new(
                        Cause::NotTls,
                        format!("what the agent sends is not TLS: {error}"),
                    )
                })?;
                Ok(chunk)
            }
            Self::Ssh(guard) => {
                guard.check(chunk).map_err(|error| {
                    Failure::new(Cause::Protocol, format!("this is not SSH: {error}"))
                })?;
                Ok(chunk)
            }
            Self::ServerRecords(records) => {
                records.check(chunk)?;
                Ok(chunk)
            }
            Self::Goodbye(goodbye) => {
                goodbye.watch(chunk);
                Ok(chunk)
            }
            Self::Both(both) => {
                let (first, second) = &mut **both;
                let mut between = Vec::new();
                let carried = first.pass(chunk, &mut between)?;
                if std::ptr::eq(carried, chunk) {
                    return second.pass(chunk, scratch);
                }
                let mut after = Vec::new();
                let carried = second.pass(carried, &mut after)?;
                scratch.clear();
                scratch.extend_from_slice(carried);
                if matches!(first, Self::None) {
                    *self = std::mem::take(second);
                }
                Ok(scratch)
            }
            Self::Rewrite(rewrite) => {
                let passed = rewrite.pass(chunk).map_err(refused)?;
                let Some((unchanged, rest @ [_, ..])) = chunk.split_at_checked(passed) else {
                    return Ok(chunk);
                };
                scratch.clear();
                scratch.extend_from_slice(unchanged);
                let next = rewrite.rewrite(rest, scratch).map_err(refused)?;
                if next == Next::Done {
                    *self = Self::None;
                }
                Ok(scratch)
            }
        }
    }

    /// What this direction has to say of its own accord.
    pub fn speak(&mut self) -> Vec<u8> {
        let mut words = Vec::new();
        match self {
            Self::Rewrite(rewrite) => rewrite.speak(&mut words),
            Self::Both(both) => {
                let (first, second) = &mut **both;
                let mut scratch = Vec::new();
                let own = first.speak();
                // What may not be carried is not.
                let carried = second.pass(&own, &mut scratch).unwrap_or_default();
                words.extend_from_slice(carried);
                words.append(&mut second.speak());
            }
            _ => {}
        }
        words
    }

    /// Was that the last of it?
    pub fn is_over(&self) -> bool {
        match self {
            Self::Rewrite(rewrite) => rewrite.is_over(),
            Self::Both(both) => both.0.is_over() || both.1.is_over(),
            _ => false,
        }
    }

    /// Has the protocol itself said that nothing more comes?
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Rewrite(rewrite) => rewrite.has_ended(),
            Self::Both(both) => both.0.has_ended() || both.1.has_ended(),
            _ => false,
        }
    }

    /// Was what passed last a goodbye, after which nothing is expected from the other side?
    pub fn said_goodbye(&self) -> bool {
        match self {
            Self::Goodbye(goodbye) => goodbye.said(),
            Self::Both(both) => both.0.said_goodbye() || both.1.said_goodbye(),
            _ => false,
        }
    }

    /// The stream has ended; what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut held = Vec::new();
        match self {
            Self::Rewrite(rewrite) => rewrite.finish(&mut held),
            Self::Both(both) => {
                let (first, second) = &mut **both;
                let last = first.finish();
                let mut scratch = Vec::new();
                // What may not be carried is not.
                let carried = second.pass(&last, &mut scratch).unwrap_or_default();
                held.extend_from_slice(carried);
                held.append(&mut second.finish());
            }
            _ => {}
        }
        held
    }
}

fn refused(error: RewriteError) -> Failure {
    let cause = match error {
        RewriteError::ChannelBinding(_) => Cause::ChannelBinding,
        RewriteError::Protocol(_) => Cause::Protocol,
    };
    Failure::new(cause, error.to_string())
}

impl ServerRecords {
    /// For a server that must not choose less than `minimum`.
    pub fn new(minimum: Option<ProtocolVersion>) -> Self {
        Self {
            minimum,
            ..Self::default()
        }
    }

    fn check(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.guard.check(chunk).map_err(|error| {
            Failure::new(
                Cause::NotTls,
                format!("what the server sends is not TLS: {error}"),
            )
        })?;
        if self.first.is_none() && self.head.len() < MAX_HANDSHAKE {
            self.head.extend_from_slice(chunk);
            match ServerFirst::parse(&self.head) {
                Ok(Progress::Done(first)) => {
                    self.judge(&first)?;
                    self.first = Some(first);
                    self.head = Vec::new();
                }
                Ok(Progress::NeedMore) => {}
                Err(error) => {
                    return Err(Failure::new(
                        Cause::NotTls,
                        format!("what the server answers is no TLS handshake: {error}"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn judge(&self, first: &ServerFirst) -> Result<(), Failure> {
        match (first, self.minimum) {
            (ServerFirst::Hello(hello), Some(minimum)) if hello.version < minimum => {
                Err(Failure::new(
                    Cause::TlsVersion,
                    format!(
                        "the server chose TLS {}, and the lowest version is {}",
                        hello.version.name(),
                        minimum.name()
                    ),
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The record of a ServerHello without extensions.
    fn server_hello(version: u8) -> Vec<u8> {
        let body = [&[3, version][..], &[9; 32], &[0, 0xc0, 0x2f, 0]].concat();
        let length = body.len() as u8;
        [
            &[0x16, 3, 3, 0, length + 4, 2, 0, 0, length][..],
            body.as_slice(),
        ]
        .concat()
    }

    #[test]
    fn a_server_that_chooses_too_old_a_version_is_cut() {
        let lowest = Some(ProtocolVersion(0x0303));
        for (version, minimum, passes) in [
            (3, lowest, true),
            (2, lowest, false),
            (1, lowest, false),
            (1, None, true),
        ] {
            let mut filter = Filter::ServerRecords(ServerRecords::new(minimum));
            let hello = server_hello(version);
            let (first, last) = hello.split_at(20);
            let mut scratch = Vec::new();
            assert!(filter.pass(first, &mut scratch).is_ok());
            let judged = filter.pass(last, &mut scratch);
            assert_eq!(judged.is_ok(), passes, "version {version}");
            if let Err(failure) = judged {
                assert_eq!(failure.cause, Cause::TlsVersion);
            }
        }
    }
}

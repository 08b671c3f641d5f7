//! Two directions of bytes.
//!
//! Both run in one task. Bytes are read into a buffer that the thread's sessions share and are
//! written on at once; only what the other side does not take is kept, in a buffer of the
//! session's own. So an idle session holds no buffer, and one whose reader is slow holds at most
//! [`CHUNK`] bytes a direction: nothing more is read until they are gone, which is how back-pressure
//! travels.
//!
//! The end of a direction is carried as such: the other side's writing half is closed (for TLS
//! with close_notify), and the opposite direction goes on.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{agent::Agent, filter::Filter, revocation::Revocation, syslog, upstream::Upstream};
use crate::error::{Cause, Failure};

/// Bytes that are read at once: four full TLS records. More does not make it faster, and less
/// shows in throughput.
const CHUNK: usize = 64 * 1024;

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// What was carried, and the filters as they ended.
#[derive(Debug, Default)]
pub struct Carried {
    /// Bytes from the agent.
    pub sent: u64,
    /// Bytes to the agent.
    pub received: u64,
    /// The filter of what the server sent.
    pub from_server: Filter,
    /// The server's stream ended without close_notify when both sides had nothing more to say, as
    /// many servers do, or the agent's did. Should the agent be reading still, it must not take
    /// that for an end.
    pub cut: bool,
}

/// Carries bytes until both directions have ended, or the revocation says that they must.
pub async fn relay(
    agent: &mut Agent,
    upstream: Upstream,
    from_agent: Filter,
    from_server: Filter,
    revocation: Revocation,
) -> (Carried, Result<(), Failure>) {
    match upstream {
        Upstream::Verified(verified) => {
            let server = verified.into_stream();
            let revocation = revocation.of_verified();
            carry(agent, server, from_agent, from_server, revocation).await
        }
        Upstream::Exposed(exposed) => {
            let server = exposed.into_stream();
            carry(agent, server, from_agent, from_server, revocation).await
        }
        Upstream::Native(native) => {
            let server = native.into_stream();
            carry(agent, server, from_agent, from_server, revocation).await
        }
        Upstream::Syslog(line) => syslog::relay(agent, *line, revocation.of_verified()).await,
    }
}

async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    agent: &mut Agent,
    mut server: S,
    from_agent: Filter,
    from_server: Filter,
    revocation: Revocation,
) -> (Carried, Result<(), Failure>) {
    let mut out = Direction::new(from_agent);
    let mut back = Direction::new(from_server);
    let result = match out.keep(&std::mem::take(&mut agent.head)) {
        Ok(()) => tokio::select! {
            biased;
            failure = revocation.wait() => Err(failure),
            ended = poll_fn(|cx| poll_both(cx, &mut agent.stream, &mut server, &mut out, &mut back)) => ended,
        },
        Err(failure) => Err(failure),
    };
    (
        Carried {
            sent: out.carried,
            received: back.carried,
            from_server: back.filter,
            cut: back.cut,
        },
        result,
    )
}

fn poll_both<A, S>(
    cx: &mut Context<'_>,
    agent: &mut A,
    server: &mut S,
    out: &mut Direction,
    back: &mut Direction,
) -> Poll<Result<(), Failure>>
where
    A: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    match out.poll(cx, agent, server) {
        // The server does not listen any more. What it said before must still arrive: an early
        // answer to a request that is too large, for one.
        Poll::Ready(Err(End::Write(_))) => out.state = State::Closed,
        // The agent's own TLS, ended here, without close_notify. Many programs leave so when they
        // have what they want; the server is not told that it was a goodbye.
        Poll::Ready(Err(end)) if end.is_truncation() => {
            back.cut = true;
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(end)) => return Poll::Ready(Err(end.into_failure(&AGENT, &SERVER))),
        _ => {}
    }
    let goodbye = out.filter.said_goodbye();
    if (out.state != State::Open || goodbye) && back.at_goodbye.is_none() {
        back.at_goodbye = Some(back.carried);
    }
    let mut ended = back.poll(cx, server, agent);
    if let Poll::Ready(Err(End::Read(_))) = ended
        && goodbye
        && back.at_goodbye == Some(back.carried)
    {
        // Where the protocol has a goodbye, servers hang up on it as they like, and nothing can
        // be missing.
        back.state = State::Closing;
        ended = back.poll(cx, server, agent);
    }
    if let Poll::Ready(Err(end)) = ended {
        // After its goodbye an agent that gets nothing more has most likely gone. One that was
        // still being answered has been cut short.
        if !(end.is_truncation() && back.at_goodbye == Some(back.carried)) {
            return Poll::Ready(Err(end.into_failure(&SERVER, &AGENT)));
        }
        back.state = State::Closed;
        back.cut = true;
    }
    if out.state == State::Closed && back.state == State::Closed {
        Poll::Ready(Ok(()))
    } else {
        Poll::Pending
    }
}

/// A side, for errors.
struct Side {
    name: &'static str,
    closed: Cause,
}

const AGENT: Side = Side {
    name: "agent",
    closed: Cause::AgentClosed,
};
const SERVER: Side = Side {
    name: "server",
    closed: Cause::UpstreamClosed,
};

/// How a direction ended before its time.
enum End {
    Read(io::Error),
    Write(io::Error),
    Filter(Failure),
}

impl End {
    fn is_truncation(&self) -> bool {
        matches!(self, Self::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }

    fn into_failure(self, from: &Side, to: &Side) -> Failure {
        let truncated = self.is_truncation();
        match self {
            Self::Filter(failure) => failure,
            Self::Read(_) if truncated => Failure::new(
                Cause::UpstreamTruncated,
                "the server's stream ended without TLS close_notify, so it may have been cut",
            ),
            Self::Read(error) => Failure::new(from.closed, format!("{}: {error}", from.name)),
            Self::Write(error) => Failure::new(to.closed, format!("{}: {error}", to.name)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes may come.
    Open,
    /// The reader has ended; what is kept must still be written, then the writer closed.
    Closing,
    /// The reader's TLS ended without close_notify; what was written must still get on the wire.
    Cut,
    /// Done.
    Closed,
}

/// One direction.
///
/// Invariant: `offset <= kept.len()`; `kept` is empty unless the writer did not take it.
struct Direction {
    kept: Vec<u8>,
    offset: usize,
    filter: Filter,
    state: State,
    carried: u64,
    /// The writer may hold bytes that it has not put on the wire.
    unflushed: bool,
    /// What was carried when the opposite direction ended.
    at_goodbye: Option<u64>,
    /// See [`Carried::cut`].
    cut: bool,
}

impl Direction {
    fn new(filter: Filter) -> Self {
        Self {
            kept: Vec::new(),
            offset: 0,
            filter,
            state: State::Open,
            carried: 0,
            unflushed: false,
            at_goodbye: None,
            cut: false,
        }
    }

    /// Keeps bytes that were read before the relay began.
    fn keep(&mut self, head: &[u8]) -> Result<(), Failure> {
        if !head.is_empty() {
            let mut scratch = Vec::new();
            self.kept = self.filter.pass(head, &mut scratch)?.to_vec();
        }
        Ok(())
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), End>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.state == State::Closed {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_write_kept(cx, writer))?;
            if self.state == State::Open {
                self.kept = self.filter.speak();
                if !self.kept.is_empty() {
                    continue;
                }
                if self.filter.is_over() {
                    self.state = State::Closing;
                }
            }
            match self.state {
                State::Open => match self.poll_carry(cx, reader, writer) {
                    Err(end) if end.is_truncation() => self.state = State::Cut,
                    Err(end) => return Poll::Ready(Err(end)),
                    Ok(Poll::Ready(())) => {}
                    Ok(Poll::Pending) => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(End::Write)?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
                State::Cut => {
                    ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(End::Write)?;
                    return Poll::Ready(Err(End::Read(io::ErrorKind::UnexpectedEof.into())));
                }
                State::Closing => {
                    match ready!(Pin::new(&mut *writer).poll_shutdown(cx)) {
                        // The other side has closed already: there is nobody left to tell.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        result => result.map_err(End::Write)?,
                    }
                    self.state = State::Closed;
                }
                State::Closed => {}
            }
        }
    }

    /// Writes what is kept, then lets the buffer go.
    fn poll_write_kept<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), End>> {
        while let Some(rest @ [_, ..]) = self.kept.get(self.offset..) {
            let written =
                ready!(Pin::new(&mut *writer).poll_write(cx, rest)).map_err(End::Write)?;
            self.note_written(written).map_err(End::Write)?;
            self.offset += written;
        }
        if self.offset > 0 {
            self.kept = Vec::new();
            self.offset = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn note_written(&mut self, written: usize) -> io::Result<()> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.carried += written as u64;
        self.unflushed = true;
        Ok(())
    }

    /// Reads once and writes as much of it as goes.
    fn poll_carry<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Result<Poll<()>, End>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SHARED.with_borrow_mut(|shared| {
            let mut buffer = ReadBuf::new(shared);
            match Pin::new(reader).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(_)) if self.filter.has_ended() => {}
                Poll::Ready(result) => result.map_err(End::Read)?,
            }
            if buffer.filled().is_empty() {
                self.kept = self.filter.finish();
                self.state = State::Closing;
                return Ok(Poll::Ready(()));
            }
            let mut scratch = Vec::new();
            let chunk = self
                .filter
                .pass(buffer.filled(), &mut scratch)
                .map_err(End::Filter)?;
            let mut written = 0;
            if !chunk.is_empty()
                && let Poll::Ready(result) = Pin::new(writer).poll_write(cx, chunk)
            {
                written = result.map_err(End::Write)?;
                self.note_written(written).map_err(End::Write)?;
            }
            self.kept = chunk.get(written..).unwrap_or_default().to_vec();
            Ok(Poll::Ready(()))
        })
    }
}

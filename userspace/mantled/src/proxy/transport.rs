//! What TLS with a server runs over: TCP, or the packets of TDS 7.x for as long as the handshake
//! takes.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use mantled_wire::tds::{Unwrapper, Wanted, wrap_handshake};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A connection to a server, below TLS.
#[derive(Debug)]
pub struct Transport {
    stream: TcpStream,
    /// None: bytes pass as they are.
    packets: Option<Box<Packets>>,
}

/// A handshake in packets.
#[derive(Debug, Default)]
struct Packets {
    unwrapper: Unwrapper,
    /// The flight that is being written; it becomes a message when it is flushed.
    flight: Vec<u8>,
    /// What of a message is not sent.
    unsent: Vec<u8>,
}

impl Transport {
    /// Bare TCP.
    pub fn bare(stream: TcpStream) -> Self {
        Self {
            stream,
            packets: None,
        }
    }

    /// TCP that carries the packets of TDS until [`Self::leave_packets`].
    pub fn in_packets(stream: TcpStream) -> Self {
        Self {
            stream,
            packets: Some(Box::default()),
        }
    }

    /// The socket below.
    pub fn socket(&self) -> SockRef<'_> {
        SockRef::from(&self.stream)
    }

    /// The handshake is done; what follows is bare.
    ///
    /// # Errors
    /// The server has begun another packet.
    pub fn leave_packets(&mut self) -> io::Result<()> {
        match self.packets.take() {
            Some(packets) if !packets.unwrapper.is_between_packets() => {
                Err(io::ErrorKind::InvalidData.into())
            }
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let stream = Pin::new(&mut this.stream);
        match &mut this.packets {
            None => stream.poll_read(cx, buffer),
            Some(packets) => packets.poll_read(cx, stream, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match &mut this.packets {
            None => Pin::new(&mut this.stream).poll_write(cx, bytes),
            Some(packets) => {
                packets.flight.extend_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match &mut this.packets {
            None => Pin::new(&mut this.stream).poll_write_vectored(cx, pieces),
            Some(packets) => {
                for piece in pieces {
                    packets.flight.extend_from_slice(piece);
                }
                Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut stream = Pin::new(&mut this.stream);
        if let Some(packets) = &mut this.packets {
            ready!(packets.poll_send(cx, stream.as_mut()))?;
        }
        stream.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Packets {
    /// Reads data of a packet, never beyond its end.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut stream: Pin<&mut TcpStream>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match self.unwrapper.wanted() {
                Wanted::Header(missing) => {
                    let mut room = [0; 8];
                    let mut room = ReadBuf::new(&mut room);
                    let mut header = room.take(missing);
                    ready!(stream.as_mut().poll_read(cx, &mut header))?;
                    if header.filled().is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    self.unwrapper
                        .header(header.filled())
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                }
                Wanted::Data(left) => {
                    let mut room = vec![0; left.min(buffer.remaining())];
                    let mut data = ReadBuf::new(&mut room);
                    ready!(stream.poll_read(cx, &mut data))?;
                    self.unwrapper.took(data.filled().len());
                    buffer.put_slice(data.filled());
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut stream: Pin<&mut TcpStream>,
    ) -> Poll<io::Result<()>> {
        self.unsent.extend(wrap_handshake(&self.flight));
        self.flight.clear();
        while !self.unsent.is_empty() {
            match ready!(stream.as_mut().poll_write(cx, &self.unsent))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.unsent.drain(..written)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

//! TLS over a socket.
//!
//! The library reads records in pieces of 4 KiB. Below it, [`ReadAhead`] reads as much as there is, and lets the
//! caller look at the first bytes of a client before they are parsed.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, ServerName},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Socket, buffers};

/// A socket that reads more than it was asked for.
#[derive(Debug)]
pub struct ReadAhead {
    socket: Socket,
    /// A borrowed buffer while it contains bytes: `buffer[taken..filled]`.
    buffer: Vec<u8>,
    taken: usize,
    filled: usize,
}

impl ReadAhead {
    /// Takes over a `socket` from which nothing was read.
    pub fn new(socket: Socket) -> Self {
        Self { socket, buffer: Vec::new(), taken: 0, filled: 0 }
    }

    /// The result of `inspect` for the first bytes of the other side, or for no bytes if it has closed the
    /// connection. The next read returns the same bytes again.
    ///
    /// # Errors
    /// The socket has failed.
    pub async fn first_bytes<T>(&mut self, inspect: impl Fn(&[u8]) -> T) -> io::Result<T> {
        poll_fn(|cx| self.poll_fill(cx)).await?;
        Ok(inspect(self.unread()))
    }

    /// Sends `bytes`, and ends the sending direction.
    ///
    /// # Errors
    /// The socket has failed.
    pub async fn finish_with(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        poll_fn(|cx| self.socket.poll_finish_with(cx, &mut bytes)).await
    }

    /// Ends the sending direction, and reads until the other side closes the connection.
    ///
    /// Closing a connection with unread bytes would reset it, and the other side would not see why.
    ///
    /// # Errors
    /// The socket has failed.
    pub async fn linger(mut self) -> io::Result<()> {
        poll_fn(|cx| self.socket.poll_shutdown(cx)).await?;
        loop {
            (self.taken, self.filled) = (0, 0);
            buffers::give_back(std::mem::take(&mut self.buffer));
            poll_fn(|cx| self.poll_fill(cx)).await?;
            if self.filled == 0 {
                return Ok(());
            }
        }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.taken..self.filled]
    }

    /// Receives once, unless unread bytes are left.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.taken < self.filled {
            return Poll::Ready(Ok(()));
        }
        let mut buffer = buffers::borrow();
        let mut target = ReadBuf::new(&mut buffer);
        let result = self.socket.poll_read(cx, &mut target);
        (self.taken, self.filled) = (0, target.filled().len());
        match self.filled {
            0 => buffers::give_back(buffer),
            _ => self.buffer = buffer,
        }
        result
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_fill(cx))?;
        let len = into.remaining().min(self.filled - self.taken);
        into.put_slice(&self.unread()[..len]);
        self.taken += len;
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
            buffers::give_back(std::mem::take(&mut self.buffer));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, &[io::IoSlice::new(from)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_write(cx, from)
    }
}

/// A socket after a successful TLS handshake.
#[derive(Debug)]
pub struct Secured(TlsStream<ReadAhead>);

impl Secured {
    /// Does the handshake with a client.
    ///
    /// # Errors
    /// The socket has failed, or the error contains a [`rustls::Error`]. The returned [`ReadAhead`] can still send
    /// the client an alert (see [`ReadAhead::linger`]).
    pub async fn accept(
        io: ReadAhead,
        config: Arc<ServerConfig>,
    ) -> Result<Self, (io::Error, ReadAhead)> {
        let stream = TlsAcceptor::from(config).accept(io).into_fallible().await?;
        Ok(Self(TlsStream::Server(stream)))
    }

    /// Does the handshake with a server whose certificate must have `name`.
    ///
    /// # Errors
    /// As [`Secured::accept`].
    pub async fn connect(
        socket: Socket,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let io = ReadAhead::new(socket);
        let stream = TlsConnector::from(config).connect(name, io).await?;
        Ok(Self(TlsStream::Client(stream)))
    }

    /// The verified certificate of the other side. `None` if it has shown none.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        let (_io, session) = self.0.get_ref();
        session.peer_certificates()
    }

    /// Reads what has arrived, as far as it fits. The library passes on one record at a time, and bulk data
    /// consists of many.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = into.filled().len();
        while into.remaining() > 0 {
            let before = into.filled().len();
            let result = Pin::new(&mut self.0).poll_read(cx, into);
            let ended = into.filled().len() == before;
            match result {
                // The bytes before the end are returned first. The next read meets the end again.
                Poll::Pending | Poll::Ready(_) if ended && before > start => break,
                Poll::Ready(Ok(())) if !ended => {}
                result => return result,
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, from)
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

//! A socket of any kind: TCP, Unix, or TLS over one of them.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::Secured;

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    /// A TCP connection with Nagle's algorithm off.
    Tcp(TcpStream),
    /// A connection over a Unix domain socket.
    Unix(UnixStream),
    /// TLS over one of the others.
    Tls(Box<Secured>),
}

impl Socket {
    /// Reads until `into` is full or the other side has closed the connection. Returns the number of bytes read.
    ///
    /// # Errors
    /// The socket has failed.
    pub async fn read_full(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut target = ReadBuf::new(into);
        while target.remaining() > 0 {
            let before = target.filled().len();
            poll_fn(|cx| self.poll_read(cx, &mut target)).await?;
            if target.filled().len() == before {
                break;
            }
        }
        Ok(target.filled().len())
    }

    /// Waits until a read may find something.
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
            // What is encrypted may have arrived before.
            Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(secured) => secured.poll_read(cx, into),
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, from),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, from),
            Self::Tls(secured) => secured.poll_write(cx, from),
        };
        #[cfg(test)]
        if result.is_ready() {
            super::tests::count_write();
        }
        result
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(secured) => secured.poll_shutdown(cx),
        }
    }

    /// Sends the `rest` of an answer, and ends the sending direction.
    pub(super) fn poll_finish_with(
        &mut self,
        cx: &mut Context<'_>,
        rest: &mut &[u8],
    ) -> Poll<io::Result<()>> {
        while !rest.is_empty() {
            let written = ready!(self.poll_write(cx, &[io::IoSlice::new(rest)]))?;
            *rest = &rest[written..];
        }
        ready!(self.poll_flush(cx))?;
        self.poll_shutdown(cx)
    }

    /// Sends the bytes that a write has accepted and not sent. Only TLS accepts more than it sends.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Tls(secured) => secured.poll_flush(cx),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, &[io::IoSlice::new(from)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write(cx, from)
    }
}

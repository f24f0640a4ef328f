//! Sockets, and the batching that makes HTTP/2 over them cheap.
//!
//! An HTTP/2 library writes frame by frame: at 16 KiB a frame that is one system call each, and most of BuildKit's
//! frames are smaller. [`Batched`] gathers what a connection writes, and [`Flushing`] sends it in one call when the
//! connection's turn is over. [`Batched`] also reads in large pieces, and lets the connection send each piece on
//! before it reads the next. Buffers are borrowed from a small pool of the thread, so an idle connection holds
//! none.
//!
//! The HTTP/2 library stands between these parts, and its traits can pass on only a part of what they need to know.
//! The rest is passed in thread-locals. That is sound because one poll of a connection is one turn of it, and a
//! poll never changes its thread:
//!
//! ```text
//!  one poll of Flushing
//!  +------------------------------------------------------------------+
//!  |  body --> Payload --slices--> library --slices--> Outbox         |
//!  |              |                                     ^  |          |
//!  |              +------- SHOWN: whose memory it is ---+  |          |
//!  |                                                       |          |
//!  |  Flushing <---------- WROTE: something is to be sent -+          |
//!  |     +-- when the connection's turn is over, sends --> socket     |
//!  |                                                                  |
//!  |  body <------------------- library <--frames-- Inbox <-- socket  |
//!  |                                                  |               |
//!  |  the same poll's next read <-- RECEIVED: bytes --+               |
//!  |  (none above TURN_LEN)                           |               |
//!  +--------------------------------------------------|---------------+
//!  the thread, before it waits <-- TRAFFIC: bytes ----+
//!  (moderation: may let bulk data gather)
//!
//!  the next connection of the thread <-- POOL of Outbox, POOL of Inbox: buffers that are empty
//! ```

mod buffers;
mod flushing;
mod inbox;
pub mod moderation;
mod outbox;
mod payload;
mod secured;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

pub use self::{
    flushing::Flushing,
    payload::Payload,
    secured::{ReadAhead, Secured},
    socket::Socket,
    tcp::configure_tcp,
};
use self::{inbox::Inbox, outbox::Outbox};
use crate::tls;

/// The bytes that an HTTP/2 client sends before its first frame (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of [`PREFACE`] in bytes.
pub const PREFACE_LEN: usize = PREFACE.len();

/// The number of bytes after which a poll of a connection stops receiving. More bytes would leave the CPU's cache
/// before they are sent on.
const TURN_LEN: usize = 256 * 1024;

thread_local! {
    /// Whether the running poll has written to a [`Batched`]; see [`Flushing`].
    static WROTE: Cell<bool> = const { Cell::new(false) };
    /// The number of bytes that the running poll has received; see [`TURN_LEN`].
    static RECEIVED: Cell<usize> = const { Cell::new(0) };
}

/// A socket whose reads and writes are gathered. Clones share the socket.
#[derive(Debug, Clone)]
pub struct Batched {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    received: AtomicUsize,
    /// Why the other side refuses TLS, if this was the first thing that it sent.
    refusal: OnceLock<Arc<str>>,
    /// Notified when the first read has ended, in whatever way.
    first_read: Notify,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    inbox: Inbox,
    outbox: Outbox,
    /// Whether the other side has closed the connection.
    ended: bool,
}

impl Batched {
    /// Takes over a `socket` that leads to a client.
    pub fn with_client(socket: Socket) -> Self {
        Self::new(socket, Inbox::new(PREFACE_LEN))
    }

    /// Takes over a `socket` that leads to a daemon.
    pub fn with_daemon(socket: Socket) -> Self {
        Self::new(socket, Inbox::new(0))
    }

    fn new(socket: Socket, inbox: Inbox) -> Self {
        let outbox = Outbox::default();
        let state = Mutex::new(State { socket, inbox, outbox, ended: false });
        let (received, first_read) = (AtomicUsize::new(0), Notify::new());
        let refusal = OnceLock::new();
        Self { shared: Arc::new(Shared { state, received, refusal, first_read }) }
    }

    /// The number of bytes that the other side has sent.
    pub fn received(&self) -> usize {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Why the other side refused TLS after the handshake. In TLS 1.3, the client's handshake ends before the
    /// daemon has checked the client's certificate.
    pub fn refusal(&self) -> Option<Arc<str>> {
        self.shared.refusal.get().cloned()
    }

    /// Waits until the other side has sent something, or has closed the connection. Only one caller may wait.
    pub async fn first_read(&self) {
        if self.received() == 0 {
            self.shared.first_read.notified().await;
        }
    }

    /// The result of `inspect` for the first bytes of the other side, or for no bytes if it has closed the
    /// connection. The next read returns the same bytes again.
    ///
    /// # Errors
    /// The socket has failed.
    pub async fn first_bytes<T>(&self, inspect: impl Fn(&[u8]) -> T) -> io::Result<T> {
        poll_fn(|cx| {
            let State { socket, inbox, .. } = &mut *self.shared.state.lock();
            if inbox.unread().is_empty() {
                let len = ready!(inbox.poll_fill(socket, cx))?;
                self.note_received(len);
            }
            Poll::Ready(Ok(inspect(inbox.unread())))
        })
        .await
    }

    /// Sends `bytes` to a client that is not served, and ends the sending direction. Nothing may have been written
    /// before.
    ///
    /// # Errors
    /// The socket has failed.
    pub async fn finish_with(&self, mut bytes: &[u8]) -> io::Result<()> {
        poll_fn(|cx| self.shared.state.lock().socket.poll_finish_with(cx, &mut bytes)).await
    }

    /// Sends the written bytes, as far as the socket accepts them.
    fn poll_write_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State { socket, outbox, .. } = &mut *self.shared.state.lock();
        outbox.poll_write_out(socket, cx)
    }

    /// The number of bytes that were written and not sent.
    fn unsent(&self) -> usize {
        self.shared.state.lock().outbox.len()
    }

    fn note_received(&self, len: usize) {
        if self.shared.received.fetch_add(len, Ordering::Relaxed) == 0 {
            self.shared.first_read.notify_one();
        }
    }
}

impl AsyncRead for Batched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let State { socket, inbox, ended, .. } = &mut *self.shared.state.lock();
        let room = into.remaining();
        loop {
            inbox.take(into);
            if into.remaining() < room {
                return Poll::Ready(Ok(()));
            }
            if RECEIVED.get() >= TURN_LEN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let result = ready!(inbox.poll_fill(socket, cx));
            if let (Err(error), Socket::Tls(_), 0) = (&result, &socket, self.received()) {
                let refusal = tls::failure(error, "the daemon").text;
                let _ = self.shared.refusal.set(refusal.into());
            }
            let len = *result.as_ref().unwrap_or(&0);
            RECEIVED.set(RECEIVED.get() + len);
            moderation::received(len);
            self.note_received(len);
            if result? == 0 {
                *ended = true;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Batched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(from)])
    }

    /// Reports success without sending, because [`Flushing`] sends when the connection's turn is over.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the sending direction. If the other side has ended its own, the connection is over, and what closes it does
    /// that, too; only TLS has something to say before.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State { socket, outbox, ended, .. } = &mut *self.shared.state.lock();
        ready!(outbox.poll_write_out(socket, cx))?;
        match (&socket, *ended) {
            (Socket::Tcp(_) | Socket::Unix(_), true) => Poll::Ready(Ok(())),
            _ => socket.poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        WROTE.set(true);
        let State { socket, outbox, .. } = &mut *self.shared.state.lock();
        outbox.poll_write(socket, cx, from)
    }
}

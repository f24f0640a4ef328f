//! Sockets, and the batching that makes HTTP/2 over them cheap.
//!
//! An HTTP/2 library writes frame by frame: at 16 KiB a frame that is one system call each, and most
//! of BuildKit's frames are smaller. [`Batched`] gathers what a connection writes and sends it in one
//! call when its turn is over ([`Flushing`]). It reads in large pieces too, and lets each be sent on
//! before it reads the next. Buffers are borrowed from a small pool per thread, so an idle connection
//! holds none.

mod inbox;
pub mod moderation;
mod outbox;
mod payload;

use std::{
    cell::Cell,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::Notify,
};

pub use self::payload::Payload;
use self::{inbox::Inbox, outbox::Outbox};

/// Length of what a client sends before its first frame (RFC 9113 section 3.4).
pub const PREFACE_LEN: usize = 24;

/// What one poll of a connection receives at most, but for the last read. More would have left the
/// CPU's cache before it is sent on.
const TURN_LEN: usize = 256 * 1024;

/// Up to this it is an answer to a PING, window updates, or the headers of an answer.
const CONTROL_LEN: usize = 64;

/// Up to this it may be the beginning of a small answer.
const PART_LEN: usize = 512;

thread_local! {
    /// Whether the running poll has written to a [`Batched`]; see [`Flushing`].
    static WROTE: Cell<bool> = const { Cell::new(false) };
    /// What the running poll has received; see [`TURN_LEN`].
    static RECEIVED: Cell<usize> = const { Cell::new(0) };
}

/// A connected stream socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP, with Nagle's algorithm off.
    Tcp(TcpStream),
    /// Unix domain socket.
    Unix(UnixStream),
}

impl Socket {
    /// The other end's address, if it has one.
    pub fn peer(&self) -> Option<IpAddr> {
        match self {
            // A mapped address is the same client over the other family.
            Self::Tcp(stream) => stream.peer_addr().ok().map(|addr| addr.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, from),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, from),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A socket whose reads and writes are gathered. Clones share the one socket.
#[derive(Debug, Clone)]
pub struct Batched {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    received: AtomicUsize,
    /// Told once the first read has ended in any way.
    first_read: Notify,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    inbox: Inbox,
    outbox: Outbox,
}

impl Batched {
    /// Takes over a `socket` on which a client speaks.
    pub fn with_client(socket: Socket) -> Self {
        Self::new(socket, Inbox::new(PREFACE_LEN))
    }

    /// Takes over a `socket` on which a daemon answers.
    pub fn with_daemon(socket: Socket) -> Self {
        Self::new(socket, Inbox::new(0))
    }

    fn new(socket: Socket, inbox: Inbox) -> Self {
        let state = Mutex::new(State { socket, inbox, outbox: Outbox::default() });
        let (received, first_read) = (AtomicUsize::new(0), Notify::new());
        Self { shared: Arc::new(Shared { state, received, first_read }) }
    }

    /// Bytes that the other side has sent.
    pub fn received(&self) -> usize {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Waits until the other side has sent something, or has closed; one caller may wait.
    pub async fn first_read(&self) {
        if self.received() == 0 {
            self.shared.first_read.notified().await;
        }
    }

    /// Sends what has been written, as far as the socket takes it.
    fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State { socket, outbox, .. } = &mut *self.shared.state.lock();
        outbox.poll_drain(socket, cx)
    }

    /// Bytes that have been written and not sent.
    fn unsent(&self) -> usize {
        self.shared.state.lock().outbox.len()
    }

    fn note_received(&self, len: usize) {
        if self.shared.received.fetch_add(len, Ordering::Relaxed) == 0 {
            self.shared.first_read.notify_one();
        }
    }
}

impl hyper::rt::Read for Batched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let State { socket, inbox, .. } = &mut *self.shared.state.lock();
        let room = into.remaining();
        loop {
            inbox.take(&mut into);
            if into.remaining() < room {
                return Poll::Ready(Ok(()));
            }
            if RECEIVED.get() >= TURN_LEN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let result = ready!(inbox.poll_fill(socket, cx));
            let len = *result.as_ref().unwrap_or(&0);
            RECEIVED.set(RECEIVED.get() + len);
            moderation::received(len);
            self.note_received(len);
            if result? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl hyper::rt::Write for Batched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(from)])
    }

    /// Reports success without sending: [`Flushing`] sends when the connection's poll is over.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State { socket, outbox, .. } = &mut *self.shared.state.lock();
        ready!(outbox.poll_drain(socket, cx))?;
        socket.poll_shutdown(cx)
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

/// How often whatever else is ready to run goes first while `unsent` bytes wait: what it writes then
/// goes with them, and a system call costs more than ten turns of an idle connection.
///
/// An answer comes from the daemon in parts. The answer to a PING, which gRPC sends with nearly every
/// message, comes before what that message leads to on the other connection, and must not delay it.
fn patience(unsent: usize) -> u8 {
    if unsent <= CONTROL_LEN { 3 } else { u8::from(unsent <= PART_LEN) }
}

pin_project! {
    /// Polls a connection, and sends what it has written; see [`patience`].
    ///
    /// Of several futures around one connection only the one that writes ever sends, so the
    /// socket's waker is always that future's.
    #[derive(Debug)]
    pub struct Flushing<F: Future> {
        #[pin]
        inner: F,
        io: Batched,
        // Something written has not been sent yet.
        owing: bool,
        // How often others have had their turn since it was written.
        waited: u8,
        // The inner future's result, kept until all is sent.
        output: Option<F::Output>,
    }
}

impl<F: Future> Flushing<F> {
    /// The wrapped future.
    pub fn inner_mut(self: Pin<&mut Self>) -> Pin<&mut F> {
        self.project().inner
    }

    /// Wraps `inner`, a future that drives a connection over `io`.
    pub fn new(inner: F, io: Batched) -> Self {
        Self { inner, io, owing: false, waited: 0, output: None }
    }
}

impl<F: Future> Future for Flushing<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.output.is_none() {
            WROTE.set(false);
            RECEIVED.set(0);
            if let Poll::Ready(output) = this.inner.poll(cx) {
                *this.output = Some(output);
            }
            *this.owing |= WROTE.get();
        }
        if *this.owing {
            if this.output.is_none() && *this.waited < patience(this.io.unsent()) {
                *this.waited += 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // A failed write shows up as an error of the connection's next read or write.
            *this.owing = this.io.poll_drain(cx).is_pending();
            // What the socket does not take now is sent as soon as it does.
            *this.waited = if *this.owing { u8::MAX } else { 0 };
        }
        match this.output.take() {
            Some(output) if !*this.owing => Poll::Ready(output),
            output => {
                *this.output = output;
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix};

    use futures_util::FutureExt as _;

    use super::*;

    /// How often a connection that writes `len` bytes once is polled before they are sent.
    async fn polls_until_sent(len: usize) -> usize {
        let (socket, mut other) = unix::net::UnixStream::pair().expect("a pair");
        socket.set_nonblocking(true).expect("set");
        other.set_nonblocking(true).expect("set");
        let socket = UnixStream::from_std(socket).expect("registered");
        socket.writable().await.expect("open");
        let io = Batched::with_daemon(Socket::Unix(socket));
        let mut writer = io.clone();
        let mut written = false;
        let mut connection = Flushing::new(
            std::future::poll_fn(move |cx| {
                if !std::mem::replace(&mut written, true) {
                    let write = hyper::rt::Write::poll_write;
                    assert!(write(Pin::new(&mut writer), cx, &vec![7; len]).is_ready());
                }
                Poll::<()>::Pending
            }),
            io,
        );
        let mut polls = 0;
        loop {
            polls += 1;
            assert!((&mut connection).now_or_never().is_none(), "it goes on");
            if let Ok(received) = other.read(&mut vec![0; len + 1]) {
                assert_eq!(received, len);
                return polls;
            }
        }
    }

    #[tokio::test]
    async fn little_lets_others_go_first_and_much_is_sent_at_once() {
        assert_eq!(polls_until_sent(17).await, 4);
        assert_eq!(polls_until_sent(CONTROL_LEN + 1).await, 2);
        assert_eq!(polls_until_sent(PART_LEN + 1).await, 1);
    }
}

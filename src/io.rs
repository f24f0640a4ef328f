//! Sockets, and the batching that makes HTTP/2 over them cheap.
//!
//! An HTTP/2 library writes frame by frame: at 16 KiB a frame that is one system call each, and most
//! of BuildKit's frames are smaller. [`Batched`] gathers all that one poll of a connection writes and
//! sends it in one call when the poll is over ([`Flushing`]); it reads in large pieces too. Buffers
//! are borrowed from a small pool per thread, so an idle connection holds none.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    thread::LocalKey,
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::Notify,
};

/// Read and written in one piece at most: eight full HTTP/2 frames, small enough for the CPU cache.
const BATCH_LEN: usize = 128 * 1024;

/// Buffers each thread keeps for reuse: a build has two connections, each reads and writes.
const POOLED_BUFFERS: usize = 8;

type Pool = RefCell<Vec<Vec<u8>>>;

thread_local! {
    /// Buffers of length [`BATCH_LEN`] to read into.
    static FOR_READING: Pool = const { RefCell::new(Vec::new()) };
    /// Empty buffers to gather writes in.
    static FOR_WRITING: Pool = const { RefCell::new(Vec::new()) };
    /// Whether the running poll has written to a [`Batched`]; see [`Flushing`].
    static WROTE: Cell<bool> = const { Cell::new(false) };
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

    fn poll_write(&mut self, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, from),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, from),
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
    /// Received and not yet handed on: `input[taken..filled]`. No memory when nothing is.
    input: Vec<u8>,
    taken: usize,
    filled: usize,
    /// Written and not yet sent: `output[sent..]`. No memory when nothing is.
    output: Vec<u8>,
    sent: usize,
}

impl Batched {
    /// Takes over `socket`.
    pub fn new(socket: Socket) -> Self {
        let state = Mutex::new(State {
            socket,
            input: Vec::new(),
            taken: 0,
            filled: 0,
            output: Vec::new(),
            sent: 0,
        });
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
        self.shared.state.lock().poll_drain(cx)
    }
}

impl State {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.output.len() {
            let written = ready!(self.socket.poll_write(cx, &self.output[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.sent = 0;
        self.output.clear();
        give_back(&FOR_WRITING, &mut self.output);
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.output.len() >= BATCH_LEN {
            ready!(self.poll_drain(cx))?;
        }
        if self.output.capacity() == 0 {
            self.output = borrow(&FOR_WRITING).unwrap_or_else(|| Vec::with_capacity(BATCH_LEN));
        }
        let mut taken = 0;
        for slice in slices {
            let room = BATCH_LEN.saturating_sub(self.output.len());
            let len = slice.len().min(room);
            self.output.extend_from_slice(&slice[..len]);
            taken += len;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = borrow(&FOR_READING).unwrap_or_else(|| vec![0; BATCH_LEN]);
        let mut target = ReadBuf::new(&mut buffer);
        let result = self.socket.poll_read(cx, &mut target);
        self.taken = 0;
        self.filled = target.filled().len();
        if self.filled == 0 {
            give_back(&FOR_READING, &mut buffer);
        } else {
            self.input = buffer;
        }
        result
    }

    fn take(&mut self, into: &mut hyper::rt::ReadBufCursor<'_>) {
        let len = into.remaining().min(self.filled - self.taken);
        into.put_slice(&self.input[self.taken..self.taken + len]);
        self.taken += len;
        if self.taken == self.filled {
            give_back(&FOR_READING, &mut self.input);
        }
    }
}

impl hyper::rt::Read for Batched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.shared.state.lock();
        if state.taken == state.filled {
            let result = ready!(state.poll_fill(cx));
            if self.shared.received.fetch_add(state.filled, Ordering::Relaxed) == 0 {
                self.shared.first_read.notify_one();
            }
            result?;
        }
        state.take(&mut into);
        Poll::Ready(Ok(()))
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
        let mut state = self.shared.state.lock();
        ready!(state.poll_drain(cx))?;
        state.socket.poll_shutdown(cx)
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
        self.shared.state.lock().poll_write(cx, from)
    }
}

fn borrow(pool: &'static LocalKey<Pool>) -> Option<Vec<u8>> {
    pool.with_borrow_mut(Vec::pop)
}

/// Returns `buffer` to the pool and leaves one that holds no memory.
fn give_back(pool: &'static LocalKey<Pool>, buffer: &mut Vec<u8>) {
    let buffer = std::mem::take(buffer);
    pool.with_borrow_mut(|pool| {
        if buffer.capacity() > 0 && pool.len() < POOLED_BUFFERS {
            pool.push(buffer);
        }
    });
}

pin_project! {
    /// Polls a connection, then sends what that poll has written.
    ///
    /// Of several futures around one connection only the one that writes ever sends, so the
    /// socket's waker is always that future's.
    #[derive(Debug)]
    pub struct Flushing<F: Future> {
        #[pin]
        inner: F,
        io: Batched,
        // Something written could not be sent yet.
        owing: bool,
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
        Self { inner, io, owing: false, output: None }
    }
}

impl<F: Future> Future for Flushing<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.output.is_none() {
            WROTE.set(false);
            if let Poll::Ready(output) = this.inner.poll(cx) {
                *this.output = Some(output);
            }
            *this.owing |= WROTE.get();
        }
        if *this.owing {
            // A failed write shows up as an error of the connection's next read or write.
            *this.owing = this.io.poll_drain(cx).is_pending();
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

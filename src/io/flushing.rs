//! Decides when the bytes that a connection has written are sent: when its turn is over, or a little later.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::{Batched, RECEIVED, WROTE};
use crate::gate::WakeFlag;

/// Up to this number of bytes, a write is an answer to a PING, window updates, or the headers of an answer.
const CONTROL_LEN: usize = 64;

/// Up to this number of bytes, a write may be the beginning of a small answer.
const PART_LEN: usize = 512;

/// How often other tasks run first while `unsent` bytes wait. What they write for this connection is then sent
/// together with these bytes, and a system call costs more than ten turns of an idle connection.
///
/// An answer of a daemon comes in parts. The answer to a PING, which gRPC sends with nearly every message, is
/// written before what that message causes on the other connection, and must not delay it.
fn patience(unsent: usize) -> u8 {
    if unsent <= CONTROL_LEN { 3 } else { u8::from(unsent <= PART_LEN) }
}

pin_project! {
    /// Polls a connection, and sends what it has written; see [`patience`].
    ///
    /// If several futures belong to one connection, only the one that writes ever sends. So the waker of the socket
    /// always belongs to that future.
    #[derive(Debug)]
    pub struct Flushing<F: Future> {
        #[pin]
        inner: F,
        io: Batched,
        // Raised by whatever the inner future or the socket waits for. In a turn that only lets other tasks run first,
        // the connection is not polled.
        flag: Arc<WakeFlag>,
        // The number of bytes that the other side must have sent before anything is sent to it.
        after: usize,
        // Whether written bytes have not been sent yet.
        owing: bool,
        // How often other tasks have run since the bytes were written.
        waited: u8,
        // The result of the inner future, kept until everything is sent.
        output: Option<F::Output>,
    }
}

impl<F: Future> Flushing<F> {
    /// Wraps `inner`, a future that drives a connection over `io`.
    pub fn new(inner: F, io: Batched) -> Self {
        let flag = WakeFlag::raised();
        Self { inner, io, flag, after: 0, owing: false, waited: 0, output: None }
    }

    /// Sends nothing before the other side has sent `len` bytes, or `inner` has ended. The answers to these bytes are then
    /// sent together with what was written before.
    pub fn after(self, len: usize) -> Self {
        Self { after: len, ..self }
    }

    /// The wrapped future. The next poll will poll it.
    pub fn inner_mut(self: Pin<&mut Self>) -> Pin<&mut F> {
        self.flag.raise();
        self.project().inner
    }
}

impl<F: Future> Future for Flushing<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.flag.belong_to(cx);
        let waker = this.flag.waker();
        let asking = &mut Context::from_waker(&waker);
        if this.output.is_none() && this.flag.lower() {
            WROTE.set(false);
            RECEIVED.set(0);
            if let Poll::Ready(output) = this.inner.poll(asking) {
                *this.output = Some(output);
            }
            *this.owing |= WROTE.get();
        }
        if *this.owing {
            if this.output.is_none() && this.io.received() < *this.after {
                return Poll::Pending;
            }
            if this.output.is_none() && *this.waited < patience(this.io.unsent()) {
                *this.waited += 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // If a write fails, the next read or write of the connection returns an error.
            *this.owing = this.io.poll_write_out(asking).is_pending();
            // What the socket does not accept now is sent as soon as it does.
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
    use std::{
        io::Read as _,
        os::unix,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Waker, ready},
        time::Duration,
    };

    use futures_util::{FutureExt as _, future::join};
    use parking_lot::Mutex;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWrite},
        net::UnixStream,
        time::timeout,
    };

    use super::*;
    use crate::io::Socket;

    /// What a test knows of a connection that writes once.
    #[derive(Default)]
    struct Seen {
        polls: AtomicUsize,
        waker: Mutex<Option<Waker>>,
    }

    impl Seen {
        fn polls(&self) -> usize {
            self.polls.load(Ordering::Relaxed)
        }
    }

    type Connection = Flushing<Pin<Box<dyn Future<Output = ()>>>>;

    /// A connection that writes `len` bytes at its first poll and never ends, and the other end of it.
    async fn connection(len: usize) -> (Connection, Arc<Seen>, unix::net::UnixStream) {
        let (socket, other) = unix::net::UnixStream::pair().expect("a pair");
        socket.set_nonblocking(true).expect("set");
        other.set_nonblocking(true).expect("set");
        let socket = UnixStream::from_std(socket).expect("registered");
        socket.writable().await.expect("open");
        let io = Batched::with_daemon(Socket::Unix(socket));
        let mut writer = io.clone();
        let seen = Arc::<Seen>::default();
        let inner = std::future::poll_fn({
            let seen = Arc::clone(&seen);
            move |cx| {
                *seen.waker.lock() = Some(cx.waker().clone());
                if seen.polls.fetch_add(1, Ordering::Relaxed) == 0 {
                    let write = AsyncWrite::poll_write;
                    assert!(write(Pin::new(&mut writer), cx, &vec![7; len]).is_ready());
                }
                Poll::<()>::Pending
            }
        });
        (Flushing::new(Box::pin(inner), io), seen, other)
    }

    fn turn(connection: &mut Connection) {
        assert!(connection.now_or_never().is_none(), "it goes on");
    }

    /// The number of turns of a connection that writes `len` bytes once, until they are sent.
    async fn turns_until_sent(len: usize) -> usize {
        let (mut connection, seen, mut other) = connection(len).await;
        let mut turns = 0;
        loop {
            turns += 1;
            turn(&mut connection);
            if let Ok(received) = other.read(&mut vec![0; len + 1]) {
                assert_eq!(received, len);
                assert_eq!(seen.polls(), 1, "it has nothing to do in the other turns");
                return turns;
            }
        }
    }

    #[tokio::test]
    async fn little_lets_others_go_first_and_much_is_sent_at_once() {
        assert_eq!(turns_until_sent(17).await, 4);
        assert_eq!(turns_until_sent(CONTROL_LEN + 1).await, 2);
        assert_eq!(turns_until_sent(PART_LEN + 1).await, 1);
    }

    #[tokio::test]
    async fn a_connection_is_looked_at_when_it_asks_for_it_or_has_been_touched() {
        let (mut connection, seen, _other) = connection(PART_LEN + 1).await;
        turn(&mut connection);
        turn(&mut connection);
        assert_eq!(seen.polls(), 1);
        seen.waker.lock().take().expect("polled").wake();
        turn(&mut connection);
        assert_eq!(seen.polls(), 2);
        Pin::new(&mut connection).inner_mut();
        turn(&mut connection);
        assert_eq!(seen.polls(), 3);
    }

    #[tokio::test]
    async fn a_connection_that_asks_for_a_look_wakes_its_task() {
        let (mut connection, seen, _other) = connection(PART_LEN + 1).await;
        let task = WakeFlag::raised();
        task.lower();
        assert!(
            Pin::new(&mut connection).poll(&mut Context::from_waker(&task.waker())).is_pending()
        );
        assert!(!task.lower());
        seen.waker.lock().take().expect("polled").wake();
        assert!(task.lower());
    }

    #[tokio::test]
    async fn nothing_is_sent_before_the_other_side_has_begun() {
        let (connection, _seen, mut other) = connection(PART_LEN + 1).await;
        let mut connection = connection.after(2);
        let sent = |other: &mut unix::net::UnixStream| other.read(&mut [0; PART_LEN + 1]).is_ok();
        turn(&mut connection);
        connection.io.note_received(1);
        turn(&mut connection);
        assert!(!sent(&mut other));
        connection.io.note_received(1);
        turn(&mut connection);
        assert!(sent(&mut other));
    }

    #[tokio::test]
    async fn a_connection_that_waits_for_room_goes_on_when_there_is_some() {
        const PIECES: usize = 64;
        static PIECE: [u8; 64 * 1024] = [7; 64 * 1024];
        let (mine, mut other) = UnixStream::pair().expect("a pair");
        let io = Batched::with_daemon(Socket::Unix(mine));
        let (mut writer, mut written) = (io.clone(), 0);
        let inner = std::future::poll_fn(move |cx| {
            while written < PIECES {
                let write = AsyncWrite::poll_write;
                ready!(write(Pin::new(&mut writer), cx, &PIECE)).expect("it is open");
                written += 1;
            }
            Poll::Ready(())
        });
        let mut received = vec![0; PIECES * PIECE.len()];
        let both = join(Flushing::new(inner, io), other.read_exact(&mut received));
        let ((), read) = timeout(Duration::from_secs(20), both).await.expect("all is sent");
        read.expect("it is open");
    }
}

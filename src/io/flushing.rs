//! When what a connection has written is sent: once its turn is over, or a little later.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::{Batched, RECEIVED, WROTE};

/// Up to this it is an answer to a PING, window updates, or the headers of an answer.
const CONTROL_LEN: usize = 64;

/// Up to this it may be the beginning of a small answer.
const PART_LEN: usize = 512;

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

    use tokio::net::UnixStream;

    use super::*;
    use crate::io::Socket;

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

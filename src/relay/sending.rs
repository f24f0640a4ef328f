//! Sends a body in its HTTP/2 stream, as fast as the other side has capacity for it.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf as _;
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body as _;

use super::{Body, ResetError};
use crate::io::Payload;

/// The longest first piece of a request that is sent without waiting for capacity: more than the message of most calls.
const AT_ONCE_LEN: usize = 16 << 10;

/// A body that is being sent.
#[derive(Debug)]
pub struct Sending {
    body: Body,
    stream: SendStream<Payload>,
    /// A piece of the body that waits for capacity in the stream.
    piece: Option<Payload>,
    /// Up to this length, the next piece does not wait for capacity.
    at_once: usize,
}

impl Sending {
    /// Nothing of `body` has been sent in `stream` yet.
    pub fn new(body: Body, stream: SendStream<Payload>) -> Self {
        Self { body, stream, piece: None, at_once: 0 }
    }

    /// The same for the body of a request to a daemon. If its first piece is small, the library may keep it until the
    /// stream has capacity: a new stream has none before the connection is looked at, and by then its headers would have
    /// left without the piece. A task that waits for that would keep as much.
    pub fn request(body: Body, stream: SendStream<Payload>) -> Self {
        Self { at_once: AT_ONCE_LEN, ..Self::new(body, stream) }
    }

    /// Resets the stream, so that nothing more of the body is sent.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Completes when everything is sent, or when the stream has ended in another way.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.poll_data(cx)) {
            Ok(Some(trailers)) => {
                self.stream.reserve_capacity(0);
                let _ = self.stream.send_trailers(trailers);
            }
            Ok(None) => {}
            Err(reset) => self.reset(reset.reason()),
        }
        Poll::Ready(())
    }

    /// Sends the data. Completes at the trailers, at the end or at a reset.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, ResetError>> {
        loop {
            // Polled in each round, so that a reset wakes this task whatever else it waits for.
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            if let Some(piece) = &self.piece {
                let end = self.body.is_end_stream();
                let waits = piece.remaining() > mem::take(&mut self.at_once);
                while waits && piece.has_remaining() && self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Poll::Ready(Ok(None)),
                    }
                }
                let sent = self.piece.take().map(|piece| self.stream.send_data(piece, end));
                if end || !matches!(sent, Some(Ok(()))) {
                    return Poll::Ready(Ok(None));
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else {
                let _ = self.stream.send_data(Payload::default(), true);
                return Poll::Ready(Ok(None));
            };
            match frame.into_data() {
                Ok(piece) => {
                    // One byte instead of the whole length: capacity that one stream reserves is missing for the other
                    // streams of the connection.
                    self.stream.reserve_capacity(1);
                    self.piece = Some(piece);
                }
                Err(frame) => return Poll::Ready(Ok(frame.into_trailers().ok())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::FutureExt as _;
    use http::Request;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::relay::DeferredResponse;

    #[tokio::test]
    async fn a_small_first_piece_leaves_together_with_the_headers() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let handshake = h2::client::Builder::new().handshake::<_, Payload>(near);
        let (mut requests, mut connection) = handshake.await.expect("it only sends");
        let call = Request::new(());
        let (_response, stream) = requests.send_request(call, false).expect("a stream");
        let (_rest, body) = DeferredResponse::begin("first".into());
        let mut sending = Sending::request(body, stream);
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(sending.poll(cx).is_pending(), "more may come");
        assert!(connection.poll_unpin(cx).is_pending());
        let mut sent = [0; 1 << 12];
        let len = far.read(&mut sent).await.expect("sent");
        assert!(sent[..len].windows(5).any(|part| part == b"first"), "{:?}", &sent[..len]);
    }
}

//! Sends a body in its HTTP/2 stream, as fast as the other side has capacity for it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf as _;
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body as _;

use super::{Body, ResetError};
use crate::io::Payload;

/// A body that is being sent.
#[derive(Debug)]
pub struct Sending {
    body: Body,
    stream: SendStream<Payload>,
    /// A piece of the body that waits for capacity in the stream.
    piece: Option<Payload>,
}

impl Sending {
    /// Nothing of `body` has been sent in `stream` yet.
    pub fn new(body: Body, stream: SendStream<Payload>) -> Self {
        Self { body, stream, piece: None }
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
                while piece.has_remaining() && self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Poll::Ready(Ok(None)),
                    }
                }
                let end = self.body.is_end_stream();
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

//! The body of a request or response, as it arrives in its HTTP/2 stream.

use std::{
    any::Any,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::Frame;

/// A body that a client or a daemon sends.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    data_ended: bool,
    /// Dropped with the body.
    _hold: Option<Arc<dyn Any + Send + Sync>>,
}

impl Received {
    /// The body that arrives in `stream`. `hold` is dropped with it.
    pub fn new(stream: RecvStream, hold: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        Self { stream, data_ended: false, _hold: hold }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                return Poll::Ready(end_unless_early(data.map(|data| {
                    // This fails only for a closed stream, whose window no longer matters.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    Frame::data(data)
                })));
            }
            self.data_ended = true;
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).transpose();
        let frame = trailers.map(|trailers| trailers.map(Frame::trailers));
        Poll::Ready(frame.and_then(end_unless_early))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// A reset with `NO_ERROR` means that the other side does not need the rest of the request (RFC 9113 section 8.1).
/// So the body ends there without an error.
fn end_unless_early(
    frame: Result<Frame<Bytes>, h2::Error>,
) -> Option<Result<Frame<Bytes>, h2::Error>> {
    match frame {
        Err(error) if error.reason() == Some(Reason::NO_ERROR) => None,
        frame => Some(frame),
    }
}

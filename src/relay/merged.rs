//! The body of an answer that is merged from the replies of several daemons.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::{mpsc, oneshot};

use super::{Polled, ResetError};

/// Messages of several daemons as they come, and then the trailers for all of them.
#[derive(Debug)]
pub(super) struct Merged {
    messages: mpsc::Receiver<Bytes>,
    trailers: Option<oneshot::Receiver<HeaderMap>>,
}

impl Merged {
    /// Framed `messages`, then the `trailers` once all senders are gone.
    pub(super) fn new(
        messages: mpsc::Receiver<Bytes>,
        trailers: oneshot::Receiver<HeaderMap>,
    ) -> Self {
        Self { messages, trailers: Some(trailers) }
    }

    /// Whether the trailers have been sent.
    pub(super) fn is_end_stream(&self) -> bool {
        self.trailers.is_none()
    }

    /// The next message, or the trailers after the last one.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        if let Some(message) = ready!(self.messages.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        let Some(trailers) = &mut self.trailers else {
            return Poll::Ready(None);
        };
        let trailers = ready!(Pin::new(trailers).poll(cx));
        self.trailers = None;
        Poll::Ready(match trailers {
            Ok(trailers) => Some(Ok(Frame::trailers(trailers))),
            // The merging task is gone: the proxy is being stopped.
            Err(_gone) => Some(Err(ResetError::cancel())),
        })
    }
}

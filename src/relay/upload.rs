//! The body of a client's request on its way to the daemon.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame};

use super::{ByteCounts, Polled, ResetError};
use crate::{fleet::Backend, received::Received};

/// The client's body, which is sent on as it comes.
#[derive(Debug)]
pub(super) struct Upload {
    /// What was read before the relay began. It is sent first.
    prefix: Bytes,
    rest: Received,
    backend: Arc<Backend>,
    byte_counts: Arc<ByteCounts>,
}

impl Upload {
    /// Nothing of `prefix` and `rest` has been sent yet.
    pub(super) fn new(
        prefix: Bytes,
        rest: Received,
        backend: Arc<Backend>,
        byte_counts: Arc<ByteCounts>,
    ) -> Self {
        Self { prefix, rest, backend, byte_counts }
    }

    /// Whether everything has been sent.
    pub(super) fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && self.rest.is_end_stream()
    }

    /// The next frame, whose bytes are counted.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let data = if self.prefix.is_empty() {
            match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(ResetError::like(&error)))),
                None if self.rest.is_end_stream() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(ResetError::cancel()))),
            }
        } else {
            mem::take(&mut self.prefix)
        };
        self.byte_counts.up.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.backend.metrics().bytes_up.inc_by(data.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

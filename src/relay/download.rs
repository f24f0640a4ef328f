//! The body of a daemon's response on its way to the client.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};

use super::{ByteCounts, End, Failure, OnEnd, Polled, ResetError};
use crate::{
    error::{ProxyError, chain, status_code},
    fleet::{Backend, Fault},
    http2_limits::{TRAILER_LIST_LEN, header_list_len},
    received::Received,
};

/// The daemon's body, which is passed on as it comes, and the report of its end.
#[derive(Debug)]
pub(super) struct Download {
    body: Received,
    backend: Arc<Backend>,
    byte_counts: Arc<ByteCounts>,
    on_end: OnEnd,
    trailers_sent: bool,
}

impl Download {
    /// Nothing of `body` has been passed on yet.
    pub(super) fn new(
        body: Received,
        backend: Arc<Backend>,
        byte_counts: Arc<ByteCounts>,
        on_end: OnEnd,
    ) -> Self {
        Self { body, backend, byte_counts, on_end, trailers_sent: false }
    }

    /// Whether everything has been passed on.
    pub(super) fn is_end_stream(&self) -> bool {
        self.trailers_sent || self.body.is_end_stream()
    }

    /// The next frame. Its bytes are counted, and the end of the stream is reported with the last frame.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        if self.trailers_sent {
            return Poll::Ready(None);
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(self.pass(frame)))),
            Some(Err(error)) => Poll::Ready(Some(self.failed(&error))),
            None if self.body.is_end_stream() => {
                self.on_end.fire(End::Finished(None));
                Poll::Ready(None)
            }
            None => {
                self.on_end.fire(End::DaemonReset);
                Poll::Ready(Some(Err(ResetError::cancel())))
            }
        }
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers_sent = true;
            if let Err(error) = check_size(trailers, &self.backend) {
                return self.refused(&error);
            }
            self.on_end.fire(End::Finished(status_code(trailers)));
        } else if let Some(data) = frame.data_ref() {
            self.byte_counts.down.fetch_add(data.len() as u64, Ordering::Relaxed);
            self.backend.metrics().bytes_down.inc_by(data.len() as u64);
            if self.body.is_end_stream() {
                self.on_end.fire(End::Finished(None));
            }
        }
        frame
    }

    /// Ends the client's stream in the way in which the stream to the daemon ended: with the same reset, or with a
    /// status that names the backend.
    fn failed(&mut self, error: &h2::Error) -> Result<Frame<Bytes>, ResetError> {
        let (backend, cause) = (self.backend.name().to_owned(), chain(error));
        match Failure::of(error) {
            Failure::Reset(_) => {
                self.on_end.fire(End::DaemonReset);
                Err(ResetError::like(error))
            }
            Failure::Cancelled => {
                self.on_end.fire(End::ClientGone);
                Err(ResetError::cancel())
            }
            Failure::Refused => Ok(self.refused(&ProxyError::BadAnswer { backend, cause })),
            Failure::Lost => {
                self.trailers_sent = true;
                self.on_end.fire(End::BackendLost);
                self.backend.report_fault(Fault::Lost, &cause, Instant::now());
                Ok(Frame::trailers(ProxyError::BackendLost { backend, cause }.trailers()))
            }
        }
    }

    fn refused(&mut self, error: &ProxyError) -> Frame<Bytes> {
        self.trailers_sent = true;
        self.on_end.fire(End::Refused(error.code()));
        Frame::trailers(error.trailers())
    }
}

/// Checks that a daemon's headers or trailers are no larger than the proxy promises to relay.
pub(super) fn check_size(headers: &HeaderMap, backend: &Backend) -> Result<(), ProxyError> {
    match header_list_len(headers) {
        ..=TRAILER_LIST_LEN => Ok(()),
        len => Err(ProxyError::AnswerTooLarge { backend: backend.name().to_owned(), len }),
    }
}

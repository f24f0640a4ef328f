//! Copies bodies unread in both directions, and tells how a stream ended.
//!
//! A frame is taken from one side only when the other side has capacity for it. Back-pressure is therefore end to end,
//! and nothing queues here. An HTTP/2 library reports a reset with CANCEL as a plain end of the body, which a gRPC peer
//! would take for a half-close. The relay makes the difference visible again.

mod deferred;
mod failure;
mod sending;

use std::{
    error::Error,
    fmt, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body as _, Frame};
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use self::deferred::DeferredBody;
pub use self::{
    deferred::{DeferredResponse, MessageSender},
    failure::{Failure, remote_reset},
    sending::Sending,
};
use crate::{
    error::{ProxyError, chain, ok_trailers, status_code},
    fleet::{Backend, Fault},
    http2_limits::{TRAILER_LIST_LEN, header_list_len},
    io::Payload,
    received::Received,
};

/// How a stream ended, seen from its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The daemon ended the stream, with this code if it sent one.
    Finished(Option<Code>),
    /// The daemon reset the stream.
    DaemonReset,
    /// The connection to the daemon broke.
    BackendLost,
    /// The proxy ended the stream with an error of its own, which has this code.
    Refused(Code),
    /// The client went away or cancelled.
    ClientGone,
}

impl End {
    /// The end of a stream that the proxy answers with `error` instead of a daemon's answer.
    pub fn of(error: &ProxyError) -> Self {
        match error {
            ProxyError::Connect { .. } | ProxyError::BackendLost { .. } => Self::BackendLost,
            error => Self::Refused(error.code()),
        }
    }

    /// The gRPC code that the client got, or would have got.
    pub fn code(self) -> Code {
        match self {
            Self::Finished(code) => code.unwrap_or(Code::Unknown),
            Self::DaemonReset => Code::Internal,
            Self::BackendLost => Code::Unavailable,
            Self::Refused(code) => code,
            Self::ClientGone => Code::Cancelled,
        }
    }
}

/// How many message bytes were relayed in each direction.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// Bytes from client to daemon.
    pub up: AtomicU64,
    /// Bytes from daemon to client.
    pub down: AtomicU64,
}

/// Calls back exactly once when a stream ends, however it ends.
pub struct OnEnd(Option<Box<dyn FnOnce(End) + Send>>);

impl OnEnd {
    /// Calls `callback` at the end.
    pub fn new(callback: impl FnOnce(End) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }

    /// Reports the end. Later reports do nothing.
    pub fn fire(&mut self, end: End) {
        if let Some(callback) = self.0.take() {
            callback(end);
        }
    }
}

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.fire(End::ClientGone);
    }
}

impl fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnEnd").field(&self.0.is_some()).finish()
    }
}

/// The reset with which a body ends.
#[derive(Debug, thiserror::Error)]
#[error("stream was reset")]
pub struct ResetError(#[source] h2::Error);

impl ResetError {
    /// The same reset as in `error`, or CANCEL if `error` does not report the reset of a stream.
    pub fn like(error: &(dyn Error + 'static)) -> Self {
        Self(remote_reset(error).unwrap_or(Reason::CANCEL).into())
    }

    /// The reason to send in the reset.
    pub fn reason(&self) -> Reason {
        self.0.reason().unwrap_or(Reason::INTERNAL_ERROR)
    }

    /// The reset of a client that no longer wants the answer.
    pub fn cancel() -> Self {
        Self(Reason::CANCEL.into())
    }
}

/// The body of every request and response that leaves the proxy.
#[derive(Debug, Default)]
pub struct Body(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Whole(Bytes),
    Upload(Box<Upload>),
    Download(Box<Download>),
    Ending(Option<Bytes>, Option<HeaderMap>),
    Own(tonic::body::Body),
    Merged(Merged),
    Deferred(Box<DeferredBody>),
}

/// Messages of several daemons as they come, and then the trailers for all of them.
#[derive(Debug)]
struct Merged {
    messages: mpsc::Receiver<Bytes>,
    trailers: Option<oneshot::Receiver<HeaderMap>>,
}

impl Merged {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
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

#[derive(Debug)]
struct Upload {
    /// What was read before the relay began. It is sent first.
    prefix: Bytes,
    rest: Received,
    backend: Arc<Backend>,
    byte_counts: Arc<ByteCounts>,
}

#[derive(Debug)]
struct Download {
    body: Received,
    backend: Arc<Backend>,
    byte_counts: Arc<ByteCounts>,
    on_end: OnEnd,
    trailers_sent: bool,
}

impl Body {
    /// A body that consists of `bytes`.
    pub fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(bytes))
    }

    /// The client's body on its way to `backend`. `prefix` was read from the body before and is sent first.
    pub fn upload(
        prefix: Bytes,
        rest: Received,
        backend: Arc<Backend>,
        byte_counts: Arc<ByteCounts>,
    ) -> Self {
        Self(Kind::Upload(Box::new(Upload { prefix, rest, backend, byte_counts })))
    }

    /// The body of a daemon's response on its way to the client.
    fn download(
        body: Received,
        backend: Arc<Backend>,
        byte_counts: Arc<ByteCounts>,
        on_end: OnEnd,
    ) -> Self {
        let download = Download { body, backend, byte_counts, on_end, trailers_sent: false };
        Self(Kind::Download(Box::new(download)))
    }

    /// Framed messages from a channel, then the trailers once all senders are gone.
    pub fn merged(messages: mpsc::Receiver<Bytes>, trailers: oneshot::Receiver<HeaderMap>) -> Self {
        Self(Kind::Merged(Merged { messages, trailers: Some(trailers) }))
    }

    /// `bytes`, then `trailers`.
    pub fn whole_with_trailers(bytes: Bytes, trailers: HeaderMap) -> Self {
        Self(Kind::Ending(Some(bytes), Some(trailers)))
    }

    /// The proxy's own response with this body.
    pub fn respond(self) -> Response<Self> {
        let mut response = Response::new(self);
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, grpc);
        response
    }

    /// A successful response whose only message is `message`.
    pub fn answer(message: Bytes) -> Response<Self> {
        Self::whole_with_trailers(message, ok_trailers()).respond()
    }

    /// A body that the proxy's own gRPC client made.
    pub fn own(body: tonic::body::Body) -> Self {
        Self(Kind::Own(body))
    }
}

/// Turns a daemon's response into the client's, with the same status, headers, body and trailers.
pub fn response(
    response: Response<Received>,
    backend: Arc<Backend>,
    byte_counts: Arc<ByteCounts>,
    mut on_end: OnEnd,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    // Facts about the connection to the daemon do not concern the client.
    mem::take(&mut parts.extensions);
    if let Err(error) = check_size(&parts.headers, &backend) {
        on_end.fire(End::Refused(error.code()));
        return error.response();
    }
    if body.is_end_stream() {
        on_end.fire(End::Finished(status_code(&parts.headers)));
        return Response::from_parts(parts, Body::default());
    }
    Response::from_parts(parts, Body::download(body, backend, byte_counts, on_end))
}

/// Replaces the body of a request, and removes what belongs to the client's connection.
pub fn request<B>(request: Request<B>, body: impl FnOnce(B) -> Body) -> Request<Body> {
    let (mut parts, old) = request.into_parts();
    mem::take(&mut parts.extensions);
    Request::from_parts(parts, body(old))
}

type Polled = Poll<Option<Result<Frame<Bytes>, ResetError>>>;

impl Upload {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
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

impl Download {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
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
fn check_size(headers: &HeaderMap, backend: &Backend) -> Result<(), ProxyError> {
    match header_list_len(headers) {
        ..=TRAILER_LIST_LEN => Ok(()),
        len => Err(ProxyError::AnswerTooLarge { backend: backend.name().to_owned(), len }),
    }
}

impl Body {
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Polled {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Whole(bytes) => {
                let bytes = mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Upload(upload) => upload.poll_frame(cx),
            Kind::Download(download) => download.poll_frame(cx),
            Kind::Ending(bytes, trailers) => {
                let data = bytes.take().filter(|bytes| !bytes.is_empty()).map(Frame::data);
                Poll::Ready(data.or_else(|| trailers.take().map(Frame::trailers)).map(Ok))
            }
            Kind::Merged(merged) => merged.poll_frame(cx),
            Kind::Deferred(deferred) => deferred.poll_frame(cx),
            Kind::Own(body) => {
                let polled = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(polled.map(|result| result.map_err(|error| ResetError::like(&error))))
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Payload;
    type Error = ResetError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Payload>, ResetError>>> {
        let polled = ready!(self.poll_bytes(cx));
        Poll::Ready(polled.map(|frame| Ok(frame?.map_data(Payload::from))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Upload(upload) => upload.prefix.is_empty() && upload.rest.is_end_stream(),
            Kind::Download(download) => download.trailers_sent || download.body.is_end_stream(),
            Kind::Own(body) => body.is_end_stream(),
            Kind::Ending(_, trailers) => trailers.is_none(),
            Kind::Merged(merged) => merged.trailers.is_none(),
            Kind::Deferred(deferred) => deferred.is_end_stream(),
        }
    }
}

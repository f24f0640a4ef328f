//! Copies bodies unread in both directions, and tells how a stream ended.
//!
//! A frame is taken from one side only when the other side has capacity for it. Back-pressure is therefore end to end,
//! and nothing queues here. An HTTP/2 library reports a reset with CANCEL as a plain end of the body, which a gRPC peer
//! would take for a half-close. The relay makes the difference visible again.

mod deferred;
mod download;
mod end;
mod failure;
mod merged;
mod sending;
mod upload;

use std::{
    error::Error,
    mem,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body as _, Frame};
use tokio::sync::{mpsc, oneshot};

use self::{
    deferred::DeferredBody,
    download::{Download, check_size},
    merged::Merged,
    upload::Upload,
};
pub use self::{
    deferred::{DeferredResponse, MessageSender},
    end::{End, OnEnd},
    failure::{Failure, remote_reset},
    sending::Sending,
};
use crate::{
    error::{ok_trailers, status_code},
    fleet::Backend,
    io::Payload,
    received::Received,
};

/// How many message bytes were relayed in each direction.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// Bytes from client to daemon.
    pub up: AtomicU64,
    /// Bytes from daemon to client.
    pub down: AtomicU64,
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
    WithTrailers(Option<Bytes>, Option<HeaderMap>),
    Own(tonic::body::Body),
    Merged(Merged),
    Deferred(Box<DeferredBody>),
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
        Self(Kind::Upload(Box::new(Upload::new(prefix, rest, backend, byte_counts))))
    }

    /// The body of a daemon's response on its way to the client.
    fn download(
        body: Received,
        backend: Arc<Backend>,
        byte_counts: Arc<ByteCounts>,
        on_end: OnEnd,
    ) -> Self {
        Self(Kind::Download(Box::new(Download::new(body, backend, byte_counts, on_end))))
    }

    /// Framed messages from a channel, then the trailers once all senders are gone.
    pub fn merged(messages: mpsc::Receiver<Bytes>, trailers: oneshot::Receiver<HeaderMap>) -> Self {
        Self(Kind::Merged(Merged::new(messages, trailers)))
    }

    /// A body of `bytes` in one frame, then `trailers`.
    pub fn whole_with_trailers(bytes: Bytes, trailers: HeaderMap) -> Self {
        Self(Kind::WithTrailers(Some(bytes), Some(trailers)))
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
            Kind::WithTrailers(bytes, trailers) => {
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
            Kind::Upload(upload) => upload.is_end_stream(),
            Kind::Download(download) => download.is_end_stream(),
            Kind::Own(body) => body.is_end_stream(),
            Kind::WithTrailers(_, trailers) => trailers.is_none(),
            Kind::Merged(merged) => merged.is_end_stream(),
            Kind::Deferred(deferred) => deferred.is_end_stream(),
        }
    }
}

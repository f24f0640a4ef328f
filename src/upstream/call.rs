//! One call on a connection to a daemon: its request's body goes up, its response's body comes down.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf as _;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::{
    io::Payload,
    relay::{Body, ResetError},
};

/// Why a call has no response.
#[derive(Debug)]
pub(super) enum CallError {
    /// The connection takes no more streams; nothing has been sent.
    Unsent(Box<Request<Body>>, h2::Error),
    /// Whatever was sent, no response came.
    Failed(h2::Error),
}

/// Opens a stream for `request` and waits for the response's headers; the body goes up beside that,
/// on `tasks`.
pub(super) async fn call(
    connection: SendRequest<Payload>,
    request: Box<Request<Body>>,
    tasks: &TaskTracker,
) -> Result<Response<RecvStream>, CallError> {
    let (response, upload) = start(connection, request).await?;
    // Dropped with this future: whoever no longer waits for the response has cancelled the call.
    let (waiting, cancelled) = oneshot::channel();
    if let Some(upload) = upload {
        upload.run(cancelled, tasks);
    }
    let response = response.await.map_err(CallError::Failed)?;
    // Without an upload nobody listens.
    let _ = waiting.send(());
    Ok(response)
}

type Started = (ResponseFuture, Option<Upload>);

async fn start(
    connection: SendRequest<Payload>,
    request: Box<Request<Body>>,
) -> Result<Started, CallError> {
    let mut connection = match connection.ready().await {
        Ok(connection) => connection,
        Err(error) => return Err(CallError::Unsent(request, error)),
    };
    let (parts, body) = request.into_parts();
    let ended = body.is_end_stream();
    let (response, stream) = connection
        .send_request(Request::from_parts(parts, ()), ended)
        .map_err(CallError::Failed)?;
    Ok((response, (!ended).then_some(Upload { body, stream, piece: None })))
}

/// Copies the body of a request into its stream.
struct Upload {
    body: Body,
    stream: SendStream<Payload>,
    /// Pulled from the body, and waiting for room in the stream.
    piece: Option<Payload>,
}

impl Upload {
    /// Copies what is there at once, and the rest in a task.
    fn run(mut self, mut cancelled: oneshot::Receiver<()>, tasks: &TaskTracker) {
        let mut waker = Context::from_waker(std::task::Waker::noop());
        if self.poll_copy(&mut waker).is_ready() {
            return;
        }
        let mut waits = true;
        tasks.spawn(std::future::poll_fn(move |cx| {
            if waits && let Poll::Ready(response) = Pin::new(&mut cancelled).poll(cx) {
                if response.is_err() {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                waits = false;
            }
            self.poll_copy(cx)
        }));
    }

    /// Done when all is sent, or when the stream has ended some other way; the response says how.
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.poll_body(cx)) {
            Ok(Some(trailers)) => {
                self.stream.reserve_capacity(0);
                let _ = self.stream.send_trailers(trailers);
            }
            Ok(None) => {}
            Err(reset) => self.stream.send_reset(reset.reason()),
        }
        Poll::Ready(())
    }

    /// Sends the data; done at the trailers, at the end or at a reset.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, ResetError>> {
        loop {
            // Asked each time, so that a reset wakes this task whatever else it waits for.
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
                    // Not its length: what one stream reserves, another of its connection lacks.
                    self.stream.reserve_capacity(1);
                    self.piece = Some(piece);
                }
                Err(frame) => return Poll::Ready(Ok(frame.into_trailers().ok())),
            }
        }
    }
}

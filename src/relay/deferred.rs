//! An answer that begins before its daemon is known: first the proxy's own messages, then the daemon's body or the
//! proxy's own end.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response, header::CONTENT_TYPE};
use http_body::{Body as _, Frame};
use tokio::sync::{mpsc, oneshot};

use super::{Body, Kind, Polled, ResetError};

/// How many messages of the proxy may wait for a client that does not read.
const UNREAD: usize = 1;

/// The rest of an answer that has begun. It is a whole response, although its headers come too late.
type Rest = Result<Response<Body>, ResetError>;

/// An answer whose rest is not known yet.
#[derive(Debug)]
pub struct DeferredResponse {
    messages: mpsc::Sender<Bytes>,
    rest: oneshot::Sender<Rest>,
}

impl DeferredResponse {
    /// Begins an answer with `first`. Returns the body to answer with.
    pub fn begin(first: Bytes) -> (Self, Body) {
        let (messages, own) = mpsc::channel(UNREAD);
        let (rest, coming) = oneshot::channel();
        let body = DeferredBody { first, own, coming: Some(coming), rest: Body::default() };
        (Self { messages, rest }, Body(Kind::Deferred(Box::new(body))))
    }

    /// A sender of messages, until the answer is completed.
    pub fn sender(&self) -> MessageSender {
        MessageSender(self.messages.clone())
    }

    /// Completes when nobody reads the answer any more.
    pub async fn abandoned(&self) {
        self.messages.closed().await;
    }

    /// Continues the answer with `rest`.
    pub fn complete(self, rest: Rest) {
        // An error means that nobody reads the answer any more.
        let _ = self.rest.send(rest);
    }
}

/// Sends messages in an answer whose rest is not known yet. All senders must be dropped before the rest is read.
#[derive(Debug)]
pub struct MessageSender(mpsc::Sender<Bytes>);

impl MessageSender {
    /// Sends `message`, unless the client has not read the last one yet. Returns whether it was sent.
    pub fn try_send(&self, message: Bytes) -> bool {
        self.0.try_send(message).is_ok()
    }

    /// Sends `message` as soon as the client has read the last one.
    pub async fn send(&self, message: Bytes) {
        // An error means that nobody reads the answer any more.
        let _ = self.0.send(message).await;
    }
}

/// The body of a [`DeferredResponse`].
#[derive(Debug)]
pub(super) struct DeferredBody {
    first: Bytes,
    own: mpsc::Receiver<Bytes>,
    coming: Option<oneshot::Receiver<Rest>>,
    rest: Body,
}

impl DeferredBody {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.first)))));
        }
        if let Some(coming) = &mut self.coming {
            if let Some(message) = ready!(self.own.poll_recv(cx)) {
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            let rest = ready!(Pin::new(coming).poll(cx));
            self.coming = None;
            match rest {
                Ok(Ok(rest)) => self.rest = continued(rest),
                Ok(Err(reset)) => return Poll::Ready(Some(Err(reset))),
                // The task that was to complete the answer is gone: the proxy is being stopped.
                Err(_gone) => return Poll::Ready(Some(Err(ResetError::cancel()))),
            }
        }
        self.rest.poll_bytes(cx)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.coming.is_none() && self.rest.is_end_stream()
    }
}

/// The rest of a response whose headers are already sent. A response of headers alone ends with these headers as
/// trailers.
fn continued(response: Response<Body>) -> Body {
    let (head, body) = response.into_parts();
    if !body.is_end_stream() {
        return body;
    }
    let mut trailers: HeaderMap = head.headers;
    trailers.remove(CONTENT_TYPE);
    Body::whole_with_trailers(Bytes::new(), trailers)
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::error::{ProxyError, ok_response};

    async fn rest(mut body: Body) -> (Vec<u8>, Option<HeaderMap>) {
        let mut data = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame.expect("no reset").into_data() {
                Ok(mut piece) => data.extend_from_slice(&piece.copy_to_bytes(piece.remaining())),
                Err(frame) => return (data, frame.into_trailers().ok()),
            }
        }
        (data, None)
    }

    #[tokio::test]
    async fn own_words_come_before_the_daemons() {
        let (deferred, body) = DeferredResponse::begin("1".into());
        let sender = deferred.sender();
        sender.send("2".into()).await;
        assert!(!sender.try_send("dropped".into()), "the last one is unread");
        drop(sender);
        deferred.complete(Ok(Response::new(Body::whole("3".into()))));
        assert_eq!(rest(body).await, (b"123".to_vec(), None));
    }

    #[tokio::test]
    async fn a_response_of_headers_ends_it_with_them_as_trailers() {
        let (deferred, body) = DeferredResponse::begin("1".into());
        deferred.complete(Ok(ok_response()));
        let (data, trailers) = rest(body).await;
        let trailers = trailers.expect("trailers");
        assert_eq!((&data[..], trailers.len()), (&b"1"[..], 1));
        assert_eq!(trailers["grpc-status"], "0");
        let (deferred, body) = DeferredResponse::begin("1".into());
        deferred.complete(Ok(ProxyError::Limit("too much").response()));
        let trailers = rest(body).await.1.expect("trailers");
        assert_eq!(trailers["buildkit-lb-error"], "limit");
    }

    #[tokio::test]
    async fn an_answer_that_nobody_ends_is_reset() {
        let (deferred, mut body) = DeferredResponse::begin("1".into());
        drop(deferred);
        body.frame().await.expect("data").expect("said");
        assert!(body.frame().await.expect("an end").is_err());
    }

    #[tokio::test]
    async fn whoever_leaves_is_noticed() {
        let (deferred, body) = DeferredResponse::begin(Bytes::new());
        drop(body);
        deferred.abandoned().await;
    }
}

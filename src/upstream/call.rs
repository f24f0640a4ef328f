//! One call on a connection to a daemon: the body of the request goes up, the body of the response comes down.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use h2::{Reason, RecvStream, client::ResponseFuture};
use http::{Request, Response};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::dial::Connection;
use crate::relay::{Body, Sending};

/// Why a call has no response.
#[derive(Debug)]
pub(super) enum CallError {
    /// The connection takes no more streams. Nothing has been sent.
    Unsent(Box<Request<Body>>, h2::Error),
    /// No response came, although the request may have been sent.
    Failed(h2::Error),
}

/// Opens a stream for `request` and waits for the headers of the response. Meanwhile the body is sent on `tasks`.
pub(super) async fn call(
    connection: &Connection,
    request: Box<Request<Body>>,
    tasks: &TaskTracker,
) -> Result<Response<RecvStream>, CallError> {
    let (response, sending) = start(connection, request).await?;
    let uploading = sending.and_then(|sending| upload(sending, connection, tasks));
    let response = response.await.map_err(CallError::Failed)?;
    if let Some(uploading) = uploading {
        // An error means that everything has been sent.
        let _ = uploading.send(());
    }
    Ok(response)
}

type Started = (ResponseFuture, Option<Sending>);

async fn start(connection: &Connection, request: Box<Request<Body>>) -> Result<Started, CallError> {
    let mut sender = match connection.sender().ready().await {
        Ok(sender) => sender,
        Err(error) => return Err(CallError::Unsent(request, error)),
    };
    let (parts, body) = request.into_parts();
    let ended = body.is_end_stream();
    let (response, stream) =
        sender.send_request(Request::from_parts(parts, ()), ended).map_err(CallError::Failed)?;
    Ok((response, (!ended).then(|| Sending::request(body, stream))))
}

/// Sends the available part of a body at once, and the rest in a task. The task wants to be told when the response is
/// there. If its teller is dropped instead, the caller has stopped waiting, which cancels the call.
fn upload(
    mut sending: Sending,
    connection: &Connection,
    tasks: &TaskTracker,
) -> Option<oneshot::Sender<()>> {
    let mut waker = Context::from_waker(std::task::Waker::noop());
    if sending.poll(&mut waker).is_ready() {
        return None;
    }
    let (waiting, mut cancelled) = oneshot::channel();
    let (mut waits, connection) = (true, Arc::clone(connection));
    tasks.spawn(std::future::poll_fn(move |cx| {
        // The connection that the task holds is not free for another build before the task ends.
        if waits && let Poll::Ready(response) = Pin::new(&mut cancelled).poll(cx) {
            if response.is_err() {
                sending.reset(Reason::CANCEL);
                return Poll::Ready(());
            }
            waits = false;
        }
        ready!(sending.poll(cx));
        // The client ends most calls before their answers, but a session long after its answer has begun.
        if !waits {
            connection.note_session_end();
        }
        Poll::Ready(())
    }));
    Some(waiting)
}

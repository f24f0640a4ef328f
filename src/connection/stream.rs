//! One call of a client, from its headers to the end of its answer.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_util::future::BoxFuture;
use h2::{Reason, server::SendResponse};
use http::{Request, Response};
use http_body::Body as _;

use super::{calls::Calls, pace::Pace};
use crate::{
    call::CallResult,
    client::ActiveCall,
    io::Payload,
    received::Received,
    refusals::Refusals,
    relay::{Body, Sending},
};

/// The task of one call.
pub(super) struct Stream {
    reply: SendResponse<Payload>,
    state: State,
    /// Dropped last, because the connection may close then.
    _open: ActiveCall,
}

enum State {
    Answering { handling: BoxFuture<'static, CallResult>, refusals: Arc<Refusals>, pace: Arc<Pace> },
    Sending(Sending),
}

impl Stream {
    /// The call that `request` opens. The answer is sent with `reply`.
    pub(super) fn new(
        calls: &Calls,
        request: Request<Received>,
        reply: SendResponse<Payload>,
    ) -> Self {
        let refusals = Arc::clone(&calls.proxy.refusals);
        let pace = Arc::clone(&calls.pace);
        let state = State::Answering { handling: calls.handle(request), refusals, pace };
        Self { reply, state, _open: calls.client.active.enter_call() }
    }

    /// Sends the headers of an answer. Returns the body, if one follows.
    fn begin(&mut self, response: Response<Body>) -> Option<Sending> {
        let (head, body) = response.into_parts();
        let ended = body.is_end_stream();
        match self.reply.send_response(Response::from_parts(head, ()), ended) {
            Ok(stream) => (!ended).then(|| Sending::new(body, stream)),
            Err(_refused) => {
                self.reply.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

impl Future for Stream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            let (handling, refusals, pace) = match &mut this.state {
                State::Answering { handling, refusals, pace } => (handling, refusals, pace),
                State::Sending(sending) => return sending.poll(cx),
            };
            let polled = handling.as_mut().poll(cx);
            // A call that the client cancelled may have ended for that reason, too.
            if !matches!(polled, Poll::Ready(Ok(_)))
                && let Poll::Ready(gone) = this.reply.poll_reset(cx)
            {
                if gone.is_ok() {
                    pace.give_up(Instant::now());
                }
                // A client that cancels the call or disconnects needs no answer.
                return Poll::Ready(());
            }
            let result = ready!(polled);
            let response = match refusals.settle(result) {
                Ok(response) => response,
                Err(reset) => {
                    this.reply.send_reset(reset.reason());
                    return Poll::Ready(());
                }
            };
            match this.begin(response) {
                Some(sending) => this.state = State::Sending(sending),
                None => return Poll::Ready(()),
            }
        }
    }
}

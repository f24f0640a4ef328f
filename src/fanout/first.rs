//! The first questions of a client, which every daemon answers alike: ListWorkers and Info. If the daemon that is asked
//! is silent, for example because its node is lost, another one is asked.
//!
//! An answer is read to its end before it is passed on. A daemon that stops in the middle is therefore noticed, and an
//! answer that a client does not read takes nothing from the connection that all questions share.

use std::{cmp::Reverse, collections::HashSet, sync::Arc};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Response, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use rand::seq::SliceRandom as _;

use super::{
    ANSWER_TIMEOUT,
    ask::{copy, left_out, nobody, reachable},
    capability_query::CapabilityQuery,
    reply::ReplyError,
};
use crate::{
    call::{Call, CallError, CallResult},
    error::{ProxyError, first_few},
    fleet::Backend,
    proxy::Proxy,
    received::Received,
    relay::{self, Body, OnEnd, ResetError},
    upstream::SendError,
    wire::{MAX_MESSAGE_LEN, PREFIX_LEN},
};

/// The answer of the first daemon that gives one, even if it is a refusal or a reset. If no daemon is there, an answer
/// that a daemon has given before.
///
/// The call changes nothing, so it may be sent twice.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn first_answer(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, arrived } = call;
    proxy.activity.note(arrived);
    if body.is_end_stream() {
        // The message is missing. A daemon reports that error best.
        return proxy.relay_to_any(&client, parts, Bytes::new(), body).await;
    }
    let (message, rest) = proxy.read_message(&parts, &client, body).await?;
    if !rest.is_end_stream() {
        return proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await;
    }
    let message = message.into_bytes();
    match CapabilityQuery::of(&parts, &message) {
        Some(query) => query.answer(proxy, &client, &parts, &message).await,
        None => ask_in_turn(proxy, &parts, &message).await,
    }
}

/// The answer of the first backend that gives one.
pub(super) async fn ask_in_turn(proxy: &Proxy, parts: &Parts, message: &Bytes) -> CallResult {
    let mut left = in_order(proxy);
    let mut failures = Vec::new();
    while let Some(backend) = left.pop() {
        let link = proxy.shared.for_question(&backend);
        let answer = link.send(copy(parts, message));
        let answer = match left.is_empty() {
            // This is the last backend, so it has as much time as it needs.
            true => answer.await,
            false => match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_elapsed) => {
                    backend.report_silence();
                    left_out(&backend, parts, &ReplyError::Timeout);
                    continue;
                }
            },
        };
        let unreachable = match answer {
            Ok(response) => {
                match tokio::time::timeout(ANSWER_TIMEOUT, whole(response, &backend)).await {
                    Ok(Err(CallError::Own(error @ ProxyError::BackendLost { .. }))) => error,
                    Ok(result) => return result,
                    Err(_elapsed) => {
                        backend.report_silence();
                        let error = ReplyError::Timeout;
                        failures.push(format!("backend {}: {error}", backend.name()));
                        left_out(&backend, parts, &error);
                        continue;
                    }
                }
            }
            Err(SendError::Reset(error)) => return Err(ResetError::like(&error).into()),
            Err(SendError::Cancelled) => return Err(ResetError::cancel().into()),
            // The proxy could not reach another daemon either.
            Err(SendError::Proxy(error @ ProxyError::Shortage { .. })) => return Err(error.into()),
            Err(SendError::Proxy(error)) => error,
        };
        let cause = unreachable.to_string();
        failures.push(cause.clone());
        left_out(&backend, parts, &ReplyError::Unreachable(cause));
    }
    let error = match failures.is_empty() {
        true => nobody(proxy),
        // The cause of each failure, as a build is told too.
        false => ProxyError::NoBackend(first_few(&failures)),
    };
    Err(error.into())
}

/// The whole answer, once all of it has come.
async fn whole(response: Response<Received>, backend: &Arc<Backend>) -> CallResult {
    let response = relay::response(response, Arc::clone(backend), Arc::default(), OnEnd::new(drop));
    if response.body().is_end_stream() {
        return Ok(response);
    }
    let (head, mut body) = response.into_parts();
    let mut messages = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) if messages.len() + data.remaining() > PREFIX_LEN + MAX_MESSAGE_LEN => {
                return Err(ProxyError::Limit("the daemon's answer is larger than 16 MiB").into());
            }
            Ok(data) => messages.put(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let messages = messages.freeze();
    let body = match trailers {
        Some(trailers) => Body::whole_with_trailers(messages, trailers),
        None => Body::whole(messages),
    };
    Ok(Response::from_parts(head, body))
}

/// The backends to ask, the best one last. Ready backends are better than others, then the oldest version, then those
/// with few builds; the rest is random.
///
/// A client takes the answer as true for all daemons, and what the oldest daemon can do, the others can do too.
fn in_order(proxy: &Proxy) -> Vec<Arc<Backend>> {
    let mut backends = reachable(proxy);
    backends.shuffle(&mut rand::rng());
    let oldest = proxy.fleet.oldest();
    let oldest: HashSet<&str> = oldest.iter().map(|backend| backend.name()).collect();
    backends.sort_by_key(|backend| {
        (backend.is_ready(), oldest.contains(backend.name()), Reverse(backend.builds()))
    });
    backends
}

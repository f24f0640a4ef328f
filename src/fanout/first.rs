//! Questions that every daemon answers alike, and the client's first: ListWorkers and Info. If the daemon
//! that is asked is silent, as one whose node is lost, another one is asked.

use std::{cmp::Reverse, collections::HashSet, sync::Arc};

use bytes::Bytes;
use http::Response;
use hyper::body::Body as _;
use rand::seq::SliceRandom as _;

use super::{ANSWER_TIMEOUT, PartError, copy, missing, nobody, reachable};
use crate::{
    call::{Call, CallResult},
    error::ProxyError,
    fleet::Backend,
    proxy::Proxy,
    relay::{self, Body, OnEnd, Received, ResetError},
    upstream::SendError,
};

/// The answer of the first daemon that gives one, be it a refusal or a reset.
///
/// The call changes nothing, so it may be asked twice.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn first_answer(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, .. } = call;
    if body.is_end_stream() {
        // Without a message: a daemon says best what is missing.
        return proxy.relay_to_any(parts, Bytes::new(), body).await;
    }
    let (message, rest) = proxy.read_message(body).await?;
    if !rest.is_end_stream() {
        return proxy.relay_to_any(parts, message.into_bytes(), rest).await;
    }
    let message = message.into_bytes();
    let mut left = in_order(proxy);
    let mut failures = Vec::new();
    while let Some(backend) = left.pop() {
        let link = proxy.shared.link(&backend);
        let answer = link.send(copy(&parts, &message));
        let answer = match left.is_empty() {
            // Nobody is left to ask: this one has all the time it wants.
            true => answer.await,
            false => match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_elapsed) => {
                    missing(&backend, &parts, &PartError::Timeout);
                    continue;
                }
            },
        };
        match answer {
            Ok(response) => return Ok(passed_on(response, backend)),
            Err(SendError::Reset(error)) => return Err(ResetError::like(&error).into()),
            Err(SendError::Cancelled) => return Err(ResetError::cancel().into()),
            // No other daemon could be reached either.
            Err(SendError::Proxy(error @ ProxyError::Shortage { .. })) => return Err(error.into()),
            Err(SendError::Proxy(error)) => {
                failures.push(error.to_string());
                missing(&backend, &parts, &PartError::Unreachable(error.to_string()));
            }
        }
    }
    let error = match failures.is_empty() {
        true => nobody(proxy),
        // What each of them is down with, as a build is told.
        false => ProxyError::NoBackend(failures.join("; ")),
    };
    Err(error.into())
}

fn passed_on(response: Response<Received>, backend: Arc<Backend>) -> Response<Body> {
    relay::response(response, backend, Arc::default(), OnEnd::new(drop))
}

/// The backends to ask, the best last: ready ones before others, the oldest version before others, those
/// with few builds before busy ones, else by chance.
///
/// A client takes the answer for true of all daemons: what the oldest can, the others can too.
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

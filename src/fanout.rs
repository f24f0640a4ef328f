//! The fleet's RPCs: asked of every backend, and merged into the one answer a client expects.
//!
//! Messages are merged as the bytes they came in. A backend that does not answer leaves its part out
//! and is logged; only when none answers is the call an error.

mod content;
mod first;
mod history;
mod prune;
mod trace;
mod usage;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, Request, Response, request::Parts};
use http_body_util::BodyExt as _;

use tonic::Code;
use tracing::warn;

pub use self::{
    content::{by_digest as content_by_digest, list as content_list},
    first::first_answer,
    history::{listen as listen_history, locate, update as update_history},
    prune::prune,
    trace::export as export_trace,
    usage::disk_usage,
};
use crate::{
    client::Client,
    error::{ProxyError, chain, status_code},
    fleet::Backend,
    metrics::code_name,
    proxy::Proxy,
    relay::{self, Body, Received, ResetError},
    upstream::{Link, SendError},
    wire::{MAX_MESSAGE_LEN, Messages, WireError},
};

/// How long one daemon may take for its part of an answer that does not change anything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Memory one merged answer may take: what four daemons may each send at most.
const MAX_ANSWER_LEN: usize = 4 * MAX_MESSAGE_LEN;

/// One backend's response, headers received.
#[derive(Debug)]
struct Answer {
    backend: Arc<Backend>,
    response: Response<Received>,
}

/// Why a backend has no part in an answer.
#[derive(Debug, thiserror::Error)]
enum PartError {
    #[error("no answer within {ANSWER_TIMEOUT:?}")]
    Timeout,
    #[error("{0}")]
    Unreachable(String),
    #[error("ended with {}", code_name(*.code))]
    Status { code: Code, trailers: HeaderMap },
    #[error("answer cannot be read")]
    Wire(#[from] WireError),
    #[error("answer is larger than {MAX_ANSWER_LEN} bytes")]
    TooLarge,
}

impl PartError {
    /// The trailers that tell a client of this failure: the daemon's own if it sent some.
    fn trailers(self, backend: &Backend) -> HeaderMap {
        match self {
            Self::Status { trailers, .. } => trailers,
            error => {
                let backend = backend.name().to_owned();
                ProxyError::BackendLost { backend, cause: chain(&error) }.trailers()
            }
        }
    }
}

/// The backends to ask: those that are not known to be away.
fn reachable(proxy: &Proxy) -> Vec<Arc<Backend>> {
    let backends = proxy.fleet.backends();
    let alive = |backend: &&Arc<Backend>| !backend.is_ejected();
    let alive: Vec<_> = backends.iter().filter(alive).cloned().collect();
    if alive.is_empty() { backends.to_vec() } else { alive }
}

/// The request once more, for one of several backends.
fn copy(parts: &Parts, message: &Bytes) -> Box<Request<Body>> {
    let request = Request::from_parts(parts.clone(), Body::whole(message.clone()));
    Box::new(relay::request(request, |body| body))
}

/// Sends the same request over `link` and waits for its headers.
async fn ask(link: Link, parts: &Parts, message: &Bytes) -> Result<Response<Received>, PartError> {
    link.send(copy(parts, message)).await.map_err(|error| {
        PartError::Unreachable(match error {
            SendError::Proxy(error) => error.to_string(),
            SendError::Reset(error) => chain(&error),
            SendError::Cancelled => chain(&ResetError::cancel()),
        })
    })
}

/// Asks all reachable backends at once, for `client`. Those that fail are logged and left out.
async fn ask_all(proxy: &Proxy, client: &Client, parts: &Parts, message: &Bytes) -> Vec<Answer> {
    let asked: FuturesUnordered<_> = reachable(proxy)
        .into_iter()
        .map(|backend| async move {
            let link = proxy.shared.for_call(&backend, client);
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask(link, parts, message)).await;
            match answer.unwrap_or(Err(PartError::Timeout)) {
                Ok(response) => Some(Answer { backend, response }),
                Err(error) => {
                    missing(&backend, parts, &error);
                    None
                }
            }
        })
        .collect();
    asked.filter_map(|answer| async { answer }).collect().await
}

/// Logs that `backend` has no part in an answer.
fn missing(backend: &Backend, parts: &Parts, error: &PartError) {
    let error = chain(error);
    warn!(backend = backend.name(), method = parts.uri.path(), error, "part is missing");
}

/// Reads a whole answer: its messages, each with its prefix, if it ended with OK.
async fn messages(response: Response<Received>) -> Result<Vec<Bytes>, PartError> {
    tokio::time::timeout(ANSWER_TIMEOUT, read_messages(response))
        .await
        .unwrap_or(Err(PartError::Timeout))
}

async fn read_messages(response: Response<Received>) -> Result<Vec<Bytes>, PartError> {
    let (parts, mut body) = response.into_parts();
    let mut status = parts.headers;
    let mut cutter = Messages::new(MAX_MESSAGE_LEN);
    let mut messages = Vec::new();
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| PartError::Unreachable(chain(&error)))?;
        match frame.into_data() {
            Ok(data) => {
                len += data.len();
                if len > MAX_ANSWER_LEN {
                    return Err(PartError::TooLarge);
                }
                cutter.push(&data);
                while let Some(message) = cutter.cut()? {
                    messages.push(message);
                }
            }
            Err(frame) => status = frame.into_trailers().unwrap_or_default(),
        }
    }
    match status_code(&status) {
        Some(Code::Ok) => Ok(messages),
        code => Err(PartError::Status { code: code.unwrap_or(Code::Unknown), trailers: status }),
    }
}

/// The error for a call that no backend answered.
fn nobody(proxy: &Proxy) -> ProxyError {
    let names: Vec<_> =
        proxy.fleet.backends().iter().map(|backend| backend.name().to_owned()).collect();
    ProxyError::NoBackend(match names.is_empty() {
        true => "the fleet is empty".to_owned(),
        false => format!("none of {} answered", names.join(", ")),
    })
}

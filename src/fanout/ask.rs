//! Asks the daemons: all at once, or in search of the one that has something.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{Request, request::Parts};
use tokio::time::timeout;
use tracing::warn;

use super::{
    ANSWER_TIMEOUT,
    charge::ReplyCharge,
    reply::{Reply, ReplyError},
};
use crate::{
    client::Client,
    error::{ProxyError, chain, first_few},
    fleet::Backend,
    ids::BindingKey,
    proxy::Proxy,
    relay::{self, Body, ResetError},
    upstream::{Link, SendError},
};

/// How often a question without a time limit checks whether its daemon is still there.
const EJECTION_POLL: Duration = Duration::from_secs(1);

/// What a client asks of the fleet.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) proxy: Proxy,
    pub(super) client: Client,
    pub(super) parts: Arc<Parts>,
    pub(super) message: Bytes,
    /// How long a daemon may be silent in the middle of its reply; `None` is for ever.
    idle_timeout: Option<Duration>,
}

impl Question {
    /// A question that a daemon answers at once.
    pub(super) fn new(proxy: &Proxy, client: Client, parts: Parts, message: Bytes) -> Self {
        let parts = Arc::new(parts);
        Self { proxy: proxy.clone(), client, parts, message, idle_timeout: Some(ANSWER_TIMEOUT) }
    }

    /// The same question, but the daemon may pause in its reply for as long as it likes.
    pub(super) fn without_idle_timeout(self) -> Self {
        Self { idle_timeout: None, ..self }
    }

    /// Asks `backend` and waits for the headers of its reply.
    pub(super) async fn ask(&self, backend: Arc<Backend>) -> Result<Reply, ReplyError> {
        let asked = timeout(ANSWER_TIMEOUT, self.send(Arc::clone(&backend))).await;
        asked.unwrap_or_else(|_elapsed| {
            backend.report_silence();
            Err(ReplyError::Timeout)
        })
    }

    /// Asks `backend` for work that may take long before the first message. The wait lasts as long as the backend is
    /// not ejected.
    pub(super) async fn ask_for_work(&self, backend: Arc<Backend>) -> Result<Reply, ReplyError> {
        tokio::select! {
            reply = self.send(Arc::clone(&backend)) => reply,
            () = ejection(&backend) => Err(ReplyError::Timeout),
        }
    }

    /// Asks all reachable backends at once. Those that fail are logged and left out.
    pub(super) async fn ask_all(&self) -> Vec<Reply> {
        self.ask_each(reachable(&self.proxy)).await
    }

    /// Asks these backends at once. Those that fail are logged and left out.
    pub(super) async fn ask_each(&self, backends: Vec<Arc<Backend>>) -> Vec<Reply> {
        let asked: FuturesUnordered<_> = backends
            .into_iter()
            .map(|backend| async move {
                let asked = self.ask(Arc::clone(&backend)).await;
                asked.map_err(|error| self.left_out(&backend, &error)).ok()
            })
            .collect();
        asked.filter_map(|reply| async { reply }).collect().await
    }

    async fn send(&self, backend: Arc<Backend>) -> Result<Reply, ReplyError> {
        let link = self.proxy.shared.for_call(&backend, &self.client);
        let request = copy(&self.parts, &self.message);
        let response = link.send(request).await.map_err(|error| {
            ReplyError::Unreachable(match error {
                SendError::Proxy(error) => error.to_string(),
                SendError::Reset(error) => chain(&error),
                SendError::Cancelled => chain(&ResetError::cancel()),
            })
        })?;
        let held = ReplyCharge::new(self.proxy.account().open(&self.client));
        Ok(Reply::new(backend, response, held, self.idle_timeout))
    }

    /// Logs that `backend` is left out of the answer.
    pub(super) fn left_out(&self, backend: &Backend, error: &ReplyError) {
        left_out(backend, &self.parts, error);
    }
}

/// Logs that `backend` is left out of the answer to a call.
pub(super) fn left_out(backend: &Backend, parts: &Parts, error: &ReplyError) {
    let (method, error) = (parts.uri.path(), chain(error));
    warn!(backend = backend.name(), method, error, "backend left out of answer");
}

/// Searches for the daemon for which `has` is true, and remembers that it has what `key` names.
pub(super) async fn search<F>(
    proxy: &Proxy,
    client: &Client,
    key: BindingKey,
    has: impl Fn(Arc<Backend>, Link) -> F,
) -> Option<Link>
where
    F: Future<Output = bool>,
{
    let mut asked: FuturesUnordered<_> = reachable(proxy)
        .into_iter()
        .map(|backend| {
            let link = proxy.shared.for_question(&backend);
            let has = has(Arc::clone(&backend), link);
            async move {
                let has = timeout(ANSWER_TIMEOUT, has).await;
                if has.is_err() {
                    backend.report_silence();
                }
                has.unwrap_or(false).then_some(backend)
            }
        })
        .collect();
    while let Some(found) = asked.next().await {
        if let Some(backend) = found {
            proxy.directory.remember(key, backend.shared_name());
            return Some(proxy.shared.for_call(&backend, client));
        }
    }
    None
}

/// The backends to ask: all that are neither ejected nor silent, or all if there are no such backends.
pub(super) fn reachable(proxy: &Proxy) -> Vec<Arc<Backend>> {
    let backends = proxy.fleet.backends();
    let there = |backend: &&Arc<Backend>| !backend.is_ejected() && !backend.is_silent();
    let there: Vec<_> = backends.iter().filter(there).cloned().collect();
    if there.is_empty() { backends.to_vec() } else { there }
}

/// The error for a call that no backend answered.
pub(super) fn nobody(proxy: &Proxy) -> ProxyError {
    let backends = proxy.fleet.backends();
    ProxyError::NoBackend(match backends.is_empty() {
        true => "the fleet is empty".to_owned(),
        false => {
            let names = first_few(backends.iter().map(|backend| backend.name()));
            format!("none of {names} answered")
        }
    })
}

/// A copy of the request, for one of several backends.
pub(super) fn copy(parts: &Parts, message: &Bytes) -> Box<Request<Body>> {
    let request = Request::from_parts(parts.clone(), Body::whole(message.clone()));
    Box::new(relay::request(request, |body| body))
}

/// Completes when `backend` is ejected.
async fn ejection(backend: &Backend) {
    while !backend.is_ejected() {
        tokio::time::sleep(EJECTION_POLL).await;
    }
}

//! Prune: every daemon prunes, and the records come as they are freed.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

use super::{
    ask::{Question, nobody, reachable},
    merge::{self, Endings, forward},
    reply::ReplyError,
};
use crate::{
    call::{Call, CallResult},
    error::{ProxyError, first_few, ok_trailers},
    fleet::{Backend, Version},
    proxy::Proxy,
    wire::fields::{Fields, Malformed, Value},
};

/// Asks every backend to prune. The answer ends when all backends have ended, with the first failure if there was one.
///
/// The space limits of the request apply to each daemon, because each has its own disk. A daemon that would ignore a
/// limit is not asked, and the client is with_version.
///
/// # Errors
/// The proxy's own error. A daemon that fails ends the merged answer with an error.
pub async fn prune(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, _rest) = proxy.read_message(&parts, &client, body).await?;
    let limited = message.read(limits_space).await.unwrap_or(false);
    let question = Question::new(proxy, client, parts, message.into_bytes()).without_idle_timeout();
    let (old, asked): (Vec<_>, Vec<_>) =
        reachable(proxy).into_iter().partition(|backend| limited && !knows_limits(backend));
    for backend in &old {
        question.left_out(backend, &ReplyError::TooOld);
    }
    let too_old = (!old.is_empty()).then(|| refusal(&old));
    if asked.is_empty() {
        return Err(too_old.unwrap_or_else(|| nobody(proxy)).into());
    }
    let otherwise = too_old.map_or_else(ok_trailers, |error| error.trailers());
    let headers =
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))]);
    Ok(merge::respond(proxy, headers, |sender| async move {
        let (question, sender) = (&question, &sender);
        let mut streams: FuturesUnordered<_> = asked
            .into_iter()
            .map(|backend| async move {
                let end = match question.ask_for_work(Arc::clone(&backend)).await {
                    Ok(reply) => forward(reply, sender, |_, _| true).await,
                    Err(error) => Ok(Err(error)),
                };
                (backend, end)
            })
            .collect();
        let mut endings = Endings::default();
        while let Some((backend, end)) = streams.next().await {
            endings.note(question, &backend, end?);
        }
        Ok(endings.all(otherwise))
    }))
}

/// Whether a PruneRequest has a space limit that not all daemons know: maxUsedSpace or minFreeSpace.
fn limits_space(request: &[u8]) -> Result<bool, Malformed> {
    let mut limits = false;
    for field in Fields::new(request) {
        limits |= matches!(field?, (5 | 6, Value::Number(1..)));
    }
    Ok(limits)
}

/// Whether `backend` knows such limits. A daemon that ignores them deletes everything, and one of unknown version
/// might.
fn knows_limits(backend: &Backend) -> bool {
    backend.version().is_some_and(|version| !version.is_before(Version::SPACE_LIMITS))
}

fn refusal(old: &[Arc<Backend>]) -> ProxyError {
    let with_version = |backend: &Arc<Backend>| match backend.version() {
        Some(version) => format!("{} ({version})", backend.name()),
        None => format!("{} (version not known yet)", backend.name()),
    };
    ProxyError::TooOld {
        backends: first_few(old.iter().map(with_version)),
        cause: "daemons below v0.17 ignore maxUsedSpace and minFreeSpace and would delete all they have",
    }
}

//! Holds the calls of a build that waits, for as long as that takes, with a client that knows nothing of
//! waiting.
//!
//! Most calls may be silent for ever. Three may not: a Session whose inner HTTP/2 hears nothing is closed
//! by the client after 10 s, a Ping is given 15 s, and a person who sees nothing stops the build. So the
//! proxy says the least that each needs in its daemon's place, and takes out of what the daemon says later
//! what would come twice. A build that waits less than [`HOLD_AFTER`] has none of this: all its bytes are
//! its daemon's.

mod preface;
mod session;
mod status;
mod vertex;

use std::{future::pending, ops::ControlFlow, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use tokio::sync::watch;

pub(super) use self::{
    session::{KEPT_LEN, session},
    status::Status,
};
use crate::{
    call::CallResult,
    capabilities::Probe,
    directory::{Caller, Waiting},
    ids::BindingKey,
    proxy::Proxy,
    relay::{Body, DeferredResponse, MessageSender},
};

/// How long a call waits before the proxy speaks in its daemon's place: a fifth of what a Session has. A
/// build that only waits for a connection to its daemon is placed by then.
pub(super) const HOLD_AFTER: Duration = Duration::from_secs(2);

/// Tells what a build waits for; closes when it is placed, refused or gone.
pub(super) type Queued = watch::Receiver<Option<Waiting>>;

/// Waits for `outcome`, unless the build of `key` is found to wait for its turn after `delay`.
///
/// # Errors
/// What it waits for.
pub(super) async fn unless_queued<T>(
    proxy: &Proxy,
    key: &BindingKey,
    caller: Caller,
    delay: Duration,
    outcome: impl Future<Output = T>,
) -> Result<T, Queued> {
    let queued = async {
        tokio::time::sleep(delay).await;
        proxy.directory.queued(key, caller).await
    };
    tokio::select! {
        biased;
        outcome = outcome => Ok(outcome),
        queued = queued => Err(queued),
    }
}

/// Waits for `outcome`, unless the build of `key` is found to wait for its turn after `delay` and the proxy
/// has an answer of its `own` to the call.
pub(super) async fn unless_answered<T>(
    proxy: &Proxy,
    key: &BindingKey,
    caller: Caller,
    delay: Duration,
    outcome: impl Future<Output = T>,
    own: impl FnOnce() -> Option<Response<Body>>,
) -> ControlFlow<Response<Body>, T> {
    let mut outcome = pin!(outcome);
    match unless_queued(proxy, key, caller, delay, &mut outcome).await {
        Ok(outcome) => ControlFlow::Continue(outcome),
        Err(_queued) => match own() {
            Some(answer) => ControlFlow::Break(answer),
            None => ControlFlow::Continue(outcome.await),
        },
    }
}

/// The answer to a Ping that a daemon has given before, if any has.
pub(super) fn pong(proxy: &Proxy) -> Option<Response<Body>> {
    proxy.capabilities.oldest().map(|answers| Body::answer(answers.pong))
}

/// Waits until the client of `probe` has all it wants; for ever if it is none.
pub(super) async fn ended(probe: Option<&Probe<'_>>) {
    match probe {
        Some(probe) => probe.ended().await,
        None => pending().await,
    }
}

/// Begins an answer with `first`. `holding` says the rest beside it, until nobody waits for it any more.
fn answer<F>(
    proxy: &Proxy,
    first: Bytes,
    holding: impl FnOnce(MessageSender) -> F,
) -> Response<Body>
where
    F: Future<Output = CallResult> + Send + 'static,
{
    let (deferred, body) = DeferredResponse::begin(first);
    let holding = holding(deferred.sender());
    let refusals = Arc::clone(&proxy.refusals);
    proxy.spawn(async move {
        let result = tokio::select! {
            result = holding => result,
            () = deferred.abandoned() => return,
        };
        deferred.complete(refusals.settle(result));
    });
    body.respond()
}

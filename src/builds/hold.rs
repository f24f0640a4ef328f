//! Holds the calls of a build that waits, for as long as the wait lasts, although the client knows nothing of queues.
//!
//! Most calls may be silent for ever, but three may not. A client closes a Session after 10 s if the HTTP/2 connection
//! inside hears nothing; it gives a Ping 15 s; and a person who sees no progress stops the build. The proxy therefore
//! sends in the daemon's place the least that each of the three needs, and removes from the daemon's later answer what
//! the client would get twice. If a build waits less than [`HOLD_AFTER`], the proxy sends nothing of its own: all bytes
//! are the daemon's.

mod preface;
mod session;
mod status;
mod vertex;

use std::{future::pending, ops::ControlFlow, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use tokio::sync::watch;

pub(super) use self::{
    session::{KEPT_LEN, Session},
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

/// How long a call of a queued build waits before the proxy speaks in the daemon's place: a fifth of the 10 s that a
/// Session has.
pub(super) const HOLD_AFTER: Duration = Duration::from_secs(2);

/// Tells what a build waits for. The channel closes when the build is placed, refused or gone.
pub(super) type Queued = watch::Receiver<Option<Waiting>>;

/// Waits for `outcome`, unless the build of `key` turns out to be queued after `delay`.
///
/// # Errors
/// The build is queued: what it waits for.
pub(super) async fn unless_queued<T>(
    proxy: &Proxy,
    key: &BindingKey,
    caller: Caller,
    delay: Duration,
    outcome: impl Future<Output = T> + Unpin,
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

/// Waits for `outcome`, unless the build of `key` is queued after `delay` and `own` gives an answer of the proxy's own
/// to the call.
pub(super) async fn unless_answered<T>(
    proxy: &Proxy,
    key: &BindingKey,
    caller: Caller,
    delay: Duration,
    mut outcome: impl Future<Output = T> + Unpin,
    own: impl FnOnce(&Queued) -> Option<Response<Body>>,
) -> ControlFlow<Response<Body>, T> {
    match unless_queued(proxy, key, caller, delay, &mut outcome).await {
        Ok(outcome) => ControlFlow::Continue(outcome),
        Err(queued) => match own(&queued) {
            Some(answer) => ControlFlow::Break(answer),
            None => ControlFlow::Continue(outcome.await),
        },
    }
}

/// The answer of a daemon to an earlier Ping, if there was one. The build that is `queued` gets a daemon that can do
/// what this answer says.
pub(super) fn pong(proxy: &Proxy, queued: &Queued) -> Option<Response<Body>> {
    let promise = queued.borrow().as_ref()?.promise.clone();
    promise.give(|| proxy.capabilities.oldest()).map(Body::answer)
}

/// Waits until the client needs `probe` no more; for ever without a probe.
pub(super) async fn ended(probe: Option<&Probe<'_>>) {
    match probe {
        Some(probe) => probe.ended().await,
        None => pending().await,
    }
}

/// Begins an answer with `first`. `holding` runs beside it and gives the rest, until nobody reads the answer any more.
fn answer<F>(
    proxy: &Proxy,
    first: Bytes,
    holding: impl FnOnce(MessageSender) -> F,
) -> Response<Body>
where
    F: Future<Output = CallResult> + Send + 'static,
{
    let (deferred, body) = DeferredResponse::begin(first);
    // Boxed, because the task would keep room for it twice.
    let mut holding = Box::pin(holding(deferred.sender()));
    let refusals = Arc::clone(&proxy.refusals);
    proxy.spawn(async move {
        let result = tokio::select! {
            result = &mut holding => result,
            () = deferred.abandoned() => return,
        };
        deferred.complete(refusals.settle(result));
    });
    body.respond()
}

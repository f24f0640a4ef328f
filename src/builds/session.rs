//! Control/Session: joins the binding of its Solve, or is bound on its own.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Duration, Instant, timeout},
};

use super::{
    active::ActiveSession, hold, is_scattered, parked::ParkedBytes, refuse, request::invocation,
};
use crate::{
    access::{Operation, denied},
    call::{Call, CallResult},
    client::{Client, Weight},
    directory::{Bound, Caller, KeyGuard, Lookup, Ties},
    error::ProxyError,
    fleet::Backend,
    ids::{self, BindingKey, SessionId, TraceId},
    ownership::Owned,
    placement::Wish,
    proxy::Proxy,
};

/// How long a Session waits for its Solve before it is bound on its own.
///
/// No Solve names the shared session of a bake until a target starts. The client's inner HTTP/2 server gives up when it
/// hears nothing for 10 s (golang.org/x/net/http2, preface timeout).
const SESSION_PARK: Duration = Duration::from_secs(5);

/// How long a Session that is not known to be queued may hear nothing: long enough to be placed on its own. Most
/// Sessions that wait long are those of a client that does not build yet, and they need no held answer.
const SILENCE: Duration = Duration::from_secs(6);

/// Relays a Session to the backend of its Solve.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn session(proxy: &Proxy, mut call: Call, id: SessionId) -> CallResult {
    if !proxy.grant(&call.client).allows(Operation::Build) {
        let denied = denied(call.client.identity.as_deref(), Operation::Build.described());
        return refuse::session(call.body, denied.into()).await;
    }
    let trace = ids::trace(&call.parts.headers, call.client.identity.as_ref());
    let owned = proxy.ownership.open_session(&id);
    if owned.is_none() {
        // The session belongs to another client, and a daemon would replace it. This client gets a session that no
        // Solve can name.
        ids::hide_session(&mut call.parts.headers);
    }
    if proxy.rules.read_shared_key() {
        proxy.shared_keys.declare(&id, &call.parts.headers);
    }
    let key = BindingKey::Session(id);
    let unseen_until = Instant::now() + SESSION_PARK;
    let mut kept = ParkedBytes::new(proxy.account(), &call.client, hold::KEPT_LEN);
    let bound = {
        let caller = Caller { connection: call.client.connection, trace };
        let bound = pin!(bind_session(proxy, &key, trace, &call.client, unseen_until));
        let bound = pin!(kept.during(&mut call.body, bound));
        let bound = pin!(hold::unless_queued(proxy, &key, caller, hold::HOLD_AFTER, bound));
        timeout(SILENCE, bound).await
    };
    match bound {
        Ok(Ok(Ok(bound))) => {
            join_session(proxy, call, &key, (trace, owned), bound, kept.into_bytes()).await
        }
        Ok(Ok(Err(error))) => refuse::session(call.body, error).await,
        Ok(Err(_)) | Err(_) => {
            let held =
                hold::Session { proxy: proxy.clone(), call, key, trace, owned, kept, unseen_until };
            held.hold()
        }
    }
}

/// Relays a Session that is `bound`. `received` is what its client has sent so far.
///
/// The early guard keeps a binding that no Solve holds yet, until the stream itself holds it.
pub(super) async fn join_session(
    proxy: &Proxy,
    call: Call,
    key: &BindingKey,
    (trace, owned): (Option<TraceId>, Option<Owned>),
    (Bound { binding, byte_counts }, early): (Bound, Option<KeyGuard>),
    received: Bytes,
) -> CallResult {
    let Some(keys) = proxy.directory.open_session(key, &binding, call.client.connection, trace)
    else {
        return Err(ProxyError::SessionOpen(key.to_string()).into());
    };
    drop(early);
    let link = binding.link.clone();
    let session = ActiveSession::start(proxy, binding, (keys, owned), &call.client);
    proxy.relay(&link, received, call.into_request(), byte_counts, session.on_end()).await
}

/// Finds the binding of a Session. A Session whose Solve has not come at `unseen_until` is placed on its own.
pub(super) async fn bind_session(
    proxy: &Proxy,
    key: &BindingKey,
    trace: Option<TraceId>,
    client: &Client,
    unseen_until: Instant,
) -> Result<(Bound, Option<KeyGuard>), ProxyError> {
    let unseen = unseen_until.saturating_duration_since(Instant::now());
    let ended = match proxy.directory.lookup(key) {
        Lookup::Live(bound) => return Ok((bound, None)),
        Lookup::Refused(error) => return Err(error),
        // The Solve came and ended before its Session: both belong on the Solve's backend.
        Lookup::Ended(name) => proxy.fleet.find(&name),
        Lookup::Unknown => None,
    };
    let ended = match ended {
        Some(ended) => Some(ended),
        None => match proxy.parking.wait(client, trace, key, unseen).await? {
            Lookup::Live(bound) => return Ok((bound, None)),
            Lookup::Refused(error) => return Err(error),
            Lookup::Ended(name) => proxy.fleet.find(&name),
            Lookup::Unknown => None,
        },
    };
    let scattered = is_scattered(proxy, trace);
    let wish = session_wish(key, ended, trace, client.connection, scattered);
    let placed = proxy.placement.place(wish, client, &watch::channel(None).0).await?;
    let bound = Bound { binding: placed.binding, byte_counts: Arc::default() };
    Ok((bound, Some(placed.key_guard)))
}

/// Where a Session without a live Solve belongs: where its Solve `ended`, or else beside the other builds of its
/// client.
fn session_wish(
    key: &BindingKey,
    ended: Option<Arc<Backend>>,
    trace: Option<TraceId>,
    connection: u64,
    scattered: bool,
) -> Wish {
    let beside = |by_trace| match &ended {
        Some(_) => Vec::new(),
        None => invocation(trace, connection, by_trace),
    };
    let keys = vec![key.clone()];
    let (follows, attracts) = (beside(scattered), beside(true));
    let ties = Ties { keys, follows, attracts, connection, ..Ties::default() };
    Wish {
        ties: Arc::new(ties),
        build: None,
        linked: false,
        key: None,
        affinity: None,
        preferred: ended,
        by_load: true,
        probe: false,
        weight: Weight::ONE,
        span: None,
    }
}

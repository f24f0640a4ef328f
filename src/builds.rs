//! The calls of a build: its Solve, and the streams that belong to the Solve.
//!
//! A build is bound to one backend. This room reads each Solve, decides once where its ids belong, parks the other
//! calls of the build until then, and relays all of them over the connection of the binding. A Solve or a Session is
//! never sent twice. This room knows nothing of sockets.

mod active;
mod bridge;
mod hold;
mod parked;
mod refuse;
pub mod request;
mod session;
mod solve;
mod status;
mod trace;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, request::Parts};

pub use self::{
    bridge::{bridge, finish, ping},
    session::session,
    solve::solve,
    status::status,
};
use crate::{
    call::{Call, CallResult},
    client::Client,
    error::ProxyError,
    first_message::joined,
    ids::{BindingKey, Id, SessionId, TraceId},
    proxy::Proxy,
    received::Received,
    relay::{ByteCounts, OnEnd},
    upstream::Link,
};

/// Relays a call of an unknown method that names a session: to the session's daemon, or to any daemon if the session is
/// unknown.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn follow(proxy: &Proxy, call: Call, id: SessionId) -> CallResult {
    match proxy.known_link(&BindingKey::Session(id), &call.client, &call.parts.headers)? {
        Some((link, byte_counts)) => {
            join(proxy, &link, byte_counts, (call.parts, call.body), [Bytes::new(), Bytes::new()])
                .await
        }
        None => any(proxy, call).await,
    }
}

/// Relays a call that any daemon can answer, or that only a daemon can refuse.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn any(proxy: &Proxy, call: Call) -> CallResult {
    proxy.relay_to_any(&call.client, call.parts, Bytes::new(), call.body).await
}

/// Relays a call of a build over that build's `link`: first what has been `read` of the call's body, then the rest.
fn join<'a>(
    proxy: &'a Proxy,
    link: &'a Link,
    byte_counts: Arc<ByteCounts>,
    (parts, rest): (Parts, Received),
    read: [Bytes; 2],
) -> impl Future<Output = CallResult> + Send + 'a {
    let [first, more] = read;
    let request = Request::from_parts(parts, rest);
    proxy.relay(link, joined(first, more, 0), request, byte_counts, OnEnd::new(drop))
}

/// Whether the builds of `trace` come over many connections, so that a connection does not show which of them belong
/// together.
fn is_scattered(proxy: &Proxy, trace: Option<TraceId>) -> bool {
    trace.is_some_and(|trace| proxy.directory.is_scattered(&trace))
}

/// Waits until the build `id` is known. If its Solve has not come within `unseen`, the build counts as unknown.
async fn park(
    proxy: &Proxy,
    client: &Client,
    trace: Option<TraceId>,
    id: &Id,
    unseen: Duration,
) -> Result<(Link, Arc<ByteCounts>), ProxyError> {
    if let Some(found) = proxy.known_build(id, client, trace)? {
        return Ok(found);
    }
    let key = BindingKey::Build(id.clone());
    let known = proxy.parking.wait(client, trace, &key, unseen).await?;
    let found = proxy.found(known, &key, client, trace)?;
    found.ok_or_else(|| ProxyError::UnknownBuild(id.to_string()))
}

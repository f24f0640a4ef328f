//! LLBBridge: the calls of a client that runs its own frontend. Each joins the binding of its build.

use std::{ops::ControlFlow, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::timeout;

use super::{hold, join, park, parked::parked};
use crate::{
    call::{Call, CallResult},
    client::Client,
    directory::Caller,
    error::ProxyError,
    ids::{self, BindingKey, Id, TraceId},
    proxy::Proxy,
    relay::{Body, ByteCounts},
    upstream::Link,
    wire::{EMPTY_MESSAGE, returned},
};

/// How long an LLBBridge call waits for its Solve. A client gives its Ping 15 s.
const BRIDGE_PARK: Duration = Duration::from_secs(14);

/// How long an LLBBridge call waits once its client has withdrawn a Solve. A daemon waits as long (BuildKit
/// util/registrar).
const WITHDRAWN_PARK: Duration = Duration::from_secs(3);

/// Relays a call that names its build in the metadata to the backend of that build.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn bridge(proxy: &Proxy, mut call: Call, id: Id) -> CallResult {
    let trace = ids::trace(&call.parts.headers, call.client.identity.as_ref());
    let link = pin!(bridge_link(proxy, &call.client, trace, &id));
    let link = parked(proxy.account(), &call.client, &mut call.body, link).await?;
    let ((link, byte_counts), received) = link;
    join(proxy, &link, byte_counts, (call.parts, call.body), [received, Bytes::new()]).await
}

/// LLBBridge/Ping: relays the call like [`bridge`]. A client waits 15 s for the answer, so the proxy answers a Ping
/// itself while the build is queued.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn ping(proxy: &Proxy, mut call: Call, id: Id) -> CallResult {
    let trace = ids::trace(&call.parts.headers, call.client.identity.as_ref());
    let caller = Caller { connection: call.client.connection, trace };
    let found = {
        let link = pin!(bridge_link(proxy, &call.client, trace, &id));
        let link = pin!(parked(proxy.account(), &call.client, &mut call.body, link));
        let (key, pong) = (BindingKey::Build(id.clone()), |queued: &_| hold::pong(proxy, queued));
        hold::unless_answered(proxy, &key, caller, hold::HOLD_AFTER, link, pong).await
    };
    let ((link, byte_counts), received) = match found {
        ControlFlow::Continue(found) => found?,
        ControlFlow::Break(pong) => return Ok(pong),
    };
    join(proxy, &link, byte_counts, (call.parts, call.body), [received, Bytes::new()]).await
}

/// LLBBridge/Return: relays the call like [`bridge`], but refuses a message that would crash a daemon.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn finish(proxy: &Proxy, call: Call, id: Id) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, mut rest) = proxy.read_message(&parts, &client, body).await?;
    let read = |request: &[u8]| Ok((returned::is_complete(request)?, returned::is_error(request)?));
    let (complete, failed) = message.read(read).await?;
    if !complete {
        let cause = "malformed Return: it has neither a result nor an error, or it has a key without a value";
        return Err(ProxyError::BadMessage {
            method: "Return".to_owned(),
            cause: cause.to_owned(),
        }
        .into());
    }
    let trace = ids::trace(&parts.headers, client.identity.as_ref());
    let caller = Caller { connection: client.connection, trace };
    let found = {
        let link = pin!(bridge_link(proxy, &client, trace, &id));
        let link = pin!(async { message.during(link).await? });
        let link = pin!(parked(proxy.account(), &client, &mut rest, link));
        let end_probe = |_: &hold::Queued| {
            let ended = !failed && proxy.capabilities.probes.end(&id, &client);
            ended.then(|| Body::answer(EMPTY_MESSAGE))
        };
        let key = BindingKey::Build(id.clone());
        hold::unless_answered(proxy, &key, caller, Duration::ZERO, link, end_probe).await
    };
    let ((link, byte_counts), more) = match found {
        ControlFlow::Continue(found) => found?,
        ControlFlow::Break(answer) => return Ok(answer),
    };
    join(proxy, &link, byte_counts, (parts, rest), [message.into_bytes(), more]).await
}

/// Waits until the build `id` of an LLBBridge call is known.
///
/// A client that finds its Solve too large to send has already opened the Solve's stream. It resets the stream, but
/// reports the error only after its Ping has ended. Once a Solve has been withdrawn, the call therefore waits no longer
/// than a daemon would.
async fn bridge_link(
    proxy: &Proxy,
    client: &Client,
    trace: Option<TraceId>,
    id: &Id,
) -> Result<(Link, Arc<ByteCounts>), ProxyError> {
    let mut found = pin!(park(proxy, client, trace, id, BRIDGE_PARK));
    tokio::select! {
        biased;
        found = &mut found => return found,
        () = client.active.solve_withdrawn() => {}
    }
    match timeout(WITHDRAWN_PARK, &mut found).await {
        Ok(found) => found,
        Err(_elapsed) if proxy.directory.is_unseen(&BindingKey::Build(id.clone())) => {
            Err(ProxyError::UnknownBuild(id.to_string()))
        }
        Err(_elapsed) => found.await,
    }
}

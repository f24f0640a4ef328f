//! LLBBridge: the calls by which a client that is its own frontend builds; they join the binding of their build.

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

/// How long an LLBBridge call waits for its Solve: a client gives its Ping 15 s.
const BRIDGE_PARK: Duration = Duration::from_secs(14);

/// How long one waits whose client has given a Solve up: as long as a daemon does (BuildKit
/// util/registrar).
const WITHDRAWN_PARK: Duration = Duration::from_secs(3);

/// A call with the build's ref in its metadata (LLBBridge): joins the build's binding.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn bridge(proxy: &Proxy, mut call: Call, id: Id) -> CallResult {
    let trace = ids::trace(&call.parts.headers, call.client.identity.as_ref());
    let link = bridge_link(proxy, &call.client, trace, &id);
    let link = parked(proxy.account(), &call.client, &mut call.body, link).await?;
    let ((link, byte_counts), received) = link;
    join(proxy, &link, byte_counts, (call.parts, call.body), [received, Bytes::new()]).await
}

/// LLBBridge/Ping: [`bridge`] for a call that a client does not wait for longer than 15 s.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn ping(proxy: &Proxy, mut call: Call, id: Id) -> CallResult {
    let trace = ids::trace(&call.parts.headers, call.client.identity.as_ref());
    let caller = Caller { connection: call.client.connection, trace };
    let found = {
        let link = bridge_link(proxy, &call.client, trace, &id);
        let link = parked(proxy.account(), &call.client, &mut call.body, link);
        let (key, pong) = (BindingKey::Build(id.clone()), || hold::pong(proxy));
        hold::unless_answered(proxy, &key, caller, hold::HOLD_AFTER, link, pong).await
    };
    let ((link, byte_counts), received) = match found {
        ControlFlow::Continue(found) => found?,
        ControlFlow::Break(pong) => return Ok(pong),
    };
    join(proxy, &link, byte_counts, (call.parts, call.body), [received, Bytes::new()]).await
}

/// LLBBridge/Return: [`bridge`] for a message that a daemon survives.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn finish(proxy: &Proxy, call: Call, id: Id) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, mut rest) = proxy.read_message(&parts, &client, body).await?;
    let read = |request: &[u8]| Ok((returned::is_complete(request)?, returned::is_error(request)?));
    let (complete, failed) = message.read(read).await?;
    if !complete {
        let cause =
            "malformed Return: it has neither a result nor an error, or a key without a value";
        return Err(ProxyError::BadMessage {
            method: "Return".to_owned(),
            cause: cause.to_owned(),
        }
        .into());
    }
    let trace = ids::trace(&parts.headers, client.identity.as_ref());
    let caller = Caller { connection: client.connection, trace };
    let found = {
        let link = Box::pin(bridge_link(proxy, &client, trace, &id));
        let link = async { message.during(link).await? };
        let link = pin!(parked(proxy.account(), &client, &mut rest, link));
        let end_probe = || {
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

/// Waits until the build that an LLBBridge call with the ref `id` is of is known.
///
/// A client that finds its Solve too large to send waits for its Ping before it says so. It has opened the
/// Solve's stream and given it up, so then this waits no longer than a daemon would.
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

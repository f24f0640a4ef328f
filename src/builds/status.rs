//! Control/Status: joins the binding of its build, or goes to the daemon that has the build's record.

use std::{pin::pin, sync::Arc, time::Duration};

use super::{
    hold, join, park,
    parked::{MAX_PARKED_LEN, ParkedBytes},
    refuse,
};
use crate::{
    call::{Call, CallResult},
    client::Client,
    directory::Caller,
    error::ProxyError,
    fanout,
    ids::{self, BindingKey, Id, TraceId},
    proxy::Proxy,
    relay::ByteCounts,
    upstream::Link,
};

/// How long a Status waits for its Solve. A daemon waits as long (BuildKit solver/jobs.go).
const STATUS_PARK: Duration = Duration::from_secs(6);

/// How long a Status of an unknown ref waits before the histories of the daemons are searched.
const STATUS_LOOKUP: Duration = Duration::from_secs(1);

/// Relays a Status to the backend of its build, or to the daemon that has the build's record.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn status(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let trace = ids::trace(&parts.headers, client.identity.as_ref());
    let (mut message, mut rest) = proxy.read_message(&parts, &client, body).await?;
    let Some(id) = message.first_id(client.identity.as_ref()).await else {
        return proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await;
    };
    let mut kept = ParkedBytes::new(proxy.account(), &client, MAX_PARKED_LEN);
    let caller = Caller { connection: client.connection, trace };
    let found = {
        let link = pin!(status_link(proxy, &client, trace, &id));
        let link = pin!(async { message.during(link).await? });
        let link = pin!(kept.during(&mut rest, link));
        let key = BindingKey::Build(id.clone());
        hold::unless_queued(proxy, &key, caller, hold::HOLD_AFTER, link).await
    };
    let (link, byte_counts) = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return refuse::status(error),
        Err(queued) => {
            let (proxy, build) = (proxy.clone(), id);
            let status = hold::Status { proxy, client, trace, build, parts, message, rest, kept };
            return status.hold(queued);
        }
    };
    let read = [message.into_bytes(), kept.into_bytes()];
    join(proxy, &link, byte_counts, (parts, rest), read).await
}

async fn status_link(
    proxy: &Proxy,
    client: &Client,
    trace: Option<TraceId>,
    id: &Id,
) -> Result<(Link, Arc<ByteCounts>), ProxyError> {
    match park(proxy, client, trace, id, STATUS_LOOKUP).await {
        Err(ProxyError::UnknownBuild(_)) => {}
        known => return known,
    }
    // The client runs no such build now. It may have run before this proxy started.
    if let Some(record) = proxy.visible(id, client)
        && let Some(link) = Box::pin(fanout::locate(proxy, client, &record)).await
    {
        return Ok((link, Arc::default()));
    }
    Box::pin(park(proxy, client, trace, id, STATUS_PARK - STATUS_LOOKUP)).await
}

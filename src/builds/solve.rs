//! Control/Solve: reads the message, decides where the build belongs, and relays the call there once.

use std::{pin::pin, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request};

use super::{
    active::ActiveBuild, hold, is_scattered, parked::parked, request::Solve, trace::BuildTrace,
};
use crate::{
    access::Running,
    affinity::{AffinityKey, Facts, rules::HINT_HEADER},
    call::{Call, CallResult},
    carriers::Carried,
    client::Client,
    directory::{Caller, Lookup, Placing},
    error::ProxyError,
    first_message::{FirstMessage, Unread, joined},
    ids::{self, Id},
    ownership::Owned,
    placement::Wish,
    policy::PolicyKind,
    proxy::Proxy,
    received::Received,
    relay::Body,
    upstream::Link,
    wire::EMPTY_MESSAGE,
};

/// Reads a Solve, binds its build and relays the call.
///
/// The relay waits for the answer as long as the build runs. The work before it is boxed, so that its memory is freed
/// when the relay begins.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn solve(proxy: &Proxy, call: Call) -> CallResult {
    let ready = Box::pin(bind_solve(proxy, call)).await?;
    let Some(Ready { link, message, request, build }) = ready else {
        return Ok(Body::answer(EMPTY_MESSAGE));
    };
    let (byte_counts, on_end) = (build.byte_counts(), build.on_end());
    proxy.relay(&link, message, *request, byte_counts, on_end).await
}

/// A Solve whose build has been placed.
struct Ready {
    link: Link,
    /// What has been read of the body.
    message: Bytes,
    request: Box<Request<Received>>,
    build: ActiveBuild,
}

/// Binds a Solve and traces that. Returns `None` for a probe that was waiting when its client stopped needing it.
async fn bind_solve(proxy: &Proxy, call: Call) -> Result<Option<Ready>, ProxyError> {
    let trace = BuildTrace::begin(proxy, &call);
    let bound = place_solve(proxy, call, trace.as_ref()).await;
    let Some(trace) = trace else { return bound };
    match bound {
        Ok(Some(ready)) => Ok(Some(Ready { build: ready.build.traced(trace), ..ready })),
        Ok(None) => Ok(None),
        Err(error) => {
            trace.refused(&error);
            Err(error)
        }
    }
}

/// Binds a Solve. `spans` are those of the build, if it is traced.
async fn place_solve(
    proxy: &Proxy,
    call: Call,
    spans: Option<&BuildTrace>,
) -> Result<Option<Ready>, ProxyError> {
    let accept = spans.map(BuildTrace::accept);
    let Call { parts, body, client, arrived } = call;
    proxy.activity.note(arrived);
    let trace = ids::trace(&parts.headers, client.identity.as_ref());
    let (mut message, mut rest) = match proxy.read_message(&parts, &client, body).await {
        Ok(read) => read,
        Err(Unread { error, start }) => {
            return Err(unread_solve(proxy, &client, &start, error));
        }
    };
    let (mut solve, facts) = read_solve(proxy, &client, &mut message).await?;
    let caller = Caller { connection: client.connection, trace };
    let (placing, carried) = announce(proxy, &client, &solve, caller)?;
    if let Some(facts) = facts {
        solve.affinity =
            affinity_key(proxy, &solve, facts, &parts.headers, &client).await.map(Arc::new);
    }
    let spread = proxy.placement.policy().spread_bake_targets;
    let scattered = is_scattered(proxy, trace);
    let weight = proxy.grant(&client).weight();
    drop(accept);
    let span = spans.map(|trace| trace.place(&solve));
    let wish = Wish { weight, span, ..solve.wish(&placing, caller, scattered, spread) };
    let probe = solve.build.as_ref().filter(|_| solve.internal);
    let probe = probe.map(|build| proxy.capabilities.probes.enter(build, &client));
    let ((placed, owned), more) = {
        let place = pin!(async {
            let admitted = admit(proxy, &client, &solve, &placing).await?;
            let placed = proxy.placement.place(wish, &client, placing.wait_sender()).await?;
            Ok((placed, admitted))
        });
        let placed = pin!(async { message.during(place).await? });
        tokio::select! {
            biased;
            placed = parked(proxy.account(), &client, &mut rest, placed) => placed?,
            () = hold::ended(probe.as_ref()) => return Ok(None),
        }
    };
    Ok(Some(Ready {
        link: placed.binding.link.clone(),
        message: joined(message.into_bytes(), more, 0),
        request: Box::new(Request::from_parts(parts, rest)),
        build: ActiveBuild::start(
            proxy,
            &solve,
            &placing,
            placed,
            (carried, owned),
            &client,
            arrived,
        ),
    }))
}

/// Reads from a Solve of `client` what routing needs, and checks that the client may send it.
///
/// # Errors
/// The message cannot be read, or a rule forbids it. In the second case the other calls of the build have been told.
async fn read_solve(
    proxy: &Proxy,
    client: &Client,
    message: &mut FirstMessage,
) -> Result<(Solve, Option<Facts>), ProxyError> {
    let (rules, owner) = (Arc::clone(&proxy.rules), client.identity.clone());
    let access = Arc::clone(&proxy.access);
    let ((solve, facts), allowed) = message
        .read(move |request| {
            let solve = Solve::read(request, owner)?;
            // A client's probe has no cache, so it has no affinity key.
            let facts = if solve.internal { None } else { Some(Facts::read(request, &rules)?) };
            let identity = solve.owner().map(Arc::as_ref);
            let allowed = access.grant(identity).check_solve(identity, request)?;
            Ok(((solve, facts), allowed))
        })
        .await?;
    if let Err(denied) = allowed {
        let error = ProxyError::from(denied);
        proxy.directory.refuse(solve.own_keys(), &error);
        return Err(error);
    }
    if solve.is_crowded() {
        return Err(ProxyError::Limit("the Solve names more than 128 sessions of other builds"));
    }
    Ok((solve, facts))
}

/// Announces a Solve of `caller`: from here on the other calls of its build wait for the outcome.
///
/// # Errors
/// A build with the same ref runs, and nothing would tell the calls of the two apart.
fn announce(
    proxy: &Proxy,
    client: &Client,
    solve: &Solve,
    caller: Caller,
) -> Result<(Placing, Option<Carried>), ProxyError> {
    let (session, build) = (solve.session.as_ref(), solve.build.as_ref());
    // A trace of this client tells nothing about a build of another client with the same ref.
    let carries = |trace| build.is_some_and(|id| proxy.carriers.carries(id, client, Some(trace)));
    let known = Caller { trace: caller.trace.filter(|trace| carries(*trace)), ..caller };
    let placing = proxy.directory.placing(session, build, known)?;
    // Before the other calls of the build are served, because they must find their own build.
    let carried = build.and_then(|build| proxy.carriers.enter(build, client, caller.trace));
    Ok((placing, carried))
}

/// Counts the build, and notes that its client owns it if the client may use all sessions that the Solve names.
///
/// # Errors
/// A session or the ref belongs to another client, or the client runs too many builds. The other calls of the build
/// have been told.
async fn admit(
    proxy: &Proxy,
    client: &Client,
    solve: &Solve,
    placing: &Placing,
) -> Result<(Option<Owned>, Option<Running>), ProxyError> {
    let counted = proxy.count_build(client);
    let admitted = async {
        let counted = counted?;
        proxy.ownership.may_name(&solve.sessions()).await?;
        let build = solve.build.as_ref();
        let owned =
            build.map(|build| proxy.ownership.start_build(build).ok_or_else(|| taken(build)));
        Ok((owned.transpose()?, counted))
    };
    admitted.await.inspect_err(|error| proxy.directory.refuse(placing.own().to_vec(), error))
}

/// Another client has used the ref. A daemon would replace the record of that client's build.
fn taken(build: &Id) -> ProxyError {
    let cause = "its ref belongs to a build of another client";
    ProxyError::RefTaken { build: build.to_string(), cause }
}

/// Tells the other calls of a Solve that cannot be read which error its client will print; otherwise they would wait
/// for the Solve. The `start` of the message names them, as far as it was read.
fn unread_solve(proxy: &Proxy, client: &Client, start: &[u8], error: ProxyError) -> ProxyError {
    if start.is_empty() {
        client.active.withdraw_solve();
    }
    if error.is_of_solve() {
        let mut keys = Solve::ids_at_start(start, client.identity.clone());
        keys.retain(|key| matches!(proxy.directory.lookup(key), Lookup::Unknown));
        proxy.directory.refuse(keys, &error);
    }
    error
}

/// The affinity key of the build.
async fn affinity_key(
    proxy: &Proxy,
    solve: &Solve,
    mut facts: Facts,
    headers: &HeaderMap,
    client: &Client,
) -> Option<AffinityKey> {
    facts.hint = headers.get(HINT_HEADER).and_then(|hint| hint.to_str().ok()).map(str::to_owned);
    facts.client = client.address.map(|address| address.to_string());
    // The wait is worthwhile only if the policy uses the key.
    let waits = proxy.placement.policy().kind == PolicyKind::ConsistentHash
        && proxy.rules.waits_for_shared_key(&facts);
    if let Some(session) = solve.session.as_ref().filter(|_| waits) {
        facts.shared_key = proxy.shared_keys.of(session).await.map(|key| key.to_string());
    }
    proxy.rules.key(&facts)
}

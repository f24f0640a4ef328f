//! What a build is: a Solve and the streams that belong to it, bound to one backend.
//!
//! Reads each Solve, decides once where its ids belong, parks the siblings until then, and relays
//! them all over the binding's connection. Knows nothing of sockets; never sends a Solve or a Session
//! twice.

mod active;
mod hold;
mod parked;
mod refuse;
pub mod solve;

use std::{ops::ControlFlow, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::{sync::watch, time::timeout};

use self::{
    active::{ActiveBuild, ActiveSession},
    parked::{Kept, MAX_PARKED_LEN, parked},
    solve::{Solve, invocation},
};
use crate::{
    access::{Operation, Running, denied},
    affinity::{AffinityKey, Facts, rules::HINT_HEADER},
    call::{Call, CallResult},
    client::Client,
    directory::{Bound, Caller, Lease, Lookup, Placing, Ties},
    error::ProxyError,
    fanout,
    first_message::{Unread, joined},
    fleet::Backend,
    ids::{self, BindingKey, Id, SessionId, TraceId},
    ownership::Owned,
    placement::Wish,
    policy::PolicyKind,
    proxy::Proxy,
    received::Received,
    relay::{Body, ByteCounts, OnEnd},
    upstream::Link,
    wire::{EMPTY_MESSAGE, returned},
};

/// How long a Session waits for its Solve before it is bound on its own.
///
/// A shared session of a bake is in no Solve until a target starts. The client's inner HTTP/2 server
/// gives up when it hears nothing for 10 s (golang.org/x/net/http2, preface timeout).
const SESSION_PARK: Duration = Duration::from_secs(5);

/// How long an LLBBridge call waits for its Solve: a client gives its Ping 15 s.
const BRIDGE_PARK: Duration = Duration::from_secs(14);

/// How long one waits whose client has given a Solve up: as long as a daemon does (BuildKit
/// util/registrar).
const WITHDRAWN_PARK: Duration = Duration::from_secs(3);

/// How long a Status waits for its Solve: as long as a daemon does (BuildKit solver/jobs.go).
const STATUS_PARK: Duration = Duration::from_secs(6);

/// When a Status of an unknown ref is first looked up in the daemons' histories.
const STATUS_LOOKUP: Duration = Duration::from_secs(1);

/// Control/Solve: reads it, binds it, relays it.
///
/// It waits for the answer as long as the build runs. What comes before is boxed, so that its memory is
/// not kept as long.
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

/// A Solve that has its place.
struct Ready {
    link: Link,
    /// What has been read of its body.
    message: Bytes,
    request: Box<Request<Received>>,
    build: ActiveBuild,
}

/// Binds a Solve; none if it was a probe that waited and is over.
async fn bind_solve(proxy: &Proxy, call: Call) -> Result<Option<Ready>, ProxyError> {
    let Call { parts, body, client, arrived } = call;
    proxy.activity.note(arrived);
    let trace = ids::trace(&parts.headers, client.identity.as_ref());
    let (mut message, mut rest) = match proxy.read_message(&parts, &client, body).await {
        Ok(read) => read,
        Err(Unread { error, start }) => {
            return Err(unread_solve(proxy, &client, &start, error));
        }
    };
    let (rules, owner) = (Arc::clone(&proxy.rules), client.identity.clone());
    let access = Arc::clone(&proxy.access);
    let ((mut solve, facts), allowed) = message
        .read(move |request| {
            let solve = Solve::read(request, owner)?;
            // A probe of the client's has no cache that it could be known by.
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
        return Err(ProxyError::Limit("the Solve names more than 128 sessions of others"));
    }
    let caller = Caller { connection: client.connection, trace };
    // From here on its siblings wait for what becomes of it.
    let (session, build) = (solve.session.as_ref(), solve.build.as_ref());
    // What one's own trace says of connections is not said of somebody else's build with the same ref.
    let carries = |trace| build.is_some_and(|id| proxy.carriers.carries(id, &client, Some(trace)));
    let known = Caller { trace: trace.filter(|trace| carries(*trace)), ..caller };
    let placing = proxy.directory.placing(session, build, known)?;
    // Before its siblings are served: they are to know their own build.
    let carried = build.and_then(|build| proxy.carriers.enter(build, &client, trace));
    if let Some(facts) = facts {
        solve.affinity =
            affinity_key(proxy, &solve, facts, &parts.headers, &client).await.map(Arc::new);
    }
    let spread = proxy.placement.policy().spread_bake_targets;
    let scattered = is_scattered(proxy, trace);
    let wish = solve.wish(&placing, caller, scattered, spread);
    let place = async {
        let claimed = claim(proxy, &client, &solve, &placing).await?;
        let placed = proxy.placement.place(wish, &client, placing.told()).await?;
        Ok((placed, claimed))
    };
    let placed = async { message.during(place).await? };
    let probe = build.filter(|_| solve.internal);
    let probe = probe.map(|build| proxy.capabilities.probes.enter(build, &client));
    let ((placed, owned), more) = tokio::select! {
        biased;
        placed = parked(proxy.account(), &client, &mut rest, placed) => placed?,
        () = hold::ended(probe.as_ref()) => return Ok(None),
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

/// Counts the build and notes that it is its client's, once that may name the sessions that the Solve names.
///
/// # Errors
/// One of them, or the build, is another's; or too many run. The calls beside the Solve have been told.
async fn claim(
    proxy: &Proxy,
    client: &Client,
    solve: &Solve,
    placing: &Placing,
) -> Result<(Option<Owned>, Option<Running>), ProxyError> {
    let counted = proxy.count_build(client);
    let claimed = async {
        let counted = counted?;
        proxy.ownership.may_name(&solve.sessions()).await?;
        let build = solve.build.as_ref();
        let owned =
            build.map(|build| proxy.ownership.start_build(build).ok_or_else(|| taken(build)));
        Ok((owned.transpose()?, counted))
    };
    claimed.await.inspect_err(|error| proxy.directory.refuse(placing.own().to_vec(), error))
}

/// The ref is another client's, or was: a daemon would put the one's record in the place of the other's.
fn taken(build: &Id) -> ProxyError {
    let why = "its ref is that of another client's build";
    ProxyError::RefTaken { build: build.to_string(), cause: why }
}

/// Tells the calls beside a Solve that cannot be read what its client will print, as far as its `start`
/// says which they are: they would wait for it.
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

/// Control/Session: joins its Solve's binding.
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
        // Another's, which the daemon would replace: it gets a session that no Solve can name.
        ids::hide_session(&mut call.parts.headers);
    }
    if proxy.rules.read_shared_key() {
        proxy.shared_keys.declare(&id, &call.parts.headers);
    }
    let key = BindingKey::Session(id);
    let mut kept = Kept::new(proxy.account(), &call.client, hold::KEPT_LEN);
    let bound = bind_session(proxy, &key, trace, &call.client, SESSION_PARK);
    match timeout(hold::HOLD_AFTER, kept.during(&mut call.body, bound)).await {
        Ok(Ok(bound)) => {
            join_session(proxy, call, &key, (trace, owned), bound, kept.into_bytes()).await
        }
        Ok(Err(error)) => refuse::session(call.body, error).await,
        Err(_elapsed) => hold::session(proxy, call, key, (trace, owned), kept),
    }
}

/// Relays a Session that is `bound`, and of which this was `received` before.
///
/// The early lease keeps a binding that no Solve holds yet, until the stream itself does.
async fn join_session(
    proxy: &Proxy,
    call: Call,
    key: &BindingKey,
    (trace, owned): (Option<TraceId>, Option<Owned>),
    (Bound { binding, byte_counts }, early): (Bound, Option<Lease>),
    received: Bytes,
) -> CallResult {
    let Some(lease) = proxy.directory.open_session(key, &binding, call.client.connection, trace)
    else {
        return Err(ProxyError::SessionOpen(key.to_string()).into());
    };
    drop(early);
    let link = binding.link.clone();
    let session = ActiveSession::start(proxy, binding, (lease, owned), &call.client);
    proxy.relay(&link, received, call.into_request(), byte_counts, session.on_end()).await
}

/// Control/Status: reads the ref, joins that build's binding or the daemon that has its record.
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
    let mut kept = Kept::new(proxy.account(), &client, MAX_PARKED_LEN);
    let caller = Caller { connection: client.connection, trace };
    let found = {
        let link = status_link(proxy, &client, trace, &id);
        let link = pin!(kept.during(&mut rest, async { message.during(link).await? }));
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
    let request = Request::from_parts(parts, rest);
    let message = joined(message.into_bytes(), kept.into_bytes(), 0);
    proxy.relay(&link, message, request, byte_counts, OnEnd::new(drop)).await
}

/// A call with the build's ref in its metadata (LLBBridge): joins the build's binding.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn bridge(proxy: &Proxy, mut call: Call, id: Id) -> CallResult {
    let trace = ids::trace(&call.parts.headers, call.client.identity.as_ref());
    let link = bridge_link(proxy, &call.client, trace, &id);
    let link = parked(proxy.account(), &call.client, &mut call.body, link).await?;
    let ((link, byte_counts), received) = link;
    proxy.relay(&link, received, call.into_request(), byte_counts, OnEnd::new(drop)).await
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
    proxy.relay(&link, received, call.into_request(), byte_counts, OnEnd::new(drop)).await
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
    let request = Request::from_parts(parts, rest);
    let message = joined(message.into_bytes(), more, 0);
    proxy.relay(&link, message, request, byte_counts, OnEnd::new(drop)).await
}

/// A call of a method yet unknown that names a session: wherever that is, else any daemon.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn follow(proxy: &Proxy, call: Call, id: SessionId) -> CallResult {
    match proxy.known_link(&BindingKey::Session(id), &call.client, &call.parts.headers)? {
        Some((link, byte_counts)) => {
            proxy
                .relay(&link, Bytes::new(), call.into_request(), byte_counts, OnEnd::new(drop))
                .await
        }
        None => any(proxy, call).await,
    }
}

/// A call that any daemon can answer, or that only a daemon can refuse.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn any(proxy: &Proxy, call: Call) -> CallResult {
    proxy.relay_to_any(&call.client, call.parts, Bytes::new(), call.body).await
}

/// What the build's cache is known by.
async fn affinity_key(
    proxy: &Proxy,
    solve: &Solve,
    mut facts: Facts,
    headers: &HeaderMap,
    client: &Client,
) -> Option<AffinityKey> {
    facts.hint = headers.get(HINT_HEADER).and_then(|hint| hint.to_str().ok()).map(str::to_owned);
    facts.client = client.address.map(|address| address.to_string());
    // Only where the key decides is it worth a wait.
    let waits = proxy.placement.policy().kind == PolicyKind::ConsistentHash
        && proxy.rules.waits_for_shared_key(&facts);
    if let Some(session) = solve.session.as_ref().filter(|_| waits) {
        facts.shared_key = proxy.shared_keys.of(session).await.map(|key| key.to_string());
    }
    proxy.rules.key(&facts)
}

/// Finds where a Session belongs; alone if its Solve has not come within `unseen`.
async fn bind_session(
    proxy: &Proxy,
    key: &BindingKey,
    trace: Option<TraceId>,
    client: &Client,
    unseen: Duration,
) -> Result<(Bound, Option<Lease>), ProxyError> {
    let ended = match proxy.directory.lookup(key) {
        Lookup::Live(bound) => return Ok((bound, None)),
        Lookup::Refused(error) => return Err(error),
        // Its Solve was faster than the Session: where that ran is where both belong.
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
    Ok((bound, Some(placed.lease)))
}

/// Where a Session belongs that no live Solve names: where its Solve `ended`, else beside its client's
/// builds if there are any.
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
    }
}

/// Whether connections say nothing of which builds of `trace` belong together.
fn is_scattered(proxy: &Proxy, trace: Option<TraceId>) -> bool {
    trace.is_some_and(|trace| proxy.directory.is_scattered(&trace))
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
    // Not a build of its client's now: perhaps one that ran before this proxy started.
    if let Some(record) = proxy.visible(id, client)
        && let Some(link) = fanout::locate(proxy, client, &record).await
    {
        return Ok((link, Arc::default()));
    }
    park(proxy, client, trace, id, STATUS_PARK - STATUS_LOOKUP).await
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

/// Waits until the build that a call with the ref `id` is of is known; its Solve must come within `unseen`.
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

//! `/status.json`: pools, backends, sources of discovery, and the builds that run or wait.

use std::time::{Instant, SystemTime};

use axum::{Json, extract::State};
use humantime::format_rfc3339_seconds;
use serde_json::{Value, json};

use super::{Admin, access::Reader};
use crate::{
    directory::Waiting, discovery::SourceStatus, fleet::Backend, placement::queue::Request,
    pool::Pool, running::RunningBuild,
};

/// Answers with the whole status.
pub(super) async fn status(_reader: Reader, State(admin): State<Admin>) -> Json<Value> {
    let mut backends = Vec::new();
    let mut discovery = Vec::new();
    let mut builds = Vec::new();
    let mut queue = Vec::new();
    for pool in admin.pools.iter() {
        let name = pool.name();
        backends.extend(
            pool.proxy.fleet.backends().iter().map(|backend| backend_status(name, backend)),
        );
        discovery
            .extend(pool.discovery.statuses().iter().map(|status| source_status(name, status)));
        queue.extend(pool.proxy.placement.queued().iter().map(|build| queued_status(name, build)));
        builds.extend(pool.proxy.running.builds().iter().map(|build| running_status(name, build)));
    }
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "draining": admin.leaving.is_cancelled(),
        "pools": admin.pools.iter().map(pool_status).collect::<Vec<_>>(),
        "discovery": discovery,
        "backends": backends,
        "builds": builds,
        "queue": queue,
    }))
}

/// The policy and readiness of a pool.
fn pool_status(pool: &Pool) -> Value {
    json!({
        "name": pool.name(),
        "policy": pool.proxy.placement.policy().kind.to_string(),
        "ready": pool.proxy.fleet.is_ready(),
    })
}

fn backend_status(pool: &str, backend: &Backend) -> Value {
    let location = backend.location();
    json!({
        "pool": pool,
        "name": backend.name(),
        "address": backend.address().to_string(),
        "state": backend.state().label(),
        "cause": backend.cause(),
        "probation_seconds": backend.probation_end().map(|end| {
            end.saturating_duration_since(Instant::now()).as_secs()
        }),
        "buildkit_version": backend.version().map(|version| version.to_string()),
        "builds": backend.builds(),
        "capacity": backend.capacity(),
        "zone": location.zone.as_deref(),
        "node": location.node.as_deref(),
        "version": location.labels.version.as_deref(),
        "architecture": location.labels.architecture.as_deref(),
    })
}

fn source_status(pool: &str, status: &SourceStatus) -> Value {
    let time = |time: SystemTime| format_rfc3339_seconds(time).to_string();
    json!({
        "pool": pool,
        "source": status.source,
        "endpoints": status.endpoints,
        "last_sync": status.synced.map(time),
        "error": status.error.as_ref().map(|error| &error.text),
        "error_since": status.error.as_ref().map(|error| time(error.since)),
    })
}

/// A build that waits in the queue.
fn queued_status(pool: &str, (request, waiting): &(Request, Waiting)) -> Value {
    let affinity = request.affinity.as_ref();
    json!({
        "pool": pool,
        "position": waiting.position,
        "ref": request.build.as_ref().map(ToString::to_string),
        "client": request.client,
        "key": affinity.map_or("", |affinity| affinity.key.as_str()),
        "key_source": affinity.map_or("none", |affinity| affinity.source),
        "since": format_rfc3339_seconds(waiting.since).to_string(),
        "cause": waiting.cause.label(),
        "text": waiting.cause.to_string(),
    })
}

/// A running build, and why it is where it is, in the words of its log record.
fn running_status(pool: &str, build: &RunningBuild) -> Value {
    let (home, home_is) = build.home();
    json!({
        "pool": pool,
        "ref": build.build,
        "session": build.session,
        "client": build.client,
        "identity": build.identity.as_ref().map(ToString::to_string),
        "key": build.key(),
        "key_source": build.key_source(),
        "policy": build.policy.to_string(),
        "outcome": build.decision.outcome.label(),
        "backend": build.backend.name(),
        "rank": build.decision.rank,
        "load": build.decision.load,
        "limit": build.decision.limit,
        "home": home,
        "home_is": home_is,
        "seconds": build.arrived.elapsed().as_secs(),
    })
}

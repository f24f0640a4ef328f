//! The admin port: probes, metrics, status. Reads snapshots; the one thing it changes is a cordon: an
//! operator's, or that of a daemon about to stop.

mod drain;

use std::{fmt::Write as _, io, net::SocketAddr, sync::Arc, time::SystemTime};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, RawQuery, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
};
use humantime::format_rfc3339_seconds;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    discovery::{Register, Standing, Trouble},
    fleet::Backend,
    proxy::Proxy,
    running::RunningBuild,
};

/// OpenMetrics 1.0, which Prometheus asks for first.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Admin {
    proxy: Proxy,
    register: Arc<Register>,
    drain: CancellationToken,
}

/// Serves the admin port until `stop`.
///
/// # Errors
/// The socket fails.
pub async fn serve(
    listener: TcpListener,
    proxy: Proxy,
    register: Arc<Register>,
    drain: CancellationToken,
    stop: CancellationToken,
) -> io::Result<()> {
    info!(address = %listener.local_addr()?, port_name = "admin", "listening");
    let app = Router::new()
        .route("/livez", get(alive))
        .route("/healthz", get(alive))
        .route("/startupz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status.json", get(status))
        .route("/backends/{name}/builds", get(builds))
        .route("/backends/{name}/drain", get(drained).post(drained))
        .route("/backends/{name}/cordon", post(cordon).delete(uncordon))
        .with_state(Arc::new(Admin { proxy, register, drain }))
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Alive does not depend on any backend: restarting the proxy would not bring one back.
async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    let (code, word) = if admin.drain.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if admin.proxy.fleet.is_ready() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no backend is ready")
    };
    let mut text = format!("{word}\n");
    for Standing { source, endpoints, trouble, .. } in admin.register.standings() {
        if let Some(Trouble { since, text: trouble, .. }) = trouble {
            let since = format_rfc3339_seconds(since);
            // A String takes any write.
            let _ = writeln!(text, "{source} ({endpoints} endpoints): since {since}: {trouble}");
        }
    }
    (code, text)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], admin.proxy.metrics.families().render())
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<serde_json::Value> {
    let backends = admin.proxy.fleet.backends();
    let backends: Vec<_> = backends
        .iter()
        .map(|backend| {
            json!({
                "name": backend.name(),
                "address": backend.address().to_string(),
                "state": backend.state(),
                "cause": backend.ejection_cause(),
                "builds": backend.builds(),
                "capacity": backend.capacity(),
                "zone": backend.place().zone.as_deref(),
                "node": backend.place().node.as_deref(),
            })
        })
        .collect();
    let builds: Vec<_> =
        admin.proxy.running.builds().iter().map(|build| explained(build)).collect();
    let time = |time: SystemTime| format_rfc3339_seconds(time).to_string();
    let discovery = admin.register.standings().into_iter().map(|standing| {
        json!({
            "source": standing.source,
            "endpoints": standing.endpoints,
            "last_sync": standing.synced.map(time),
            "trouble": standing.trouble.as_ref().map(|trouble| trouble.text.clone()),
            "trouble_since": standing.trouble.map(|trouble| time(trouble.since)),
        })
    });
    let discovery: Vec<_> = discovery.collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "policy": admin.proxy.policy.policy.to_string(),
        "draining": admin.drain.is_cancelled(),
        "discovery": discovery,
        "backends": backends,
        "builds": builds,
    }))
}

/// Why a build is where it is, in the words of its log record.
fn explained(build: &RunningBuild) -> serde_json::Value {
    let (home, home_is) = build.home();
    json!({
        "ref": build.build,
        "session": build.session,
        "key": build.key(),
        "key_source": build.key_source(),
        "policy": build.policy.to_string(),
        "reason": build.why.outcome.label(),
        "backend": build.backend.name(),
        "rank": build.why.rank,
        "load": build.why.load,
        "bound": build.why.bound,
        "home": home,
        "home_is": home_is,
        "seconds": build.arrived.elapsed().as_secs(),
    })
}

/// How many builds are bound to a backend.
async fn builds(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, (StatusCode, String)> {
    let backend = find(&admin, &name)?;
    Ok(Json(json!({"backend": name, "builds": backend.builds()})))
}

/// Answers when no build is left on the backend, or too late for whoever asked.
async fn drained(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<(StatusCode, String), (StatusCode, String)> {
    let backend = find(&admin, &name)?;
    if !drain::may_drain(peer, &backend) {
        let text = "only from loopback or from the backend's own address\n".to_owned();
        return Err((StatusCode::FORBIDDEN, text));
    }
    let timeout =
        drain::timeout(query.as_deref()).map_err(|text| (StatusCode::BAD_REQUEST, text))?;
    let Proxy { fleet, metrics, .. } = &admin.proxy;
    Ok(drain::drain(&backend, timeout, fleet, metrics).await)
}

fn find(admin: &Admin, name: &str) -> Result<Arc<Backend>, (StatusCode, String)> {
    let unknown = || (StatusCode::NOT_FOUND, format!("no backend is called {name}\n"));
    admin.proxy.fleet.find(name).ok_or_else(unknown)
}

async fn cordon(
    admin: State<Arc<Admin>>,
    peer: ConnectInfo<SocketAddr>,
    name: Path<String>,
) -> (StatusCode, String) {
    set_cordoned(&admin, peer.0, &name, true)
}

async fn uncordon(
    admin: State<Arc<Admin>>,
    peer: ConnectInfo<SocketAddr>,
    name: Path<String>,
) -> (StatusCode, String) {
    set_cordoned(&admin, peer.0, &name, false)
}

/// Only from the machine itself: the admin port is open to whoever scrapes it.
fn set_cordoned(
    admin: &Admin,
    peer: SocketAddr,
    name: &str,
    cordoned: bool,
) -> (StatusCode, String) {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from loopback\n".to_owned());
    }
    match admin.proxy.fleet.find(name) {
        Some(backend) => {
            backend.set_cordoned(cordoned);
            (
                StatusCode::OK,
                format!("{name} is {}, {} builds\n", backend.state(), backend.builds()),
            )
        }
        None => (StatusCode::NOT_FOUND, format!("no backend is called {name}\n")),
    }
}

//! The admin port: probes, metrics and status. It reads snapshots of the other parts, and changes only the cordons
//! of backends, for an operator or for a daemon that is about to stop.
//!
//! Everybody who reaches the port may read, unless reading is restricted. Requests that change something are POST
//! or DELETE, and need a right: see `access`.

mod access;
mod backends;
mod control;
mod drain;
mod page;
mod seats;
mod secured;
mod server;
mod status;

use std::{fmt::Write as _, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
};
use humantime::{format_duration, format_rfc3339_seconds};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

pub use self::{access::Rights, control::Control, secured::Tls};
use self::{
    access::{Access, MayRead, Reader},
    server::{Port, Server},
};
use crate::{
    acceptor::Acceptor,
    discovery::{SourceError, SourceStatus},
    metrics::Families,
    pool::Pool,
};

/// The media type of OpenMetrics 1.0, which Prometheus prefers.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the requests on the admin port can read and change. Clones share it.
#[derive(Debug, Clone)]
pub struct Admin {
    pools: Arc<[Pool]>,
    families: Arc<Families>,
    leaving: CancellationToken,
    access: Arc<Access>,
    live: Arc<page::Live>,
}

impl Admin {
    /// Serves `pools` and `families` as far as `rights` allow. Says that the proxy drains once `leaving` is
    /// cancelled.
    pub fn new(
        pools: &Arc<[Pool]>,
        families: &Arc<Families>,
        leaving: &CancellationToken,
        rights: Rights,
    ) -> Self {
        Self {
            pools: Arc::clone(pools),
            families: Arc::clone(families),
            leaving: leaving.clone(),
            access: Arc::new(Access::new(rights, families)),
            live: Arc::default(),
        }
    }
}

/// Serves the admin port, with TLS if there is `tls`, and the control listener if there is one. The tasks run on
/// `tasks` until `stop`.
pub fn serve(
    (acceptor, address): (Acceptor, SocketAddr),
    tls: Option<Tls>,
    control: Option<Control>,
    admin: Admin,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let families = Arc::clone(&admin.families);
    if let (Some(tls), [pool, ..]) = (&tls, &*admin.pools) {
        // The admin port belongs to no pool, so its certificates are counted under the first pool's name.
        tls.follow(Arc::clone(&pool.proxy.metrics), tasks, stop);
    }
    let router = router(admin);
    let server = || Server::new(router.clone(), &families, tasks, stop);
    info!(%address, port_name = "admin", tls = tls.is_some(), "listening");
    tasks.spawn(server().run(acceptor, Port::Admin(tls)));
    if let Some(control) = control {
        info!(address = %control.address(), port_name = "control", "listening");
        tasks.spawn(control.run(server()));
    }
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/builds/{ref}", get(page::build))
        .route("/events", get(page::events))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/livez", get(alive))
        .route("/healthz", get(alive))
        .route("/startupz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status.json", get(status::status))
        .route("/backends/{name}/builds", get(backends::builds))
        .route("/backends/{name}/drain", post(backends::drain))
        .route("/backends/{name}/cordon", post(backends::cordon).delete(backends::uncordon))
        .fallback(unknown)
        .with_state(admin)
}

/// The answer for a path that does not exist.
async fn unknown() -> (StatusCode, &'static str) {
    (
        StatusCode::NOT_FOUND,
        "there is nothing at this path: / is the page, /status.json the status\n",
    )
}

/// The probe for liveness. It does not look at backends, because restarting the proxy would not bring one back.
async fn alive() -> &'static str {
    "ok\n"
}

/// The probe for readiness. The proxy is ready if any pool takes builds, at once or to wait for a backend. If it
/// were unready, the clients of other pools would lose this proxy for nothing, and no build could wait for the
/// first backend.
async fn ready(MayRead(may_read): MayRead, State(admin): State<Admin>) -> (StatusCode, String) {
    let is_ready = |pool: &Pool| pool.proxy.fleet.is_ready();
    let takes_builds =
        |pool: &Pool| is_ready(pool) || pool.is_synced() && pool.proxy.placement.can_wait();
    let (code, word) = if admin.leaving.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if admin.pools.iter().any(takes_builds) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no backend is ready")
    };
    let mut text = format!("{word}\n");
    if !may_read {
        return (code, text);
    }
    for pool in admin.pools.iter() {
        // Writing to a String never fails.
        if !is_ready(pool) && (admin.pools.len() > 1 || takes_builds(pool)) {
            let _ = writeln!(text, "pool {}: no backend is ready{}", pool.name(), waiting(pool));
        }
        for SourceStatus { source, endpoints, error, .. } in pool.discovery.statuses() {
            if let Some(SourceError { since, text: error, .. }) = error {
                let since = format_rfc3339_seconds(since);
                let _ = writeln!(text, "{source} ({endpoints} endpoints): since {since}: {error}");
            }
        }
    }
    (code, text)
}

/// Says that builds wait if no backend is ready. Empty if they do not.
fn waiting(pool: &Pool) -> String {
    let placement = &pool.proxy.placement;
    if !placement.can_wait() {
        return String::new();
    }
    let max_wait = format_duration(placement.queue().max_wait);
    format!("; builds wait up to {max_wait}, now {}", placement.demand().waiting)
}

async fn metrics(_reader: Reader, State(admin): State<Admin>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], admin.families.render())
}

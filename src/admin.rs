//! The admin port: probes, metrics, status. Reads snapshots; the one thing it changes is a cordon: an
//! operator's, or that of a daemon about to stop.

mod backends;
mod drain;
mod status;

use std::{fmt::Write as _, io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
};
use humantime::format_rfc3339_seconds;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    discovery::{Standing, Trouble},
    metrics::Families,
    pool::Pool,
};

/// OpenMetrics 1.0, which Prometheus asks for first.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin port tells of. Clones share it.
#[derive(Debug, Clone)]
pub struct Admin {
    pools: Arc<[Pool]>,
    families: Arc<Families>,
    leaving: CancellationToken,
}

impl Admin {
    /// Tells of `pools`, `families` and whether the proxy was told to end.
    pub fn new(pools: &Arc<[Pool]>, families: &Arc<Families>, leaving: &CancellationToken) -> Self {
        Self { pools: Arc::clone(pools), families: Arc::clone(families), leaving: leaving.clone() }
    }
}

/// Serves the admin port until `stop`.
///
/// # Errors
/// The socket fails.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) -> io::Result<()> {
    info!(address = %listener.local_addr()?, port_name = "admin", "listening");
    let app = Router::new()
        .route("/livez", get(alive))
        .route("/healthz", get(alive))
        .route("/startupz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status.json", get(status::status))
        .route("/backends/{name}/builds", get(backends::builds))
        .route("/backends/{name}/drain", get(backends::drain).post(backends::drain))
        .route("/backends/{name}/cordon", post(backends::cordon).delete(backends::uncordon))
        .with_state(admin)
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Alive does not depend on any backend: restarting the proxy would not bring one back.
async fn alive() -> &'static str {
    "ok\n"
}

/// Ready if any pool is: the others' clients would gain nothing from losing this proxy.
async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let is_ready = |pool: &Pool| pool.proxy.fleet.is_ready();
    let (code, word) = if admin.leaving.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if admin.pools.iter().any(is_ready) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no backend is ready")
    };
    let mut text = format!("{word}\n");
    for pool in admin.pools.iter() {
        // A String takes any write.
        if !is_ready(pool) && admin.pools.len() > 1 {
            let _ = writeln!(text, "pool {}: no backend is ready", pool.name());
        }
        for Standing { source, endpoints, trouble, .. } in pool.register.standings() {
            if let Some(Trouble { since, text: trouble, .. }) = trouble {
                let since = format_rfc3339_seconds(since);
                let _ =
                    writeln!(text, "{source} ({endpoints} endpoints): since {since}: {trouble}");
            }
        }
    }
    (code, text)
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(CONTENT_TYPE, METRICS_TYPE)], admin.families.render())
}

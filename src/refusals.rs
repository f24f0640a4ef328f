//! The proxy's own answers to calls: counted each, and logged now and then.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Response;
use tracing::info;

use crate::{error::ProxyError, metrics::Metrics, relay::Body, telemetry::Throttle};

/// How often a reason is logged: one client may cause thousands of refusals a second.
const LOGGED_EVERY: Duration = Duration::from_secs(1);

/// What is refused in one pool.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    logged: Throttle,
}

impl Refusals {
    /// Counts with `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, logged: Throttle::new(LOGGED_EVERY) }
    }

    /// The answer that tells a client of `error`.
    pub fn answer(&self, error: &ProxyError) -> Response<Body> {
        let reason = error.reason();
        self.metrics.reject(reason);
        if let Some(held_back) = self.logged.admit(reason, Instant::now()) {
            info!(pool = self.metrics.pool(), reason, %error, held_back, "stream rejected");
        }
        error.response()
    }
}

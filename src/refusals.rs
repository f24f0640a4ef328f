//! What the proxy turns away, calls with an answer of its own and clients that speak something else:
//! counted each, and logged now and then.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Response;
use tracing::{field, info, warn};

use crate::{
    call::{CallError, CallResult},
    connection_limit::TooManyConnections,
    error::{ConnectionError, ConnectionErrorReason, ProxyError},
    metrics::Metrics,
    relay::{Body, ResetError},
    telemetry::Throttle,
};

/// How often a reason is logged: one client may cause thousands of refusals a second.
const LOGGED_EVERY: Duration = Duration::from_secs(1);

/// How often a kind of client that speaks something else is logged: one that is set up wrongly tries again
/// and again.
const STRANGERS_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// How often it is logged that all connections are taken.
const FULL_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// What is refused in one pool.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    logged: Throttle,
    strangers: Throttle,
    handshakes: Throttle,
    full: Throttle,
}

impl Refusals {
    /// Counts with `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            logged: Throttle::new(LOGGED_EVERY),
            strangers: Throttle::new(STRANGERS_LOGGED_EVERY),
            handshakes: Throttle::new(STRANGERS_LOGGED_EVERY),
            full: Throttle::new(FULL_LOGGED_EVERY),
        }
    }

    /// The answer that tells a client of `error`.
    pub fn answer(&self, error: &ProxyError) -> Response<Body> {
        let reason = error.reason();
        self.metrics.reject(reason);
        if let Some(held_back) = self.logged.admit(reason.label(), Instant::now()) {
            let reason = reason.label();
            info!(pool = self.metrics.pool(), reason, %error, held_back, "stream rejected");
        }
        error.response()
    }

    /// What the client of a call gets: its response, or an answer that tells of the proxy's error.
    ///
    /// # Errors
    /// The stream is to be reset.
    pub fn settle(&self, result: CallResult) -> Result<Response<Body>, ResetError> {
        match result {
            Ok(response) => Ok(response),
            Err(CallError::Own(error)) => Ok(self.answer(&error)),
            Err(CallError::Reset(reset)) => Err(reset),
        }
    }

    /// Logs that a client does not speak what the port does: the kind of what it speaks, and how that begins.
    pub fn stranger(&self, kind: ConnectionErrorReason, client: Option<IpAddr>, seen: &str) {
        let kind = kind.label();
        if let Some(held_back) = self.strangers.admit(kind, Instant::now()) {
            let (pool, client) = (self.metrics.pool(), client.map(field::display));
            warn!(pool, kind, client, seen, held_back, "client does not speak what this port does");
        }
    }

    /// Logs that a client's TLS handshake failed, and why.
    pub fn handshake(&self, failure: &ConnectionError, client: Option<IpAddr>) {
        let (reason, error) = (failure.reason.label(), failure.text.as_str());
        if let Some(held_back) = self.handshakes.admit(reason, Instant::now()) {
            let (pool, client) = (self.metrics.pool(), client.map(field::display));
            warn!(pool, reason, client, error, held_back, "TLS handshake failed");
        }
    }

    /// Logs that all `limit` connections are taken: a client gets none because of `cause`, or gets that of
    /// another one.
    pub fn full(&self, limit: usize, client: Option<IpAddr>, cause: Option<TooManyConnections>) {
        let reason = match cause {
            Some(_) => ConnectionErrorReason::TooManyConnections,
            None => ConnectionErrorReason::Evicted,
        };
        if let Some(held_back) = self.full.admit(reason.label(), Instant::now()) {
            let (client, cause) = (client.map(field::display), cause.map(field::display));
            match cause {
                Some(cause) => warn!(limit, client, error = cause, held_back, "connection refused"),
                None => warn!(limit, client, held_back, "idle connection closed to admit another"),
            }
        }
    }
}

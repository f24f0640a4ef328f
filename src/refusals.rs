//! The calls that the proxy answers with its own error, and the clients that it turns away. Each is counted, and
//! logs are limited in their rate.

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

/// How often a reason is logged. One client may cause thousands of refusals a second.
const LOGGED_EVERY: Duration = Duration::from_secs(1);

/// How often a kind of wrong protocol is logged. A client that is set up wrongly tries again and again.
const STRANGERS_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// How often it is logged that all connections are taken.
const FULL_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Counts and logs what is refused in one pool.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    logged: Throttle,
    strangers: Throttle,
    handshakes: Throttle,
    full: Throttle,
}

impl Refusals {
    /// Refusals that are counted in `metrics`, none so far.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            logged: Throttle::new(LOGGED_EVERY),
            strangers: Throttle::new(STRANGERS_LOGGED_EVERY),
            handshakes: Throttle::new(STRANGERS_LOGGED_EVERY),
            full: Throttle::new(FULL_LOGGED_EVERY),
        }
    }

    /// Counts and logs `error`, and returns the response that tells the client of it.
    pub fn answer(&self, error: &ProxyError) -> Response<Body> {
        let reason = error.reason();
        self.metrics.reject(reason);
        if let Some(held_back) = self.logged.admit(reason.label(), Instant::now()) {
            let reason = reason.label();
            info!(pool = self.metrics.pool(), reason, %error, held_back, "stream rejected");
        }
        error.response()
    }

    /// The response to a call: that of the daemon, or one that tells of the proxy's own error.
    ///
    /// # Errors
    /// The stream must be reset, because the daemon has reset it.
    pub fn settle(&self, result: CallResult) -> Result<Response<Body>, ResetError> {
        match result {
            Ok(response) => Ok(response),
            Err(CallError::Own(error)) => Ok(self.answer(&error)),
            Err(CallError::Reset(reset)) => Err(reset),
        }
    }

    /// Logs that a client speaks another protocol than the port. `seen` is how the client began.
    pub fn stranger(&self, kind: ConnectionErrorReason, client: Option<IpAddr>, seen: &str) {
        let kind = kind.label();
        if let Some(held_back) = self.strangers.admit(kind, Instant::now()) {
            let (pool, client) = (self.metrics.pool(), client.map(field::display));
            warn!(
                pool,
                kind, client, seen, held_back, "client does not speak the protocol of this port"
            );
        }
    }

    /// Logs that the TLS handshake of a client failed.
    pub fn handshake(&self, failure: &ConnectionError, client: Option<IpAddr>) {
        let (reason, error) = (failure.reason.label(), failure.text.as_str());
        if let Some(held_back) = self.handshakes.admit(reason, Instant::now()) {
            let (pool, client) = (self.metrics.pool(), client.map(field::display));
            warn!(pool, reason, client, error, held_back, "TLS handshake failed");
        }
    }

    /// Logs that all `limit` connections are taken. With a `cause` the client was refused; without one, an idle
    /// connection was closed to admit it.
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

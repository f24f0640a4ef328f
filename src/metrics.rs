//! What is counted. [`Families`] has every metric's name and labels, [`Metrics`] is what the parts of
//! one pool count with.
//!
//! Labels come from closed sets, from the configuration or from the fleet, never from what a client
//! sends. Handles of one backend are resolved once ([`BackendMetrics`]) and its series go when it leaves
//! the fleet.

mod families;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tonic::Code;

pub use self::families::Families;
use self::families::{
    BackendLabels, BackendReasonLabels, CodeLabels, DecisionLabels, DirectionLabels, DrainLabels,
    GrpcCodeLabels, MethodLabels, PodErrorLabels, PoolLabels, ReasonLabels, ResultLabels,
    SourceLabels, SourceReasonLabels, StateLabels, VersionLabels,
};

/// The name of the pool where the configuration has only one and does not name it.
pub const DEFAULT_POOL: &str = "default";

/// The metrics of one pool.
#[derive(Debug)]
pub struct Metrics {
    families: Arc<Families>,
    pool: String,
    /// Open client connections.
    pub connections_active: Gauge,
    /// Client connections accepted.
    pub connections: Counter,
    /// Streams that wait for their build to be bound.
    pub parked_streams: Gauge,
    /// Keys whose last backends are remembered.
    pub affinity_keys: Gauge,
    /// Builds that need what is on two backends.
    pub binding_conflicts: Counter,
    /// Pods whose annotations were written.
    pub pod_patches: Counter,
}

impl Default for Metrics {
    /// Those of [`DEFAULT_POOL`] in families of its own.
    fn default() -> Self {
        Families::new().pool(DEFAULT_POOL)
    }
}

impl Metrics {
    fn new(families: Arc<Families>, pool: &str) -> Self {
        let labels = PoolLabels::new(pool);
        // An alert on an increase needs a series that was there before.
        for result in DRAIN_RESULTS {
            families.backend_drains.get_or_create_owned(&DrainLabels::new(pool, result));
        }
        Self {
            pool: pool.to_owned(),
            connections_active: families.connections_active.get_or_create_owned(&labels),
            connections: families.connections.get_or_create_owned(&labels),
            parked_streams: families.parked_streams.get_or_create_owned(&labels),
            affinity_keys: families.affinity_keys.get_or_create_owned(&labels),
            binding_conflicts: families.binding_conflicts.get_or_create_owned(&labels),
            pod_patches: families.pod_patches.get_or_create_owned(&labels),
            families,
        }
    }

    /// The pool's name.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// The families of all pools.
    pub fn families(&self) -> &Arc<Families> {
        &self.families
    }

    /// Counts one stream that the proxy answered with its own error.
    pub fn reject(&self, reason: &str) {
        let labels = ReasonLabels::new(&self.pool, reason);
        self.families.rejected.get_or_create(&labels).inc();
    }

    /// Counts one client connection that ended in an error.
    pub fn connection_error(&self, reason: &str) {
        let labels = ReasonLabels::new(&self.pool, reason);
        self.families.connection_errors.get_or_create(&labels).inc();
    }

    /// Counts one received RPC of a known service and method.
    pub fn count_started(&self, (grpc_service, grpc_method): (&'static str, &'static str)) {
        let labels = MethodLabels { grpc_service, grpc_method };
        self.families.rpcs_started.get_or_create(&labels).inc();
    }

    /// Counts one build that has found its backend.
    pub fn decision(&self, policy: &str, outcome: &str, key_source: &str) {
        let labels = DecisionLabels::new(&self.pool, policy, outcome, key_source);
        self.families.route_decisions.get_or_create(&labels).inc();
    }

    /// Counts one build that has ended.
    pub fn build_ended(&self, backend: &str, code: Code, duration: Duration) {
        let grpc_code = code_name(code);
        let labels = GrpcCodeLabels::new(&self.pool, grpc_code);
        let seconds = duration.as_secs_f64();
        self.families.build_duration.get_or_create(&labels).observe(seconds);
        let labels = CodeLabels::new(&self.pool, backend, grpc_code);
        self.families.builds.get_or_create(&labels).inc();
    }

    /// Counts one Session stream that has ended, with one of [`SESSION_RESULTS`].
    pub fn session_ended(&self, backend: &str, result: &str) {
        let labels = ResultLabels::new(&self.pool, backend, result);
        self.families.sessions.get_or_create(&labels).inc();
    }

    /// Counts one connection to a backend that failed or broke, for one of [`UPSTREAM_REASONS`].
    pub fn upstream_error(&self, backend: &str, reason: &str) {
        let labels = BackendReasonLabels::new(&self.pool, backend, reason);
        self.families.upstream_errors.get_or_create(&labels).inc();
    }

    /// Counts one request to drain a backend that has ended.
    pub fn backend_drained(&self, result: &str) {
        let labels = DrainLabels::new(&self.pool, result);
        self.families.backend_drains.get_or_create(&labels).inc();
    }

    /// Counts one failure of a source of backends.
    pub fn discovery_error(&self, source: &str, reason: &str) {
        let labels = SourceReasonLabels::new(&self.pool, source, reason);
        self.families.discovery_errors.get_or_create(&labels).inc();
    }

    /// Counts one request about pods that failed: what was asked, as RBAC writes it, and why in vain.
    pub fn pod_error(&self, verb: &str, reason: &str) {
        let labels = PodErrorLabels::new(&self.pool, verb, reason);
        self.families.pod_errors.get_or_create(&labels).inc();
    }

    /// Notes that a source of backends has `endpoints`, and was known to be right `at`.
    pub fn discovery_synced(&self, source: &str, endpoints: usize, at: SystemTime) {
        let labels = SourceLabels::new(&self.pool, source);
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let count = i64::try_from(endpoints).unwrap_or(i64::MAX);
        self.families.discovery_endpoints.get_or_create(&labels).set(count);
        self.families.discovery_last_sync.get_or_create(&labels).set(seconds.cast_signed());
    }

    /// Handles for one backend, resolved once.
    pub fn backend(&self, backend: &str) -> BackendMetrics {
        let (families, pool) = (&self.families, self.pool());
        let labels = BackendLabels::new(pool, backend);
        let bytes = |direction| {
            families.bytes.get_or_create_owned(&DirectionLabels::new(pool, backend, direction))
        };
        // An alert on an increase needs a series that was there before.
        for result in SESSION_RESULTS {
            families.sessions.get_or_create_owned(&ResultLabels::new(pool, backend, result));
        }
        for reason in UPSTREAM_REASONS {
            let labels = BackendReasonLabels::new(pool, backend, reason);
            families.upstream_errors.get_or_create_owned(&labels);
        }
        BackendMetrics {
            builds_active: families.builds_active.get_or_create_owned(&labels),
            capacity: families.backend_capacity.get_or_create_owned(&labels),
            sessions_active: families.sessions_active.get_or_create_owned(&labels),
            connections: families.upstream_connections.get_or_create_owned(&labels),
            connect: families.upstream_connect.get_or_create_owned(&labels),
            bytes_up: bytes("up"),
            bytes_down: bytes("down"),
        }
    }

    /// Sets the version of the daemon that `backend` is, in place of the `old` one.
    pub fn set_backend_version(&self, backend: &str, old: Option<&str>, new: Option<&str>) {
        let labels = |version| VersionLabels::new(&self.pool, backend, version);
        let info = &self.families.backend_info;
        old.map(|version| info.remove(&labels(version)));
        new.map(|version| info.get_or_create_owned(&labels(version)).set(1));
    }

    /// Drops the series of a backend that left the fleet.
    pub fn forget_backend(&self, backend: &str) {
        let (families, pool) = (&self.families, self.pool());
        let labels = BackendLabels::new(pool, backend);
        families.builds_active.remove(&labels);
        families.backend_capacity.remove(&labels);
        families.sessions_active.remove(&labels);
        families.upstream_connections.remove(&labels);
        families.upstream_connect.remove(&labels);
        for direction in ["up", "down"] {
            families.bytes.remove(&DirectionLabels::new(pool, backend, direction));
        }
        for result in SESSION_RESULTS {
            families.sessions.remove(&ResultLabels::new(pool, backend, result));
        }
        for state in BackendState::ALL {
            families.backend_state.remove(&StateLabels::new(pool, backend, state.label()));
        }
        for code in CODES {
            families.builds.remove(&CodeLabels::new(pool, backend, code_name(code)));
        }
        for reason in UPSTREAM_REASONS {
            families.upstream_errors.remove(&BackendReasonLabels::new(pool, backend, reason));
        }
    }

    /// Sets which state `backend` is in.
    pub fn set_backend_state(&self, backend: &str, current: BackendState) {
        for state in BackendState::ALL {
            let labels = StateLabels::new(&self.pool, backend, state.label());
            let gauge = self.families.backend_state.get_or_create_owned(&labels);
            gauge.set(i64::from(state == current));
        }
    }
}

/// What a backend is doing, in one word; a value of the metric's `state` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendState {
    /// No probe has passed yet.
    Starting,
    /// It takes builds.
    Ready,
    /// It is ejected, or discovery says that it is not ready.
    Unhealthy,
    /// An operator or its own daemon asked for no new builds.
    Cordoned,
    /// It is on its way out and finishes what it has.
    Draining,
    /// It is on its way out and cannot be reached.
    Lost,
}

impl BackendState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Starting, Self::Ready, Self::Unhealthy, Self::Cordoned, Self::Draining, Self::Lost];

    /// Its word in metrics, logs and the status page.
    pub fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Lost => "lost",
        }
    }
}

/// Values of the `result` label of sessions.
pub const SESSION_RESULTS: [&str; 3] = ["ok", "client_gone", "backend_lost"];

/// Values of the `result` label of a backend's drains.
pub const DRAIN_RESULTS: [&str; 3] = ["drained", "timeout", "aborted"];

/// Values of the `reason` label of upstream errors.
pub const UPSTREAM_REASONS: [&str; 4] = ["refused", "timeout", "lost", "probe"];

/// Every gRPC code.
pub const CODES: [Code; 17] = [
    Code::Ok,
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

/// Handles of one backend, so that the data path adds and never looks up.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct BackendMetrics {
    pub builds_active: Gauge,
    pub capacity: Gauge,
    pub sessions_active: Gauge,
    pub connections: Gauge,
    pub connect: Histogram,
    pub bytes_up: Counter<u64, AtomicU64>,
    pub bytes_down: Counter<u64, AtomicU64>,
}

/// The name of a gRPC code as the gRPC specification writes it in CamelCase, for labels and logs.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

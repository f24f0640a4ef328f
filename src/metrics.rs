//! Every metric: name, help text, unit, buckets and labels, in one place.
//!
//! Labels come from closed sets or from the fleet, never from what a client sends. Handles of one
//! backend are resolved once ([`BackendMetrics`]) and its series go when it leaves the fleet.

use std::{fmt::Write as _, sync::atomic::AtomicU64};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};
use tonic::Code;

/// Durations of builds: a second to two hours.
const BUILD_SECONDS: [f64; 12] =
    [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];

/// Durations of connects: half a millisecond (same node) to the connect timeout.
const CONNECT_SECONDS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 2.5, 5.0];

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($field:ident),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: String),+ }
    };
}

labels!(/// One backend.
    BackendLabels { backend });
labels!(/// One backend and a closed set of states.
    StateLabels { backend, state });
labels!(/// One backend and a gRPC code name.
    CodeLabels { backend, grpc_code });
labels!(/// One backend and how a session ended.
    ResultLabels { backend, result });
labels!(/// One backend and the direction of bytes: `up` is from client to daemon.
    DirectionLabels { backend, direction });
labels!(/// One backend and why its connection failed.
    BackendReasonLabels { backend, reason });
labels!(/// Where backends are found, as the configuration writes it.
    SourceLabels { source });
labels!(/// The same, and why it failed.
    SourceReasonLabels { source, reason });
labels!(/// How the drain of a backend ended.
    DrainLabels { result });
labels!(/// A closed set of reasons.
    ReasonLabels { reason });
labels!(/// A gRPC code name.
    GrpcCodeLabels { grpc_code });
labels!(/// How a build found its backend.
    DecisionLabels { policy, outcome, key_source });

/// A known gRPC method; anything else is `other`. Counted for every call, so nothing is allocated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct MethodLabels {
    pub grpc_service: &'static str,
    pub grpc_method: &'static str,
}

/// A histogram family with fixed buckets.
#[derive(Debug, Clone)]
pub struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// The registry and every family in it.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Metrics {
    registry: Mutex<Registry>,
    pub backend_state: Family<StateLabels, Gauge>,
    pub builds_active: Family<BackendLabels, Gauge>,
    pub builds: Family<CodeLabels, Counter>,
    pub build_duration: Family<GrpcCodeLabels, Histogram, Buckets>,
    pub sessions_active: Family<BackendLabels, Gauge>,
    pub sessions: Family<ResultLabels, Counter>,
    pub bytes: Family<DirectionLabels, Counter>,
    pub route_decisions: Family<DecisionLabels, Counter>,
    pub affinity_keys: Gauge,
    pub backend_capacity: Family<BackendLabels, Gauge>,
    pub upstream_connect: Family<BackendLabels, Histogram, Buckets>,
    pub upstream_errors: Family<BackendReasonLabels, Counter>,
    pub connections_active: Gauge,
    pub connections: Counter,
    pub connection_errors: Family<ReasonLabels, Counter>,
    pub rejected: Family<ReasonLabels, Counter>,
    pub parked_streams: Gauge,
    pub discovery_endpoints: Family<SourceLabels, Gauge>,
    pub discovery_last_sync: Family<SourceLabels, Gauge>,
    pub discovery_errors: Family<SourceReasonLabels, Counter>,
    pub backend_drains: Family<DrainLabels, Counter>,
    pub drain_in_progress: Gauge,
    pub drain_builds_remaining: Gauge,
    pub rpcs_started: Family<MethodLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            backend_state: Family::default(),
            builds_active: Family::default(),
            builds: Family::default(),
            build_duration: Family::new_with_constructor(Buckets(&BUILD_SECONDS)),
            sessions_active: Family::default(),
            sessions: Family::default(),
            bytes: Family::default(),
            route_decisions: Family::default(),
            affinity_keys: Gauge::default(),
            backend_capacity: Family::default(),
            upstream_connect: Family::new_with_constructor(Buckets(&CONNECT_SECONDS)),
            upstream_errors: Family::default(),
            connections_active: Gauge::default(),
            connections: Counter::default(),
            connection_errors: Family::default(),
            rejected: Family::default(),
            parked_streams: Gauge::default(),
            discovery_endpoints: Family::default(),
            discovery_last_sync: Family::default(),
            discovery_errors: Family::default(),
            backend_drains: Family::default(),
            drain_in_progress: Gauge::default(),
            drain_builds_remaining: Gauge::default(),
            rpcs_started: Family::default(),
        };
        metrics.register();
        metrics
    }

    #[rustfmt::skip]
    fn register(&self) {
        let mut registry = self.registry.lock();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        // The library appends `_info` and `_total`, as OpenMetrics asks.
        registry.register("buildkit_lb_build", "Version of the running proxy", build);
        let r = registry.sub_registry_with_prefix("buildkit_lb");
        r.register("backend_state", "1 for the state a backend is in, 0 for the others", self.backend_state.clone());
        r.register("builds_active", "Builds that run on a backend", self.builds_active.clone());
        r.register("builds", "Builds ended, by the gRPC code of their Solve", self.builds.clone());
        r.register("build_duration_seconds", "Time from a Solve's arrival to its end", self.build_duration.clone());
        r.register("sessions_active", "Session streams open on a backend", self.sessions_active.clone());
        r.register("sessions", "Session streams ended, by how", self.sessions.clone());
        r.register("bytes", "Message bytes relayed; up is from client to daemon", self.bytes.clone());
        r.register("route_decisions", "Backends chosen for builds, by how they were found", self.route_decisions.clone());
        r.register("affinity_keys", "Keys whose last backends are remembered", self.affinity_keys.clone());
        r.register("backend_capacity", "Size of a backend against the others'", self.backend_capacity.clone());
        r.register("upstream_connect_seconds", "Time to open a connection to a backend", self.upstream_connect.clone());
        r.register("upstream_errors", "Failed or lost connections to a backend", self.upstream_errors.clone());
        r.register("connections_active", "Open client connections", self.connections_active.clone());
        r.register("connections", "Client connections accepted", self.connections.clone());
        r.register("connection_errors", "Client connections that ended in an error", self.connection_errors.clone());
        r.register("rejected", "Streams the proxy itself answered with an error", self.rejected.clone());
        r.register("parked_streams", "Streams that wait for their build to be bound", self.parked_streams.clone());
        r.register("discovery_endpoints", "Endpoints that a source reported last", self.discovery_endpoints.clone());
        r.register("discovery_last_sync_timestamp_seconds", "When a source's report was last known to be right", self.discovery_last_sync.clone());
        r.register("discovery_errors", "Failures of a source", self.discovery_errors.clone());
        r.register("backend_drains", "Requests to drain a backend, by how they ended", self.backend_drains.clone());
        r.register("drain_in_progress", "1 while the proxy drains", self.drain_in_progress.clone());
        r.register("drain_builds_remaining", "Builds a draining proxy waits for", self.drain_builds_remaining.clone());
        registry.register("grpc_server_started", "RPCs received, by method", self.rpcs_started.clone());
    }

    /// The exposition text (OpenMetrics 1.0).
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry.lock()) {
            text.clear();
            // A String takes any write; this says so rather than hiding an encoder's bug.
            let _ = writeln!(text, "# encode failed: {error}");
        }
        text
    }

    /// Counts one stream that the proxy answered with its own error.
    pub fn reject(&self, reason: &str) {
        self.rejected.get_or_create(&ReasonLabels { reason: reason.to_owned() }).inc();
    }

    /// Counts one received RPC of a known service and method.
    pub fn count_started(&self, (grpc_service, grpc_method): (&'static str, &'static str)) {
        self.rpcs_started.get_or_create(&MethodLabels { grpc_service, grpc_method }).inc();
    }

    /// Handles for one backend, resolved once.
    pub fn backend(&self, backend: &str) -> BackendMetrics {
        let labels = BackendLabels { backend: backend.to_owned() };
        let direction = |direction: &str| {
            let labels =
                DirectionLabels { backend: backend.to_owned(), direction: direction.to_owned() };
            self.bytes.get_or_create_owned(&labels)
        };
        BackendMetrics {
            backend: backend.to_owned(),
            builds_active: self.builds_active.get_or_create_owned(&labels),
            capacity: self.backend_capacity.get_or_create_owned(&labels),
            sessions_active: self.sessions_active.get_or_create_owned(&labels),
            connect: self.upstream_connect.get_or_create_owned(&labels),
            bytes_up: direction("up"),
            bytes_down: direction("down"),
        }
    }

    /// Drops the series of a backend that left the fleet.
    pub fn forget_backend(&self, backend: &str) {
        let labels = BackendLabels { backend: backend.to_owned() };
        self.builds_active.remove(&labels);
        self.backend_capacity.remove(&labels);
        self.sessions_active.remove(&labels);
        self.upstream_connect.remove(&labels);
        let backend = || backend.to_owned();
        for direction in ["up", "down"] {
            let direction = direction.to_owned();
            self.bytes.remove(&DirectionLabels { backend: backend(), direction });
        }
        for state in BACKEND_STATES {
            let state = state.to_owned();
            self.backend_state.remove(&StateLabels { backend: backend(), state });
        }
        for code in CODES {
            let grpc_code = code_name(code).to_owned();
            self.builds.remove(&CodeLabels { backend: backend(), grpc_code });
        }
        for result in SESSION_RESULTS {
            let result = result.to_owned();
            self.sessions.remove(&ResultLabels { backend: backend(), result });
        }
        for reason in UPSTREAM_REASONS {
            let reason = reason.to_owned();
            self.upstream_errors.remove(&BackendReasonLabels { backend: backend(), reason });
        }
    }

    /// Sets which of [`BACKEND_STATES`] `backend` is in.
    pub fn set_backend_state(&self, backend: &str, current: &str) {
        for state in BACKEND_STATES {
            let labels = StateLabels { backend: backend.to_owned(), state: state.to_owned() };
            self.backend_state.get_or_create(&labels).set(i64::from(state == current));
        }
    }
}

/// Values of the `state` label.
pub const BACKEND_STATES: [&str; 6] =
    ["starting", "ready", "unhealthy", "cordoned", "draining", "lost"];

/// Values of the `result` label of sessions.
pub const SESSION_RESULTS: [&str; 3] = ["ok", "client_gone", "backend_lost"];

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
    pub backend: String,
    pub builds_active: Gauge,
    pub capacity: Gauge,
    pub sessions_active: Gauge,
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

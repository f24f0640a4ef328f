//! The registry: name, help text, unit, buckets and labels of every metric.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::AtomicU64},
};

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

use super::Metrics;
use crate::telemetry;

/// Durations of builds: a second to two hours.
const BUILD_SECONDS: [f64; 12] =
    [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];

/// Durations of connects: half a millisecond (same node) to the connect timeout.
const CONNECT_SECONDS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 2.5, 5.0];

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($field:ident),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name { $($field: String),+ }

        impl $name {
            /// The labels in the order of the exposition.
            pub(super) fn new($($field: &str),+) -> Self {
                Self { $($field: $field.to_owned()),+ }
            }
        }
    };
}

labels!(/// One pool.
    PoolLabels { pool });
labels!(/// One backend.
    BackendLabels { pool, backend });
labels!(/// One backend and a closed set of states.
    StateLabels { pool, backend, state });
labels!(/// One backend and the version of its daemon.
    VersionLabels { pool, backend, version });
labels!(/// One backend and a gRPC code name.
    CodeLabels { pool, backend, grpc_code });
labels!(/// One backend and how a session ended.
    ResultLabels { pool, backend, result });
labels!(/// One backend and the direction of bytes: `up` is from client to daemon.
    DirectionLabels { pool, backend, direction });
labels!(/// One backend and why its connection failed.
    BackendReasonLabels { pool, backend, reason });
labels!(/// Where backends are found, as the configuration writes it.
    SourceLabels { pool, source });
labels!(/// The same, and why it failed.
    SourceReasonLabels { pool, source, reason });
labels!(/// What was asked about pods, as RBAC writes it, and why in vain.
    PodErrorLabels { pool, verb, reason });
labels!(/// How the drain of a backend ended.
    DrainLabels { pool, result });
labels!(/// A closed set of reasons.
    ReasonLabels { pool, reason });
labels!(/// A gRPC code name.
    GrpcCodeLabels { pool, grpc_code });
labels!(/// How a build found its backend.
    DecisionLabels { pool, policy, outcome, key_source });

/// A known gRPC method; anything else is `other`. Counted for every call, so nothing is allocated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MethodLabels {
    pub(super) grpc_service: &'static str,
    pub(super) grpc_method: &'static str,
}

/// A histogram family with fixed buckets.
#[derive(Debug, Clone)]
pub(super) struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Every family, and the registry that renders them.
#[derive(Debug)]
pub struct Families {
    registry: Mutex<Registry>,
    pub(super) backend_state: Family<StateLabels, Gauge>,
    pub(super) builds_active: Family<BackendLabels, Gauge>,
    pub(super) builds: Family<CodeLabels, Counter>,
    pub(super) build_duration: Family<GrpcCodeLabels, Histogram, Buckets>,
    pub(super) sessions_active: Family<BackendLabels, Gauge>,
    pub(super) sessions: Family<ResultLabels, Counter>,
    pub(super) bytes: Family<DirectionLabels, Counter<u64, AtomicU64>>,
    pub(super) route_decisions: Family<DecisionLabels, Counter>,
    pub(super) affinity_keys: Family<PoolLabels, Gauge>,
    pub(super) binding_conflicts: Family<PoolLabels, Counter>,
    pub(super) backend_capacity: Family<BackendLabels, Gauge>,
    pub(super) backend_info: Family<VersionLabels, Gauge>,
    pub(super) upstream_connections: Family<BackendLabels, Gauge>,
    pub(super) upstream_connect: Family<BackendLabels, Histogram, Buckets>,
    pub(super) upstream_errors: Family<BackendReasonLabels, Counter>,
    pub(super) connections_active: Family<PoolLabels, Gauge>,
    pub(super) connections: Family<PoolLabels, Counter>,
    pub(super) connection_errors: Family<ReasonLabels, Counter>,
    pub(super) rejected: Family<ReasonLabels, Counter>,
    pub(super) parked_streams: Family<PoolLabels, Gauge>,
    pub(super) discovery_endpoints: Family<SourceLabels, Gauge>,
    pub(super) discovery_last_sync: Family<SourceLabels, Gauge>,
    pub(super) discovery_errors: Family<SourceReasonLabels, Counter>,
    pub(super) pod_errors: Family<PodErrorLabels, Counter>,
    pub(super) pod_patches: Family<PoolLabels, Counter>,
    pub(super) backend_drains: Family<DrainLabels, Counter>,
    pub(super) rpcs_started: Family<MethodLabels, Counter>,
    /// 1 while the proxy drains.
    pub drain_in_progress: Gauge,
    /// Builds that a draining proxy waits for.
    pub drain_builds_remaining: Gauge,
}

impl Families {
    /// Registers every family.
    pub fn new() -> Arc<Self> {
        let families = Self {
            registry: Mutex::new(Registry::default()),
            backend_state: Family::default(),
            builds_active: Family::default(),
            builds: Family::default(),
            build_duration: Family::new_with_constructor(Buckets(&BUILD_SECONDS)),
            sessions_active: Family::default(),
            sessions: Family::default(),
            bytes: Family::default(),
            route_decisions: Family::default(),
            affinity_keys: Family::default(),
            binding_conflicts: Family::default(),
            backend_capacity: Family::default(),
            backend_info: Family::default(),
            upstream_connections: Family::default(),
            upstream_connect: Family::new_with_constructor(Buckets(&CONNECT_SECONDS)),
            upstream_errors: Family::default(),
            connections_active: Family::default(),
            connections: Family::default(),
            connection_errors: Family::default(),
            rejected: Family::default(),
            parked_streams: Family::default(),
            discovery_endpoints: Family::default(),
            discovery_last_sync: Family::default(),
            discovery_errors: Family::default(),
            pod_errors: Family::default(),
            pod_patches: Family::default(),
            backend_drains: Family::default(),
            rpcs_started: Family::default(),
            drain_in_progress: Gauge::default(),
            drain_builds_remaining: Gauge::default(),
        };
        families.register();
        Arc::new(families)
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
        r.register("binding_conflicts", "Builds that need sessions of two backends", self.binding_conflicts.clone());
        r.register("backend_info", "Version that a daemon says it has", self.backend_info.clone());
        r.register("backend_capacity", "Size of a backend against the others'", self.backend_capacity.clone());
        r.register("upstream_connections_active", "Open connections to a backend", self.upstream_connections.clone());
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
        r.register("pod_errors", "Requests about pods that failed", self.pod_errors.clone());
        r.register("pod_patches", "Annotations of pods written", self.pod_patches.clone());
        r.register("backend_drains", "Requests to drain a backend, by how they ended", self.backend_drains.clone());
        r.register("drain_in_progress", "1 while the proxy drains", self.drain_in_progress.clone());
        r.register("drain_builds_remaining", "Builds a draining proxy waits for", self.drain_builds_remaining.clone());
        r.register("log_records_dropped", "Log records that nobody could read", telemetry::dropped_records());
        registry.register("grpc_server_started", "RPCs received, by method", self.rpcs_started.clone());
    }

    /// What the parts of one pool count.
    pub fn pool(self: &Arc<Self>, name: &str) -> Metrics {
        Metrics::new(Arc::clone(self), name)
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
}

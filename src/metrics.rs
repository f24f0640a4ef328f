//! The metrics of the proxy. [`Families`] has the name and the labels of every metric, and [`Metrics`] is what the
//! parts of one pool count with.
//!
//! The values of labels come from closed sets, from the configuration or from the fleet, never from what a client
//! sends. The handles of a backend are looked up once ([`BackendMetrics`]), and its series end when it leaves the
//! fleet.

mod families;
mod labels;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tonic::Code;

use self::labels::{
    BackendLabels, CertificateLabels, CodeLabels, ConnectionErrorLabels, DecisionLabels,
    DirectionLabels, DrainLabels, FaultLabels, GrpcCodeLabels, MethodLabels, PodErrorLabels,
    PoolLabels, QueueLabels, ReadLabels, RejectionLabels, ReloadLabels, ResultLabels, SourceLabels,
    SourceReasonLabels, StateLabels, StepLabels, VersionLabels,
};
pub use self::{
    families::{Description, Families},
    labels::{
        AdminClosure, AdminRefusal, BackendState, Described, Direction, DrainResult, Fault,
        PodVerb, QueueExit, ReadResult, ReloadResult, SessionResult, SpanResult, StepKind, TlsSide,
    },
};
use crate::{
    error::{ConnectionErrorReason, ErrorReason},
    outage::Reason,
};

/// The name of the only pool, if the configuration does not name it.
pub const DEFAULT_POOL: &str = "default";

/// The metrics of one pool.
#[derive(Debug)]
pub struct Metrics {
    families: Arc<Families>,
    pool: String,
    /// Client connections that are open now.
    pub connections_active: Gauge,
    /// Client connections accepted since the start.
    pub connections: Counter,
    /// TLS handshakes with clients that are under way now.
    pub tls_handshakes_active: Gauge,
    /// Streams that wait for their build to be bound.
    pub parked_streams: Gauge,
    /// Builds that wait in the queue.
    pub queue_depth: Gauge,
    /// Affinity keys whose last backends are remembered.
    pub affinity_keys: Gauge,
    /// Builds that need sessions or linked targets of two backends.
    pub binding_conflicts: Counter,
    /// Annotations of pods written since the start.
    pub pod_patches: Counter,
}

impl Default for Metrics {
    /// Metrics of [`DEFAULT_POOL`] that are registered nowhere else.
    fn default() -> Self {
        Families::new().pool(DEFAULT_POOL)
    }
}

impl Metrics {
    fn new(families: Arc<Families>, pool: &str) -> Self {
        let labels = PoolLabels::new(pool);
        // Alerts compare a series with its past, so the series must exist before its first event.
        for reason in QueueExit::ALL {
            let labels = QueueLabels::new(pool, *reason);
            families.queue_left.get_or_create_owned(&labels);
            families.queue_wait_seconds.get_or_create_owned(&labels);
        }
        for result in DrainResult::ALL {
            families.backend_drains.get_or_create_owned(&DrainLabels::new(pool, *result));
        }
        for result in ReadResult::ALL {
            families.backend_metrics_reads.get_or_create_owned(&ReadLabels::new(pool, *result));
        }
        for reason in ErrorReason::ALL {
            families.rejected.get_or_create_owned(&RejectionLabels::new(pool, *reason));
        }
        for reason in ConnectionErrorReason::ALL {
            let labels = ConnectionErrorLabels::new(pool, *reason);
            families.connection_errors.get_or_create_owned(&labels);
        }
        Self {
            pool: pool.to_owned(),
            connections_active: families.connections_active.get_or_create_owned(&labels),
            connections: families.connections.get_or_create_owned(&labels),
            tls_handshakes_active: families.tls_handshakes_active.get_or_create_owned(&labels),
            parked_streams: families.parked_streams.get_or_create_owned(&labels),
            queue_depth: families.queue_depth.get_or_create_owned(&labels),
            affinity_keys: families.affinity_keys.get_or_create_owned(&labels),
            binding_conflicts: families.binding_conflicts.get_or_create_owned(&labels),
            pod_patches: families.pod_patches.get_or_create_owned(&labels),
            families,
        }
    }

    /// The name of the pool.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// The families of metrics that all pools share.
    pub fn families(&self) -> &Arc<Families> {
        &self.families
    }

    /// Counts a stream that the proxy answered with its own error.
    pub fn reject(&self, reason: ErrorReason) {
        let labels = RejectionLabels::new(&self.pool, reason);
        self.families.rejected.get_or_create(&labels).inc();
    }

    /// Counts a client connection that ended in an error or was refused.
    pub fn connection_error(&self, reason: ConnectionErrorReason) {
        let labels = ConnectionErrorLabels::new(&self.pool, reason);
        self.families.connection_errors.get_or_create(&labels).inc();
    }

    /// Sets when the certificates of one side expire, in seconds since 1970, and creates the series that count
    /// their changes.
    pub fn certificate_expires(&self, side: TlsSide, seconds: Option<i64>) {
        if let Some(seconds) = seconds {
            let labels = CertificateLabels::new(&self.pool, side);
            let family = &self.families.certificate_expiry_timestamp_seconds;
            family.get_or_create_owned(&labels).set(seconds);
        }
        // Alerts compare a series with its past, so the series must exist before its first event.
        for result in ReloadResult::ALL {
            let labels = ReloadLabels::new(&self.pool, side, *result);
            self.families.certificate_reloads.get_or_create_owned(&labels);
        }
    }

    /// When the certificates of one side expire, in seconds since 1970. `None` if the side has none.
    pub fn certificate_expiry(&self, side: TlsSide) -> Option<i64> {
        let labels = CertificateLabels::new(&self.pool, side);
        let family = &self.families.certificate_expiry_timestamp_seconds;
        family.get(&labels).map(|gauge| gauge.get())
    }

    /// Counts a change of certificates.
    pub fn certificate_reloaded(&self, side: TlsSide, result: ReloadResult) {
        let labels = ReloadLabels::new(&self.pool, side, result);
        self.families.certificate_reloads.get_or_create(&labels).inc();
    }

    /// Counts a call that has arrived, by its service and method, or `other`.
    pub fn count_started(&self, (grpc_service, grpc_method): (&'static str, &'static str)) {
        let labels = MethodLabels { grpc_service, grpc_method };
        self.families.rpcs_started.get_or_create(&labels).inc();
    }

    /// Counts a build that was placed.
    pub fn decision(&self, RouteDecision { policy, outcome, key_source }: &RouteDecision) {
        let labels = DecisionLabels::new(&self.pool, policy, outcome, key_source);
        self.families.route_decisions.get_or_create(&labels).inc();
    }

    /// Counts a build that has left the queue after `wait`.
    pub fn queue_left(&self, reason: QueueExit, wait: Duration) {
        let labels = QueueLabels::new(&self.pool, reason);
        self.families.queue_left.get_or_create(&labels).inc();
        self.families.queue_wait_seconds.get_or_create(&labels).observe(wait.as_secs_f64());
    }

    /// Counts a build that has ended with `code` after `duration`.
    pub fn build_ended(&self, backend: &str, code: Code, duration: Duration) {
        let grpc_code = code_name(code);
        let labels = GrpcCodeLabels::new(&self.pool, grpc_code);
        let seconds = duration.as_secs_f64();
        self.families.build_duration_seconds.get_or_create(&labels).observe(seconds);
        let labels = CodeLabels::new(&self.pool, backend, grpc_code);
        self.families.builds.get_or_create(&labels).inc();
    }

    /// Counts a Session stream that has ended.
    pub fn session_ended(&self, backend: &str, result: SessionResult) {
        let labels = ResultLabels::new(&self.pool, backend, result);
        self.families.sessions.get_or_create(&labels).inc();
    }

    /// Counts a connection to a backend that could not be opened, or broke.
    pub fn upstream_error(&self, backend: &str, reason: Fault) {
        let labels = FaultLabels::new(&self.pool, backend, reason);
        self.families.upstream_errors.get_or_create(&labels).inc();
    }

    /// Counts a request to drain a backend that has ended.
    pub fn backend_drained(&self, result: DrainResult) {
        let labels = DrainLabels::new(&self.pool, result);
        self.families.backend_drains.get_or_create(&labels).inc();
    }

    /// Counts a failure of a source of backends.
    pub fn discovery_error(&self, source: &str, reason: Reason) {
        let labels = SourceReasonLabels::new(&self.pool, source, reason);
        self.families.discovery_errors.get_or_create(&labels).inc();
    }

    /// Counts a request about pods that failed, by what was asked and why it failed.
    pub fn pod_error(&self, verb: PodVerb, reason: Reason) {
        let labels = PodErrorLabels::new(&self.pool, verb, reason);
        self.families.pod_errors.get_or_create(&labels).inc();
    }

    /// Notes that a source reported `endpoints` backends, and that this was right at the time `at`.
    pub fn discovery_synced(&self, source: &str, endpoints: usize, at: SystemTime) {
        let labels = SourceLabels::new(&self.pool, source);
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let count = i64::try_from(endpoints).unwrap_or(i64::MAX);
        self.families.discovery_endpoints.get_or_create(&labels).set(count);
        self.families
            .discovery_last_sync_timestamp_seconds
            .get_or_create(&labels)
            .set(seconds.cast_signed());
    }

    /// The handles of one backend, for its whole life. Its series exist from now on.
    pub fn backend(&self, backend: &str) -> BackendMetrics {
        let (families, pool) = (&self.families, self.pool());
        let labels = BackendLabels::new(pool, backend);
        let bytes = |direction| {
            families.bytes.get_or_create_owned(&DirectionLabels::new(pool, backend, direction))
        };
        // Alerts compare a series with its past, so the series must exist before its first event.
        for &result in SessionResult::ALL {
            families.sessions.get_or_create_owned(&ResultLabels::new(pool, backend, result));
        }
        for &reason in Fault::ALL {
            let labels = FaultLabels::new(pool, backend, reason);
            families.upstream_errors.get_or_create_owned(&labels);
        }
        BackendMetrics {
            builds_active: families.builds_active.get_or_create_owned(&labels),
            capacity: families.backend_capacity.get_or_create_owned(&labels),
            sessions_active: families.sessions_active.get_or_create_owned(&labels),
            connections: families.upstream_connections_active.get_or_create_owned(&labels),
            connect: families.upstream_connect_seconds.get_or_create_owned(&labels),
            degraded: families.backend_degraded.get_or_create_owned(&labels),
            bytes_up: bytes(Direction::Up),
            bytes_down: bytes(Direction::Down),
        }
    }

    /// Counts steps of builds that the daemon of `backend` has counted, for the policy of the pool.
    pub fn count_steps(&self, backend: &str, policy: &str, kind: StepKind, count: u64) {
        let labels = StepLabels::new(&self.pool, backend, policy, kind);
        self.families.backend_steps.get_or_create(&labels).inc_by(count);
    }

    /// Removes the series of [`Self::count_steps`].
    pub fn forget_steps(&self, backend: &str, policy: &str) {
        for &kind in StepKind::ALL {
            self.families.backend_steps.remove(&StepLabels::new(&self.pool, backend, policy, kind));
        }
    }

    /// Counts a read of a daemon's own metrics.
    pub fn figures_read(&self, result: ReadResult) {
        let labels = ReadLabels::new(&self.pool, result);
        self.families.backend_metrics_reads.get_or_create(&labels).inc();
    }

    /// Replaces the series of the `old` version of a backend's daemon with that of the `new` one.
    pub fn set_backend_version(&self, backend: &str, old: Option<&str>, new: Option<&str>) {
        let labels = |version| VersionLabels::new(&self.pool, backend, version);
        let info = &self.families.backend_info;
        old.map(|version| info.remove(&labels(version)));
        new.map(|version| info.get_or_create_owned(&labels(version)).set(1));
    }

    /// Removes the series of a backend that has left the fleet.
    pub fn forget_backend(&self, backend: &str) {
        let (families, pool) = (&self.families, self.pool());
        let labels = BackendLabels::new(pool, backend);
        families.builds_active.remove(&labels);
        families.backend_capacity.remove(&labels);
        families.backend_degraded.remove(&labels);
        families.sessions_active.remove(&labels);
        families.upstream_connections_active.remove(&labels);
        families.upstream_connect_seconds.remove(&labels);
        for &direction in Direction::ALL {
            families.bytes.remove(&DirectionLabels::new(pool, backend, direction));
        }
        for &result in SessionResult::ALL {
            families.sessions.remove(&ResultLabels::new(pool, backend, result));
        }
        for &state in BackendState::ALL {
            families.backend_state.remove(&StateLabels::new(pool, backend, state));
        }
        for code in CODES {
            families.builds.remove(&CodeLabels::new(pool, backend, code_name(code)));
        }
        for &reason in Fault::ALL {
            families.upstream_errors.remove(&FaultLabels::new(pool, backend, reason));
        }
    }

    /// Sets the state of `backend` to 1 and all other states to 0.
    pub fn set_backend_state(&self, backend: &str, current: BackendState) {
        for &state in BackendState::ALL {
            let labels = StateLabels::new(&self.pool, backend, state);
            let gauge = self.families.backend_state.get_or_create_owned(&labels);
            gauge.set(i64::from(state == current));
        }
    }
}

/// How a build was placed, in the words of its log record.
#[derive(Debug)]
pub struct RouteDecision {
    /// The policy of the pool.
    pub policy: &'static str,
    /// The outcome of the placement, such as `home` or `spill`.
    pub outcome: &'static str,
    /// The source of the build's affinity key, or `none`.
    pub key_source: &'static str,
}

/// Every gRPC code, for the series of a backend.
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

/// The metrics of one backend. The data path adds to them and never looks up a series.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct BackendMetrics {
    pub builds_active: Gauge,
    pub capacity: Gauge,
    pub sessions_active: Gauge,
    pub connections: Gauge,
    pub connect: Histogram,
    pub degraded: Counter,
    pub bytes_up: Counter<u64, AtomicU64>,
    pub bytes_down: Counter<u64, AtomicU64>,
}

/// The name of a gRPC code in CamelCase, as the gRPC specification writes it, for labels and logs.
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

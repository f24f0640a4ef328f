//! The registry of metrics: the name, help text, unit, buckets and labels of each.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};

use super::{
    Metrics,
    labels::{
        AdminClosure, AdminClosureLabels, AdminRefusal, AdminRefusalLabels, BackendLabels,
        CertificateLabels, CodeLabels, ConnectionErrorLabels, DecisionLabels, Described,
        DirectionLabels, DrainLabels, FaultLabels, GrpcCodeLabels, LabelNames, MethodLabels,
        PodErrorLabels, PoolLabels, QueueLabels, ReadLabels, RejectionLabels, ReloadLabels,
        ResultLabels, SourceLabels, SourceReasonLabels, SpanLabels, SpanResult, StateLabels,
        StepLabels, VersionLabels,
    },
};
use crate::telemetry;

/// Buckets for durations of builds, from a second to two hours.
const BUILD_SECONDS: [f64; 12] =
    [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];

/// Buckets for waits in the queue, from 10 ms to half an hour, the longest that most builds wait.
const QUEUE_SECONDS: [f64; 10] = [0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 180.0, 300.0, 900.0, 1800.0];

/// Buckets for the time to connect, from half a millisecond (the same node) to the connect timeout.
const CONNECT_SECONDS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 2.5, 5.0];

/// Makes histograms with fixed buckets.
#[derive(Debug, Clone)]
pub(super) struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Counters<L> = Family<L, Counter>;
type ByteCounters<L> = Family<L, Counter<u64, AtomicU64>>;
type Gauges<L> = Family<L, Gauge>;
type Histograms<L> = Family<L, Histogram, Buckets>;

/// What the documentation says of one metric.
#[derive(Debug)]
pub struct Description {
    /// The name as Prometheus reads it.
    pub name: String,
    /// Its type: `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// The labels of the metric.
    pub labels: Vec<Described>,
    /// The help text, without a full stop.
    pub help: &'static str,
}

/// The one table of metrics: name, type, labels and help text of each. The fields of [`Families`], their creation,
/// registration and description follow from it.
macro_rules! families {
    (
        families { $($name:ident: $kind:ident<$labels:ident> $(= $make:expr)?, $help:literal;)+ }
        gauges { $($gauge:ident, $gauge_help:literal;)+ }
    ) => {
        /// Every family of metrics, and the registry that renders them.
        #[derive(Debug)]
        pub struct Families {
            registry: Mutex<Registry>,
            pub(super) rpcs_started: Counters<MethodLabels>,
            $(pub(super) $name: $kind<$labels>,)+
            $(#[doc = $gauge_help] pub $gauge: Gauge,)+
        }

        impl Families {
            fn unregistered() -> Self {
                Self {
                    registry: Mutex::new(Registry::default()),
                    rpcs_started: Family::default(),
                    $($name: families!(@make $($make)?),)+
                    $($gauge: Gauge::default(),)+
                }
            }

            fn register_all(&self, registry: &mut Registry) {
                $(registry.register(stringify!($name), $help, self.$name.clone());)+
                $(registry.register(stringify!($gauge), $gauge_help, self.$gauge.clone());)+
            }

            /// Describes every metric that begins with `buildkit_lb_`, except `buildkit_lb_build_info` and
            /// `buildkit_lb_log_records_dropped_total`.
            fn described() -> Vec<Description> {
                vec![
                    $(Description {
                        name: exposed(stringify!($name), stringify!($kind)),
                        kind: kind(stringify!($kind)),
                        labels: <$labels as LabelNames>::described(),
                        help: $help,
                    },)+
                    $(Description {
                        name: exposed(stringify!($gauge), "Gauges"),
                        kind: "gauge",
                        labels: Vec::new(),
                        help: $gauge_help,
                    },)+
                ]
            }
        }
    };
    (@make) => { Family::default() };
    (@make $make:expr) => { $make };
}

/// The name as Prometheus reads it: the library appends `_total` to counters, as OpenMetrics asks.
fn exposed(name: &str, kind: &str) -> String {
    let suffix = if kind.ends_with("Counters") { "_total" } else { "" };
    format!("buildkit_lb_{name}{suffix}")
}

/// The OpenMetrics type of a family of this Rust type.
fn kind(family: &str) -> &'static str {
    match family {
        "Gauges" => "gauge",
        "Histograms" => "histogram",
        _ => "counter",
    }
}

families! {
    families {
        backend_state: Gauges<StateLabels>, "1 for the state that a backend is in, 0 for the others";
        builds_active: Gauges<BackendLabels>, "Builds that run on a backend";
        builds: Counters<CodeLabels>, "Builds ended, by the gRPC code of their Solve";
        build_duration_seconds: Histograms<GrpcCodeLabels> = Family::new_with_constructor(Buckets(&BUILD_SECONDS)), "Time from a Solve's arrival to its end, in buckets from 1 s to 2 h";
        sessions_active: Gauges<BackendLabels>, "Session streams open on a backend";
        sessions: Counters<ResultLabels>, "Session streams ended, by how";
        bytes: ByteCounters<DirectionLabels>, "Message bytes relayed; up is from client to daemon";
        route_decisions: Counters<DecisionLabels>, "Builds placed, by how their backend was found and where their key came from";
        affinity_keys: Gauges<PoolLabels>, "Keys whose last backends are remembered";
        binding_conflicts: Counters<PoolLabels>, "Builds that need sessions or linked targets of two backends; a warning in the log names both";
        backend_info: Gauges<VersionLabels>, "Version that a daemon says it has";
        backend_degraded: Counters<BackendLabels>, "How often a backend was found to fail builds for reasons of its own";
        backend_steps: Counters<StepLabels>, "Steps of builds that a daemon has counted, if its own metrics are read: those that were cached, and all";
        backend_metrics_reads: Counters<ReadLabels>, "Reads of the daemons' own metrics, by how they ended";
        backend_capacity: Gauges<BackendLabels>, "Size of a backend in proportion to the others";
        upstream_connections_active: Gauges<BackendLabels>, "Open connections to a backend";
        upstream_connect_seconds: Histograms<BackendLabels> = Family::new_with_constructor(Buckets(&CONNECT_SECONDS)), "Time to open a connection to a backend";
        upstream_errors: Counters<FaultLabels>, "Failed or lost connections to a backend";
        connections_active: Gauges<PoolLabels>, "Open client connections";
        connections: Counters<PoolLabels>, "Client connections accepted";
        connection_errors: Counters<ConnectionErrorLabels>, "Client connections that ended badly, were refused, or do not speak HTTP/2";
        rejected: Counters<RejectionLabels>, "Streams that the proxy itself answered with an error";
        parked_streams: Gauges<PoolLabels>, "Streams that wait for their build to be bound";
        tls_handshakes_active: Gauges<PoolLabels>, "TLS handshakes of clients that are under way";
        certificate_expiry_timestamp_seconds: Gauges<CertificateLabels>, "When the proxy's own certificate expires";
        certificate_reloads: Counters<ReloadLabels>, "Changes of certificates, by what became of them";
        queue_depth: Gauges<PoolLabels>, "Builds that wait for their turn";
        queue_wait_seconds: Histograms<QueueLabels> = Family::new_with_constructor(Buckets(&QUEUE_SECONDS)), "Time that builds waited for their turn, by how they left the queue";
        queue_left: Counters<QueueLabels>, "Builds that have left the queue, by how";
        discovery_endpoints: Gauges<SourceLabels>, "Endpoints that a source reported last";
        discovery_last_sync_timestamp_seconds: Gauges<SourceLabels>, "When a source's report was last known to be right; the time stands still while the source fails";
        discovery_errors: Counters<SourceReasonLabels>, "Failures of a source";
        pod_errors: Counters<PodErrorLabels>, "Requests about pods that failed";
        pod_patches: Counters<PoolLabels>, "Annotations of pods written";
        backend_drains: Counters<DrainLabels>, "Requests to drain a backend, by how they ended";
        admin_requests_refused: Counters<AdminRefusalLabels>, "Requests on the admin port that were refused because the client had no right to them";
        spans: Counters<SpanLabels>, "Spans of the proxy's own that have ended, by what became of them";
        admin_connections_closed: Counters<AdminClosureLabels>, "Connections of the admin port that were closed to bound their number";
    }
    gauges {
        held_bytes, "Bytes held for clients before they are sent on; memory-budget limits them";
        drain_in_progress, "1 while the proxy drains";
        drain_builds_remaining, "Builds that a draining proxy waits for";
    }
}

/// The counter of calls. It has no prefix, because dashboards for gRPC servers look for this name.
const STARTED: (&str, &str) = ("grpc_server_started", "RPCs received, by method");

/// Metrics of the process that do not belong to a pool.
const BUILD: (&str, &str) = ("buildkit_lb_build", "Version of the running proxy");
const DROPPED: (&str, &str) =
    ("log_records_dropped", "Log records dropped because the log was not read in time");

impl Families {
    /// Creates and registers every family.
    pub fn new() -> Arc<Self> {
        let families = Self::unregistered();
        {
            let mut registry = families.registry.lock();
            let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
            registry.register(BUILD.0, BUILD.1, build);
            let prefixed = registry.sub_registry_with_prefix("buildkit_lb");
            families.register_all(prefixed);
            prefixed.register(DROPPED.0, DROPPED.1, telemetry::dropped_records());
            registry.register(STARTED.0, STARTED.1, families.rpcs_started.clone());
        }
        // Alerts compare a series with its past, so the series must exist before its first event.
        for reason in AdminRefusal::ALL {
            let labels = AdminRefusalLabels::new(*reason);
            families.admin_requests_refused.get_or_create_owned(&labels);
        }
        for reason in AdminClosure::ALL {
            let labels = AdminClosureLabels::new(*reason);
            families.admin_connections_closed.get_or_create_owned(&labels);
        }
        for result in SpanResult::ALL {
            families.spans.get_or_create_owned(&SpanLabels::new(*result));
        }
        Arc::new(families)
    }

    /// Counts a request on the admin port that was refused.
    pub fn admin_request_refused(&self, reason: AdminRefusal) {
        self.admin_requests_refused.get_or_create(&AdminRefusalLabels::new(reason)).inc();
    }

    /// Counts a connection to the admin port that was closed.
    pub fn admin_connection_closed(&self, reason: AdminClosure) {
        self.admin_connections_closed.get_or_create(&AdminClosureLabels::new(reason)).inc();
    }

    /// Counts spans that have ended.
    pub fn count_spans(&self, result: SpanResult, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.spans.get_or_create(&SpanLabels::new(result)).inc_by(count);
    }

    /// Describes all metrics, sorted by name, for the documentation.
    pub fn descriptions() -> Vec<Description> {
        let mut all = Self::described();
        let plain = |name, kind, labels, help| Description { name, kind, labels, help };
        let version = vec![("version", Vec::new())];
        all.push(plain(format!("{}_info", BUILD.0), "info", version, BUILD.1));
        all.push(plain(exposed(DROPPED.0, "Counters"), "counter", Vec::new(), DROPPED.1));
        let method = MethodLabels::described();
        all.push(plain(format!("{}_total", STARTED.0), "counter", method, STARTED.1));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The metrics of the pool `name`.
    pub fn pool(self: &Arc<Self>, name: &str) -> Metrics {
        Metrics::new(Arc::clone(self), name)
    }

    /// All metrics in the text format of OpenMetrics 1.0.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry.lock()) {
            text.clear();
            // Writing to a String never fails. If the encoder does, the answer says so.
            let _ = writeln!(text, "# encode failed: {error}");
        }
        text
    }
}

//! What is counted and logged of a build and of a session: one record at its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tracing::info;

use super::{place::Placed, solve::Solve};
use crate::{
    directory::{Binding, Lease, Lookup},
    fleet::BuildCount,
    ids::{Id, Key},
    metrics::{CodeLabels, DecisionLabels, GrpcCodeLabels, Metrics, ResultLabels, code_name},
    proxy::{LoadGuard, Origin, Proxy, Why},
    relay::{End, OnEnd, Tally},
};

/// Everything that lives as long as a Solve's stream.
#[derive(Debug)]
pub(super) struct Report {
    metrics: Arc<Metrics>,
    build: String,
    session: String,
    affinity_key: String,
    key_source: &'static str,
    policy: String,
    why: Why,
    binding: Arc<Binding>,
    tally: Arc<Tally>,
    session_tally: Arc<Tally>,
    arrived: Instant,
    wait: Duration,
    _lease: Lease,
    _count: BuildCount,
    _load: LoadGuard,
}

impl Report {
    /// Counts the decision and starts the build's count.
    pub(super) fn new(proxy: &Proxy, solve: &Solve, placed: Placed, origin: &Origin) -> Self {
        let tally = |key: Option<Key>| match key.map(|key| proxy.directory.lookup(&key)) {
            Some(Lookup::Live(bound)) => bound.tally,
            _ => Arc::default(),
        };
        let affinity = solve.affinity.as_ref();
        let text = |id: Option<&Id>| id.map(ToString::to_string).unwrap_or_default();
        let report = Self {
            metrics: Arc::clone(&proxy.metrics),
            build: text(solve.build.as_ref()),
            session: text(solve.session.as_ref()),
            affinity_key: affinity.map(|affinity| affinity.key.clone()).unwrap_or_default(),
            key_source: affinity.map_or("none", |affinity| affinity.source),
            policy: proxy.policy.policy.to_string(),
            why: placed.why,
            tally: tally(solve.build.clone().map(Key::Build)),
            session_tally: tally(solve.session.clone().map(Key::Session)),
            arrived: origin.arrived,
            wait: origin.arrived.elapsed(),
            _count: placed.count,
            binding: placed.binding,
            _lease: placed.lease,
            _load: origin.load.enter(),
        };
        report.count_decision();
        report
    }

    /// Where the build's own bytes are counted.
    pub(super) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Reports when the Solve's stream ends.
    pub(super) fn on_end(self) -> OnEnd {
        OnEnd::new(move |end| self.ended(end))
    }

    fn count_decision(&self) {
        let labels = DecisionLabels {
            policy: self.policy.clone(),
            outcome: self.why.outcome.label().to_owned(),
            key_source: self.key_source.to_owned(),
        };
        self.metrics.route_decisions.get_or_create(&labels).inc();
    }

    fn ended(self, end: End) {
        let code = code_name(end.code());
        let duration = self.arrived.elapsed();
        let backend = self.binding.link.backend().name();
        let labels = CodeLabels { backend: backend.to_owned(), grpc_code: code.to_owned() };
        self.metrics.builds.get_or_create(&labels).inc();
        self.metrics
            .build_duration
            .get_or_create(&GrpcCodeLabels { grpc_code: code.to_owned() })
            .observe(duration.as_secs_f64());
        let home = self.why.passed_over.as_ref();
        let (up, down) = bytes(&self.tally);
        let (session_up, session_down) = bytes(&self.session_tally);
        info!(
            r#ref = self.build,
            session = self.session,
            key = self.affinity_key,
            key_source = self.key_source,
            policy = self.policy,
            reason = self.why.outcome.label(),
            backend,
            rank = self.why.rank,
            load = self.why.load,
            bound = self.why.bound,
            home = home.map(|(home, _)| home.name()),
            home_is = home.map(|(_, obstacle)| obstacle.label()),
            wait_ms = millis(self.wait),
            duration_ms = millis(duration),
            bytes_up = up + session_up,
            bytes_down = down + session_down,
            code,
            "build ended"
        );
    }
}

/// Everything that lives as long as a Session stream.
#[derive(Debug)]
pub(super) struct SessionReport {
    metrics: Arc<Metrics>,
    binding: Arc<Binding>,
    _lease: Lease,
    _load: LoadGuard,
}

impl SessionReport {
    /// Starts the session's count.
    pub(super) fn new(proxy: &Proxy, binding: Arc<Binding>, lease: Lease, origin: &Origin) -> Self {
        binding.link.backend().metrics().sessions_active.inc();
        let metrics = Arc::clone(&proxy.metrics);
        Self { metrics, binding, _lease: lease, _load: origin.load.enter() }
    }

    /// Reports when the Session's stream ends.
    pub(super) fn on_end(self) -> OnEnd {
        // The whole report moves along: its guards last as long as the stream.
        OnEnd::new(move |end| self.ended(end))
    }

    fn ended(self, end: End) {
        let backend = self.binding.link.backend();
        backend.metrics().sessions_active.dec();
        let result = match end {
            End::Finished(_) => "ok",
            End::ClientGone => "client_gone",
            End::DaemonReset | End::BackendLost => "backend_lost",
        };
        let labels = ResultLabels { backend: backend.name().to_owned(), result: result.to_owned() };
        self.metrics.sessions.get_or_create(&labels).inc();
    }
}

fn bytes(tally: &Tally) -> (u64, u64) {
    (tally.up.load(Ordering::Relaxed), tally.down.load(Ordering::Relaxed))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

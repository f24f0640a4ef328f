//! The life of a build and of a session: listed and counted from the start, one log record at the end.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use tracing::info;

use super::{request::Solve, trace::BuildTrace};
use crate::{
    access,
    carriers::Carried,
    client::{ActiveStream, Client},
    directory::{Binding, KeyGuard, Lookup, Placing},
    fleet::{BuildCount, BuildEnd, Fleet},
    ids::BindingKey,
    metrics::{Metrics, RouteDecision, SessionResult, code_name},
    ownership::Owned,
    placement::{Placed, queue::Started},
    policy::KeyHash,
    proxy::Proxy,
    relay::{ByteCounts, End, OnEnd},
    running::{Ending, RunningBuild, RunningGuard},
    shares::network,
};

/// What a build holds besides its keys: its client's connection, its ids, and its share of its client's builds.
pub(super) type Guards = (Option<Carried>, (Option<Owned>, Option<access::Running>));

/// A running build. It lives as long as the Solve's stream.
#[derive(Debug)]
pub(super) struct ActiveBuild {
    metrics: Arc<Metrics>,
    fleet: Arc<Fleet>,
    build: RunningGuard,
    _binding: Arc<Binding>,
    _keys: KeyGuard,
    _count: BuildCount,
    _started: Option<Started>,
    _active: ActiveStream,
    _guards: Guards,
    trace: Option<BuildTrace>,
}

impl ActiveBuild {
    /// Starts a build that has been `placed`: lists it, counts it, and notes that its key is now warm on its backend.
    pub(super) fn start(
        proxy: &Proxy,
        solve: &Solve,
        placing: &Placing,
        placed: Placed,
        guards: Guards,
        client: &Client,
        arrived: Instant,
    ) -> Self {
        let byte_counts = |of| byte_counts(proxy, placing, of);
        let backend = Arc::clone(placed.binding.link.backend());
        // The key is warm from the start: more builds of a new project may come before this one ends, and share its
        // steps. A build that fails leaves the steps that it has finished.
        let key = solve.affinity.as_ref().map(|affinity| KeyHash::new(&affinity.key));
        let warm = key.and_then(|key| proxy.placement.note_warm(key, &backend));
        let active = Self {
            metrics: Arc::clone(&proxy.metrics),
            fleet: Arc::clone(&proxy.fleet),
            build: proxy.running.enter(RunningBuild {
                build: solve.build.as_ref().map(ToString::to_string).unwrap_or_default(),
                internal: solve.internal,
                session: solve.session.as_ref().map(ToString::to_string).unwrap_or_default(),
                client: client.address,
                identity: client.identity.clone(),
                affinity: solve.affinity.clone(),
                policy: proxy.placement.policy().kind,
                backend,
                warm,
                decision: placed.decision,
                arrived,
                wait: arrived.elapsed(),
                waited: placed.waited,
                byte_counts: byte_counts(|key| !matches!(key, BindingKey::Session(_))),
                session_byte_counts: byte_counts(|key| matches!(key, BindingKey::Session(_))),
            }),
            _count: placed.count,
            _started: placed.started,
            _binding: placed.binding,
            _keys: placed.key_guard,
            _active: client.active.enter(),
            _guards: guards,
            trace: None,
        };
        active.count_decision();
        active
    }

    /// Notes in the build's spans where it runs, and when it ends.
    pub(super) fn traced(mut self, mut trace: BuildTrace) -> Self {
        trace.placed(&self.build);
        self.trace = Some(trace);
        self
    }

    /// The counters of the build's own bytes.
    pub(super) fn byte_counts(&self) -> Arc<ByteCounts> {
        Arc::clone(&self.build.byte_counts)
    }

    /// The callback that ends the build together with the Solve's stream.
    pub(super) fn on_end(self) -> OnEnd {
        OnEnd::new(move |end| self.ended(end))
    }

    fn count_decision(&self) {
        self.metrics.decision(&RouteDecision {
            policy: self.build.policy.label(),
            outcome: self.build.decision.outcome.label(),
            key_source: self.build.key_source(),
        });
    }

    /// Tells the fleet with which status the daemon ended the build.
    fn report_end(&self, end: End) {
        let End::Finished(Some(code)) = end else { return };
        // A probe succeeds even on a daemon that cannot build.
        if self.build.internal {
            return;
        }
        let key = self.build.affinity.as_ref();
        let end = BuildEnd {
            client: self.witness(),
            key: key.map(|affinity| hashed(&affinity.key)),
            code,
        };
        self.fleet.build_ended(&self.build.backend, end, Instant::now());
    }

    /// A number for the witness of a build's end: the client's name, or its network if it has no name. A client with
    /// one name is one witness, however many addresses it has.
    fn witness(&self) -> u64 {
        match &self.build.identity {
            Some(identity) => identity.tag(),
            None => hashed(&network(self.build.client)),
        }
    }

    fn ended(self, end: End) {
        self.report_end(end);
        let build = &*self.build;
        let duration = build.arrived.elapsed();
        let backend = build.backend.name();
        let location = build.backend.location();
        let metrics = &self.metrics;
        metrics.build_ended(backend, end.code(), duration);
        let (home, home_is) = build.home();
        let (bytes_up, bytes_down) = build.bytes();
        info!(
            pool = metrics.pool(),
            r#ref = build.build,
            session = build.session,
            client = build.client.map(tracing::field::display),
            identity = build.identity.as_deref().map(tracing::field::display),
            key = build.key(),
            key_source = build.key_source(),
            policy = %build.policy,
            outcome = build.decision.outcome.label(),
            backend,
            node = location.node.as_deref(),
            zone = location.zone.as_deref(),
            version = location.labels.version.as_deref(),
            rank = build.decision.rank,
            load = build.decision.load,
            limit = build.decision.limit,
            home,
            home_is,
            wait_ms = millis(build.wait),
            queue_wait_ms = build.waited.map(|waited| millis(waited.wait)),
            queue_cause = build.waited.map(|waited| waited.cause.label()),
            duration_ms = millis(duration),
            bytes_up,
            bytes_down,
            code = code_name(end.code()),
            "build ended"
        );
        if let Some(trace) = self.trace {
            trace.ended(end, (bytes_up, bytes_down));
        }
        self.build.end(Ending { duration, code: end.code(), bytes_up, bytes_down });
    }
}

/// An open session. It lives as long as the Session's stream.
#[derive(Debug)]
pub(super) struct ActiveSession {
    metrics: Arc<Metrics>,
    binding: Arc<Binding>,
    _guards: (KeyGuard, Option<Owned>),
    _active: ActiveStream,
}

impl ActiveSession {
    /// Starts a session on the backend of `binding` and counts it.
    pub(super) fn start(
        proxy: &Proxy,
        binding: Arc<Binding>,
        guards: (KeyGuard, Option<Owned>),
        client: &Client,
    ) -> Self {
        binding.link.backend().metrics().sessions_active.inc();
        let metrics = Arc::clone(&proxy.metrics);
        Self { metrics, binding, _guards: guards, _active: client.active.enter() }
    }

    /// The callback that ends the session together with its stream.
    pub(super) fn on_end(self) -> OnEnd {
        // The closure owns the guards, so they last as long as the stream.
        OnEnd::new(move |end| self.ended(end))
    }

    fn ended(self, end: End) {
        let backend = self.binding.link.backend();
        backend.metrics().sessions_active.dec();
        let result = match end {
            End::Finished(_) => SessionResult::Ok,
            End::ClientGone => SessionResult::ClientGone,
            End::DaemonReset | End::BackendLost | End::Refused(_) => SessionResult::BackendLost,
        };
        self.metrics.session_ended(backend.name(), result);
    }
}

/// The byte counters of the first of a Solve's own keys that is `of` this kind.
fn byte_counts(proxy: &Proxy, placing: &Placing, of: fn(&BindingKey) -> bool) -> Arc<ByteCounts> {
    let key = placing.own().iter().find(|key| of(key));
    match key.map(|key| proxy.directory.lookup(key)) {
        Some(Lookup::Live(bound)) => bound.byte_counts,
        _ => Arc::default(),
    }
}

/// A number that stands for `value` in this process.
fn hashed(value: &impl Hash) -> u64 {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    STATE.hash_one(value)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

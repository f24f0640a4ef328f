//! One daemon as the proxy sees it: its fixed properties, what it runs, and its [`State`].
//!
//! A change of the state is published in one place only, to the policies, the metrics and the log, under the lock that
//! made the change.

mod daemon_tls;
mod guards;
mod publish;
mod steps;

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::{daemon_tls::Tls, steps::Steps};
pub use self::{
    guards::{BindingCount, BuildCount, DrainGuard},
    steps::StepCounts,
};
use super::{
    Endpoint, Location, Version,
    state::{Event, Published, State, Transition},
};
use crate::{
    address::Address,
    metrics::{BackendMetrics, BackendState, Fault, Metrics},
    policy::{Candidate, Totals},
    tls,
};

/// What backends signal to the rest of the proxy.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// A backend is faulty, or has joined.
    pub(super) suspected: Notify,
    /// A backend may take a build that it could not take before.
    pub(super) changed: Notify,
}

/// One daemon. [`Fleet`](super::Fleet) owns it, and every part of the proxy shares it.
pub struct Backend {
    name: Arc<str>,
    address: Address,
    /// The TLS of its connections; `None` without TLS.
    tls: Option<Tls>,
    /// What the policies know about it: status, load and capacity.
    pub(super) candidate: Arc<Candidate>,
    location: ArcSwap<Location>,
    state: Mutex<State>,
    /// When the state got its name, as a time of day.
    since: Mutex<SystemTime>,
    /// The version that the daemon reported last.
    version: ArcSwapOption<Version>,
    /// The steps of builds that the daemon has counted.
    steps: Mutex<Steps>,
    bindings: AtomicUsize,
    metrics: BackendMetrics,
    all_metrics: Arc<Metrics>,
    signals: Arc<Signals>,
}

impl Backend {
    /// A backend that has not been probed yet. With `joined`, its slow start begins then.
    pub(super) fn new(
        endpoint: Endpoint,
        joined: Option<Instant>,
        totals: &Arc<Totals>,
        metrics: &Arc<Metrics>,
        signals: &Arc<Signals>,
        client: Option<&Arc<tls::Client>>,
    ) -> Self {
        let capacity = endpoint.capacity.get();
        let candidate = Candidate::new(&endpoint.name, capacity, joined, totals);
        let backend = Self {
            tls: client.map(|client| Tls::new(client, &endpoint)),
            metrics: metrics.backend(&endpoint.name),
            name: endpoint.name,
            address: endpoint.address,
            candidate: Arc::new(candidate),
            location: ArcSwap::from_pointee(endpoint.location),
            state: Mutex::new(State::new(endpoint.condition)),
            since: Mutex::new(SystemTime::now()),
            version: ArcSwapOption::empty(),
            steps: Mutex::default(),
            bindings: AtomicUsize::new(0),
            all_metrics: Arc::clone(metrics),
            signals: Arc::clone(signals),
        };
        backend.metrics.capacity.set(capacity.into());
        backend.publish(backend.state.lock().published());
        backend
    }

    /// The stable name, as in logs and metrics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name as an `Arc`, for callers that store it.
    pub fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// The address on which the daemon listens. It never changes, because a new address makes a new backend.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The TLS of its connections; `None` without TLS.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The size relative to other backends; never 0.
    pub fn capacity(&self) -> u32 {
        self.candidate.capacity()
    }

    fn set_capacity(&self, capacity: NonZeroU32) {
        self.candidate.set_capacity(capacity.get());
        self.signals.changed.notify_waiters();
        self.metrics.capacity.set(capacity.get().into());
    }

    /// Where the daemon runs, as discovery reported last.
    pub fn location(&self) -> Arc<Location> {
        self.location.load_full()
    }

    /// What the policies know about the backend.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// The metrics of this backend, already looked up.
    pub fn metrics(&self) -> &BackendMetrics {
        &self.metrics
    }

    /// How many builds run on the backend now.
    pub fn builds(&self) -> u32 {
        self.candidate.builds()
    }

    /// Whether a build is bound to the backend, or a session whose build has ended or is still to come.
    pub fn is_bound(&self) -> bool {
        self.builds() > 0 || self.bindings.load(Ordering::Relaxed) > 0
    }

    /// Whether the backend takes new builds: it has been probed, is ready, and is neither cordoned, draining nor
    /// ejected. A degraded backend takes builds only if no other backend does.
    pub fn is_ready(&self) -> bool {
        self.candidate.is_ready()
    }

    /// Whether the backend finishes its builds and takes no new ones, even if no backend is ready.
    pub fn is_cordoned(&self) -> bool {
        self.candidate.is_cordoned()
    }

    /// Whether a connection failed and no probe has succeeded since.
    pub fn is_ejected(&self) -> bool {
        self.candidate.is_ejected()
    }

    /// The version that the daemon reported, once it has been asked.
    pub fn version(&self) -> Option<Arc<Version>> {
        self.version.load_full()
    }

    /// Stores the version that the daemon reported.
    pub fn set_version(&self, version: Version) {
        let state = self.state.lock();
        let old = self.version.load_full();
        if state.published().status.departed || old.as_deref() == Some(&version) {
            return;
        }
        let (old, new) = (old.as_ref().map(|old| old.as_str()), version.as_str());
        self.all_metrics.set_backend_version(&self.name, old, Some(new));
        self.version.store(Some(Arc::new(version)));
    }

    /// The state in one word.
    pub fn state(&self) -> BackendState {
        self.state.lock().name()
    }

    /// Since when the backend has been in this state.
    pub fn since(&self) -> SystemTime {
        *self.since.lock()
    }

    /// Why the backend is unhealthy or degraded, if it is.
    pub fn cause(&self) -> Option<String> {
        self.state.lock().cause().map(str::to_owned)
    }

    /// Whether the backend fails builds for reasons of its own.
    pub fn is_degraded(&self) -> bool {
        self.candidate.is_degraded()
    }

    /// When a degraded backend gets its full share of the builds again.
    pub fn probation_end(&self) -> Option<Instant> {
        self.state.lock().probation_end()
    }

    /// Cordons or uncordons the backend. Uncordoning also ends a drain and a probation.
    pub fn set_cordoned(&self, cordoned: bool) {
        self.apply(if cordoned { Event::Cordoned } else { Event::Uncordoned }, Instant::now());
    }

    /// Cordons the backend because its daemon is about to stop. The cordon lasts as long as the guard, and `lease`
    /// longer.
    ///
    /// The cordon ends when nobody has asked again within the lease, when the daemon has been away and is back, or by
    /// [`Self::set_cordoned`].
    pub fn start_drain(self: &Arc<Self>, lease: Duration) -> DrainGuard {
        self.apply(Event::DrainStarted, Instant::now());
        DrainGuard { backend: Arc::clone(self), lease }
    }

    /// Ends what was to last until `now`: the cordon of a drain that was not renewed, and a probation.
    pub fn time_passed(&self, now: Instant) {
        self.apply(Event::TimePassed, now);
    }

    /// Stores what discovery reports now.
    pub(super) fn update(&self, endpoint: &Endpoint) {
        self.set_capacity(endpoint.capacity);
        if **self.location.load() != endpoint.location {
            self.location.store(Arc::new(endpoint.location.clone()));
        }
        self.apply(Event::Listed(endpoint.condition), Instant::now());
    }

    /// Notes that discovery no longer names the backend. It stays as long as something is bound to it.
    pub(super) fn unlist(&self) {
        self.apply(Event::Unlisted, Instant::now());
    }

    /// Notes that the backend has left the fleet. From now on it publishes nothing, because its name is free or another
    /// daemon has it.
    pub(super) fn depart(&self) {
        self.apply(Event::Departed, Instant::now());
    }

    /// Counts one build for as long as the guard lives.
    pub fn start_build(self: &Arc<Self>) -> BuildCount {
        self.candidate.start_build();
        self.metrics.builds_active.inc();
        BuildCount(Arc::clone(self))
    }

    /// Counts one binding for as long as the guard lives.
    pub fn bind(self: &Arc<Self>) -> BindingCount {
        self.bindings.fetch_add(1, Ordering::Relaxed);
        BindingCount(Arc::clone(self))
    }

    /// Reports that a connection failed or broke. The backend is ejected until a probe succeeds.
    ///
    /// A failed probe ejects only at the third time in a row.
    pub fn report_fault(&self, fault: Fault, cause: &str, now: Instant) {
        self.apply(Event::Fault(fault, cause), now);
        if self.is_ejected() {
            self.signals.suspected.notify_one();
        }
    }

    /// Reports that the backend left a question unanswered that it should have answered at once. A probe then finds out
    /// whether the daemon is away.
    pub fn report_silence(&self) {
        self.apply(Event::Silent, Instant::now());
        self.signals.suspected.notify_one();
    }

    /// Whether the backend left the last question or probe unanswered.
    pub fn is_silent(&self) -> bool {
        self.state.lock().is_silent()
    }

    /// Reports that the backend fails builds for reasons of its own. Others are preferred for `first`, or longer if
    /// this has happened before.
    pub(super) fn report_unfit(&self, first: Duration, cause: &str, now: Instant) {
        self.apply(Event::Unfit(first, cause), now);
    }

    /// Withdraws the evidence against the backend's fitness.
    pub(super) fn revoke_unfit(&self) {
        self.apply(Event::UnfitRevoked, Instant::now());
    }

    /// Reports that the backend answered a probe.
    pub fn report_healthy(&self) {
        self.apply(Event::ProbePassed, Instant::now());
    }

    /// Reports that a probe could not be made, because the proxy lacked something. This says nothing about the backend.
    pub fn report_unprobed(&self, now: Instant) {
        self.apply(Event::ProbeNotMade, now);
    }

    /// Whether a probe is due. If so, the next regular probe is `interval` away, or sooner after the first one, so that
    /// a fleet which joined at once is not probed at once for ever.
    ///
    /// The caller must report how the probe ends.
    pub fn take_probe(&self, now: Instant, interval: Duration) -> bool {
        self.state.lock().take_probe(now, interval, rand::random())
    }

    /// Whether any probe of the backend has ended, with any result.
    pub(super) fn has_verdict(&self) -> bool {
        self.state.lock().has_verdict()
    }

    /// Whether discovery no longer names the backend and nothing is bound to it.
    pub(super) fn may_leave(&self) -> bool {
        self.state.lock().is_unlisted() && !self.is_bound()
    }

    /// When an ejected backend is probed next.
    pub fn retry_at(&self) -> Option<Instant> {
        self.state.lock().retry_at()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("state", &self.state().label())
            .field("builds", &self.builds())
            .finish_non_exhaustive()
    }
}

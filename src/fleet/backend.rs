//! One daemon as the proxy sees it: what is fixed about it, what it runs, and its [`State`].
//!
//! What follows from a change of the state is published here and nowhere else: to the policies, to the
//! metric and to the log, under the lock that made the change.

mod daemon_tls;
mod guards;
mod publish;

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::daemon_tls::Tls;
pub use self::guards::{BindingCount, BuildCount, DrainGuard};
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

/// What backends tell the rest of the proxy.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// One is faulty, or has joined.
    pub(super) suspected: Notify,
    /// One may take a build that it did not take before.
    pub(super) changed: Notify,
}

/// One daemon.
pub struct Backend {
    name: Arc<str>,
    address: Address,
    /// How it is spoken to, unless without TLS.
    tls: Option<Tls>,
    /// What the policies know of it: status, load, capacity.
    pub(super) candidate: Arc<Candidate>,
    location: ArcSwap<Location>,
    state: Mutex<State>,
    /// What it said when it was probed last.
    version: ArcSwapOption<Version>,
    bindings: AtomicUsize,
    metrics: BackendMetrics,
    all_metrics: Arc<Metrics>,
    signals: Arc<Signals>,
}

impl Backend {
    /// A backend that no probe has seen yet. With `joined`, its slow start begins then.
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
            version: ArcSwapOption::empty(),
            bindings: AtomicUsize::new(0),
            all_metrics: Arc::clone(metrics),
            signals: Arc::clone(signals),
        };
        backend.metrics.capacity.set(capacity.into());
        backend.publish(backend.state.lock().published());
        backend
    }

    /// Its stable name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name, for callers that keep it.
    pub fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How it is spoken to, unless without TLS.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Its size against the others'; never 0.
    pub fn capacity(&self) -> u32 {
        self.candidate.capacity()
    }

    fn set_capacity(&self, capacity: NonZeroU32) {
        self.candidate.set_capacity(capacity.get());
        self.signals.changed.notify_waiters();
        self.metrics.capacity.set(capacity.get().into());
    }

    /// Where it runs.
    pub fn location(&self) -> Arc<Location> {
        self.location.load_full()
    }

    /// What the policies know of it.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// Its metric handles.
    pub fn metrics(&self) -> &BackendMetrics {
        &self.metrics
    }

    /// Builds that run on it now.
    pub fn builds(&self) -> u32 {
        self.candidate.builds()
    }

    /// Whether anything is bound to it: a build, or a session whose build has ended or is yet to come.
    pub fn is_bound(&self) -> bool {
        self.builds() > 0 || self.bindings.load(Ordering::Relaxed) > 0
    }

    /// Whether it takes new builds: probed, ready, and neither cordoned, draining nor ejected. A degraded one
    /// takes them where no other does.
    pub fn is_ready(&self) -> bool {
        self.candidate.is_ready()
    }

    /// Whether it finishes its builds and takes no new one, even where no backend is ready.
    pub fn is_cordoned(&self) -> bool {
        self.candidate.is_cordoned()
    }

    /// Whether a connection to it failed and no probe has succeeded since.
    pub fn is_ejected(&self) -> bool {
        self.candidate.is_ejected()
    }

    /// The version that it says it has, once it has been asked.
    pub fn version(&self) -> Option<Arc<Version>> {
        self.version.load_full()
    }

    /// Takes over the version that it says it has.
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

    /// What it is doing, in one word.
    pub fn state(&self) -> BackendState {
        self.state.lock().name()
    }

    /// Why it is unhealthy or degraded, if it is.
    pub fn cause(&self) -> Option<String> {
        self.state.lock().cause().map(str::to_owned)
    }

    /// Whether it fails builds for reasons of its own.
    pub fn is_degraded(&self) -> bool {
        self.candidate.is_degraded()
    }

    /// When it takes its share of the builds again, if it is degraded.
    pub fn probation_end(&self) -> Option<Instant> {
        self.state.lock().probation_end()
    }

    /// Cordons or uncordons it; to uncordon takes back a drain too, and a probation.
    pub fn set_cordoned(&self, cordoned: bool) {
        self.apply(if cordoned { Event::Cordoned } else { Event::Uncordoned }, Instant::now());
    }

    /// Cordons it because its daemon is about to stop, for the guard's life and `lease` after that.
    ///
    /// The cordon ends when nobody has asked again for so long, when the daemon has been away and is back,
    /// or by [`Self::set_cordoned`].
    pub fn start_drain(self: &Arc<Self>, lease: Duration) -> DrainGuard {
        self.apply(Event::DrainStarted, Instant::now());
        DrainGuard { backend: Arc::clone(self), lease }
    }

    /// Ends what was to last until `now`: the cordon of a drain that nobody has asked for again, a probation.
    pub fn time_passed(&self, now: Instant) {
        self.apply(Event::TimePassed, now);
    }

    /// Takes over what discovery says now.
    pub(super) fn update(&self, endpoint: &Endpoint) {
        self.set_capacity(endpoint.capacity);
        if **self.location.load() != endpoint.location {
            self.location.store(Arc::new(endpoint.location.clone()));
        }
        self.apply(Event::Listed(endpoint.condition), Instant::now());
    }

    /// Discovery no longer names it; it stays for what is bound to it.
    pub(super) fn unlist(&self) {
        self.apply(Event::Unlisted, Instant::now());
    }

    /// It is out of the fleet. Whatever becomes of it is told to nobody any more, for its name is free
    /// or another daemon's.
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

    /// Reports that a connection to it failed or broke: it is ejected until a probe succeeds.
    ///
    /// A probe that fails ejects only at the third time in a row.
    pub fn report_fault(&self, fault: Fault, cause: &str, now: Instant) {
        self.apply(Event::Fault(fault, cause), now);
        if self.is_ejected() {
            self.signals.suspected.notify_one();
        }
    }

    /// Reports that it left a question without an answer that it should have at once: a probe is to tell
    /// whether it is away.
    pub fn report_silence(&self) {
        self.apply(Event::Silent, Instant::now());
        self.signals.suspected.notify_one();
    }

    /// Whether it did not answer when it was asked last.
    pub fn is_silent(&self) -> bool {
        self.state.lock().is_silent()
    }

    /// Reports that it fails builds for reasons of its own: others are preferred for `first`, or longer if
    /// it has been so before.
    pub(super) fn report_unfit(&self, first: Duration, cause: &str, now: Instant) {
        self.apply(Event::Unfit(first, cause), now);
    }

    /// Takes back what was reported of its fitness.
    pub(super) fn revoke_unfit(&self) {
        self.apply(Event::UnfitRevoked, Instant::now());
    }

    /// Reports that it answered a probe.
    pub fn report_healthy(&self) {
        self.apply(Event::ProbePassed, Instant::now());
    }

    /// Reports that a probe could not be made, for want of something of ours: it says nothing.
    pub fn report_unprobed(&self, now: Instant) {
        self.apply(Event::ProbeNotMade, now);
    }

    /// Whether it is time for a probe; if so the next regular one is `interval` away, or sooner after
    /// the first: a fleet that came at once must not be probed at once for ever.
    ///
    /// Whoever is told so must report how the probe ends.
    pub fn take_probe(&self, now: Instant, interval: Duration) -> bool {
        self.state.lock().take_probe(now, interval, rand::random())
    }

    /// Whether a probe of it has ended yet, well or not.
    pub(super) fn has_verdict(&self) -> bool {
        self.state.lock().has_verdict()
    }

    /// Whether discovery no longer names it and nothing is bound to it any more.
    pub(super) fn may_leave(&self) -> bool {
        self.state.lock().is_unlisted() && !self.is_bound()
    }

    /// When an ejected backend is to be probed next.
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

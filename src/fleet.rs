//! The live set of backends: state, load, and one atomically swapped snapshot.
//!
//! Discovery replaces the endpoints; health and the data path report what they see of a backend. A
//! backend keeps its object for as long as its name and address stay, so counts survive a swap.

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::{
    address::Address,
    metrics::{BackendMetrics, BackendReasonLabels, Metrics},
    policy::{Candidate, Candidates, Choice, Totals},
};

/// Wait before the first probe of an ejected backend: a daemon that restarts is back in a second.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest wait between probes: a daemon that is back takes builds within half a minute.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Failed probes in a row that eject a backend which still accepts connections.
///
/// One is not enough: a daemon under full load can miss a deadline.
const PROBES_TO_EJECT: u32 = 3;

/// Backends that come within this time of the first are the first fleet: discovery may report them
/// in several parts.
const FIRST_FLEET: Duration = Duration::from_secs(10);

/// What discovery reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stable name: what logs, metrics and the consistent hash know the daemon by.
    pub name: Arc<str>,
    /// Where the daemon listens.
    pub address: Address,
    /// Its size against the others': one with 2 is given twice the builds of one with 1.
    pub capacity: NonZeroU32,
}

impl Endpoint {
    /// An endpoint of capacity 1.
    pub fn new(name: impl Into<Arc<str>>, address: Address) -> Self {
        Self { name: name.into(), address, capacity: NonZeroU32::MIN }
    }
}

/// One daemon.
pub struct Backend {
    name: Arc<str>,
    address: Address,
    /// What the policies know of it: state, load, capacity.
    candidate: Arc<Candidate>,
    health: Mutex<Health>,
    metrics: BackendMetrics,
    all_metrics: Arc<Metrics>,
    suspected: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Health {
    failed_probes: u32,
    retry: Option<Retry>,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    wait: Duration,
    cause: String,
}

/// Why a backend is under suspicion; a value of the metric's `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It did not accept a connection.
    Refused,
    /// It did not accept a connection in time.
    Timeout,
    /// A connection broke while streams were open on it.
    Lost,
    /// It did not answer a probe.
    Probe,
}

impl Fault {
    fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Probe => "probe",
        }
    }
}

impl Backend {
    fn new(endpoint: Endpoint, joined: Option<Instant>, fleet: &Fleet) -> Self {
        let capacity = endpoint.capacity.get();
        let candidate = Candidate::new(&endpoint.name, capacity, joined, &fleet.totals);
        let backend = Self {
            metrics: fleet.metrics.backend(&endpoint.name),
            name: endpoint.name,
            address: endpoint.address,
            candidate: Arc::new(candidate),
            health: Mutex::default(),
            all_metrics: Arc::clone(&fleet.metrics),
            suspected: Arc::clone(&fleet.suspected),
        };
        backend.metrics.capacity.set(capacity.into());
        backend.publish_state();
        backend
    }

    /// Its stable name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its size against the others'; never 0.
    pub fn capacity(&self) -> u32 {
        self.candidate.capacity()
    }

    fn set_capacity(&self, capacity: NonZeroU32) {
        self.candidate.set_capacity(capacity.get());
        self.metrics.capacity.set(capacity.get().into());
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

    /// Whether it takes new builds: neither cordoned nor ejected.
    pub fn is_ready(&self) -> bool {
        self.candidate.is_ready()
    }

    /// Whether it finishes its builds and takes no new one.
    pub fn is_cordoned(&self) -> bool {
        self.candidate.is_cordoned()
    }

    /// The word for its state, one of [`crate::metrics::BACKEND_STATES`].
    pub fn state(&self) -> &'static str {
        if self.is_cordoned() {
            "cordoned"
        } else if self.is_ready() {
            "ready"
        } else {
            "unhealthy"
        }
    }

    /// Why it is ejected, if it is.
    pub fn ejection_cause(&self) -> Option<String> {
        self.health.lock().retry.as_ref().map(|retry| retry.cause.clone())
    }

    /// Cordons or uncordons it.
    pub fn set_cordoned(&self, cordoned: bool) {
        if self.candidate.set_cordoned(cordoned) {
            info!(backend = self.name(), cordoned, "backend cordon changed");
            self.publish_state();
        }
    }

    /// Counts one build for as long as the guard lives.
    pub fn start_build(self: &Arc<Self>) -> BuildCount {
        self.candidate.start_build();
        self.metrics.builds_active.inc();
        BuildCount(Arc::clone(self))
    }

    /// Reports that a connection to it failed or broke: it is ejected until a probe succeeds.
    ///
    /// A probe that fails ejects only at the third time in a row.
    pub fn report_fault(&self, fault: Fault, cause: &str, now: Instant) {
        let reason = fault.label().to_owned();
        let labels = BackendReasonLabels { backend: self.name.to_string(), reason };
        self.all_metrics.upstream_errors.get_or_create(&labels).inc();
        let mut health = self.health.lock();
        health.failed_probes += u32::from(fault == Fault::Probe);
        if fault == Fault::Probe && health.retry.is_none() && health.failed_probes < PROBES_TO_EJECT
        {
            return;
        }
        let wait = match &health.retry {
            // Faults of several streams at once are one event: only a probe lengthens the wait.
            Some(retry) if fault != Fault::Probe => retry.wait,
            Some(retry) => (retry.wait * 2).min(LAST_RETRY),
            None => FIRST_RETRY,
        };
        health.retry = Some(Retry { at: now + wait, wait, cause: cause.to_owned() });
        drop(health);
        if self.candidate.set_ejected(true) {
            warn!(backend = self.name(), fault = fault.label(), error = cause, "backend ejected");
            self.publish_state();
        }
        self.suspected.notify_one();
    }

    /// Reports that it answered a probe.
    pub fn report_healthy(&self) {
        *self.health.lock() = Health::default();
        if self.candidate.set_ejected(false) {
            info!(backend = self.name(), "backend is back");
            self.publish_state();
        }
    }

    /// When an ejected backend is to be probed next.
    pub fn retry_at(&self) -> Option<Instant> {
        self.health.lock().retry.as_ref().map(|retry| retry.at)
    }

    fn publish_state(&self) {
        self.all_metrics.set_backend_state(&self.name, self.state());
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("state", &self.state())
            .field("builds", &self.builds())
            .finish_non_exhaustive()
    }
}

/// One running build on a backend.
#[derive(Debug)]
pub struct BuildCount(Arc<Backend>);

impl BuildCount {
    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for BuildCount {
    fn drop(&mut self) {
        self.0.candidate.end_build();
        self.0.metrics.builds_active.dec();
    }
}

/// All backends at one moment, sorted by name.
pub type Snapshot = Arc<Vec<Arc<Backend>>>;

/// A snapshot and the same backends as the policies see them, in the same order.
#[derive(Debug, Default)]
pub struct Roster {
    backends: Snapshot,
    candidates: Candidates,
}

impl Roster {
    /// All backends, sorted by name.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// What a policy chooses from: a choice names a place in [`Roster::backends`].
    pub fn candidates(&self) -> &Candidates {
        &self.candidates
    }
}

/// The live set.
#[derive(Debug)]
pub struct Fleet {
    roster: ArcSwap<Roster>,
    totals: Arc<Totals>,
    /// Held from a choice until its build is counted, so that no two see the same room.
    choosing: Mutex<()>,
    /// When the first backend came.
    began: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
    suspected: Arc<Notify>,
}

impl Fleet {
    /// An empty fleet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            roster: ArcSwap::default(),
            totals: Arc::default(),
            choosing: Mutex::default(),
            began: Mutex::default(),
            metrics,
            suspected: Arc::default(),
        }
    }

    /// All backends now, sorted by name.
    pub fn backends(&self) -> Snapshot {
        Arc::clone(&self.roster.load().backends)
    }

    /// All backends now, and what the policies know of them.
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.load_full()
    }

    /// Counts a build on the backend that `choose` chooses from `roster`.
    pub fn start_build(
        &self,
        roster: &Roster,
        choose: impl FnOnce(&Candidates) -> Option<Choice>,
    ) -> Option<(BuildCount, Choice)> {
        let _alone = self.choosing.lock();
        let choice = choose(&roster.candidates)?;
        Some((roster.backends[choice.index].start_build(), choice))
    }

    /// The backend called `name`.
    pub fn find(&self, name: &str) -> Option<Arc<Backend>> {
        self.roster.load().backends.iter().find(|backend| backend.name() == name).cloned()
    }

    /// Whether any backend takes new builds.
    pub fn is_ready(&self) -> bool {
        self.roster.load().backends.iter().any(|backend| backend.is_ready())
    }

    /// Waits until some backend has been reported faulty.
    pub async fn suspicion(&self) {
        self.suspected.notified().await;
    }

    /// Makes `endpoints` the fleet. What stays keeps its object, state and counts.
    pub fn replace(&self, endpoints: Vec<Endpoint>) {
        let joined = self.slow_start(Instant::now(), endpoints.is_empty());
        let old = self.backends();
        let mut known: HashMap<&str, &Arc<Backend>> =
            old.iter().map(|backend| (backend.name(), backend)).collect();
        let mut backends: Vec<Arc<Backend>> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            match known.remove(&*endpoint.name) {
                Some(backend) if backend.address == endpoint.address => {
                    backend.set_capacity(endpoint.capacity);
                    backends.push(Arc::clone(backend));
                }
                replaced => {
                    if let Some(backend) = replaced {
                        backend.candidate.depart();
                    }
                    info!(backend = &*endpoint.name, address = %endpoint.address, "backend joined");
                    let backend = Backend::new(endpoint, joined, self);
                    backends.push(Arc::new(backend));
                }
            }
        }
        backends.sort_by(|a, b| a.name.cmp(&b.name));
        for (departed, backend) in known {
            info!(backend = departed, "backend left");
            backend.candidate.depart();
            self.metrics.forget_backend(departed);
        }
        let candidates = backends.iter().map(|backend| Arc::clone(&backend.candidate)).collect();
        let candidates = Candidates::new(candidates, &self.totals);
        self.roster.store(Arc::new(Roster { backends: Arc::new(backends), candidates }));
    }

    /// When the slow start of a backend that joins `now` begins: never for those of the first fleet,
    /// for nobody else could take its builds.
    fn slow_start(&self, now: Instant, empty: bool) -> Option<Instant> {
        let mut began = self.began.lock();
        if began.is_none() && !empty {
            *began = Some(now);
        }
        began.filter(|began| now >= *began + FIRST_FLEET).map(|_began| now)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn backends(count: usize) -> Vec<Arc<Backend>> {
        let fleet = Fleet::new(Arc::new(Metrics::new()));
        fleet.replace((0..count).map(|n| endpoint(&format!("buildkitd-{n}"), 1234)).collect());
        fleet.backends().to_vec()
    }

    fn endpoint(name: &str, port: u16) -> Endpoint {
        Endpoint::new(name, Address::Tcp { host: "127.0.0.1".into(), port })
    }

    fn fleet(endpoints: Vec<Endpoint>) -> Fleet {
        let fleet = Fleet::new(Arc::new(Metrics::new()));
        fleet.replace(endpoints);
        fleet
    }

    #[test]
    fn a_backend_that_stays_keeps_its_builds_and_its_cordon() {
        let fleet = fleet(vec![endpoint("b", 2), endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        let count = a.start_build();
        a.set_cordoned(true);
        fleet.replace(vec![endpoint("a", 1), endpoint("c", 3)]);
        let a = fleet.find("a").expect("still there");
        assert_eq!((a.builds(), a.state()), (1, "cordoned"));
        assert!(fleet.find("b").is_none());
        drop(count);
        assert_eq!(a.builds(), 0);
    }

    #[test]
    fn a_new_address_is_a_new_backend() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        fleet.find("a").expect("there").report_fault(Fault::Refused, "refused", Instant::now());
        assert!(!fleet.is_ready());
        fleet.replace(vec![endpoint("a", 2)]);
        assert!(fleet.is_ready());
    }

    #[test]
    fn a_fault_ejects_and_a_probe_brings_back() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        let now = Instant::now();
        a.report_fault(Fault::Lost, "reset", now);
        assert_eq!((a.state(), a.retry_at()), ("unhealthy", Some(now + FIRST_RETRY)));
        a.report_fault(Fault::Lost, "reset", now);
        assert_eq!(a.retry_at(), Some(now + FIRST_RETRY), "one event, one wait");
        a.report_fault(Fault::Probe, "refused", now);
        assert_eq!(a.retry_at(), Some(now + FIRST_RETRY * 2));
        for _ in 0..20 {
            a.report_fault(Fault::Probe, "refused", now);
        }
        assert_eq!(a.retry_at(), Some(now + LAST_RETRY));
        a.report_healthy();
        assert_eq!((a.state(), a.retry_at()), ("ready", None));
    }

    #[test]
    fn one_missed_probe_ejects_nobody() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        for _ in 1..PROBES_TO_EJECT {
            a.report_fault(Fault::Probe, "deadline", Instant::now());
            assert!(a.is_ready());
        }
        a.report_fault(Fault::Probe, "deadline", Instant::now());
        assert!(!a.is_ready());
    }

    #[test]
    fn series_of_a_departed_backend_go() {
        let metrics = Arc::new(Metrics::new());
        let fleet = Fleet::new(Arc::clone(&metrics));
        fleet.replace(vec![endpoint("gone-soon", 1)]);
        fleet.find("gone-soon").expect("there").report_fault(Fault::Lost, "x", Instant::now());
        assert!(metrics.render().contains("gone-soon"));
        fleet.replace(Vec::new());
        assert!(!metrics.render().contains("gone-soon"));
    }
}

//! The live set of backends: state, load, and one atomically swapped snapshot.
//!
//! Discovery replaces the endpoints; health and the data path report what they see of a backend. A
//! backend keeps its object for as long as its name and address stay, so counts survive a swap. One
//! that discovery no longer names stays, draining, until nothing is bound to it.

mod endpoint;

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::endpoint::{Condition, Endpoint, Labels, Place, Pod};
use crate::{
    address::Address,
    metrics::{BackendMetrics, Metrics},
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

/// One daemon.
pub struct Backend {
    name: Arc<str>,
    address: Address,
    /// What the policies know of it: state, load, capacity.
    candidate: Arc<Candidate>,
    place: ArcSwap<Place>,
    health: Mutex<Health>,
    life: Mutex<Life>,
    bindings: AtomicUsize,
    metrics: BackendMetrics,
    all_metrics: Arc<Metrics>,
    suspected: Arc<Notify>,
}

/// All that decides whether it takes builds, except its health.
#[derive(Debug, Default)]
struct Life {
    condition: Condition,
    /// Discovery no longer names it; it stays for what is bound to it.
    gone: bool,
    /// It has answered a probe, ever.
    probed: bool,
    /// An operator's cordon.
    cordoned: bool,
    /// Someone asked to drain it because its daemon is about to stop.
    drained: bool,
    /// Such requests that are open.
    drains: usize,
    /// When that cordon ends if none is open by then.
    lease_end: Option<Instant>,
}

impl Life {
    /// It is on its way out.
    fn is_draining(&self) -> bool {
        self.gone || self.condition == Condition::Terminating
    }
}

#[derive(Debug, Default)]
struct Health {
    /// When it is to be probed next if it is well; at once if never probed.
    next_probe: Option<Instant>,
    /// A probe is under way.
    probing: bool,
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
            place: ArcSwap::from_pointee(endpoint.place),
            health: Mutex::default(),
            life: Mutex::new(Life { condition: endpoint.condition, ..Life::default() }),
            bindings: AtomicUsize::new(0),
            all_metrics: Arc::clone(&fleet.metrics),
            suspected: Arc::clone(&fleet.suspected),
        };
        backend.metrics.capacity.set(capacity.into());
        backend.change(|_life| {});
        backend
    }

    /// Its stable name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, for who keeps it.
    pub fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
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

    /// Where it runs.
    pub fn place(&self) -> Arc<Place> {
        self.place.load_full()
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

    /// Whether it takes new builds: probed, ready, and neither cordoned, draining nor ejected.
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

    /// The word for its state, one of [`crate::metrics::BACKEND_STATES`].
    pub fn state(&self) -> &'static str {
        self.word(&self.life.lock())
    }

    fn word(&self, life: &Life) -> &'static str {
        match life {
            life if life.is_draining() && self.is_ejected() => "lost",
            life if life.is_draining() => "draining",
            life if life.cordoned || life.drained => "cordoned",
            _ if self.is_ejected() => "unhealthy",
            life if life.condition == Condition::NotReady => "unhealthy",
            life if !life.probed => "starting",
            _ => "ready",
        }
    }

    /// Why it is unhealthy, if it is.
    pub fn ejection_cause(&self) -> Option<String> {
        let cause = self.health.lock().retry.as_ref().map(|retry| retry.cause.clone());
        let not_ready = || self.life.lock().condition == Condition::NotReady;
        cause.or_else(|| not_ready().then(|| "discovery says that it is not ready".to_owned()))
    }

    /// Cordons or uncordons it; to uncordon takes back a drain too.
    pub fn set_cordoned(&self, cordoned: bool) {
        self.change(|life| {
            life.cordoned = cordoned;
            life.drained &= cordoned;
            life.lease_end = life.lease_end.filter(|_end| cordoned);
        });
    }

    /// Cordons it because its daemon is about to stop, for the guard's life and `lease` after that.
    ///
    /// The cordon ends when nobody has asked again for so long, when the daemon has been away and is back,
    /// or by [`Self::set_cordoned`].
    pub fn start_drain(self: &Arc<Self>, lease: Duration) -> Drain {
        self.change(|life| {
            life.drained = true;
            life.drains += 1;
        });
        Drain { backend: Arc::clone(self), lease }
    }

    fn end_drain(&self, lease_end: Instant) {
        self.change(|life| {
            life.drains -= 1;
            life.lease_end = life.lease_end.max(Some(lease_end));
        });
    }

    /// Ends the cordon of a drain that nobody has asked for again in time, at `now`.
    pub fn end_lease(&self, now: Instant) {
        let over = {
            let life = self.life.lock();
            life.drained && life.drains == 0 && life.lease_end.is_some_and(|end| end <= now)
        };
        if over {
            let pool = self.all_metrics.pool();
            info!(pool, backend = self.name(), "drain was not renewed, its cordon ends");
            self.change(|life| {
                // A request that has come since then holds it.
                life.drained = life.drains > 0;
                life.lease_end = None;
            });
        }
    }

    /// Takes over what discovery says now.
    fn update(&self, endpoint: &Endpoint) {
        self.set_capacity(endpoint.capacity);
        if **self.place.load() != endpoint.place {
            self.place.store(Arc::new(endpoint.place.clone()));
        }
        let new = (endpoint.condition, false);
        let old = {
            let life = self.life.lock();
            (life.condition, life.gone)
        };
        if old != new {
            self.change(|life| (life.condition, life.gone) = new);
        }
    }

    /// Changes what decides its state, and tells of the new one.
    fn change(&self, change: impl FnOnce(&mut Life)) {
        let mut life = self.life.lock();
        let before = self.word(&life);
        change(&mut life);
        let idle = life.cordoned || life.drained || life.is_draining();
        self.candidate.set_cordoned(idle);
        self.candidate.set_unready(!life.probed || life.condition == Condition::NotReady);
        let state = self.word(&life);
        if before != state {
            let (pool, builds) = (self.all_metrics.pool(), self.builds());
            info!(pool, backend = self.name(), before, state, builds, "backend changed");
        }
        // Under the lock, so that the last of two changes is the one that is published last.
        self.all_metrics.set_backend_state(&self.name, state);
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
        self.all_metrics.upstream_error(&self.name, fault.label());
        let mut health = self.health.lock();
        health.failed_probes += u32::from(fault == Fault::Probe);
        health.probing &= fault != Fault::Probe;
        if fault == Fault::Probe && health.retry.is_none() && health.failed_probes < PROBES_TO_EJECT
        {
            // A daemon that is away is to be known soon, by the next two.
            health.next_probe = Some(now + FIRST_RETRY);
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
            let pool = self.all_metrics.pool();
            let backend = self.name();
            warn!(pool, backend, fault = fault.label(), error = cause, "backend ejected");
            self.change(|_life| {});
        }
        self.suspected.notify_one();
    }

    /// Reports that it answered a probe.
    pub fn report_healthy(&self) {
        let mut health = self.health.lock();
        *health = Health { next_probe: health.next_probe, ..Health::default() };
        drop(health);
        if self.candidate.set_ejected(false) {
            info!(pool = self.all_metrics.pool(), backend = self.name(), "backend is back");
            // The daemon that was to stop has stopped, and this is the next one in its place.
            self.change(|life| {
                (life.probed, life.drained) = (true, life.drains > 0);
                life.lease_end = None;
            });
        } else if !self.life.lock().probed {
            self.change(|life| life.probed = true);
        }
    }

    /// Whether it is time for a probe; if so the next regular one is `interval` away, or sooner after
    /// the first: a fleet that came at once must not be probed at once for ever.
    ///
    /// Whoever is told so must report how the probe ends.
    pub fn take_probe(&self, now: Instant, interval: Duration) -> bool {
        if self.life.lock().gone {
            return false;
        }
        let mut health = self.health.lock();
        let regular = health.next_probe.is_none_or(|at| at <= now);
        let due = !health.probing && health.retry.as_ref().map_or(regular, |retry| retry.at <= now);
        if due {
            let wait = match health.next_probe {
                Some(_) => interval,
                None => interval.mul_f64(rand::random()),
            };
            health.probing = true;
            health.next_probe = Some(now + wait);
        }
        due
    }

    /// Whether a probe of it has ended yet, well or not.
    fn has_verdict(&self) -> bool {
        let health = self.health.lock();
        health.failed_probes > 0 || health.retry.is_some() || self.life.lock().probed
    }

    /// When an ejected backend is to be probed next.
    pub fn retry_at(&self) -> Option<Instant> {
        self.health.lock().retry.as_ref().map(|retry| retry.at)
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

/// One binding to a backend.
#[derive(Debug)]
pub struct BindingCount(Arc<Backend>);

impl Drop for BindingCount {
    fn drop(&mut self) {
        self.0.bindings.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One open request to drain a backend. The backend stays cordoned for a lease when it ends.
#[derive(Debug)]
pub struct Drain {
    backend: Arc<Backend>,
    lease: Duration,
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.backend.end_drain(Instant::now() + self.lease);
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
    /// Held while the roster is made anew, so that two do not undo each other's work.
    writer: Mutex<()>,
    settled: CancellationToken,
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
            writer: Mutex::default(),
            settled: CancellationToken::new(),
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
        let roster = self.roster.load();
        let at = roster.backends.binary_search_by(|backend| backend.name().cmp(name)).ok()?;
        Some(Arc::clone(&roster.backends[at]))
    }

    /// Whether any backend takes new builds.
    pub fn is_ready(&self) -> bool {
        self.roster.load().backends.iter().any(|backend| backend.is_ready())
    }

    /// Waits until some backend has joined or been reported faulty.
    pub async fn suspicion(&self) {
        self.suspected.notified().await;
    }

    /// Waits until each backend of the first fleet has been probed once.
    pub async fn settled(&self) {
        self.settled.cancelled().await;
    }

    /// Looks whether that is so.
    pub fn settle(&self) {
        if self.settled.is_cancelled() {
            return;
        }
        let backends = self.backends();
        if !backends.is_empty() && backends.iter().all(|backend| backend.has_verdict()) {
            self.settled.cancel();
        }
    }

    /// Makes `endpoints` the fleet. What stays keeps its object, state and counts; what goes while
    /// something is bound to it stays as draining.
    ///
    /// Of two endpoints with one name the first counts.
    pub fn replace(&self, endpoints: Vec<Endpoint>) {
        let _writing = self.writer.lock();
        let joined = self.slow_start(Instant::now(), endpoints.is_empty());
        let old = self.backends();
        let mut known: HashMap<&str, &Arc<Backend>> =
            old.iter().map(|backend| (backend.name(), backend)).collect();
        let mut backends: Vec<Arc<Backend>> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            match known.remove(&*endpoint.name) {
                Some(backend) if backend.address == endpoint.address => {
                    backend.update(&endpoint);
                    backends.push(Arc::clone(backend));
                }
                replaced => {
                    if let Some(backend) = replaced {
                        backend.candidate.depart();
                    }
                    let (pool, backend) = (self.metrics.pool(), &*endpoint.name);
                    info!(pool, backend, address = %endpoint.address, "backend joined");
                    backends.push(Arc::new(Backend::new(endpoint, joined, self)));
                    self.suspected.notify_one();
                }
            }
        }
        for departed in known.into_values() {
            if departed.is_bound() {
                departed.change(|life| life.gone = true);
                backends.push(Arc::clone(departed));
            } else {
                self.forget(departed);
            }
        }
        backends.sort_by(|a, b| a.name.cmp(&b.name));
        backends.dedup_by(|later, first| later.name == first.name);
        self.store(backends);
    }

    /// Lets go of backends that discovery no longer names and that nothing is bound to any more.
    pub fn sweep(&self) {
        let left = |backend: &Arc<Backend>| backend.life.lock().gone && !backend.is_bound();
        if !self.backends().iter().any(left) {
            return;
        }
        let _writing = self.writer.lock();
        let (departed, backends): (Vec<_>, Vec<_>) =
            self.backends().iter().cloned().partition(left);
        departed.iter().for_each(|backend| self.forget(backend));
        self.store(backends);
    }

    fn forget(&self, departed: &Backend) {
        info!(pool = self.metrics.pool(), backend = departed.name(), "backend left");
        departed.candidate.depart();
        self.metrics.forget_backend(departed.name());
    }

    fn store(&self, backends: Vec<Arc<Backend>>) {
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

    const LEASE: Duration = Duration::from_secs(60);

    pub(crate) fn backends(count: usize) -> Vec<Arc<Backend>> {
        let fleet = Fleet::new(Arc::new(Metrics::default()));
        fleet.replace((0..count).map(|n| endpoint(&format!("buildkitd-{n}"), 1234)).collect());
        fleet.backends().iter().for_each(|backend| backend.report_healthy());
        fleet.backends().to_vec()
    }

    fn endpoint(name: &str, port: u16) -> Endpoint {
        Endpoint::new(name, Address::Tcp { host: "127.0.0.1".into(), port })
    }

    fn fleet(endpoints: Vec<Endpoint>) -> Fleet {
        let fleet = Fleet::new(Arc::new(Metrics::default()));
        fleet.replace(endpoints);
        fleet.backends().iter().for_each(|backend| backend.report_healthy());
        fleet
    }

    fn with(condition: Condition, endpoint: Endpoint) -> Endpoint {
        Endpoint { condition, ..endpoint }
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
        let a = fleet.find("a").expect("there");
        assert_eq!(a.state(), "starting");
        a.report_healthy();
        assert!(fleet.is_ready());
    }

    #[test]
    fn a_new_backend_takes_builds_once_a_probe_has_passed() {
        let fleet = Fleet::new(Arc::new(Metrics::default()));
        fleet.replace(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        assert_eq!((a.state(), a.is_ready()), ("starting", false));
        a.report_healthy();
        assert_eq!((a.state(), a.is_ready()), ("ready", true));
    }

    #[test]
    fn what_discovery_says_decides_who_takes_builds() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        for (condition, state, cordoned) in [
            (Condition::NotReady, "unhealthy", false),
            (Condition::Terminating, "draining", true),
            (Condition::Ready, "ready", false),
        ] {
            fleet.replace(vec![with(condition, endpoint("a", 1))]);
            assert_eq!((a.state(), a.is_cordoned()), (state, cordoned));
            assert_eq!(a.is_ready(), state == "ready");
        }
    }

    #[test]
    fn a_backend_that_goes_stays_until_nothing_is_bound_to_it() {
        let fleet = fleet(vec![endpoint("a", 1), endpoint("b", 2)]);
        let a = fleet.find("a").expect("there");
        let (build, binding) = (a.start_build(), a.bind());
        fleet.replace(vec![endpoint("b", 2)]);
        fleet.sweep();
        assert_eq!((a.state(), a.is_cordoned()), ("draining", true));
        assert!(fleet.find("a").is_some());
        a.report_fault(Fault::Lost, "reset", Instant::now());
        assert_eq!(a.state(), "lost");
        drop(build);
        fleet.sweep();
        assert!(fleet.find("a").is_some(), "its session is open");
        drop(binding);
        fleet.sweep();
        assert!(fleet.find("a").is_none());
        assert_eq!(fleet.backends().len(), 1);
    }

    #[test]
    fn a_backend_that_goes_and_returns_is_the_same() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        let build = a.start_build();
        fleet.replace(Vec::new());
        fleet.replace(vec![endpoint("a", 1)]);
        assert!(Arc::ptr_eq(&a, &fleet.find("a").expect("there")) && a.is_ready());
        drop(build);
    }

    #[test]
    fn the_next_daemon_of_a_name_takes_its_place_at_once() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        let old = fleet.find("a").expect("there");
        let _build = old.start_build();
        fleet.replace(vec![endpoint("a", 2)]);
        let new = fleet.find("a").expect("there");
        assert!(!Arc::ptr_eq(&old, &new));
        assert_eq!((new.builds(), fleet.backends().len()), (0, 1));
    }

    #[test]
    fn a_drain_lasts_until_the_daemon_has_been_away() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        let drain = a.start_drain(LEASE);
        a.report_fault(Fault::Lost, "reset", Instant::now());
        a.report_healthy();
        assert_eq!(a.state(), "cordoned", "whoever asked still waits");
        drop(drain);
        assert_eq!(a.state(), "cordoned");
        a.report_fault(Fault::Lost, "reset", Instant::now());
        a.report_healthy();
        assert_eq!(a.state(), "ready");
        drop(a.start_drain(LEASE));
        a.set_cordoned(false);
        assert_eq!(a.state(), "ready");
    }

    #[test]
    fn a_drain_that_is_not_renewed_ends_and_an_operators_cordon_does_not() {
        let fleet = fleet(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        let now = Instant::now();
        let drain = a.start_drain(LEASE);
        a.end_lease(now + LEASE * 10);
        assert_eq!(a.state(), "cordoned", "whoever asked still waits");
        drop(drain);
        a.end_lease(now + LEASE / 2);
        assert_eq!(a.state(), "cordoned");
        // Asked again, and by someone who waits longer for the next word.
        drop(a.start_drain(LEASE * 3));
        drop(a.start_drain(LEASE));
        a.end_lease(now + LEASE * 2);
        assert_eq!(a.state(), "cordoned");
        a.end_lease(now + LEASE * 4);
        assert_eq!(a.state(), "ready");
        drop(a.start_drain(LEASE));
        a.set_cordoned(true);
        a.end_lease(now + LEASE * 4);
        assert_eq!(a.state(), "cordoned");
        a.set_cordoned(false);
        assert_eq!(a.state(), "ready");
    }

    #[test]
    fn a_probe_is_due_once() {
        let fleet = Fleet::new(Arc::new(Metrics::default()));
        fleet.replace(vec![endpoint("a", 1)]);
        let a = fleet.find("a").expect("there");
        let (now, interval) = (Instant::now(), Duration::from_secs(10));
        assert!(a.take_probe(now, interval));
        assert!(!a.take_probe(now + interval * 2, interval), "one is under way");
        a.report_healthy();
        let now = now + interval;
        assert!(a.take_probe(now, interval), "the second comes within the interval");
        a.report_healthy();
        assert!(!a.take_probe(now + interval / 2, interval));
        assert!(a.take_probe(now + interval, interval));
    }

    #[test]
    fn a_fleet_that_came_at_once_is_probed_bit_by_bit() {
        let (now, interval) = (Instant::now(), Duration::from_secs(10));
        let fleet = Fleet::new(Arc::new(Metrics::default()));
        fleet.replace((0..100).map(|n| endpoint(&format!("b{n}"), n)).collect());
        let probed = |at| {
            let due = |backend: &&Arc<Backend>| backend.take_probe(at, interval);
            let backends = fleet.backends();
            let due: Vec<_> = backends.iter().filter(due).collect();
            due.iter().for_each(|backend| backend.report_healthy());
            due.len()
        };
        assert_eq!(probed(now), 100);
        let halves = [probed(now + interval / 2), probed(now + interval)];
        assert!(halves.iter().all(|half| *half > 10), "{halves:?}");
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
        let metrics = Arc::new(Metrics::default());
        let fleet = Fleet::new(Arc::clone(&metrics));
        fleet.replace(vec![endpoint("gone-soon", 1)]);
        fleet.find("gone-soon").expect("there").report_fault(Fault::Lost, "x", Instant::now());
        assert!(metrics.families().render().contains("gone-soon"));
        fleet.replace(Vec::new());
        assert!(!metrics.families().render().contains("gone-soon"));
    }
}

//! The live set of backends, as one atomically swapped snapshot.
//!
//! Discovery replaces the endpoints. Probes and the data path report what they see of a [`Backend`]. A backend keeps
//! its object as long as its name and address stay, so counts survive a swap. A backend that discovery no longer names
//! stays, draining, until nothing is bound to it.

mod backend;
mod endpoint;
mod fitness;
mod membership;
mod outliers;
mod roster;
mod state;
mod version;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use self::{backend::Signals, fitness::Fitness};
pub use self::{
    backend::{Backend, BindingCount, BuildCount, DrainGuard, StepCounts},
    endpoint::{Condition, Endpoint, Labels, Location, Pod},
    fitness::DEFAULT_PROBATION,
    outliers::BuildEnd,
    roster::{Roster, Snapshot},
    version::Version,
};
pub use crate::metrics::Fault;
use crate::{
    metrics::Metrics,
    policy::{Candidates, Choice, Totals},
    tls,
};

/// The live set of backends.
#[derive(Debug)]
pub struct Fleet {
    roster: ArcSwap<Roster>,
    totals: Arc<Totals>,
    /// Held from a choice until its build is counted, so that two choices never take the same free slot.
    choosing: Mutex<()>,
    /// When the first backend joined.
    began: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
    /// The TLS of the connections to the daemons; `None` without TLS.
    tls: Option<Arc<tls::Client>>,
    signals: Arc<Signals>,
    /// Held while the roster is replaced, so that no change is lost.
    writer: Mutex<()>,
    settled: CancellationToken,
    fitness: Fitness,
}

impl Fleet {
    /// An empty fleet whose daemons are reached without TLS.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            tls: None,
            roster: ArcSwap::default(),
            totals: Arc::default(),
            choosing: Mutex::default(),
            began: Mutex::default(),
            metrics,
            signals: Arc::default(),
            writer: Mutex::default(),
            settled: CancellationToken::new(),
            fitness: Fitness::default(),
        }
    }

    /// The same fleet, whose daemons are reached with `tls`, or without TLS.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<tls::Client>>) -> Self {
        Self { tls, ..self }
    }

    /// All backends at this moment, sorted by name.
    pub fn backends(&self) -> Snapshot {
        Arc::clone(&self.roster.load().backends)
    }

    /// All backends at this moment, with the table that the policies use.
    pub fn roster(&self) -> Arc<Roster> {
        self.roster.load_full()
    }

    /// Counts a build on the backend that `choose` takes from `roster`. Returns `None` if `choose` takes none.
    pub fn start_build(
        &self,
        roster: &Roster,
        choose: impl FnOnce(&Candidates) -> Option<Choice>,
    ) -> Option<(BuildCount, Choice)> {
        let _alone = self.choosing.lock();
        let choice = choose(&roster.candidates)?;
        Some((roster.backends[choice.index].start_build(), choice))
    }

    /// The backend called `name`, if the fleet has one now.
    pub fn find(&self, name: &str) -> Option<Arc<Backend>> {
        let roster = self.roster.load();
        let at = roster.backends.binary_search_by(|backend| backend.name().cmp(name)).ok()?;
        Some(Arc::clone(&roster.backends[at]))
    }

    /// Whether any backend takes new builds.
    pub fn is_ready(&self) -> bool {
        self.roster.load().backends.iter().any(|backend| backend.is_ready())
    }

    /// Waits until a backend may take a build that it could not take before. Changes count from the moment of the call.
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.signals.changed.notified()
    }

    /// Waits until a backend takes new builds.
    pub async fn ready(&self) {
        loop {
            // Subscribed before the check, so that no change is missed.
            let changed = self.changed();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }

    /// The ready backends of the oldest version, or none if all ready backends have the same version.
    ///
    /// What a client learns from one of the oldest also holds for the others.
    pub fn oldest(&self) -> Vec<Arc<Backend>> {
        let backends = self.backends();
        let ready = || backends.iter().filter(|backend| backend.is_ready());
        let versions = || ready().filter_map(|backend| backend.version());
        let (Some(oldest), Some(newest)) = (versions().min(), versions().max()) else {
            return Vec::new();
        };
        if oldest == newest {
            return Vec::new();
        }
        let is_oldest = |backend: &&Arc<Backend>| backend.version().as_ref() == Some(&oldest);
        ready().filter(is_oldest).cloned().collect()
    }

    /// The known versions of all backends, the oldest first.
    pub fn versions(&self) -> BTreeSet<Version> {
        let backends = self.backends();
        let versions = backends.iter().filter_map(|backend| backend.version());
        versions.map(|version| Version::clone(&version)).collect()
    }

    /// The name of the fleet's pool.
    pub fn pool(&self) -> &str {
        self.metrics.pool()
    }

    /// Waits until a backend has joined or has been reported faulty.
    pub async fn suspicion(&self) {
        self.signals.suspected.notified().await;
    }

    /// Waits until each backend of the first fleet has been probed once.
    pub async fn settled(&self) {
        self.settled.cancelled().await;
    }

    /// Marks the fleet as settled once every backend has had a first probe.
    pub fn settle(&self) {
        if self.settled.is_cancelled() {
            return;
        }
        let backends = self.backends();
        if !backends.is_empty() && backends.iter().all(|backend| backend.has_verdict()) {
            self.settled.cancel();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

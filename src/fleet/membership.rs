//! Who belongs to the fleet: the backends that discovery names, and those that it no longer names as long as something
//! is bound to them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::info;

use super::{Backend, Endpoint, Fleet, Roster};
use crate::policy::{Candidates, PolicyKind};

/// Backends that join within this time of the first one are the first fleet. Discovery may report them in several
/// parts.
const FIRST_FLEET: Duration = Duration::from_secs(10);

impl Fleet {
    /// Makes `endpoints` the fleet.
    ///
    /// A backend that stays keeps its object, state and counts. A backend that goes stays as draining while something
    /// is bound to it. If two endpoints have the same name, the first one counts.
    pub fn replace(&self, endpoints: Vec<Endpoint>) {
        let _writing = self.writer.lock();
        let joined = self.slow_start(Instant::now(), endpoints.is_empty());
        let old = self.backends();
        let mut known: HashMap<&str, &Arc<Backend>> =
            old.iter().map(|backend| (backend.name(), backend)).collect();
        let mut backends: Vec<Arc<Backend>> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            match known.remove(&*endpoint.name) {
                Some(backend) if *backend.address() == endpoint.address => {
                    backend.update(&endpoint);
                    backends.push(Arc::clone(backend));
                }
                replaced => {
                    if let Some(backend) = replaced {
                        backend.depart();
                        self.fitness.forget(backend.name());
                    }
                    let (pool, backend) = (self.metrics.pool(), &*endpoint.name);
                    info!(pool, backend, address = %endpoint.address, "backend joined");
                    let (totals, metrics, signals) = (&self.totals, &self.metrics, &self.signals);
                    let tls = self.tls.as_ref();
                    let backend = Backend::new(endpoint, joined, totals, metrics, signals, tls);
                    backends.push(Arc::new(backend));
                    self.signals.suspected.notify_one();
                }
            }
        }
        for departed in known.into_values() {
            if departed.is_bound() {
                departed.unlist();
                backends.push(Arc::clone(departed));
            } else {
                self.forget(departed);
            }
        }
        backends.sort_by(|a, b| a.name().cmp(b.name()));
        backends.dedup_by(|later, first| later.name() == first.name());
        self.store(backends);
    }

    /// Removes the backends that discovery no longer names once nothing is bound to them.
    pub fn sweep(&self) {
        let left = |backend: &Arc<Backend>| backend.may_leave();
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
        departed.depart();
        self.fitness.forget(departed.name());
        self.metrics.forget_backend(departed.name());
        for policy in PolicyKind::ALL {
            self.metrics.forget_steps(departed.name(), policy.label());
        }
    }

    fn store(&self, backends: Vec<Arc<Backend>>) {
        let candidates = backends.iter().map(|backend| Arc::clone(&backend.candidate)).collect();
        let candidates = Candidates::new(candidates, &self.totals);
        self.roster.store(Arc::new(Roster { backends: Arc::new(backends), candidates }));
    }

    /// When the slow start of a backend that joins `now` begins. The first fleet has no slow start, because nobody else
    /// could take its builds.
    fn slow_start(&self, now: Instant, empty: bool) -> Option<Instant> {
        let mut began = self.began.lock();
        if began.is_none() && !empty {
            *began = Some(now);
        }
        began.filter(|began| now >= *began + FIRST_FLEET).map(|_began| now)
    }
}

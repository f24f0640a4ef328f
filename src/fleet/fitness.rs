//! Which members of the fleet are degraded, because they fail builds for reasons of their own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Backend, Fleet,
    outliers::{BuildEnd, Outliers, Verdict},
};

/// How long a degraded backend is avoided the first time. The time is long enough that not all following builds fail,
/// and short enough that a backend which was judged wrongly returns soon.
pub const DEFAULT_PROBATION: Duration = Duration::from_secs(60);

/// One backend in this many may be degraded, or one of two. The other backends must be able to take the builds.
const DEGRADED_SHARE: usize = 3;

/// What is known about the fitness of a fleet's backends.
#[derive(Debug)]
pub(super) struct Fitness {
    /// How long a degraded backend is avoided the first time. With zero no backend becomes degraded.
    probation: Duration,
    outliers: Mutex<Outliers>,
}

impl Default for Fitness {
    fn default() -> Self {
        Self { probation: DEFAULT_PROBATION, outliers: Mutex::default() }
    }
}

impl Fitness {
    /// Forgets a backend that has left.
    pub(super) fn forget(&self, backend: &str) {
        self.outliers.lock().forget(backend);
    }
}

impl Fleet {
    /// The same fleet with another first probation. With zero no backend becomes degraded.
    #[must_use]
    pub fn with_probation(mut self, probation: Duration) -> Self {
        self.fitness.probation = probation;
        self
    }

    /// Notes how a build on `backend` ended, by the daemon's own status.
    ///
    /// A backend that fails far more builds for reasons of its own than the others becomes degraded.
    pub fn build_ended(&self, backend: &Arc<Backend>, end: BuildEnd, now: Instant) {
        let is_member = || self.find(backend.name()).is_some_and(|it| Arc::ptr_eq(&it, backend));
        if self.fitness.probation.is_zero() || !is_member() {
            return;
        }
        let mut outliers = self.fitness.outliers.lock();
        match outliers.note(&backend.shared_name(), end, now) {
            Some(Verdict::Unfit(cause)) if self.may_degrade(backend) => {
                outliers.clear(backend.name());
                backend.report_unfit(self.fitness.probation, &cause, now);
            }
            Some(Verdict::Revoked(names)) => {
                let revoked = names.iter().filter_map(|name| self.find(name));
                revoked.for_each(|backend| backend.revoke_unfit());
            }
            _ => {}
        }
    }

    /// Whether the other backends could take the builds if this one became degraded too.
    fn may_degrade(&self, backend: &Backend) -> bool {
        let backends = self.backends();
        let takers = || backends.iter().filter(|backend| backend.is_ready());
        let degraded = takers().filter(|backend| backend.is_degraded()).count();
        let most = (takers().count() / DEGRADED_SHARE).max(1);
        backend.is_ready() && takers().count() > 1 && degraded < most
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{
        fleet::tests::{endpoint, fleet},
        metrics::BackendState,
    };

    fn ends(fleet: &Fleet, name: &str, client: u64, code: Code, count: u64) {
        let backend = fleet.find(name).expect("there");
        for key in 0..count {
            fleet.build_ended(&backend, BuildEnd { client, key: Some(key), code }, Instant::now());
        }
    }

    fn degraded(fleet: &Fleet) -> usize {
        fleet.backends().iter().filter(|backend| backend.is_degraded()).count()
    }

    #[test]
    fn at_most_a_third_is_degraded_and_one_of_two() {
        for (size, most) in [(1, 0), (2, 1), (5, 1), (6, 2), (9, 3)] {
            let fleet = fleet((0..size).map(|n| endpoint(&format!("b{n}"), n)).collect());
            for n in 0..size {
                for m in n..size {
                    ends(&fleet, &format!("b{m}"), 1, Code::Ok, 20);
                }
                ends(&fleet, &format!("b{n}"), 1, Code::ResourceExhausted, 20);
            }
            assert_eq!(degraded(&fleet), most, "of {size}");
        }
    }

    #[test]
    fn a_backend_that_leaves_or_is_another_daemon_takes_its_record_along() {
        let fleet = fleet(vec![endpoint("a", 1), endpoint("b", 2)]);
        ends(&fleet, "a", 1, Code::Internal, 2);
        fleet.replace(vec![endpoint("a", 3), endpoint("b", 2)]);
        let a = fleet.find("a").expect("there");
        a.report_healthy();
        ends(&fleet, "a", 1, Code::Internal, 2);
        assert_eq!(degraded(&fleet), 0);
        ends(&fleet, "a", 1, Code::Internal, 1);
        assert_eq!((degraded(&fleet), a.state()), (1, BackendState::Degraded));
        assert!(fleet.is_ready());
    }

    #[test]
    fn without_a_probation_nobody_is_degraded() {
        let fleet = fleet(vec![endpoint("a", 1), endpoint("b", 2)]).with_probation(Duration::ZERO);
        ends(&fleet, "a", 1, Code::Internal, 20);
        assert_eq!(degraded(&fleet), 0);
    }
}

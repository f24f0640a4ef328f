//! The steps of builds that a daemon has counted since the proxy first asked it.

use super::Backend;
use crate::{metrics::StepKind, policy::PolicyKind};

/// Steps of builds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// The steps that were in the cache.
    pub cached: u64,
    /// All steps.
    pub total: u64,
}

/// The counters of a daemon, as they were read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Steps {
    /// The daemon's counters at the last read; `None` before the first.
    last: Option<StepCounts>,
    /// What has been added since the first read.
    since: StepCounts,
}

impl Steps {
    /// Notes that the daemon's counters are `seen`. Returns what was added since the last read.
    fn note(&mut self, seen: StepCounts) -> StepCounts {
        let added = match self.last.replace(seen) {
            // What the daemon counted before belongs to another time, and maybe to another policy.
            None => StepCounts::default(),
            // A daemon that has started again counts from zero.
            Some(last) if seen.total < last.total || seen.cached < last.cached => seen,
            Some(last) => {
                StepCounts { cached: seen.cached - last.cached, total: seen.total - last.total }
            }
        };
        self.since.cached = self.since.cached.saturating_add(added.cached);
        self.since.total = self.since.total.saturating_add(added.total);
        added
    }
}

impl Backend {
    /// The steps that the daemon has counted since the proxy first read its metrics; `None` if it never did.
    pub fn steps(&self) -> Option<StepCounts> {
        let steps = *self.steps.lock();
        steps.last.map(|_| steps.since)
    }

    /// Notes that the daemon's counters are `seen`, and counts for `policy` what was added since the last time.
    pub fn count_steps(&self, seen: StepCounts, policy: PolicyKind) {
        // A backend that has left has no series, and leaves under this lock.
        let state = self.state.lock();
        if state.published().status.departed {
            return;
        }
        let added = self.steps.lock().note(seen);
        for (kind, count) in [(StepKind::Cached, added.cached), (StepKind::Total, added.total)] {
            self.all_metrics.count_steps(&self.name, policy.label(), kind, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_daemon_adds_is_counted_although_the_daemon_starts_again() {
        let counts = |cached, total| StepCounts { cached, total };
        let mut steps = Steps::default();
        assert_eq!(steps.note(counts(5, 10)), counts(0, 0));
        assert_eq!(steps.note(counts(6, 14)), counts(1, 4));
        assert_eq!(steps.note(counts(2, 3)), counts(2, 3), "started again");
        assert_eq!(steps.note(counts(u64::MAX, u64::MAX)).total, u64::MAX - 3);
        assert_eq!(steps.since.cached, u64::MAX, "the sum stops at its end");
    }
}

//! Changes the state of a backend, and tells the policies, the metrics and the log about the change.

use std::time::{Instant, SystemTime};

use tracing::{info, warn};

use super::{Backend, Event, Published, Transition};

impl Backend {
    /// Applies an event and publishes the new state under the same lock, so that two changes are published in their
    /// order.
    pub(super) fn apply(&self, event: Event<'_>, now: Instant) {
        let mut state = self.state.lock();
        let Transition { before, after, lease_ended } = state.apply(event, now);
        if lease_ended && !after.status.departed {
            let (pool, backend) = (self.all_metrics.pool(), self.name());
            info!(pool, backend, "drain lease expired, cordon ended");
        }
        if let (Event::Fault(fault, _), false) = (event, after.status.departed) {
            self.all_metrics.upstream_error(&self.name, fault);
        }
        if before == after {
            return;
        }
        if before.name != after.name {
            *self.since.lock() = SystemTime::now();
        }
        if after.status.degraded && !before.status.degraded && !after.status.departed {
            self.metrics.degraded.inc();
        }
        self.publish(after);
        if !after.status.departed {
            self.log(event, before, after);
        }
    }

    pub(super) fn publish(&self, Published { name, status }: Published) {
        self.candidate.set_status(status);
        self.signals.changed.notify_waiters();
        if !status.departed {
            self.all_metrics.set_backend_state(&self.name, name);
        } else if let Some(version) = self.version.swap(None) {
            self.all_metrics.set_backend_version(&self.name, Some(version.as_str()), None);
        }
    }

    fn log(&self, event: Event<'_>, before: Published, after: Published) {
        let (pool, backend) = (self.all_metrics.pool(), self.name());
        match event {
            Event::Fault(fault, error) if !before.status.ejected => {
                warn!(pool, backend, fault = fault.label(), error, "backend ejected");
            }
            Event::ProbePassed if before.status.ejected => {
                info!(pool, backend, "backend recovered");
            }
            Event::Unfit(_, cause) => warn!(pool, backend, cause, "backend degraded"),
            _ => {}
        }
        let (before, state) = (before.name.label(), after.name.label());
        if before != state {
            info!(pool, backend, before, state, builds = self.builds(), "backend state changed");
        }
    }
}

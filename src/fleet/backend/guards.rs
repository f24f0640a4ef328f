//! What is counted on a backend, or asked of it, for as long as a guard lives.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Backend, Event};

/// Counts one running build on a backend.
#[derive(Debug)]
pub struct BuildCount(pub(super) Arc<Backend>);

impl BuildCount {
    /// The backend that the build is counted on.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for BuildCount {
    fn drop(&mut self) {
        self.0.candidate.end_build();
        self.0.signals.changed.notify_waiters();
        self.0.metrics.builds_active.dec();
    }
}

/// Counts one binding to a backend.
#[derive(Debug)]
pub struct BindingCount(pub(super) Arc<Backend>);

impl Drop for BindingCount {
    fn drop(&mut self) {
        self.0.bindings.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open request to drain a backend. After its end the backend stays cordoned for the lease.
#[derive(Debug)]
pub struct DrainGuard {
    pub(super) backend: Arc<Backend>,
    pub(super) lease: Duration,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        self.backend.apply(Event::DrainEnded(now + self.lease), now);
    }
}

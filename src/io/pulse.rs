//! When the other side of a connection was heard last.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// When something was received last. Clones share it, and outlive the connection.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Notes that something has just been received.
    pub(super) fn beat(&self) {
        self.0.store(clock(), Ordering::Relaxed);
    }

    /// How long ago something was received. If nothing was yet, the age of the process.
    pub fn silence(&self) -> Duration {
        Duration::from_micros(clock().saturating_sub(self.0.load(Ordering::Relaxed)))
    }
}

/// The time since the first call, in microseconds.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX)
}

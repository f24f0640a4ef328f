//! When the daemon at the other end of a connection was heard last.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// When something was received last; zero if nothing was yet. Clones share it, and outlive the connection.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Notes that something has just been received.
    pub(super) fn beat(&self) {
        self.0.store(clock(), Ordering::Relaxed);
    }

    /// How long ago something was received; for ever if nothing was yet.
    pub fn silence(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            last => Duration::from_micros(clock().saturating_sub(last)),
        }
    }
}

/// The time since the first call, in microseconds and at least one.
fn clock() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn silence_begins_with_the_last_sign_of_life() {
        let pulse = Pulse::default();
        assert_eq!(pulse.silence(), Duration::MAX);
        pulse.beat();
        sleep(Duration::from_millis(5));
        let silence = pulse.clone().silence();
        assert!((Duration::from_millis(5)..Duration::from_secs(60)).contains(&silence));
        pulse.beat();
        assert!(pulse.silence() < silence);
    }
}

//! Holds back log records that a client can cause as often as it likes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Lets one record in a while through for each of a closed set of reasons.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    reasons: Mutex<HashMap<&'static str, Seen>>,
}

#[derive(Debug)]
struct Seen {
    last: Instant,
    held_back: u64,
}

impl Throttle {
    /// Lets one record through in `every`, for each reason.
    pub fn new(every: Duration) -> Self {
        Self { every, reasons: Mutex::default() }
    }

    /// How many records were held back since the last one that was let through, if this one may be logged.
    pub fn admit(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut reasons = self.reasons.lock();
        let Some(seen) = reasons.get_mut(reason) else {
            reasons.insert(reason, Seen { last: now, held_back: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(seen.last) < self.every {
            seen.held_back += 1;
            return None;
        }
        seen.last = now;
        Some(std::mem::take(&mut seen.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_in_a_while_with_how_often_it_was_not() {
        let second = Duration::from_secs(1);
        let (throttle, start) = (Throttle::new(second), Instant::now());
        let told =
            [("a", 0), ("a", 1), ("b", 1), ("a", 999), ("a", 1000), ("a", 1001), ("b", 5000)];
        let told = told.map(|(reason, at)| throttle.admit(reason, start + second * at / 1000));
        assert_eq!(told, [Some(0), None, Some(0), None, Some(2), None, Some(0)]);
    }
}

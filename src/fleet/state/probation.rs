//! How long a degraded backend is avoided: each time longer than the last one.

use std::time::{Duration, Instant};

/// The longest probation is so many times the first one: by then an operator has been told by an alert, and
/// a daemon that cleans up by itself is tried every half hour.
const LONGEST: u32 = 32;

/// The probations of one backend.
#[derive(Debug, Default)]
pub(super) struct Probation {
    running: Option<Running>,
    /// The last one that ran its time, and when it ended.
    last: Option<(Duration, Instant)>,
}

#[derive(Debug)]
struct Running {
    length: Duration,
    end: Instant,
    cause: String,
}

impl Probation {
    /// Starts one at `now`, of the length `first`, or twice as long as the last one if that has ended less
    /// than its own length ago. One that is running goes on.
    pub(super) fn start(&mut self, first: Duration, cause: &str, now: Instant) {
        if self.running.is_some() {
            return;
        }
        let again = self.last.filter(|(length, ended)| now < *ended + *length);
        let length = again.map_or(first, |(length, _)| (length * 2).min(first * LONGEST));
        self.running = Some(Running { length, end: now + length, cause: cause.to_owned() });
    }

    /// Ends it if its time is over at `now`.
    pub(super) fn check(&mut self, now: Instant) {
        if let Some(ended) = self.running.take_if(|running| running.end <= now) {
            self.last = Some((ended.length, now));
        }
    }

    /// Ends it as if it had never been, and forgets those before it.
    pub(super) fn revoke(&mut self) {
        *self = Self::default();
    }

    /// Whether one is running.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// When the running one ends.
    pub(super) fn end(&self) -> Option<Instant> {
        self.running.as_ref().map(|running| running.end)
    }

    /// Why one is running.
    pub(super) fn cause(&self) -> Option<&str> {
        self.running.as_ref().map(|running| running.cause.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(60);

    fn length(probation: &mut Probation, now: Instant) -> Duration {
        probation.start(FIRST, "cause", now);
        probation.end().expect("it is running") - now
    }

    #[test]
    fn a_backend_that_fails_again_is_avoided_twice_as_long_up_to_a_limit() {
        let (mut probation, mut now) = (Probation::default(), Instant::now());
        for times in [1, 2, 4, 8, 16, 32, 32] {
            assert_eq!(length(&mut probation, now), FIRST * times);
            now += FIRST * times;
            probation.check(now);
            assert!(!probation.is_running());
            now += FIRST / 2;
        }
    }

    #[test]
    fn a_backend_that_did_well_for_as_long_starts_anew() {
        let (mut probation, now) = (Probation::default(), Instant::now());
        probation.start(FIRST, "cause", now);
        probation.check(now + FIRST);
        assert_eq!(length(&mut probation, now + FIRST * 2), FIRST);
    }

    #[test]
    fn what_comes_while_one_is_running_does_not_lengthen_it() {
        let (mut probation, now) = (Probation::default(), Instant::now());
        probation.start(FIRST, "first", now);
        probation.start(FIRST, "second", now + FIRST / 2);
        assert_eq!((probation.end(), probation.cause()), (Some(now + FIRST), Some("first")));
        probation.check(now + FIRST / 2);
        assert!(probation.is_running());
        probation.revoke();
        assert_eq!(length(&mut probation, now), FIRST);
    }
}

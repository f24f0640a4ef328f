//! How long a degraded backend is avoided: each time longer than the last.

use std::time::{Duration, Instant};

/// The longest probation, as a multiple of the first one. By then an alert has told an operator, and a daemon that
/// cleans up on its own is still tried every half hour.
const LONGEST: u32 = 32;

/// The probations of one backend.
#[derive(Debug, Default)]
pub(super) struct Probation {
    running: Option<Running>,
    /// The last probation that ran to its end: its length and when it ended.
    last: Option<(Duration, Instant)>,
}

#[derive(Debug)]
struct Running {
    length: Duration,
    end: Instant,
    cause: String,
}

impl Probation {
    /// Starts a probation at `now`, unless one is running. It lasts `first`, or twice as long as the last one if less
    /// than the length of that one has passed since its end.
    pub(super) fn start(&mut self, first: Duration, cause: &str, now: Instant) {
        if self.running.is_some() {
            return;
        }
        let again = self.last.filter(|(length, ended)| now < *ended + *length);
        let length = again.map_or(first, |(length, _)| (length * 2).min(first * LONGEST));
        self.running = Some(Running { length, end: now + length, cause: cause.to_owned() });
    }

    /// Ends the running probation if its time is over at `now`.
    pub(super) fn check(&mut self, now: Instant) {
        if let Some(ended) = self.running.take_if(|running| running.end <= now) {
            self.last = Some((ended.length, now));
        }
    }

    /// Ends the running probation and forgets all earlier ones.
    pub(super) fn revoke(&mut self) {
        *self = Self::default();
    }

    /// Whether a probation is running.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// When the running probation ends.
    pub(super) fn end(&self) -> Option<Instant> {
        self.running.as_ref().map(|running| running.end)
    }

    /// Why a probation is running.
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

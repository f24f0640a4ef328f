//! Limits how fast one connection may open calls, and cancel them.
//!
//! A call costs the proxy some work before any other limit applies: its metadata is read, and its handler is looked
//! up. A client that cancels its calls at once has no open calls, so the limit on open calls does not stop it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::ProxyError;

/// The time for each call that is opened, and for each that is cancelled: 1 000 a second, which is a hundred short
/// builds a second over one hop.
const EACH: Duration = Duration::from_millis(1);

/// How far a client may be ahead of that pace. It may open as many calls at once as it may have open.
const AHEAD: Duration = Duration::from_secs(10);

/// The pace of one connection.
#[derive(Debug)]
pub(super) struct Pace(Mutex<Meters>);

#[derive(Debug)]
struct Meters {
    opened: Meter,
    given_up: Meter,
}

impl Pace {
    /// The pace of a connection that begins at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Meters { opened: Meter(now), given_up: Meter(now) }))
    }

    /// Admits a call at `now`. A call of a build's frontend is not counted, because a build makes one for each file
    /// that it reads.
    ///
    /// # Errors
    /// The client opens calls too fast, or cancels them too fast.
    pub(super) fn open(&self, of_frontend: bool, now: Instant) -> Result<(), ProxyError> {
        let mut meters = self.0.lock();
        if meters.given_up.is_used_up(now) {
            return Err(ProxyError::TooManyCalls("gives up"));
        }
        if !of_frontend && !meters.opened.count(now) {
            return Err(ProxyError::TooManyCalls("opens"));
        }
        Ok(())
    }

    /// Counts a call that the client cancelled at `now`, before the answer.
    pub(super) fn give_up(&self, now: Instant) {
        // Calls above the limit are counted as well. Otherwise a client would be refused only for the time of one
        // call. A client can never cancel more calls than it may have open.
        self.0.lock().given_up.add(now);
    }
}

/// The time when all counted calls are paid for, at the rate of one in [`EACH`].
#[derive(Debug)]
struct Meter(Instant);

impl Meter {
    /// Counts a call, unless it would be too far ahead.
    fn count(&mut self, now: Instant) -> bool {
        let within = !self.is_used_up(now);
        if within {
            self.add(now);
        }
        within
    }

    fn add(&mut self, now: Instant) {
        self.0 = self.0.max(now) + EACH;
    }

    /// Whether one more call would be too far ahead.
    fn is_used_up(&self, now: Instant) -> bool {
        self.0.max(now) + EACH > now + AHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of calls that may be opened at once.
    fn opened(pace: &Pace, of_frontend: bool, now: Instant) -> usize {
        (0..20_000).filter(|_| pace.open(of_frontend, now).is_ok()).count()
    }

    #[test]
    fn a_burst_passes_and_what_follows_keeps_the_pace() {
        let start = Instant::now();
        let pace = Pace::new(start);
        assert_eq!(opened(&pace, false, start), 10_000);
        let later = start + Duration::from_millis(100);
        assert_eq!(opened(&pace, false, later), 100);
        assert_eq!(opened(&pace, false, later + AHEAD * 2), 10_000, "rest is not saved up");
    }

    #[test]
    fn a_build_asks_for_as_many_files_as_it_has() {
        let now = Instant::now();
        let pace = Pace::new(now);
        assert_eq!(opened(&pace, true, now), 20_000);
        assert_eq!(opened(&pace, false, now), 10_000, "none of those was counted");
    }

    #[test]
    fn calls_that_are_given_up_count_whatever_they_were() {
        let now = Instant::now();
        let pace = Pace::new(now);
        for _ in 0..10_500 {
            assert!(pace.open(true, now).is_ok(), "none was given up yet");
        }
        for _ in 0..10_500 {
            pace.give_up(now);
        }
        for of_frontend in [false, true] {
            let soon = now + EACH * 400;
            let refused = pace.open(of_frontend, soon).expect_err("too many were given up");
            assert!(refused.to_string().contains("gives up"), "{refused}");
            assert!(pace.open(of_frontend, now + EACH * 600).is_ok());
        }
    }
}

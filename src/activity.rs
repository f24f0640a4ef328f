//! The time of the last call of a pool's clients that is a build, or comes before one.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// How long a pool counts as active after such a call. A client that asks for workers builds soon after. If there
/// is no daemon yet, a cluster may take this long to notice, and the client may give up and ask again.
const WINDOW: Duration = Duration::from_secs(60);

/// The last activity of a pool's clients.
#[derive(Debug)]
pub struct Activity {
    began: Instant,
    /// The time of the last call in milliseconds after the start, plus one. Zero if there was no call.
    last: AtomicU64,
    resumed: Notify,
}

impl Default for Activity {
    fn default() -> Self {
        Self { began: Instant::now(), last: 0.into(), resumed: Notify::new() }
    }
}

impl Activity {
    /// Notes a call at `now`.
    pub fn note(&self, now: Instant) {
        let was_recent = self.is_recent(now);
        self.last.fetch_max(self.millis(now) + 1, Ordering::Relaxed);
        if !was_recent {
            self.resumed.notify_waiters();
        }
    }

    /// Whether the last call was within a minute before `now`.
    pub fn is_recent(&self, now: Instant) -> bool {
        match self.last.load(Ordering::Relaxed) {
            0 => false,
            last => Duration::from_millis((self.millis(now) + 1).saturating_sub(last)) < WINDOW,
        }
    }

    /// Completes at the next call that follows a minute without any.
    pub fn resumed(&self) -> impl Future<Output = ()> {
        self.resumed.notified()
    }

    fn millis(&self, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(self.began).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn activity_lasts_a_minute_from_the_last_question() {
        let (activity, now) = (Activity::default(), Instant::now());
        assert!(!activity.is_recent(now));
        activity.note(now);
        activity.note(now + WINDOW / 2);
        assert!(activity.is_recent(now + WINDOW));
        assert!(!activity.is_recent(now + WINDOW * 2));
    }

    #[test]
    fn only_the_first_question_after_a_rest_is_told() {
        let (activity, now) = (Activity::default(), Instant::now());
        let resumed = activity.resumed();
        activity.note(now);
        assert_eq!(resumed.now_or_never(), Some(()));
        let resumed = activity.resumed();
        activity.note(now + WINDOW / 2);
        assert_eq!(resumed.now_or_never(), None);
        let resumed = activity.resumed();
        activity.note(now + WINDOW * 3);
        assert_eq!(resumed.now_or_never(), Some(()));
    }
}

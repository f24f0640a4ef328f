//! Something outside that the proxy asks fails: why, told once, and how long to wait.

use std::time::Duration;

use rand::RngExt as _;

use crate::label::label_set;

/// The first wait between attempts.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Long enough not to burden who is in trouble, short enough that nobody notices its return late.
const LAST_RETRY: Duration = Duration::from_secs(10);

label_set! {
    /// Why an answer does not come.
    pub enum Reason {
        /// It cannot be reached, or fails.
        Unreachable = "unreachable",
        /// It does not know who asks.
        Unauthorized = "unauthorized",
        /// It does not permit the question.
        Forbidden = "forbidden",
        /// What changed since the last answer is no longer known there: everything is read anew.
        Expired = "expired",
    }
}

/// Growing waits between attempts.
///
/// By hand, because the waits must stay below their bound with the part that is left to chance.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST_RETRY }
    }
}

impl Backoff {
    /// The wait before the next attempt; up to a half is left to chance, so that many proxies do not
    /// come all at once.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(LAST_RETRY);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// One outage after another: each is told when it begins and when it is over.
#[derive(Debug, Default)]
pub struct Outage {
    told: Option<String>,
    backoff: Backoff,
}

impl Outage {
    /// Notes a failure; `true` if it is another one than before, and so is to be told.
    pub fn failed(&mut self, text: &str) -> bool {
        let new = self.told.as_deref() != Some(text);
        if new {
            self.told = Some(text.to_owned());
        }
        new
    }

    /// Notes a success; `true` if it ends an outage, and so is to be told.
    pub fn over(&mut self) -> bool {
        self.backoff = Backoff::default();
        self.told.take().is_some()
    }

    /// The wait before the next attempt.
    pub fn wait(&mut self) -> Duration {
        self.backoff.wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = std::iter::repeat_with(|| backoff.wait()).take(10).collect();
        assert!(waits[0] <= FIRST_RETRY && waits[9] <= LAST_RETRY && waits[9] >= LAST_RETRY / 2);
    }

    #[test]
    fn an_outage_is_told_once_for_each_cause_and_once_at_its_end() {
        let mut outage = Outage::default();
        assert!(!outage.over());
        assert!(outage.failed("refused") && !outage.failed("refused"));
        assert!(outage.failed("no route"));
        assert!(outage.over() && !outage.over());
        assert!(outage.failed("no route"));
    }
}

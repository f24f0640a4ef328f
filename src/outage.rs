//! A server that the proxy asks has failed: the reason, one log record for each outage, and the wait before a retry.

use std::time::Duration;

use rand::RngExt as _;

use crate::label::label_set;

/// The first wait between attempts.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest wait between attempts: rare enough for a server that is overloaded, and soon enough after it recovers.
const LAST_RETRY: Duration = Duration::from_secs(10);

label_set! {
    /// Why a server did not answer.
    pub enum Reason {
        /// The server cannot be reached, or failed.
        Unreachable = "unreachable",
        /// The server does not accept the proxy's credentials.
        Unauthorized = "unauthorized",
        /// The proxy lacks a permission.
        Forbidden = "forbidden",
        /// The server no longer knows the changes since the last answer, so the proxy reads everything again.
        Expired = "expired",
    }
}

/// Growing waits between attempts.
///
/// Written by hand, because a wait must stay below its limit even with the random part.
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
    /// The wait before the next attempt. Up to half of it is random, so that many proxies do not retry at the same time.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(LAST_RETRY);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// The current outage of a server. It is logged when it begins and when it ends.
#[derive(Debug, Default)]
pub struct Outage {
    logged: Option<String>,
    backoff: Backoff,
}

impl Outage {
    /// Notes a failure. Returns `true` if its cause is new and should be logged.
    pub fn failed(&mut self, text: &str) -> bool {
        let new = self.logged.as_deref() != Some(text);
        if new {
            self.logged = Some(text.to_owned());
        }
        new
    }

    /// Notes a success. Returns `true` if it ends an outage, which should be logged.
    pub fn over(&mut self) -> bool {
        self.backoff = Backoff::default();
        self.logged.take().is_some()
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
    fn an_outage_is_logged_once_for_each_cause_and_once_at_its_end() {
        let mut outage = Outage::default();
        assert!(!outage.over());
        assert!(outage.failed("refused") && !outage.failed("refused"));
        assert!(outage.failed("no route"));
        assert!(outage.over() && !outage.over());
        assert!(outage.failed("no route"));
    }
}

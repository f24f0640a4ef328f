//! What probes and failed connections say about a backend, and when to probe it again.

use std::time::{Duration, Instant};

use crate::metrics::Fault;

/// The wait before the first probe of an ejected backend. A daemon that restarts is back within a second.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest wait between probes. A daemon that is back then takes builds within half a minute.
pub(super) const LAST_RETRY: Duration = Duration::from_secs(30);

/// How many failed probes in a row eject a backend that still accepts connections.
///
/// One is not enough, because a daemon under full load can miss a deadline.
pub(super) const PROBES_TO_EJECT: u32 = 3;

/// What is known about a backend's health.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// When a healthy backend is probed next; at once if it was never probed.
    next_probe: Option<Instant>,
    /// Whether a probe is running.
    probing: bool,
    failed_probes: u32,
    /// Whether the backend left a question or a probe unanswered, and has not answered a probe since.
    silent: bool,
    /// The next try, while the backend is ejected.
    retry: Option<Retry>,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    wait: Duration,
    cause: String,
}

impl Health {
    /// Notes that the backend answered a probe.
    pub(super) fn pass(&mut self) {
        *self = Self { next_probe: self.next_probe, ..Self::default() };
    }

    /// Notes that the backend left a question unanswered. A probe is then due at once.
    pub(super) fn suspect(&mut self, now: Instant) {
        self.silent = true;
        self.next_probe = Some(now);
    }

    /// Notes that a probe could not be made. The next one is soon, because the proxy may have what it lacked by then.
    pub(super) fn skip_probe(&mut self, now: Instant) {
        self.probing = false;
        self.next_probe = Some(now + FIRST_RETRY);
        if let Some(retry) = &mut self.retry {
            retry.at = now + retry.wait;
        }
    }

    /// Notes that a connection or a probe failed.
    pub(super) fn fail(&mut self, fault: Fault, cause: &str, now: Instant) {
        let by_probe = fault == Fault::Probe;
        self.failed_probes = self.failed_probes.saturating_add(by_probe.into());
        self.probing &= !by_probe;
        self.silent |= by_probe;
        if by_probe && self.retry.is_none() && self.failed_probes < PROBES_TO_EJECT {
            // The next two probes follow soon, so that a dead daemon is found quickly.
            self.next_probe = Some(now + FIRST_RETRY);
            return;
        }
        let wait = match &self.retry {
            // Faults of several streams at the same time are one event, so only a failed probe lengthens the wait.
            Some(retry) if !by_probe => retry.wait,
            Some(retry) => (retry.wait * 2).min(LAST_RETRY),
            None => FIRST_RETRY,
        };
        self.retry = Some(Retry { at: now + wait, wait, cause: cause.to_owned() });
    }

    /// Whether a probe is due; see [`super::State::take_probe`].
    pub(super) fn take_probe(&mut self, now: Instant, interval: Duration, chance: f64) -> bool {
        if self.probing {
            return false;
        }
        let regular = self.next_probe.is_none_or(|at| at <= now);
        let due = self.retry.as_ref().map_or(regular, |retry| retry.at <= now);
        if due {
            let wait = self.next_probe.map_or(interval.mul_f64(chance), |_not_first| interval);
            self.probing = true;
            self.next_probe = Some(now + wait);
        }
        due
    }

    /// Whether the backend left a question or a probe unanswered, and has not answered a probe since.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether the backend gets no builds until a probe succeeds.
    pub(super) fn is_ejected(&self) -> bool {
        self.retry.is_some()
    }

    /// Whether a probe has failed since the last one that passed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed_probes > 0 || self.is_ejected()
    }

    /// When an ejected backend is probed next.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry.as_ref().map(|retry| retry.at)
    }

    /// Why the backend is ejected.
    pub(super) fn cause(&self) -> Option<&str> {
        self.retry.as_ref().map(|retry| retry.cause.as_str())
    }
}

//! Everything that decides whether one backend takes builds, as a state machine without I/O, clock or randomness.
//!
//! Discovery, operators, probes and the data path each see one side of a backend. Each observation is an [`Event`].
//! What follows from all of them together is what the [`State`] publishes.

mod health;
mod probation;

use std::time::{Duration, Instant};

use self::{health::Health, probation::Probation};
use super::Condition;
use crate::{
    metrics::{BackendState, Fault},
    policy::Status,
};

/// Something that happened to a backend, or that somebody asked of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event<'a> {
    /// Discovery names the backend, with this condition.
    Listed(Condition),
    /// Discovery no longer names the backend. It stays as long as something is bound to it.
    Unlisted,
    /// The backend has left the fleet. Its name is free, or another daemon has it.
    Departed,
    /// An operator wants no new builds on the backend.
    Cordoned,
    /// An operator removes every cordon, including that of a drain, and ends a probation.
    Uncordoned,
    /// Somebody asks to drain the backend, because its daemon is about to stop.
    DrainStarted,
    /// A request to drain has ended. Its cordon lasts until this time, or until the daemon has been away and is back.
    DrainEnded(Instant),
    /// Time has passed: the cordon of a drain that was not renewed ends, and so does a probation.
    TimePassed,
    /// A connection or a probe failed, for this cause.
    Fault(Fault, &'a str),
    /// The backend left a question without an answer that it should have answered at once.
    Silent,
    /// The backend answered a probe.
    ProbePassed,
    /// A probe could not be made, because the proxy lacked something.
    ProbeNotMade,
    /// The backend fails builds for reasons of its own: how long it is avoided the first time, and the evidence.
    Unfit(Duration, &'a str),
    /// The evidence against the backend's fitness no longer counts.
    UnfitRevoked,
}

/// What others are told about a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) name: BackendState,
    pub(super) status: Status,
}

/// What others were told before an event, and what they are told after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transition {
    pub(super) before: Published,
    pub(super) after: Published,
    /// The cordon of a drain has ended on its own. Another cordon may hide that.
    pub(super) lease_ended: bool,
}

/// What is known about one backend.
#[derive(Debug, Default)]
pub(super) struct State {
    condition: Condition,
    unlisted: bool,
    departed: bool,
    /// Whether the backend has ever answered a probe.
    probed: bool,
    /// Whether an operator has cordoned the backend.
    cordoned: bool,
    /// Whether somebody asked to drain the backend because its daemon is about to stop.
    drained: bool,
    /// How many requests to drain are open.
    drains: usize,
    /// When the cordon of a drain ends, if no request is open by then.
    lease_end: Option<Instant>,
    health: Health,
    /// While a probation runs, the backend is degraded.
    probation: Probation,
}

impl State {
    /// The state of a backend that discovery has just named.
    pub(super) fn new(condition: Condition) -> Self {
        Self { condition, ..Self::default() }
    }

    /// Applies an event and returns what follows from it.
    pub(super) fn apply(&mut self, event: Event<'_>, now: Instant) -> Transition {
        let mut lease_ended = false;
        let before = self.published();
        match event {
            Event::Listed(condition) => (self.condition, self.unlisted) = (condition, false),
            Event::Unlisted => self.unlisted = true,
            Event::Departed => self.departed = true,
            Event::Cordoned => self.cordoned = true,
            Event::Uncordoned => {
                self.cordoned = false;
                self.probation.revoke();
                self.end_lease();
            }
            Event::DrainStarted => {
                self.drained = true;
                self.drains += 1;
            }
            Event::DrainEnded(lease_end) => {
                self.drains = self.drains.saturating_sub(1);
                self.lease_end = self.lease_end.max(Some(lease_end));
            }
            Event::TimePassed => {
                if self.drains == 0 && self.lease_end.is_some_and(|end| end <= now) {
                    self.end_lease();
                    lease_ended = true;
                }
                self.probation.check(now);
            }
            Event::Unfit(first, cause) => self.probation.start(first, cause, now),
            Event::UnfitRevoked => self.probation.revoke(),
            Event::Fault(fault, cause) => self.health.fail(fault, cause, now),
            Event::Silent => self.health.suspect(now),
            Event::ProbeNotMade => self.health.skip_probe(now),
            Event::ProbePassed => {
                self.probed = true;
                if self.is_ejected() {
                    // The daemon that was about to stop has stopped, and this is its successor.
                    self.drained &= self.drains > 0;
                    self.lease_end = None;
                    self.probation.revoke();
                }
                self.health.pass();
            }
        }
        Transition { before, after: self.published(), lease_ended }
    }

    /// What others are told about the backend now.
    pub(super) fn published(&self) -> Published {
        let status = Status {
            cordoned: self.cordoned || self.drained || self.is_leaving(),
            ejected: self.is_ejected(),
            unready: !self.probed || self.condition == Condition::NotReady,
            degraded: self.probation.is_running(),
            departed: self.departed,
        };
        Published { name: self.name(), status }
    }

    /// The state in one word.
    pub(super) fn name(&self) -> BackendState {
        match self {
            _ if self.is_leaving() && self.is_ejected() => BackendState::Lost,
            _ if self.is_leaving() => BackendState::Draining,
            _ if self.cordoned || self.drained => BackendState::Cordoned,
            _ if self.is_ejected() => BackendState::Unhealthy,
            _ if self.condition == Condition::NotReady => BackendState::Unhealthy,
            _ if !self.probed => BackendState::Starting,
            _ if self.probation.is_running() => BackendState::Degraded,
            _ => BackendState::Ready,
        }
    }

    /// Why the backend is unhealthy or degraded, if it is.
    pub(super) fn cause(&self) -> Option<&str> {
        let not_ready = self.condition == Condition::NotReady;
        let reported = not_ready.then_some("discovery reports it as not ready");
        let ejected = self.health.cause();
        ejected.or(reported).or_else(|| self.probation.cause())
    }

    /// When a degraded backend gets its full share of the builds again.
    pub(super) fn probation_end(&self) -> Option<Instant> {
        self.probation.end()
    }

    /// Whether the backend left the last question or probe unanswered.
    pub(super) fn is_silent(&self) -> bool {
        self.health.is_silent()
    }

    /// Whether discovery no longer names the backend.
    pub(super) fn is_unlisted(&self) -> bool {
        self.unlisted
    }

    /// Whether any probe of the backend has ended, with any result.
    pub(super) fn has_verdict(&self) -> bool {
        self.probed || self.health.has_failed()
    }

    /// When an ejected backend is probed next.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.health.retry_at()
    }

    /// Whether a probe is due. If so, the next regular probe is `interval` away; after the first probe, it is only the
    /// fraction `chance` of that away.
    pub(super) fn take_probe(&mut self, now: Instant, interval: Duration, chance: f64) -> bool {
        !self.unlisted && !self.departed && self.health.take_probe(now, interval, chance)
    }

    fn end_lease(&mut self) {
        self.drained = false;
        self.lease_end = None;
    }

    fn is_ejected(&self) -> bool {
        self.health.is_ejected()
    }

    fn is_leaving(&self) -> bool {
        self.unlisted || self.condition == Condition::Terminating
    }
}

#[cfg(test)]
mod tests;

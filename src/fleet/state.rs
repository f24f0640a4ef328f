//! All that decides whether one backend takes builds, as a state machine without I/O, clock or chance.
//!
//! Discovery, operators, probes and the data path each see a part of a backend. What they see is an
//! [`Event`]; what follows from all of them together is what the [`State`] publishes.

mod health;
mod probation;

use std::time::{Duration, Instant};

use self::{health::Health, probation::Probation};
use super::Condition;
use crate::{
    metrics::{BackendState, Fault},
    policy::Status,
};

/// Something that happened to a backend, or that somebody wants of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event<'a> {
    /// Discovery names it and says this of it.
    Listed(Condition),
    /// Discovery no longer names it; it stays for what is bound to it.
    Unlisted,
    /// It is out of the fleet: its name is free, or another daemon's.
    Departed,
    /// An operator wants no new builds on it.
    Cordoned,
    /// An operator takes back every cordon, a drain's too, and what was found against its fitness.
    Uncordoned,
    /// Somebody asks to drain it, because its daemon is about to stop.
    DrainStarted,
    /// That request has ended. Its cordon stays until then, or until the daemon has been away and is
    /// back.
    DrainEnded(Instant),
    /// Time has passed: the cordon of a drain that nobody has asked for again ends, and so does a probation.
    TimePassed,
    /// A connection or a probe failed, and why.
    Fault(Fault, &'a str),
    /// It left a question without an answer that it should have at once.
    Silent,
    /// It answered a probe.
    ProbePassed,
    /// A probe could not be made, for want of something of ours.
    ProbeNotMade,
    /// It fails builds for reasons of its own: how long it is avoided the first time, and why it is thought so.
    Unfit(Duration, &'a str),
    /// What was found against its fitness does not count.
    UnfitRevoked,
}

/// What others are told of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Published {
    pub(super) name: BackendState,
    pub(super) status: Status,
}

/// What was told before an event and what is to be told after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transition {
    pub(super) before: Published,
    pub(super) after: Published,
    /// The cordon of a drain has ended by itself, which another cordon may hide.
    pub(super) lease_ended: bool,
}

/// What is known of one backend.
#[derive(Debug, Default)]
pub(super) struct State {
    condition: Condition,
    unlisted: bool,
    departed: bool,
    /// It has answered a probe, ever.
    probed: bool,
    /// An operator's cordon.
    cordoned: bool,
    /// Somebody asked to drain it because its daemon is about to stop.
    drained: bool,
    /// Such requests that are open.
    drains: usize,
    /// When the cordon of a drain ends if no request is open by then.
    lease_end: Option<Instant>,
    health: Health,
    /// While one is running it is degraded.
    probation: Probation,
}

impl State {
    /// The state of a backend that discovery has just named.
    pub(super) fn new(condition: Condition) -> Self {
        Self { condition, ..Self::default() }
    }

    /// Takes an event over and tells what follows from it.
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
                    // The daemon that was to stop has stopped, and this is the next one in its place.
                    self.drained &= self.drains > 0;
                    self.lease_end = None;
                    self.probation.revoke();
                }
                self.health.pass();
            }
        }
        Transition { before, after: self.published(), lease_ended }
    }

    /// What others are to be told of it now.
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

    /// What it is doing, in one word.
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

    /// Why it is unhealthy or degraded, if it is.
    pub(super) fn cause(&self) -> Option<&str> {
        let not_ready = self.condition == Condition::NotReady;
        let said = not_ready.then_some("discovery says that it is not ready");
        let ejected = self.health.cause();
        ejected.or(said).or_else(|| self.probation.cause())
    }

    /// When a degraded backend takes its share of the builds again.
    pub(super) fn probation_end(&self) -> Option<Instant> {
        self.probation.end()
    }

    /// Whether it did not answer when it was asked last.
    pub(super) fn is_silent(&self) -> bool {
        self.health.is_silent()
    }

    /// Whether discovery no longer names it.
    pub(super) fn is_unlisted(&self) -> bool {
        self.unlisted
    }

    /// Whether any probe of it has ended yet, well or not.
    pub(super) fn has_verdict(&self) -> bool {
        self.probed || self.health.has_failed()
    }

    /// When an ejected backend is to be probed next.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.health.retry_at()
    }

    /// Whether it is time for a probe; if so the next regular one is `interval` away, or after the
    /// first one only the share `chance` of that.
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

//! All that decides whether one backend takes builds, as a state machine without I/O, clock or chance.
//!
//! Discovery, operators, probes and the data path each see a part of a backend. What they see is an
//! [`Event`]; what follows from all of them together is what the [`State`] publishes.

mod probation;

use std::time::{Duration, Instant};

use self::probation::Probation;
use super::Condition;
use crate::{
    metrics::{BackendState, Fault},
    policy::Status,
};

/// Wait before the first probe of an ejected backend: a daemon that restarts is back in a second.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest wait between probes: a daemon that is back takes builds within half a minute.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Failed probes in a row that eject a backend which still accepts connections.
///
/// One is not enough: a daemon under full load can miss a deadline.
const PROBES_TO_EJECT: u32 = 3;

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

#[derive(Debug, Default)]
struct Health {
    /// When it is to be probed next if it is well; at once if never probed.
    next_probe: Option<Instant>,
    /// A probe is under way.
    probing: bool,
    failed_probes: u32,
    /// It left a question or a probe without an answer, and has not answered a probe since.
    silent: bool,
    /// Set while it is ejected.
    retry: Option<Retry>,
}

#[derive(Debug)]
struct Retry {
    at: Instant,
    wait: Duration,
    cause: String,
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
            Event::Silent => {
                self.health.silent = true;
                self.health.next_probe = Some(now);
            }
            Event::ProbeNotMade => self.health.skip_probe(now),
            Event::ProbePassed => {
                self.probed = true;
                if self.is_ejected() {
                    // The daemon that was to stop has stopped, and this is the next one in its place.
                    self.drained &= self.drains > 0;
                    self.lease_end = None;
                    self.probation.revoke();
                }
                self.health = Health { next_probe: self.health.next_probe, ..Health::default() };
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
        let ejected = self.health.retry.as_ref().map(|retry| retry.cause.as_str());
        ejected.or(said).or_else(|| self.probation.cause())
    }

    /// When a degraded backend takes its share of the builds again.
    pub(super) fn probation_end(&self) -> Option<Instant> {
        self.probation.end()
    }

    /// Whether it did not answer when it was asked last.
    pub(super) fn is_silent(&self) -> bool {
        self.health.silent
    }

    /// Whether discovery no longer names it.
    pub(super) fn is_unlisted(&self) -> bool {
        self.unlisted
    }

    /// Whether any probe of it has ended yet, well or not.
    pub(super) fn has_verdict(&self) -> bool {
        self.probed || self.health.failed_probes > 0 || self.is_ejected()
    }

    /// When an ejected backend is to be probed next.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.health.retry.as_ref().map(|retry| retry.at)
    }

    /// Whether it is time for a probe; if so the next regular one is `interval` away, or after the
    /// first one only the share `chance` of that.
    pub(super) fn take_probe(&mut self, now: Instant, interval: Duration, chance: f64) -> bool {
        if self.unlisted || self.departed || self.health.probing {
            return false;
        }
        let health = &mut self.health;
        let regular = health.next_probe.is_none_or(|at| at <= now);
        let due = health.retry.as_ref().map_or(regular, |retry| retry.at <= now);
        if due {
            let wait = health.next_probe.map_or(interval.mul_f64(chance), |_not_first| interval);
            health.probing = true;
            health.next_probe = Some(now + wait);
        }
        due
    }

    fn end_lease(&mut self) {
        self.drained = false;
        self.lease_end = None;
    }

    fn is_ejected(&self) -> bool {
        self.health.retry.is_some()
    }

    fn is_leaving(&self) -> bool {
        self.unlisted || self.condition == Condition::Terminating
    }
}

impl Health {
    /// The next try is soon: what is lacking may be there by then.
    fn skip_probe(&mut self, now: Instant) {
        self.probing = false;
        self.next_probe = Some(now + FIRST_RETRY);
        if let Some(retry) = &mut self.retry {
            retry.at = now + retry.wait;
        }
    }

    fn fail(&mut self, fault: Fault, cause: &str, now: Instant) {
        let by_probe = fault == Fault::Probe;
        self.failed_probes = self.failed_probes.saturating_add(by_probe.into());
        self.probing &= !by_probe;
        self.silent |= by_probe;
        if by_probe && self.retry.is_none() && self.failed_probes < PROBES_TO_EJECT {
            // The next two follow soon, so that a daemon that is away is known to be.
            self.next_probe = Some(now + FIRST_RETRY);
            return;
        }
        let wait = match &self.retry {
            // Faults of several streams at once are one event: only a probe lengthens the wait.
            Some(retry) if !by_probe => retry.wait,
            Some(retry) => (retry.wait * 2).min(LAST_RETRY),
            None => FIRST_RETRY,
        };
        self.retry = Some(Retry { at: now + wait, wait, cause: cause.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn ready() -> State {
        let mut state = State::new(Condition::Ready);
        state.apply(Event::ProbePassed, Instant::now());
        state
    }

    fn after(state: &mut State, event: Event<'_>) -> &'static str {
        state.apply(event, Instant::now()).after.name.label()
    }

    #[test]
    fn a_new_backend_takes_builds_once_a_probe_has_passed() {
        let mut state = State::new(Condition::Ready);
        assert_eq!(state.name(), BackendState::Starting);
        assert!(state.published().status.unready);
        assert_eq!(after(&mut state, Event::ProbePassed), "ready");
        assert_eq!(state.published().status, Status::default());
    }

    #[test]
    fn what_discovery_says_decides_who_takes_builds() {
        let mut state = ready();
        for (condition, name, cordoned) in [
            (Condition::NotReady, "unhealthy", false),
            (Condition::Terminating, "draining", true),
            (Condition::Ready, "ready", false),
        ] {
            assert_eq!(after(&mut state, Event::Listed(condition)), name);
            assert_eq!(state.published().status.cordoned, cordoned);
            assert_eq!(state.published().status == Status::default(), name == "ready");
        }
    }

    #[test]
    fn a_drain_lasts_until_the_daemon_has_been_away() {
        let mut state = ready();
        let lost = Event::Fault(Fault::Lost, "reset");
        for event in [Event::DrainStarted, Event::ProbePassed, lost, Event::ProbePassed] {
            assert_eq!(after(&mut state, event), "cordoned", "whoever asked still waits");
        }
        let ended = Event::DrainEnded(Instant::now() + LEASE);
        for event in [ended, lost] {
            assert_eq!(after(&mut state, event), "cordoned");
        }
        assert_eq!(after(&mut state, Event::ProbePassed), "ready");
        after(&mut state, Event::DrainStarted);
        after(&mut state, ended);
        assert_eq!(after(&mut state, Event::Uncordoned), "ready");
    }

    #[test]
    fn a_drain_that_is_not_renewed_ends_and_an_operators_cordon_does_not() {
        let (mut state, now) = (ready(), Instant::now());
        let checked = |state: &mut State, after| {
            state.apply(Event::TimePassed, now + after).after.name.label()
        };
        let drain = |state: &mut State, lease| {
            after(state, Event::DrainStarted);
            after(state, Event::DrainEnded(now + lease));
        };
        after(&mut state, Event::DrainStarted);
        assert_eq!(checked(&mut state, LEASE * 10), "cordoned", "whoever asked still waits");
        after(&mut state, Event::DrainEnded(now + LEASE));
        assert_eq!(checked(&mut state, LEASE / 2), "cordoned");
        // Asked again, and by someone who waits longer for the next word.
        drain(&mut state, LEASE * 3);
        drain(&mut state, LEASE);
        assert_eq!(checked(&mut state, LEASE * 2), "cordoned");
        assert_eq!(checked(&mut state, LEASE * 4), "ready");
        drain(&mut state, LEASE);
        after(&mut state, Event::Cordoned);
        assert_eq!(checked(&mut state, LEASE * 4), "cordoned");
        assert_eq!(after(&mut state, Event::Uncordoned), "ready");
    }

    #[test]
    fn a_fault_ejects_and_a_probe_brings_back() {
        let (mut state, now) = (ready(), Instant::now());
        let mut fault = |fault| {
            let name = state.apply(Event::Fault(fault, "refused"), now).after.name;
            assert_eq!(name, BackendState::Unhealthy);
            state.retry_at().expect("ejected") - now
        };
        assert_eq!(fault(Fault::Lost), FIRST_RETRY);
        assert_eq!(fault(Fault::Lost), FIRST_RETRY, "one event, one wait");
        assert_eq!(fault(Fault::Probe), FIRST_RETRY * 2);
        let waits: Vec<_> = (0..20).map(|_| fault(Fault::Probe)).collect();
        assert_eq!(waits[19], LAST_RETRY);
        assert_eq!(after(&mut state, Event::ProbePassed), "ready");
        assert_eq!(state.retry_at(), None);
    }

    #[test]
    fn one_missed_probe_ejects_nobody() {
        let mut state = ready();
        let missed = Event::Fault(Fault::Probe, "deadline");
        for _ in 1..PROBES_TO_EJECT {
            assert_eq!(after(&mut state, missed), "ready");
        }
        assert_eq!(after(&mut state, missed), "unhealthy");
    }

    #[test]
    fn an_unfit_backend_is_degraded_for_its_probation() {
        let (mut state, now) = (ready(), Instant::now());
        let minute = Duration::from_secs(60);
        let unfit = Event::Unfit(minute, "disk full");
        assert_eq!(after(&mut state, unfit), "degraded");
        assert_eq!(state.cause(), Some("disk full"));
        // What keeps it from builds altogether is the word for it.
        assert_eq!(after(&mut state, Event::Cordoned), "cordoned");
        assert!(state.published().status.degraded);
        assert_eq!(state.apply(Event::TimePassed, now + minute * 2).after.name.label(), "cordoned");
        assert!(!state.published().status.degraded);
        assert_eq!(after(&mut state, Event::Uncordoned), "ready");
    }

    #[test]
    fn a_probation_ends_early_with_the_daemon_or_by_an_operator() {
        let mut state = ready();
        let unfit = Event::Unfit(Duration::from_secs(60), "disk full");
        let lost = Event::Fault(Fault::Lost, "reset");
        for events in
            [&[lost, Event::ProbePassed][..], &[Event::Uncordoned], &[Event::UnfitRevoked]]
        {
            assert_eq!(after(&mut state, unfit), "degraded");
            assert_eq!(after(&mut state, Event::ProbePassed), "degraded", "it has answered before");
            let names = events.iter().map(|event| after(&mut state, *event));
            assert_eq!(names.last(), Some("ready"));
        }
    }

    #[test]
    fn who_is_silent_is_probed_at_once_and_known_to_be_until_a_probe_passes() {
        let (mut state, now) = (ready(), Instant::now());
        let interval = Duration::from_secs(10);
        assert!(state.take_probe(now, interval, 0.5));
        after(&mut state, Event::ProbePassed);
        assert!(!state.take_probe(now, interval, 0.5) && !state.is_silent());
        let told = state.apply(Event::Silent, now);
        assert_eq!(told.before, told.after, "it may only be busy");
        assert!(state.is_silent() && state.take_probe(now, interval, 0.5));
        after(&mut state, Event::Fault(Fault::Probe, "deadline"));
        assert!(state.is_silent());
        after(&mut state, Event::ProbePassed);
        assert!(!state.is_silent());
    }

    #[test]
    fn a_probe_is_due_once() {
        let (mut state, now) = (State::new(Condition::Ready), Instant::now());
        let interval = Duration::from_secs(10);
        let take = |state: &mut State, now| state.take_probe(now, interval, 0.5);
        assert!(take(&mut state, now));
        assert!(!take(&mut state, now + interval * 2), "one is under way");
        after(&mut state, Event::ProbePassed);
        assert!(!take(&mut state, now + interval / 4));
        let now = now + interval / 2;
        assert!(take(&mut state, now), "the second comes within the interval");
        after(&mut state, Event::ProbePassed);
        assert!(!take(&mut state, now + interval / 2));
        assert!(take(&mut state, now + interval));
    }

    fn events() -> impl Strategy<Value = Vec<Event<'static>>> {
        let fault = |fault| Event::Fault(fault, "cause");
        let event = prop::sample::select(vec![
            Event::Listed(Condition::Ready),
            Event::Listed(Condition::NotReady),
            Event::Listed(Condition::Terminating),
            Event::Unlisted,
            Event::Departed,
            Event::Cordoned,
            Event::Uncordoned,
            Event::DrainStarted,
            Event::DrainEnded(Instant::now()),
            Event::TimePassed,
            fault(Fault::Refused),
            fault(Fault::Timeout),
            fault(Fault::Lost),
            fault(Fault::Probe),
            Event::Silent,
            Event::ProbePassed,
            Event::ProbePassed,
            Event::ProbeNotMade,
            Event::Unfit(Duration::from_secs(1), "cause"),
            Event::UnfitRevoked,
        ]);
        prop::collection::vec(event, 0..40)
    }

    proptest! {
        #[test]
        fn no_order_of_events_breaks_what_is_published(events in events()) {
            let (mut state, mut now) = (State::new(Condition::Ready), Instant::now());
            let mut told = state.published();
            let (mut probed, mut departed) = (false, false);
            for event in events {
                now += Duration::from_millis(100);
                probed |= matches!(event, Event::ProbePassed);
                departed |= matches!(event, Event::Departed);
                let Transition { before, after, .. } = state.apply(event, now);
                prop_assert_eq!(before, told);
                prop_assert_eq!(after, state.published());
                told = after;
                let Published { name, status } = after;
                let takes = !(status.cordoned || status.ejected || status.unready);
                let (ready, degraded) = (BackendState::Ready, BackendState::Degraded);
                prop_assert_eq!(name == ready, takes && !status.degraded);
                prop_assert_eq!(name == degraded, takes && status.degraded);
                prop_assert!(probed || !takes);
                prop_assert_eq!(status.departed, departed);
                prop_assert_eq!(status.ejected, state.retry_at().is_some());
                prop_assert!(state.retry_at().is_none_or(|at| at <= now + LAST_RETRY));
                let unhealthy = name == BackendState::Unhealthy;
                prop_assert!(!(unhealthy || name == degraded) || state.cause().is_some());
                prop_assert_eq!(status.degraded, state.probation_end().is_some());
            }
        }
    }
}

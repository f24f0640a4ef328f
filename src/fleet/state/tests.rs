use proptest::prelude::*;

use super::{
    health::{FIRST_RETRY, LAST_RETRY, PROBES_TO_EJECT},
    *,
};

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
    let checked =
        |state: &mut State, after| state.apply(Event::TimePassed, now + after).after.name.label();
    let drain = |state: &mut State, lease| {
        after(state, Event::DrainStarted);
        after(state, Event::DrainEnded(now + lease));
    };
    after(&mut state, Event::DrainStarted);
    assert_eq!(checked(&mut state, LEASE * 10), "cordoned", "whoever asked still waits");
    after(&mut state, Event::DrainEnded(now + LEASE));
    assert_eq!(checked(&mut state, LEASE / 2), "cordoned");
    // Two more drains are asked for, one of them with a longer lease.
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
    // The name of the state is the one that keeps builds away altogether.
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
    for events in [&[lost, Event::ProbePassed][..], &[Event::Uncordoned], &[Event::UnfitRevoked]] {
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
    let transition = state.apply(Event::Silent, now);
    assert_eq!(transition.before, transition.after, "it may only be busy");
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
        let mut last = state.published();
        let (mut probed, mut departed) = (false, false);
        for event in events {
            now += Duration::from_millis(100);
            probed |= matches!(event, Event::ProbePassed);
            departed |= matches!(event, Event::Departed);
            let Transition { before, after, .. } = state.apply(event, now);
            prop_assert_eq!(before, last);
            prop_assert_eq!(after, state.published());
            last = after;
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

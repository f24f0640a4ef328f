use std::{pin::pin, time::SystemTime};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    capabilities::Promise,
    fleet::tests::backends,
    ids::{Id, SessionId},
};

fn key(text: &str) -> BindingKey {
    BindingKey::Build(Id::new(text.as_bytes(), None).expect("valid"))
}

/// A call on connection `connection`, without a trace.
fn on(connection: u64) -> Caller {
    Caller { connection, trace: None }
}

fn id(text: &str) -> Id {
    Id::new(text.as_bytes(), None).expect("valid")
}

fn session(text: &str) -> BindingKey {
    BindingKey::Session(SessionId::new(text.as_bytes(), None).expect("valid"))
}

fn binding(index: usize) -> Arc<Binding> {
    let link = Link::new(Arc::clone(&backends(3)[index]), TaskTracker::new());
    Arc::new(Binding::new(link))
}

/// Ties for `keys`, beside builds under `companions`.
fn ties(keys: &[BindingKey], companions: &[BindingKey]) -> Arc<Ties> {
    let (follows, attracts) = (companions.to_vec(), companions.to_vec());
    Arc::new(Ties {
        keys: keys.to_vec(),
        own: keys.to_vec(),
        follows,
        attracts,
        connection: 1,
        apart: Vec::new(),
    })
}

/// The outcome of a claim, unless it has to wait.
fn claim(directory: &Directory, ties: &Arc<Ties>) -> Option<Claimed> {
    directory.claim(ties, &watch::channel(None).0, Duration::from_secs(12)).now_or_never().flatten()
}

fn decide(directory: &Directory, keys: &[BindingKey], companions: &[BindingKey]) -> Claim {
    match claim(directory, &ties(keys, companions)) {
        Some(Claimed::Decide(decision)) => decision,
        other => panic!("expected a decision, found {other:?}"),
    }
}

/// Waits for `key` as a stream whose Solve is to come within a second.
fn parked(directory: &Directory, key: BindingKey) -> JoinHandle<Lookup> {
    let directory = directory.clone();
    tokio::spawn(async move { directory.bound(&key, on(1), Duration::from_secs(1)).await })
}

fn name(binding: &Binding) -> &str {
    binding.link.backend().name()
}

#[tokio::test]
async fn who_parked_first_is_served_when_the_solve_binds() {
    let directory = Directory::default();
    let waiting = parked(&directory, key("r"));
    tokio::task::yield_now().await;
    let decision = decide(&directory, &[session("s"), key("r")], &[]);
    let guard = decision.bind(&binding(1));
    assert_eq!(backend(&waiting.await.expect("no panic")), Some("buildkitd-1"));
    assert!(directory.inner.lock().live.waiters.is_empty());
    drop(guard);
    assert!(matches!(directory.lookup(&key("r")), Lookup::Ended(name) if &*name == "buildkitd-1"));
}

#[tokio::test]
async fn a_shared_session_decides_and_outlives_the_first_target() {
    let directory = Directory::default();
    let first = decide(&directory, &[session("shared"), key("a")], &[]);
    let second = ties(&[session("shared"), key("b")], &[]);
    assert!(claim(&directory, &second).is_none(), "it waits for the first");
    let first = first.bind(&binding(2));
    let Some(Claimed::Join(joined, second)) = claim(&directory, &second) else {
        panic!("must join");
    };
    assert_eq!(name(&joined), "buildkitd-2");
    drop(first);
    assert!(matches!(directory.lookup(&session("shared")), Lookup::Live(_)));
    drop(second);
    assert!(matches!(directory.lookup(&session("shared")), Lookup::Ended(_)));
    assert!(directory.inner.lock().live.keys.is_empty());
}

#[tokio::test]
async fn a_refusal_reaches_those_who_wait_and_those_who_come_later() {
    let directory = Directory::default();
    let waiting = parked(&directory, key("r"));
    tokio::task::yield_now().await;
    let decision = decide(&directory, &[key("r")], &[]);
    decision.refuse(&ProxyError::NoBackend("none".into()));
    assert!(matches!(waiting.await.expect("no panic"), Lookup::Refused(_)));
    assert!(matches!(directory.lookup(&key("r")), Lookup::Refused(_)));
    decide(&directory, &[key("r")], &[]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_counts_until_the_solve_is_seen() {
    let directory = Directory::default();
    let [before, after] = [key("never"), key("r")].map(|key| parked(&directory, key));
    tokio::time::sleep(Duration::from_millis(900)).await;
    let placing = directory.placing(None, Some(&id("r")), on(1)).expect("no other");
    let late = parked(&directory, key("r"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(before.is_finished() && !after.is_finished() && !late.is_finished());
    assert!(matches!(before.await.expect("no panic"), Lookup::Unknown));
    let claim = decide(&directory, &[key("r")], &[]);
    claim.refuse(&ProxyError::NoBackend("none".into()));
    drop(placing);
    for waiting in [after, late] {
        assert!(matches!(waiting.await.expect("no panic"), Lookup::Refused(_)));
    }
    assert!(directory.inner.lock().live.placing.is_empty());
}

/// What the only queued Solve is told.
fn waiting() -> Waiting {
    let (cause, promise) = (Cause::NoBackend, Promise::default());
    Waiting { since: SystemTime::now(), position: 1, total: 1, cause, promise }
}

#[tokio::test]
async fn the_calls_of_a_solve_that_waits_are_told() {
    let directory = Directory::default();
    let queued = |key| {
        let directory = directory.clone();
        tokio::spawn(async move { directory.queued(&key, on(1)).await })
    };
    let before = queued(key("r"));
    tokio::task::yield_now().await;
    let placing = directory.placing(None, Some(&id("r")), on(1)).expect("no other");
    let after = queued(key("r"));
    tokio::task::yield_now().await;
    assert!(!after.is_finished(), "it does not wait yet");
    let known = waiting();
    publish(placing.wait_sender(), Some(&known));
    directory.look_again(placing.own());
    for call in [before, after] {
        let waits = call.await.expect("no panic");
        assert_eq!(waits.borrow().as_ref(), Some(&known));
    }
    let mut waits = queued(key("r")).await.expect("no panic");
    drop(placing);
    assert!(waits.wait_for(Option::is_none).await.is_err(), "the Solve is gone");
    assert!(directory.inner.lock().live.waiters.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_decision_waits_as_long_as_that_one_waits_for_its_turn() {
    let limit = Duration::from_secs(12);
    let directory = Directory::default();
    let first = decide(&directory, &[session("shared"), key("a")], &[]);
    let sender = WaitSender::new(None);
    publish(first.wait_sender(), Some(&waiting()));
    let second = ties(&[session("shared"), key("b")], &[]);
    let mut second = pin!(directory.claim(&second, &sender, limit));
    let wait = tokio::time::timeout(limit * 100, second.as_mut());
    assert!(wait.await.is_err(), "its own time has not begun");
    assert!(sender.borrow().is_some());
    publish(first.wait_sender(), None);
    assert!(tokio::time::timeout(limit / 2, second.as_mut()).await.is_err());
    assert!(sender.borrow().is_none());
    let ended = tokio::time::timeout(limit, second.as_mut()).await.expect("its time is over");
    assert!(ended.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_solve_whose_client_goes_is_waited_for_no_longer() {
    let directory = Directory::default();
    let placing = directory.placing(None, Some(&id("r")), on(1)).expect("no other");
    let waiting = parked(&directory, key("r"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    drop(placing);
    assert!(matches!(waiting.await.expect("no panic"), Lookup::Unknown));
}

#[test]
fn a_key_on_another_backend_is_found() {
    let directory = Directory::default();
    let decide = |name| decide(&directory, &[session(name)], &[]);
    let all = backends(3);
    let on = |index: usize| {
        Arc::new(Binding::new(Link::new(Arc::clone(&all[index]), TaskTracker::new())))
    };
    let (here, there) = (on(0), on(1));
    let _leases = [decide("a").bind(&here), decide("b").bind(&on(0)), decide("c").bind(&there)];
    let keys = ["unknown", "a", "b", "c"].map(session);
    let (key, backend) = directory.elsewhere(&keys, &here).expect("one is elsewhere");
    assert_eq!((key, backend.name()), (&keys[3], "buildkitd-1"));
    // Two connections to one daemon are no conflict.
    assert!(directory.elsewhere(&keys[..3], &here).is_none());
}

#[test]
fn an_abandoned_decision_frees_its_keys() {
    let directory = Directory::default();
    drop(decide(&directory, &[key("r")], &[BindingKey::Connection(1)]));
    assert!(directory.inner.lock().live.keys.is_empty());
    assert!(matches!(directory.lookup(&key("r")), Lookup::Unknown));
}

#[test]
fn a_probe_follows_companions_and_pins_nothing() {
    let directory = Directory::default();
    let companions = [BindingKey::Trace(TraceId::new([1; 16], None))];
    let probe = |name| {
        let ties = (*ties(&[key(name)], &companions)).clone();
        claim(&directory, &Arc::new(Ties { attracts: Vec::new(), ..ties }))
    };
    let Some(Claimed::Decide(first)) = probe("probe") else { panic!("must decide") };
    let first = first.bind(&binding(0));
    let build = decide(&directory, &[key("build")], &companions);
    let build = build.bind(&binding(1));
    let second = probe("probe2");
    assert!(matches!(
        &second,
        Some(Claimed::Join(joined, _)) if name(joined) == "buildkitd-1"
    ));
    drop((first, build, second));
    let now = Instant::now();
    assert!(directory.recent_companion(&companions, now).is_some());
    assert!(directory.recent_companion(&companions, now + memory::COMPANION_GRACE * 2).is_none());
}

#[test]
fn a_session_opens_once() {
    let directory = Directory::default();
    let binding = binding(0);
    let open = directory.open_session(&session("s"), &binding, 1, None).expect("first");
    assert!(directory.open_session(&session("s"), &binding, 1, None).is_none());
    drop(open);
    assert!(directory.open_session(&session("s"), &binding, 1, None).is_some());
}

#[tokio::test]
async fn a_waiter_that_goes_away_leaves_nothing() {
    let directory = Directory::default();
    let waiting = parked(&directory, key("r"));
    tokio::task::yield_now().await;
    assert!(!directory.inner.lock().live.waiters.is_empty());
    waiting.abort();
    assert!(waiting.await.is_err());
    assert!(directory.inner.lock().live.waiters.is_empty());
}

#[test]
fn a_build_with_calls_on_two_connections_tells_of_a_hop() {
    let directory = Directory::default();
    let [direct, hop] = [1, 2].map(|id| TraceId::new([id; 16], None));
    for (name, trace, connection) in [("direct", direct, 1), ("hop", hop, 2)] {
        // The Solve comes on connection 1.
        let guard = decide(&directory, &[session(name)], &[]).bind(&binding(0));
        let open = directory.open_session(&session(name), &binding(0), connection, Some(trace));
        assert!(open.is_some());
        drop(guard);
    }
    assert!(!directory.is_scattered(&direct) && directory.is_scattered(&hop));
}

/// A Solve with the ref `r` and a session of its own, which has come on `connection`.
fn arrive(directory: &Directory, own: &str, connection: u64) -> Result<Placing, ProxyError> {
    let own = SessionId::new(own.as_bytes(), None).expect("valid");
    directory.placing(Some(&own), Some(&id("r")), on(connection))
}

/// Decides for a Solve that has arrived.
fn place(directory: &Directory, placing: &Placing, connection: u64, backend: usize) -> KeyGuard {
    let (own, apart) = (placing.own().to_vec(), placing.apart().to_vec());
    let ties = Arc::new(Ties { keys: own.clone(), own, apart, connection, ..Ties::default() });
    match claim(directory, &ties) {
        Some(Claimed::Decide(claim)) => claim.bind(&binding(backend)),
        other => panic!("expected a decision, found {other:?}"),
    }
}

fn backend(lookup: &Lookup) -> Option<&str> {
    match lookup {
        Lookup::Live(bound) => Some(name(&bound.binding)),
        Lookup::Ended(name) => Some(name),
        Lookup::Refused(_) | Lookup::Unknown => None,
    }
}

#[tokio::test(start_paused = true)]
async fn builds_with_one_ref_are_told_apart_by_their_connections() {
    let directory = Directory::default();
    let wait = |connection| {
        let directory = directory.clone();
        let limit = Duration::from_secs(14);
        tokio::spawn(async move { directory.bound(&key("r"), on(connection), limit).await })
    };
    // A call of each comes before both Solves.
    let early = [wait(1), wait(2)];
    tokio::task::yield_now().await;
    let first = arrive(&directory, "s1", 1).expect("the first");
    let second = arrive(&directory, "s2", 2).expect("told apart");
    assert_eq!((first.apart(), second.apart()), (&[][..], &[key("r")][..]));
    let waits = Ties { apart: second.apart().to_vec(), ..Ties::default() };
    assert!(claim(&directory, &Arc::new(waits)).is_none(), "the first is not placed yet");
    let guards = (place(&directory, &first, 1, 0), drop(first));
    let more = (place(&directory, &second, 2, 1), drop(second));
    for (call, expected) in early.into_iter().zip(["buildkitd-0", "buildkitd-1"]) {
        assert_eq!(backend(&call.await.expect("no panic")), Some(expected));
    }
    let at = |connection| directory.lookup_build(&id("r"), on(connection));
    assert_eq!(backend(&at(1)), Some("buildkitd-0"));
    assert_eq!(backend(&at(2)), Some("buildkitd-1"));
    assert!(matches!(at(3), Lookup::Refused(ProxyError::RefTaken { .. })));
    drop((guards, more));
    // The record of an ended build is found where the build ran, also by others than its client.
    assert_eq!(backend(&at(2)), Some("buildkitd-1"));
    assert_eq!(backend(&at(3)), Some("buildkitd-0"));
    let inner = directory.inner.lock();
    assert!(inner.live.namesakes.is_empty() && inner.live.placing.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_on_another_connection_waits_a_moment_for_a_solve_of_its_own() {
    let directory = Directory::default();
    let first = arrive(&directory, "s1", 1).expect("the first");
    let _keys = (place(&directory, &first, 1, 0), drop(first));
    assert!(matches!(directory.lookup_build(&id("r"), on(9)), Lookup::Unknown));
    let limit = Duration::from_secs(14);
    assert_eq!(backend(&directory.bound(&key("r"), on(9), limit).await), Some("buildkitd-0"));
    // The calls of the build are now known to come on several connections.
    assert_eq!(backend(&directory.lookup_build(&id("r"), on(9))), Some("buildkitd-0"));
}

#[test]
fn builds_with_one_ref_behind_a_hop_are_refused() {
    let directory = Directory::default();
    let first = arrive(&directory, "s1", 1).expect("the first");
    let guard = (place(&directory, &first, 1, 0), drop(first));
    // The Session comes on a connection other than that of its Solve.
    let session = directory.open_session(&session("s1"), &binding(0), 5, None);
    assert_eq!(backend(&directory.lookup_build(&id("r"), on(7))), Some("buildkitd-0"));
    assert!(matches!(arrive(&directory, "s2", 2), Err(ProxyError::RefTaken { .. })));
    for connection in [1, 2, 7] {
        let lookup = directory.lookup_build(&id("r"), on(connection));
        assert!(matches!(lookup, Lookup::Refused(ProxyError::RefTaken { .. })), "{connection}");
    }
    drop((guard, session));
    assert!(directory.inner.lock().live.namesakes.is_empty());
    assert!(arrive(&directory, "s3", 3).is_ok());
}

#[tokio::test]
async fn a_call_that_looks_again_after_its_build_has_ended_finds_where_that_ran() {
    let directory = Directory::default();
    let waiting = tokio::spawn({
        let directory = directory.clone();
        async move { directory.bound(&key("r"), on(9), Duration::from_secs(14)).await }
    });
    tokio::task::yield_now().await;
    let first = arrive(&directory, "s1", 1).expect("the first");
    drop((place(&directory, &first, 1, 0), first));
    assert_eq!(backend(&waiting.await.expect("no panic")), Some("buildkitd-0"));
}

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    fleet::tests::backends,
    ids::{Id, SessionId},
};

fn key(text: &str) -> Key {
    Key::Build(Id::new(text.as_bytes()).expect("valid"))
}

fn session(text: &str) -> Key {
    Key::Session(SessionId::new(text.as_bytes()).expect("valid"))
}

fn binding(index: usize) -> Arc<Binding> {
    let link = Link::new(Arc::clone(&backends(3)[index]), TaskTracker::new());
    Arc::new(Binding::new(link))
}

/// A ties for `keys` beside builds under `companions`.
fn ties(keys: &[Key], companions: &[Key]) -> Arc<Ties> {
    let (follows, attracts) = (companions.to_vec(), companions.to_vec());
    Arc::new(Ties { keys: keys.to_vec(), own: keys.to_vec(), follows, attracts, connection: 1 })
}

/// The answer to a ties, unless it has to wait.
fn claim(directory: &Directory, ties: &Arc<Ties>) -> Option<Claimed> {
    directory.claim(ties).now_or_never()
}

fn decide(directory: &Directory, keys: &[Key], companions: &[Key]) -> Claim {
    match claim(directory, &ties(keys, companions)) {
        Some(Claimed::Decide(decision)) => decision,
        other => panic!("expected a decision, found {other:?}"),
    }
}

/// Waits for `key` as a stream whose Solve is to come within a second.
fn parked(directory: &Directory, key: Key) -> JoinHandle<Result<Option<Bound>, ProxyError>> {
    let directory = directory.clone();
    tokio::spawn(async move { directory.bound(&key, Duration::from_secs(1)).await })
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
    let lease = decision.bind(&binding(1));
    let bound = waiting.await.expect("no panic").expect("no refusal").expect("bound");
    assert_eq!(name(&bound.binding), "buildkitd-1");
    assert!(directory.inner.lock().live.waiters.is_empty());
    drop(lease);
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
    assert!(waiting.await.expect("no panic").is_err());
    assert!(matches!(directory.lookup(&key("r")), Lookup::Refused(_)));
    decide(&directory, &[key("r")], &[]);
}

#[tokio::test(start_paused = true)]
async fn a_limit_counts_until_the_solve_is_seen() {
    let directory = Directory::default();
    let [before, after] = [key("never"), key("r")].map(|key| parked(&directory, key));
    tokio::time::sleep(Duration::from_millis(900)).await;
    let placing = directory.placing(vec![key("r")]);
    let late = parked(&directory, key("r"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(before.is_finished() && !after.is_finished() && !late.is_finished());
    assert!(before.await.expect("no panic").expect("no refusal").is_none());
    let claim = decide(&directory, &[key("r")], &[]);
    claim.refuse(&ProxyError::NoBackend("none".into()));
    drop(placing);
    for waiting in [after, late] {
        assert!(waiting.await.expect("no panic").is_err());
    }
    assert!(directory.inner.lock().live.placing.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_solve_whose_client_goes_is_waited_for_no_longer() {
    let directory = Directory::default();
    let placing = directory.placing(vec![key("r")]);
    let waiting = parked(&directory, key("r"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    drop(placing);
    assert!(waiting.await.expect("no panic").expect("no refusal").is_none());
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
    drop(decide(&directory, &[key("r")], &[Key::Connection(1)]));
    assert!(directory.inner.lock().live.keys.is_empty());
    assert!(matches!(directory.lookup(&key("r")), Lookup::Unknown));
}

#[test]
fn a_probe_follows_companions_and_pins_nothing() {
    let directory = Directory::default();
    let companions = [Key::Trace([1; 16])];
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
    let (direct, hop) = ([1; 16], [2; 16]);
    for (name, trace, connection) in [("direct", direct, 1), ("hop", hop, 2)] {
        // The Solve comes on connection 1.
        let lease = decide(&directory, &[session(name)], &[]).bind(&binding(0));
        let open = directory.open_session(&session(name), &binding(0), connection, Some(trace));
        assert!(open.is_some());
        drop(lease);
    }
    assert!(!directory.is_scattered(&direct) && directory.is_scattered(&hop));
}

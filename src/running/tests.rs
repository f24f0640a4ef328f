use tonic::Code;

use super::*;
use crate::{
    fleet::{Endpoint, Fleet},
    metrics::Metrics,
    policy::Outcome,
};

fn fleet() -> Fleet {
    let fleet = Fleet::new(Arc::new(Metrics::default()));
    let address = "tcp://127.0.0.1:1".parse().expect("an address");
    fleet.replace(vec![Endpoint::new("a", address)]);
    fleet
}

fn build(fleet: &Fleet, name: &str, internal: bool) -> RunningBuild {
    let backend = fleet.find("a").expect("there");
    RunningBuild {
        build: name.to_owned(),
        internal,
        session: String::new(),
        client: None,
        identity: None,
        affinity: None,
        policy: PolicyKind::LeastBuilds,
        decision: Decision {
            outcome: Outcome::Balanced,
            rank: None,
            load: 0,
            limit: None,
            passed_over: None,
        },
        backend,
        warm: None,
        arrived: Instant::now(),
        wait: Duration::ZERO,
        waited: None,
        byte_counts: Arc::default(),
        session_byte_counts: Arc::default(),
    }
}

const ENDING: Ending =
    Ending { duration: Duration::from_secs(3), code: Code::Ok, bytes_up: 1, bytes_down: 2 };

fn refs(running: &Running) -> Vec<String> {
    running.recent().iter().map(|ended| ended.build.clone()).collect()
}

#[test]
fn the_builds_that_ended_last_are_kept_and_no_more() {
    let (fleet, running) = (fleet(), Running::new(2));
    let enter = |name, internal| running.enter(build(&fleet, name, internal));
    let [one, two, three] = ["one", "two", "three"].map(|name| enter(name, false));
    assert_eq!(running.builds().len(), 3);
    two.end(ENDING);
    one.end(ENDING);
    assert_eq!(refs(&running), ["one", "two"]);
    assert_eq!(running.builds().len(), 1);
    three.end(ENDING);
    assert_eq!(refs(&running), ["three", "one"]);
    let ended = &running.recent()[0];
    assert_eq!(ended.ending, ENDING);
    assert_eq!(ended.ended() - ended.arrived, ENDING.duration);
    // A client's probe and a build that never got a stream are listed only while they live.
    enter("probe", true).end(ENDING);
    drop(enter("gone", false));
    assert_eq!(refs(&running), ["three", "one"]);
    assert!(running.builds().is_empty());
    assert_eq!(running.placements().iter().map(Minute::total).sum::<u32>(), 4, "without the probe");
}

#[test]
fn with_zero_nothing_is_kept() {
    let (fleet, running) = (fleet(), Running::new(0));
    running.enter(build(&fleet, "one", false)).end(ENDING);
    assert!(running.recent().is_empty() && running.builds().is_empty());
}

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{address::Address, metrics::BackendState};

pub(crate) fn backends(count: usize) -> Vec<Arc<Backend>> {
    let fleet = Fleet::new(Arc::new(Metrics::default()));
    fleet.replace((0..count).map(|n| endpoint(&format!("buildkitd-{n}"), 1234)).collect());
    fleet.backends().iter().for_each(|backend| backend.report_healthy());
    fleet.backends().to_vec()
}

pub(crate) fn endpoint(name: &str, port: u16) -> Endpoint {
    Endpoint::new(name, Address::Tcp { host: "127.0.0.1".into(), port })
}

pub(crate) fn fleet(endpoints: Vec<Endpoint>) -> Fleet {
    let fleet = Fleet::new(Arc::new(Metrics::default()));
    fleet.replace(endpoints);
    fleet.backends().iter().for_each(|backend| backend.report_healthy());
    fleet
}

fn with(condition: Condition, endpoint: Endpoint) -> Endpoint {
    Endpoint { condition, ..endpoint }
}

#[test]
fn a_backend_that_stays_keeps_its_builds_and_its_cordon() {
    let fleet = fleet(vec![endpoint("b", 2), endpoint("a", 1)]);
    let a = fleet.find("a").expect("there");
    let count = a.start_build();
    a.set_cordoned(true);
    fleet.replace(vec![endpoint("a", 1), endpoint("c", 3)]);
    let a = fleet.find("a").expect("still there");
    assert_eq!((a.builds(), a.state()), (1, BackendState::Cordoned));
    assert!(fleet.find("b").is_none());
    drop(count);
    assert_eq!(a.builds(), 0);
}

#[test]
fn the_time_of_a_state_is_that_of_its_beginning() {
    let fleet = fleet(vec![endpoint("a", 1)]);
    let a = fleet.find("a").expect("there");
    let ready = a.since();
    a.report_fault(Fault::Refused, "refused", Instant::now());
    let unhealthy = a.since();
    a.report_fault(Fault::Refused, "refused again", Instant::now());
    assert_eq!((a.state(), a.since()), (BackendState::Unhealthy, unhealthy));
    assert_ne!(unhealthy, ready);
    a.set_cordoned(true);
    assert_ne!(a.since(), unhealthy);
}

#[test]
fn a_new_address_is_a_new_backend() {
    let fleet = fleet(vec![endpoint("a", 1)]);
    fleet.find("a").expect("there").report_fault(Fault::Refused, "refused", Instant::now());
    assert!(!fleet.is_ready());
    fleet.replace(vec![endpoint("a", 2)]);
    let a = fleet.find("a").expect("there");
    assert_eq!(a.state(), BackendState::Starting);
    a.report_healthy();
    assert!(fleet.is_ready());
}

#[test]
fn a_backend_that_goes_stays_until_nothing_is_bound_to_it() {
    let fleet = fleet(vec![endpoint("a", 1), endpoint("b", 2)]);
    let a = fleet.find("a").expect("there");
    let (build, binding) = (a.start_build(), a.bind());
    fleet.replace(vec![endpoint("b", 2)]);
    fleet.sweep();
    assert_eq!((a.state(), a.is_cordoned()), (BackendState::Draining, true));
    assert!(fleet.find("a").is_some());
    a.report_fault(Fault::Lost, "reset", Instant::now());
    assert_eq!(a.state(), BackendState::Lost);
    drop(build);
    fleet.sweep();
    assert!(fleet.find("a").is_some(), "its session is open");
    drop(binding);
    fleet.sweep();
    assert!(fleet.find("a").is_none());
    assert_eq!(fleet.backends().len(), 1);
}

#[test]
fn a_backend_that_goes_and_returns_is_the_same() {
    let fleet = fleet(vec![endpoint("a", 1)]);
    let a = fleet.find("a").expect("there");
    let build = a.start_build();
    fleet.replace(Vec::new());
    fleet.replace(vec![endpoint("a", 1)]);
    assert!(Arc::ptr_eq(&a, &fleet.find("a").expect("there")) && a.is_ready());
    drop(build);
}

#[test]
fn the_next_daemon_of_a_name_takes_its_place_at_once() {
    let fleet = fleet(vec![endpoint("a", 1)]);
    let old = fleet.find("a").expect("there");
    let _build = old.start_build();
    fleet.replace(vec![endpoint("a", 2)]);
    let new = fleet.find("a").expect("there");
    assert!(!Arc::ptr_eq(&old, &new));
    assert_eq!((new.builds(), fleet.backends().len()), (0, 1));
}

#[test]
fn a_fleet_that_came_at_once_is_probed_bit_by_bit() {
    let (now, interval) = (Instant::now(), Duration::from_secs(10));
    let fleet = Fleet::new(Arc::new(Metrics::default()));
    fleet.replace((0..100).map(|n| endpoint(&format!("b{n}"), n)).collect());
    let probed = |at| {
        let due = |backend: &&Arc<Backend>| backend.take_probe(at, interval);
        let backends = fleet.backends();
        let due: Vec<_> = backends.iter().filter(due).collect();
        due.iter().for_each(|backend| backend.report_healthy());
        due.len()
    };
    assert_eq!(probed(now), 100);
    let halves = [probed(now + interval / 2), probed(now + interval)];
    assert!(halves.iter().all(|half| *half > 10), "{halves:?}");
}

#[test]
fn series_of_a_departed_backend_go() {
    let metrics = Arc::new(Metrics::default());
    let fleet = Fleet::new(Arc::clone(&metrics));
    fleet.replace(vec![endpoint("gone-soon", 1)]);
    fleet.find("gone-soon").expect("there").report_fault(Fault::Lost, "x", Instant::now());
    assert!(metrics.families().render().contains("gone-soon"));
    fleet.replace(Vec::new());
    assert!(!metrics.families().render().contains("gone-soon"));
}

#[test]
fn what_a_departed_backend_still_meets_is_told_to_nobody() {
    let metrics = Arc::new(Metrics::default());
    let fleet = Fleet::new(Arc::clone(&metrics));
    fleet.replace(vec![endpoint("was-here", 1)]);
    let gone = fleet.find("was-here").expect("there");
    fleet.replace(Vec::new());
    gone.report_fault(Fault::Lost, "reset", Instant::now());
    gone.report_healthy();
    gone.set_cordoned(true);
    assert!(!metrics.families().render().contains("was-here"));
}

#[test]
fn the_oldest_are_known_while_versions_differ() {
    let fleet = fleet(vec![endpoint("a", 1), endpoint("b", 2), endpoint("c", 3)]);
    let report = |name, version| {
        let backend = fleet.find(name).expect("there");
        backend.set_version(Version::new(version));
        backend
    };
    let names = || -> Vec<String> {
        fleet.oldest().iter().map(|backend| backend.name().to_owned()).collect()
    };
    let a = report("a", "v0.16.0");
    assert_eq!(names(), [""; 0], "one version is no difference");
    report("b", "v0.9.0");
    report("c", "v0.32.2");
    assert_eq!(names(), ["b"]);
    fleet.find("b").expect("there").set_cordoned(true);
    assert_eq!(names(), ["a"]);
    a.set_version(Version::new("v0.32.2"));
    assert_eq!(names(), [""; 0]);
    let versions: Vec<_> = fleet.versions().iter().map(Version::to_string).collect();
    assert_eq!(versions, ["v0.9.0", "v0.32.2"]);
}

#[test]
fn a_backend_has_one_version_and_takes_it_along() {
    let metrics = Arc::new(Metrics::default());
    let fleet = Fleet::new(Arc::clone(&metrics));
    fleet.replace(vec![endpoint("a", 1)]);
    let old = fleet.find("a").expect("there");
    let is_shown = |version: &str| {
        let text = metrics.families().render();
        text.contains(&format!(
            "backend_info{{pool=\"default\",backend=\"a\",version=\"{version}\"}} 1"
        ))
    };
    old.set_version(Version::new("v0.16.0"));
    assert!(is_shown("v0.16.0"));
    old.set_version(Version::new("v0.17.0"));
    assert!(is_shown("v0.17.0") && !is_shown("v0.16.0"));
    fleet.replace(vec![endpoint("a", 2)]);
    assert!(!is_shown("v0.17.0"));
    old.set_version(Version::new("v0.18.0"));
    assert!(!is_shown("v0.18.0"), "another daemon has the name");
}

#[derive(Debug, Clone)]
enum Step {
    /// Discovery names the backend with this address, or does not name it.
    Listed(Option<(u16, Condition)>),
    /// A build starts on the live backend.
    Build,
    /// All builds end.
    BuildsEnd,
    Sweep,
    /// Something happens to one of all the objects that have existed.
    Fault(usize),
    Probed(usize),
    Cordon(usize, bool),
    Drain(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let condition =
        prop::sample::select(vec![Condition::Ready, Condition::NotReady, Condition::Terminating]);
    prop_oneof![
        prop::option::weighted(0.8, (1..3_u16, condition)).prop_map(Step::Listed),
        Just(Step::Build),
        Just(Step::BuildsEnd),
        Just(Step::Sweep),
        any::<usize>().prop_map(Step::Fault),
        any::<usize>().prop_map(Step::Probed),
        (any::<usize>(), any::<bool>()).prop_map(|(at, cordoned)| Step::Cordon(at, cordoned)),
        any::<usize>().prop_map(Step::Drain),
    ]
}

/// The states that the metric shows for the backend called `a`.
fn shown(metrics: &Metrics) -> Vec<String> {
    let text = metrics.families().render();
    let states = text
        .lines()
        .filter(|line| line.starts_with("buildkit_lb_backend_state{") && line.ends_with(" 1"));
    states
        .filter_map(|line| Some(line.split_once("state=\"")?.1.split('"').next()?.to_owned()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_metric_always_shows_the_live_backend_of_a_name(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let metrics = Arc::new(Metrics::default());
        let fleet = Fleet::new(Arc::clone(&metrics));
        let mut all: Vec<Arc<Backend>> = Vec::new();
        let mut builds = Vec::new();
        for step in steps {
            let any = |at: usize| all.get(at % all.len().max(1));
            match step {
                Step::Listed(listed) => fleet.replace(
                    listed.map(|(port, condition)| with(condition, endpoint("a", port))).into_iter().collect(),
                ),
                Step::Build => builds.extend(fleet.find("a").map(|live| live.start_build())),
                Step::BuildsEnd => builds.clear(),
                Step::Sweep => fleet.sweep(),
                Step::Fault(at) => {
                    let lost = |one: &Arc<Backend>| one.report_fault(Fault::Lost, "x", Instant::now());
                    any(at).into_iter().for_each(lost);
                }
                Step::Probed(at) => any(at).into_iter().for_each(|one| one.report_healthy()),
                Step::Cordon(at, cordoned) => any(at).into_iter().for_each(|one| one.set_cordoned(cordoned)),
                Step::Drain(at) => drop(any(at).map(|one| one.start_drain(Duration::ZERO))),
            }
            let live = fleet.find("a");
            let is_known = |one: &Arc<Backend>| all.iter().any(|known| Arc::ptr_eq(known, one));
            let new: Vec<_> = live.iter().filter(|one| !is_known(one)).cloned().collect();
            all.extend(new);
            let state = live.iter().map(|live| live.state().label().to_owned());
            prop_assert_eq!(shown(&metrics), state.collect::<Vec<_>>());
        }
    }
}

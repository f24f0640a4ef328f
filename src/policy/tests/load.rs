//! How builds are spread by load and by chance.

use super::*;

#[test]
fn random_reaches_every_backend_evenly_whatever_runs_there() {
    let facts = facts((0..5).map(|id| (id, 1 + u32::from(id == 0) * 9)));
    facts.all[1].start_build();
    let mut rng = rng();
    let mut seen = [0_u32; 5];
    for _ in 0..10_000 {
        let choice = facts.choose(with(PolicyKind::Random), &request("same"), &mut rng);
        seen[choice.expect("a choice").index] += 1;
    }
    assert!(seen.iter().all(|count| (1800..2200).contains(count)), "{seen:?}");
}

#[test]
fn of_two_backends_the_idle_one_is_chosen() {
    let facts = equal(2);
    facts.all[0].start_build();
    let mut rng = rng();
    for _ in 0..100 {
        let choice = facts.choose(with(PolicyKind::LeastBuilds), &NO_KEY, &mut rng);
        assert_eq!(choice.expect("a choice").index, 1);
    }
}

#[test]
fn least_builds_fills_each_by_its_capacity() {
    let facts = facts([(0, 1), (1, 1), (2, 2), (3, 6)]);
    let mut rng = rng();
    for _ in 0..1000 {
        let choice = facts.choose(with(PolicyKind::LeastBuilds), &NO_KEY, &mut rng);
        facts.all[choice.expect("a choice").index].start_build();
    }
    let loads: Vec<_> = facts.all.iter().map(|candidate| candidate.builds()).collect();
    for (load, expected) in loads.iter().zip([100_u32, 100, 200, 600]) {
        assert!(load.abs_diff(expected) < expected / 10, "{loads:?}");
    }
}

#[test]
fn a_new_backend_is_not_flooded_and_keeps_its_rank() {
    let totals = Arc::new(Totals::default());
    let now = Instant::now();
    let candidate = |id: usize| {
        let joined = (id == 0).then_some(now);
        Arc::new(Candidate::new(&format!("b-{id}"), 1, joined, &totals))
    };
    let all: Vec<_> = (0..4).map(candidate).collect();
    let mut facts = Facts { candidates: Candidates::new(all.clone(), &totals), all, now };
    for old in &facts.all[1..] {
        (0..20).for_each(|_| old.start_build());
    }
    let mut rng = rng();
    for policy in [PolicyKind::LeastBuilds, PolicyKind::ConsistentHash] {
        let mut given = 0;
        for key in 0..60 {
            let request = request(&key.to_string());
            let choice = facts.choose(with(policy), &request, &mut rng).expect("a choice");
            facts.all[choice.index].start_build();
            given += u32::from(choice.index == 0);
        }
        assert!((1..10).contains(&facts.all[0].builds()), "{policy}: {given}");
    }
    facts.now += Duration::from_secs(30);
    let key = (0..).map(|key: u32| key.to_string());
    let mut homed = key.filter(|key| ranking(KeyHash::new(key), &facts.candidates)[0] == 0);
    assert_eq!(facts.hashed(&homed.next().expect("some")).outcome, Outcome::Home);
}

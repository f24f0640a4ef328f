//! The rules that the policies promise, tested on plain facts.

use std::{collections::HashMap, sync::Arc};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;

/// A fleet that consists of plain facts.
struct Facts {
    all: Vec<Arc<Candidate>>,
    candidates: Candidates,
    now: Instant,
}

fn facts(members: impl IntoIterator<Item = (usize, u32)>) -> Facts {
    let totals = Arc::new(Totals::default());
    let candidate = |(id, capacity)| Candidate::new(&format!("b-{id}"), capacity, None, &totals);
    let all: Vec<_> = members.into_iter().map(candidate).map(Arc::new).collect();
    let candidates = Candidates::new(all.clone(), &totals);
    Facts { all, candidates, now: Instant::now() }
}

fn equal(count: usize) -> Facts {
    facts((0..count).map(|id| (id, 1)))
}

impl Facts {
    fn choose(&self, config: Policy, request: &Request<'_>, rng: &mut StdRng) -> Option<Choice> {
        config.choose(request, &self.candidates, self.now, rng)
    }

    /// The choice of the consistent hash, with the default limit.
    fn hashed(&self, key: &str) -> Choice {
        self.choose(Policy::default(), &request(key), &mut rng()).expect("a choice")
    }
}

const GOOD: Status =
    Status { cordoned: false, ejected: false, unready: false, degraded: false, departed: false };
const CORDONED: Status = Status { cordoned: true, ..GOOD };
const EJECTED: Status = Status { ejected: true, ..GOOD };
const DEGRADED: Status = Status { degraded: true, ..GOOD };

fn request(key: &str) -> Request<'static> {
    Request { key: Some(KeyHash::new(key)), warm: None, tried: &[], slots: None }
}

const NO_KEY: Request<'static> = Request { key: None, warm: None, tried: &[], slots: None };

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn with(policy: PolicyKind) -> Policy {
    Policy::default().with(policy)
}

const POLICIES: [PolicyKind; 3] =
    [PolicyKind::Random, PolicyKind::LeastBuilds, PolicyKind::ConsistentHash];

#[test]
fn no_candidate_no_choice() {
    for policy in POLICIES {
        assert_eq!(equal(0).choose(with(policy), &request("key"), &mut rng()), None);
        let facts = equal(2);
        facts.all.iter().for_each(|candidate| candidate.set_status(CORDONED));
        assert_eq!(facts.choose(with(policy), &request("key"), &mut rng()), None);
    }
}

#[test]
fn when_none_is_ready_all_but_the_cordoned_are_tried() {
    for policy in POLICIES {
        let facts = equal(3);
        facts.all[0].set_status(CORDONED);
        facts.all[1].set_status(EJECTED);
        facts.all[2].set_status(EJECTED);
        let request = Request { tried: &[2], ..request("key") };
        let choice = facts.choose(with(policy), &request, &mut rng()).expect("a choice");
        assert_eq!(choice.index, 1, "{policy}");
    }
}

#[test]
fn the_ranking_is_frozen() {
    // Replicas of different versions must agree, so these rankings may never change.
    let facts = facts([(0, 1), (1, 1), (2, 3), (3, 1), (4, 2), (5, 1)]);
    let rankings =
        ["github.com/team/app", "a", ""].map(|key| ranking(KeyHash::new(key), &facts.candidates));
    assert_eq!(rankings, [[3, 1, 4, 2, 0, 5], [5, 1, 0, 4, 2, 3], [2, 4, 5, 1, 3, 0]]);
}

#[test]
fn the_first_ranks_are_those_of_the_whole_ranking() {
    for capacities in [1, 3] {
        let facts = facts((0..100).map(|id: u32| (id as usize, 1 + id % capacities)));
        for key in 0..200 {
            let key = KeyHash::new(&key.to_string());
            let first = rank::first(key.0, &facts.candidates);
            let all = rank::all(key.0, &facts.candidates);
            assert_eq!(first.rows(), &all[..8]);
            assert_eq!(rank::rank(key.0, &facts.candidates, all[20]), 20);
            assert_eq!(rank::best(key.0, &facts.candidates, |_| true), Some(all[0]));
        }
    }
}

#[test]
fn every_order_of_the_ranking_is_as_likely() {
    let facts = equal(4);
    let mut seen: HashMap<Vec<usize>, u32> = HashMap::new();
    for key in 0..24_000 {
        *seen.entry(ranking(KeyHash::new(&key.to_string()), &facts.candidates)).or_default() += 1;
    }
    assert_eq!(seen.len(), 24);
    assert!(seen.values().all(|count| (850..1150).contains(count)), "{seen:?}");
}

#[test]
fn a_large_fleet_shares_the_keys_evenly() {
    let facts = equal(1000);
    let mut homes = vec![0_u32; 1000];
    for key in 0..20_000 {
        homes[rank::first(KeyHash::new(&key.to_string()).0, &facts.candidates).rows()[0].0] += 1;
    }
    // Twenty are expected. Of a thousand random draws, almost all stay within these bounds.
    assert!(homes.iter().all(|count| (3..48).contains(count)), "{homes:?}");
}

#[test]
fn keys_are_shared_by_capacity() {
    let facts = facts([(0, 1), (1, 2), (2, 5)]);
    let mut homes = [0_u32; 3];
    for key in 0..8000 {
        homes[facts.hashed(&key.to_string()).index] += 1;
    }
    for (count, expected) in homes.into_iter().zip([1000_i64, 2000, 5000]) {
        assert!((i64::from(count) - expected).abs() < 150, "{homes:?}");
    }
}

#[test]
fn a_hot_key_spills_to_its_own_second_and_comes_home() {
    let facts = equal(3);
    let ranking = ranking(KeyHash::new("hot"), &facts.candidates);
    let place = || {
        let warm = Some(Warm::new(&facts.all[ranking[0]]));
        let request = Request { warm, ..request("hot") };
        let choice = facts.choose(Policy::default(), &request, &mut rng()).expect("a choice");
        facts.all[choice.index].start_build();
        choice
    };
    let first = place();
    assert_eq!((first.index, first.outcome, first.rank), (ranking[0], Outcome::Home, Some(0)));
    for _ in 1..4 {
        assert_eq!(place().index, ranking[0], "a few that run are no reason to leave");
    }
    let spilled = place();
    assert_eq!((spilled.index, spilled.outcome), (ranking[1], Outcome::Spill));
    assert_eq!(spilled.passed_over, Some((ranking[0], Obstacle::Full)));
    assert_eq!((spilled.rank, spilled.limit), (Some(1), Some(4)));
    facts.all[ranking[0]].end_build();
    assert_eq!(place().outcome, Outcome::Home);
}

#[test]
fn a_cold_build_leaves_the_last_room_of_its_home_to_those_that_find_their_cache() {
    let facts = equal(12);
    let ranking = ranking(KeyHash::new("key"), &facts.candidates);
    let (home, second) = (&facts.all[ranking[0]], &facts.all[ranking[1]]);
    facts.all.iter().for_each(|candidate| (0..3).for_each(|_| candidate.start_build()));
    let choose = |config: Policy, warm| {
        let request = Request { warm, ..request("key") };
        facts.choose(config, &request, &mut rng()).expect("a choice")
    };
    let nobody_has_room_for_it = choose(Policy::default(), None);
    assert_eq!(nobody_has_room_for_it.outcome, Outcome::Home);
    second.end_build();
    let cold = choose(Policy::default(), None);
    assert_eq!((cold.index, cold.outcome), (ranking[1], Outcome::Spill));
    assert_eq!(cold.passed_over, Some((ranking[0], Obstacle::Busy)));
    assert_eq!(choose(Policy::default(), Some(Warm::new(home))).outcome, Outcome::Home);
    let forgetful = Policy { remembers: false, ..Policy::default() };
    assert_eq!(choose(forgetful, None).outcome, Outcome::Home, "any key may be warm there");
}

#[test]
fn without_a_bound_nothing_spills() {
    let facts = equal(3);
    let config = Policy { load_factor: LoadFactor::OFF, ..Policy::default() };
    for _ in 0..50 {
        let choice = facts.choose(config, &request("hot"), &mut rng()).expect("a choice");
        assert_eq!((choice.outcome, choice.limit), (Outcome::Home, None));
        facts.all[choice.index].start_build();
    }
}

#[test]
fn what_keeps_a_key_from_its_home_is_told() {
    let facts = equal(3);
    let home = facts.hashed("key").index;
    let passed_over = |tried: &[usize]| {
        let request = Request { tried, ..request("key") };
        let choice = facts.choose(Policy::default(), &request, &mut rng()).expect("a choice");
        (choice.outcome, choice.passed_over.map(|(_, obstacle)| obstacle))
    };
    assert_eq!(passed_over(&[home]), (Outcome::Failover, Some(Obstacle::Unreachable)));
    facts.all[home].set_status(EJECTED);
    assert_eq!(passed_over(&[]), (Outcome::Failover, Some(Obstacle::Unhealthy)));
    facts.all[home].set_status(CORDONED);
    assert_eq!(passed_over(&[]), (Outcome::Failover, Some(Obstacle::Cordoned)));
}

#[test]
fn a_new_home_is_taken_once_the_warm_backend_is_full() {
    let facts = equal(4);
    let ranking = ranking(KeyHash::new("key"), &facts.candidates);
    let choose = |warm: Warm| {
        let request = Request { warm: Some(warm), ..request("key") };
        facts.choose(Policy::default(), &request, &mut rng()).expect("a choice")
    };
    let old = &facts.all[ranking[2]];
    let choice = choose(Warm::new(old));
    let got = (choice.index, choice.outcome, choice.rank);
    assert_eq!(got, (ranking[2], Outcome::Warm, Some(2)));
    // A home that has also built the key is the home.
    let both = Warm::new(&facts.all[ranking[0]]).and(old);
    assert_eq!(choose(both).outcome, Outcome::Home);
    (0..4).for_each(|_| old.start_build());
    assert_eq!(choose(Warm::new(old)).outcome, Outcome::Home);
    old.set_status(CORDONED);
    assert_eq!(choose(Warm::new(old)).index, ranking[0]);
}

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
fn the_one_ready_among_many_is_found_by_every_policy() {
    let facts = equal(200);
    facts.all.iter().for_each(|candidate| candidate.set_status(EJECTED));
    facts.all[123].set_status(Status::default());
    for policy in POLICIES {
        let choice = facts.choose(with(policy), &request("key"), &mut rng()).expect("a choice");
        assert_eq!(choice.index, 123, "{policy}");
    }
}

#[test]
fn a_degraded_backend_takes_builds_only_where_no_other_does() {
    let facts = equal(3);
    let home = facts.hashed("key").index;
    facts.all[home].set_status(DEGRADED);
    // This holds whatever the others run, and however warm the key is here.
    let others: Vec<_> = (0..3).filter(|index| *index != home).collect();
    others.iter().for_each(|index| (0..50).for_each(|_| facts.all[*index].start_build()));
    let warm = Some(Warm::new(&facts.all[home]));
    for policy in POLICIES {
        let request = Request { warm, ..request("key") };
        let choice = facts.choose(with(policy), &request, &mut rng()).expect("a choice");
        assert_ne!(choice.index, home, "{policy}");
    }
    let choice = facts.hashed("key");
    assert_eq!(choice.outcome, Outcome::Failover);
    assert_eq!(choice.passed_over, Some((home, Obstacle::Degraded)));
    // A backend that does not answer at all is worse.
    others.iter().for_each(|index| facts.all[*index].set_status(EJECTED));
    for policy in POLICIES {
        let choice = facts.choose(with(policy), &request("key"), &mut rng()).expect("a choice");
        assert_eq!(choice.index, home, "{policy}");
    }
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

#[test]
fn a_load_factor_reads_back_and_has_a_range() {
    for text in ["1.25", "2", "10", "1.01", "off"] {
        assert_eq!(text.parse::<LoadFactor>().expect(text).to_string(), text);
    }
    for text in ["1", "0.8", "10.1", "NaN", "inf", "-2", "", "on"] {
        assert!(text.parse::<LoadFactor>().is_err(), "{text}");
    }
}

fn fleet() -> impl Strategy<Value = Vec<(usize, u32)>> {
    prop::collection::vec(1..5_u32, 2..60)
        .prop_map(|capacities| capacities.into_iter().enumerate().collect())
}

proptest! {
    #[test]
    fn every_policy_chooses_a_candidate(members in fleet(), seed: u64, key: Option<String>) {
        let facts = facts(members);
        let mut rng = StdRng::seed_from_u64(seed);
        let request = Request { key: key.as_deref().map(KeyHash::new), ..NO_KEY };
        for policy in POLICIES {
            prop_assert!(facts.choose(with(policy), &request, &mut rng).is_some());
        }
    }

    #[test]
    fn replicas_and_restarts_agree_whatever_the_order_of_discovery(
        members in fleet(),
        key: String,
        shift: usize,
    ) {
        let mut other = members.clone();
        other.rotate_left(shift % members.len());
        let name = |members: &[(usize, u32)]| {
            let ranking = ranking(KeyHash::new(&key), &facts(members.to_vec()).candidates);
            ranking.into_iter().map(|index| members[index].0).collect::<Vec<_>>()
        };
        prop_assert_eq!(name(&members), name(&other));
    }

    #[test]
    fn a_lost_backend_moves_its_own_keys_and_a_returned_one_takes_back_only_those(
        members in fleet(),
        key: String,
        lost: usize,
    ) {
        let lost = lost % members.len();
        let mut rest = members.clone();
        let gone = rest.remove(lost).0;
        let ranking = |members: &[(usize, u32)]| {
            let ranking = ranking(KeyHash::new(&key), &facts(members.to_vec()).candidates);
            ranking.into_iter().map(|index| members[index].0).collect::<Vec<_>>()
        };
        let (before, without) = (ranking(&members), ranking(&rest));
        prop_assert_eq!(without, before.iter().copied().filter(|id| *id != gone).collect::<Vec<_>>());
        prop_assert_eq!(ranking(&members), before);
    }

    #[test]
    fn a_larger_backend_takes_keys_and_gives_none(members in fleet(), key: String, grown: usize) {
        let grown = grown % members.len();
        let mut larger = members.clone();
        larger[grown].1 += 1;
        let before = facts(members).hashed(&key).index;
        let after = facts(larger).hashed(&key).index;
        prop_assert!(after == before || after == grown);
    }

    #[test]
    fn no_backend_ever_exceeds_its_bound(
        members in fleet(),
        keys in prop::collection::vec((0..4_u8, 0..100_u8), 1..300),
        percent in 101..300_u32,
    ) {
        let facts = facts(members);
        let factor = f64::from(percent) / 100.0;
        let load_factor = factor.to_string().parse().expect("in range");
        let config = Policy { load_factor, ..Policy::default() };
        let capacity = f64::from(facts.all.iter().map(|candidate| candidate.capacity()).sum::<u32>());
        let mut running: Vec<usize> = Vec::new();
        for (key, end) in keys {
            // From time to time a build ends.
            if end < 30 && !running.is_empty() {
                facts.all[running.swap_remove(usize::from(end) % running.len())].end_build();
            }
            let choice = facts.choose(config, &request(&key.to_string()), &mut rng());
            let index = choice.expect("a choice").index;
            facts.all[index].start_build();
            running.push(index);
            let chosen = &facts.all[index];
            let count = u32::try_from(running.len()).expect("few");
            let share = f64::from(count) * f64::from(chosen.capacity()) / capacity;
            let least = if facts.all.len() <= 8 { 4.0 } else { 2.0 };
            let limit = (factor * share).ceil().max(least);
            prop_assert!(f64::from(chosen.builds()) <= limit, "{} > {limit}", chosen.builds());
        }
    }

    #[test]
    fn whatever_runs_and_whoever_is_new_there_is_room_for_one_more(
        members in prop::collection::vec((1..5_u32, 0..20_u32, 0..90_u64, 0..4_u8), 1..40),
        key: String,
        warm: Option<(usize, usize)>,
    ) {
        let totals = Arc::new(Totals::default());
        let now = Instant::now();
        let all: Vec<_> = members
            .iter()
            .enumerate()
            .map(|(id, (capacity, builds, age, status))| {
                let joined = (*age < 60).then(|| now - Duration::from_secs(*age));
                let candidate = Candidate::new(&format!("b-{id}"), *capacity, joined, &totals);
                (0..*builds).for_each(|_| candidate.start_build());
                candidate.set_status(Status { ejected: *status == 0, ..Status::default() });
                Arc::new(candidate)
            })
            .collect();
        let candidates = Candidates::new(all.clone(), &totals);
        let at = |index: usize| &all[index % all.len()];
        let warm = warm.map(|(one, two)| Warm::new(at(one)).and(at(two)));
        let request = Request { key: Some(KeyHash::new(&key)), warm, tried: &[], slots: None };
        let choice = Policy::default().choose(&request, &candidates, now, &mut rng());
        let choice = choice.expect("a choice");
        if all.iter().any(|candidate| candidate.is_ready()) {
            prop_assert!(all[choice.index].is_ready());
            let limit = choice.limit.expect("a limit");
            prop_assert!(u64::from(choice.builds) < limit, "{choice:?}");
        }
    }

    #[test]
    fn no_backend_starves(members in fleet(), seed: u64) {
        let facts = facts(members);
        let mut rng = StdRng::seed_from_u64(seed);
        for policy in POLICIES {
            let mut idle: std::collections::HashSet<_> = (0..facts.all.len()).collect();
            // There are enough keys for the smallest of the largest fleet, and no load limit interferes.
            for key in 0..20_000 {
                let request = request(&key.to_string());
                idle.remove(&facts.choose(with(policy), &request, &mut rng).expect("some").index);
                if idle.is_empty() {
                    break;
                }
            }
            prop_assert!(idle.is_empty(), "{policy}: {idle:?}");
        }
    }
}

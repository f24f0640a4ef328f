//! Where the consistent hash sends a key, and when it does not.

use std::collections::HashMap;

use super::*;

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

//! What holds for every fleet and every key.

use proptest::prelude::*;

use super::*;

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

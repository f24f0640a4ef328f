//! A decision allocates nothing: it costs the same whatever else the process does.

use std::{sync::Arc, time::Instant};

use buildkit_lb::policy::{
    Candidate, Candidates, Config, KeyHash, Policy, Request, Totals, warm::WarmMemory,
};
use rand::{SeedableRng as _, rngs::StdRng};

const BACKENDS: usize = 1000;

#[test]
fn no_policy_allocates_memory_to_choose_among_a_thousand_backends() {
    let totals = Arc::new(Totals::default());
    let candidates: Vec<_> = (0..BACKENDS)
        .map(|number| Arc::new(Candidate::new(&format!("d{number}"), 1, None, &totals)))
        .collect();
    let roster = Candidates::new(candidates.clone(), &totals);
    let keys: Vec<_> = (0..100).map(|key| KeyHash::new(&format!("team/project-{key}"))).collect();
    let now = Instant::now();
    let mut rng = StdRng::seed_from_u64(1);
    for policy in [Policy::Random, Policy::LeastSessions, Policy::ConsistentHash] {
        let config = Config::default().with(policy);
        let mut memory = WarmMemory::new(config.warm, now);
        // A few keys only, so that they are hot: homes are full and most builds spill.
        let allocations = |memory: &WarmMemory, rng: &mut StdRng| {
            allocation_counter::measure(|| {
                for key in keys.iter().cycle().take(2 * BACKENDS) {
                    let warm = memory.get(*key, now);
                    let request = Request { key: Some(*key), warm, tried: &[] };
                    let choice = config.choose(&request, &roster, now, rng).expect("some is ready");
                    candidates[choice.index].start_build();
                }
            })
        };
        let cold = allocations(&memory, &mut rng);
        for (key, candidate) in keys.iter().zip(&candidates) {
            memory.note(*key, candidate, now);
        }
        let warm = allocations(&memory, &mut rng);
        assert_eq!((cold.count_total, warm.count_total), (0, 0), "{policy}");
    }
}

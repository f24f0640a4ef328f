//! What a decision costs: one choice for a key among 1 to 1 000 backends.
//!
//! The goal is 2 µs at the median for 1 000. That nothing is allocated is tested in tests/allocation.rs.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::{hint::black_box, sync::Arc, time::Instant};

use buildkit_lb::policy::{Candidate, Candidates, Config, KeyHash, Policy, Request, Totals};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Builds on each backend, on average: some homes are at their bound, as in a busy fleet.
const LOAD: usize = 4;

fn busy_fleet(count: usize, rng: &mut StdRng) -> Candidates {
    let totals = Arc::new(Totals::default());
    let candidates: Vec<_> = (0..count)
        .map(|number| Arc::new(Candidate::new(&format!("buildkitd-{number}"), 1, None, &totals)))
        .collect();
    for _ in 0..count * LOAD {
        candidates[rng.random_range(0..count)].start_build();
    }
    Candidates::new(candidates, &totals)
}

fn decision(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    for policy in [Policy::Random, Policy::LeastSessions, Policy::ConsistentHash] {
        let config = Config::default().with(policy);
        for count in [1, 10, 100, 1000] {
            let mut rng = StdRng::seed_from_u64(1);
            let candidates = busy_fleet(count, &mut rng);
            let keys: Vec<_> =
                (0..1024).map(|key| KeyHash::new(&format!("team/project-{key}"))).collect();
            let (now, mut next) = (Instant::now(), 0);
            group.bench_function(BenchmarkId::new(policy.to_string(), count), |bencher| {
                bencher.iter(|| {
                    next = (next + 1) % keys.len();
                    let request = Request { key: Some(keys[next]), warm: None, tried: &[] };
                    config.choose(black_box(&request), &candidates, now, &mut rng)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decision);
criterion_main!(benches);

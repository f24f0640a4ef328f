//! The cost of a decision: one choice for a key among 1 to 1000 backends.
//!
//! The goal is a median of 2 µs for 1000 backends. tests/allocation.rs tests that a choice allocates nothing.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::{hint::black_box, sync::Arc, time::Instant};

use buildkit_lb::policy::{
    Candidate, Candidates, KeyHash, Policy, PolicyKind, Request, Totals, Warm,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Builds on each backend, on average. As in a busy fleet, some homes are at their limit.
const LOAD: usize = 4;

fn busy_fleet(count: usize, rng: &mut StdRng) -> (Vec<Arc<Candidate>>, Candidates) {
    let totals = Arc::new(Totals::default());
    let candidates: Vec<_> = (0..count)
        .map(|number| Arc::new(Candidate::new(&format!("buildkitd-{number}"), 1, None, &totals)))
        .collect();
    for _ in 0..count * LOAD {
        candidates[rng.random_range(0..count)].start_build();
    }
    (candidates.clone(), Candidates::new(candidates, &totals))
}

/// What is remembered of the keys: nothing, or that a backend somewhere in the ranking has built each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Empty,
    Elsewhere,
}

fn decision(criterion: &mut Criterion) {
    for (title, policy, memory) in [
        ("random", PolicyKind::Random, Memory::Empty),
        ("least-builds", PolicyKind::LeastBuilds, Memory::Empty),
        ("consistent-hash", PolicyKind::ConsistentHash, Memory::Empty),
        ("consistent-hash-warm", PolicyKind::ConsistentHash, Memory::Elsewhere),
    ] {
        decisions_of(criterion, title, Policy::default().with(policy), memory);
    }
}

fn decisions_of(criterion: &mut Criterion, title: &str, config: Policy, memory: Memory) {
    let mut group = criterion.benchmark_group("decision");
    for count in [1, 10, 100, 1000] {
        let mut rng = StdRng::seed_from_u64(1);
        let (backends, candidates) = busy_fleet(count, &mut rng);
        let mut request = |key: u32| Request {
            key: Some(KeyHash::new(&format!("team/project-{key}"))),
            warm: (memory == Memory::Elsewhere)
                .then(|| Warm::new(&backends[rng.random_range(0..count)])),
            tried: &[],
            slots: None,
        };
        let requests: Vec<_> = (0..1024).map(&mut request).collect();
        let (now, mut next) = (Instant::now(), 0);
        group.bench_function(BenchmarkId::new(title, count), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % requests.len();
                config.choose(black_box(&requests[next]), &candidates, now, &mut rng)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decision);
criterion_main!(benches);

//! Functions that allocate no memory, or a bounded amount whatever a client sends.

use std::{num::NonZeroU32, sync::Arc, time::Instant};

use buildkit_lb::{
    affinity::{Facts, Rules},
    builds::request::Solve,
    placement::warm::{self, WarmMemory},
    policy::{Candidate, Candidates, KeyHash, Policy, PolicyKind, Request, Totals},
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
    for policy in [PolicyKind::Random, PolicyKind::LeastBuilds, PolicyKind::ConsistentHash] {
        let config = Policy::default().with(policy);
        let mut memory = WarmMemory::new(warm::Config::default(), now);
        // With only a few keys, homes are full and most builds spill.
        let allocations = |memory: &WarmMemory, rng: &mut StdRng| {
            allocation_counter::measure(|| {
                for key in keys.iter().cycle().take(2 * BACKENDS) {
                    let warm = memory.get(*key, now);
                    let request = Request { key: Some(*key), warm, tried: &[], slots: None };
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

/// The most memory that reading a Solve may take at once: values are cut, and attributes are counted.
const SOLVE_LIMIT: u64 = 1 << 20;

#[test]
fn a_solve_takes_little_memory_whatever_it_is_made_of() {
    let field = |number: u8, inner: &[u8]| {
        let len = u32::try_from(inner.len()).expect("short");
        // A varint of five bytes, each of which may be zero.
        let len = [0, 7, 14, 21].map(|shift| (len >> shift) as u8 & 0x7f | 0x80);
        [&[number << 3 | 2], &len[..], &[0], inner].concat()
    };
    let attr = |name: &[u8], value: &[u8]| [field(1, name), field(2, value)].concat();
    let operation = field(1, &field(3, &field(1, b"local://a")));
    for (what, part) in [
        ("empty options", vec![0x3a, 0x00]),
        ("options without a use", field(7, &attr(b"build-arg:A", b"b"))),
        ("options of one name", field(7, &attr(b"vcs:source", &[b'a'; 4096]))),
        ("sessions of others", field(7, &attr(b"local-sessionid:a", &[b's'; 256]))),
        ("build arguments of a gateway", field(7, &attr(b"source", b"gateway"))),
        ("empty exporters", vec![0x6a, 0x00]),
        ("images", field(13, &field(2, &attr(b"name", b"a,b,c,d,e,f")))),
        ("caches", field(8, &field(4, &field(2, &attr(b"ref", b"a"))))),
        ("old caches", field(8, &[0x12, 0x01, b'a'])),
        ("operations", field(2, &operation.repeat(15 << 16))),
        ("refs", field(1, &[b'r'; 256])),
    ] {
        let request = part.repeat((16 << 20) / part.len());
        let read = allocation_counter::measure(|| {
            Solve::read(&request, None).expect("valid");
            Facts::read(&request, &Rules::default()).expect("valid");
        });
        assert!(read.bytes_max < SOLVE_LIMIT, "{what}: {read:?}");
    }
}

#[test]
fn a_million_warm_keys_fit_into_a_hundred_megabytes() {
    const KEYS: u32 = 1_000_000;
    let now = Instant::now();
    let max_keys = NonZeroU32::new(KEYS).expect("not zero");
    let candidate = Candidate::new("d1", 1, None, &Arc::default());
    let key = |id: u32| KeyHash::new(&id.to_string());
    let mut memory = None;
    let taken = allocation_counter::measure(|| {
        let config = warm::Config { max_keys, ..warm::Config::default() };
        let memory = memory.insert(WarmMemory::new(config, now));
        // Twice as many keys as fit, so that the oldest half is forgotten meanwhile.
        (0..2 * KEYS).for_each(|id| {
            memory.note(key(id), &candidate, now);
        });
    });
    assert!(taken.bytes_current <= 100_000_000, "{taken:?}");
    let memory = memory.expect("made");
    assert_eq!(memory.len(), KEYS as usize);
    assert!(memory.get(key(KEYS - 1), now).is_none() && memory.get(key(KEYS), now).is_some());
}

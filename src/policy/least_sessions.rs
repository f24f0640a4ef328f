//! The better of two: near the best possible spread, and no herd runs to the one idle backend.

use std::sync::Arc;

use rand::{Rng, RngExt as _};

use crate::fleet::Backend;

pub(super) fn choose<'a>(
    candidates: &'a [Arc<Backend>],
    rng: &mut impl Rng,
) -> Option<&'a Arc<Backend>> {
    let count = candidates.len();
    if count < 2 {
        return candidates.first();
    }
    let first = rng.random_range(0..count);
    // A distinct second: skip over the first.
    let second = (first + rng.random_range(1..count)) % count;
    let (first, second) = (&candidates[first], &candidates[second]);
    Some(if second.builds() < first.builds() { second } else { first })
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use crate::policy::tests::backends;

    #[test]
    fn of_two_backends_the_idle_one_is_chosen() {
        let backends = backends(2);
        let _busy = backends[0].start_build();
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..100 {
            let choice = super::choose(&backends, &mut rng).expect("some");
            assert_eq!(choice.name(), backends[1].name());
        }
    }

    #[test]
    fn load_stays_even_while_builds_run() {
        let backends = backends(10);
        let mut rng = StdRng::seed_from_u64(4);
        let running: Vec<_> = (0..1000)
            .map(|_| super::choose(&backends, &mut rng).expect("some").start_build())
            .collect();
        let loads: Vec<_> = backends.iter().map(|backend| backend.builds()).collect();
        assert!(loads.iter().all(|load| (90..=110).contains(load)), "{loads:?}");
        drop(running);
    }
}

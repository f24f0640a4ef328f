//! Rendezvous hashing with bounded load.
//!
//! Each backend's rank for a key comes from the key and the backend's stable name alone, so every
//! replica and every restart agrees, and a backend that leaves moves its own keys only (Thaler and
//! Ravishankar, 1998). The bound keeps a hot key from drowning its home (Mirrokni, Thorup and
//! Zadimoghaddam, 2018); what spills goes down the key's own ranking, always to the same second.

use std::{cmp::Reverse, sync::Arc};

use twox_hash::XxHash3_64;

use super::{Choice, Outcome};
use crate::fleet::Backend;

/// A backend may run this much more than the mean.
const LOAD_FACTOR: f64 = 1.25;

/// Builds a backend may always run: in a small or idle fleet the mean is below one, and the second
/// build of a project belongs where the first one warms the cache.
const ALWAYS_ALLOWED: usize = 2;

pub(super) fn choose(key: &[u8], candidates: &[Arc<Backend>]) -> Option<Choice> {
    let bound = bound(candidates);
    let key = XxHash3_64::oneshot(key);
    let mut home: Option<(u64, &Arc<Backend>)> = None;
    let mut below: Option<(u64, &Arc<Backend>)> = None;
    for backend in candidates {
        let rank = XxHash3_64::oneshot_with_seed(key, backend.name().as_bytes());
        if home.is_none_or(|(best, _)| rank > best) {
            home = Some((rank, backend));
        }
        if backend.builds() < bound && below.is_none_or(|(best, _)| rank > best) {
            below = Some((rank, backend));
        }
    }
    let (home_rank, home) = home?;
    // Counts change under us; when all seem full, the home is as good as any.
    let (rank, backend) = below.unwrap_or((home_rank, home));
    let outcome = if rank == home_rank { Outcome::Home } else { Outcome::Spill };
    Some(Choice { backend: Arc::clone(backend), outcome })
}

pub(super) fn ranking(key: &[u8], backends: &[Arc<Backend>]) -> Vec<Arc<Backend>> {
    let key = XxHash3_64::oneshot(key);
    let mut ranking = backends.to_vec();
    ranking.sort_by_cached_key(|backend| {
        Reverse(XxHash3_64::oneshot_with_seed(key, backend.name().as_bytes()))
    });
    ranking
}

/// Builds that a backend may run before the one to place spills.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bound(candidates: &[Arc<Backend>]) -> usize {
    let running: usize = candidates.iter().map(|backend| backend.builds()).sum();
    let mean = (running + 1) as f64 / candidates.len().max(1) as f64;
    ((LOAD_FACTOR * mean).ceil() as usize).max(ALWAYS_ALLOWED)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::tests::backends;

    fn home(key: &[u8], candidates: &[Arc<Backend>]) -> String {
        choose(key, candidates).expect("some").backend.name().to_owned()
    }

    #[test]
    fn the_ranking_is_frozen() {
        // Replicas of different versions must agree, so these may never change.
        let backends = backends(5);
        let homes = ["github.com/team/app", "a", ""].map(|key| home(key.as_bytes(), &backends));
        assert_eq!(homes, ["buildkitd-1", "buildkitd-1", "buildkitd-4"]);
    }

    #[test]
    fn a_hot_key_spills_to_its_own_second_and_comes_home() {
        let backends = backends(3);
        let first = choose(b"hot", &backends).expect("some");
        let running: Vec<_> = (0..ALWAYS_ALLOWED).map(|_| first.backend.start_build()).collect();
        let spilled = choose(b"hot", &backends).expect("some");
        assert_eq!((first.outcome, spilled.outcome), (Outcome::Home, Outcome::Spill));
        let others: Vec<_> =
            backends.iter().filter(|b| b.name() != first.backend.name()).cloned().collect();
        assert_eq!(spilled.backend.name(), home(b"hot", &others));
        drop(running);
        assert_eq!(home(b"hot", &backends), first.backend.name());
    }

    proptest! {
        #[test]
        fn a_lost_backend_moves_its_own_keys_only(key: Vec<u8>, count in 2..50_usize, lost: usize) {
            let all = backends(count);
            let lost = lost % count;
            let mut rest = all.clone();
            let lost = rest.remove(lost);
            let before = home(&key, &all);
            if before != lost.name() {
                prop_assert_eq!(before, home(&key, &rest));
            }
        }

        #[test]
        fn no_backend_ever_exceeds_the_bound(keys in prop::collection::vec(0..4_u8, 1..300)) {
            let backends = backends(7);
            let mut running = Vec::new();
            for key in keys {
                running.push(choose(&[key], &backends).expect("some").backend.start_build());
                let bound = bound(&backends);
                prop_assert!(backends.iter().all(|backend| backend.builds() <= bound));
            }
        }
    }
}

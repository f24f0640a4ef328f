//! Which backend takes a build: a choice from key, fleet snapshot and random numbers alone.
//!
//! No I/O and no clock here, so the same input gives the same choice on every replica.

mod consistent_hash;
mod least_sessions;
mod random;

use std::{fmt, sync::Arc};

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::fleet::Backend;

/// How builds are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Any ready backend, each with the same chance.
    Random,
    /// The one of two random backends that runs fewer builds.
    LeastSessions,
    /// The backend that ranks highest for the build's affinity key and is below the load bound;
    /// least-sessions for a build without a key.
    #[default]
    ConsistentHash,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::LeastSessions => "least-sessions",
            Self::ConsistentHash => "consistent-hash",
        })
    }
}

/// How a backend was found; a value of the `outcome` label and the `reason` field of a build's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The policy's first choice for the key.
    Home,
    /// The key's home was above the load bound: the next in its ranking.
    Spill,
    /// Chosen by chance or load: the policy knows no key, or the build has none.
    Balanced,
    /// The first choice did not accept a connection: another one.
    Failover,
    /// A session or build that it belongs with is bound there.
    Pinned,
}

impl Outcome {
    /// Its word in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Spill => "spill",
            Self::Balanced => "balanced",
            Self::Failover => "failover",
            Self::Pinned => "pinned",
        }
    }
}

/// A choice and how it came about.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The backend to use.
    pub backend: Arc<Backend>,
    /// Why this one.
    pub outcome: Outcome,
}

impl Policy {
    /// Chooses among `candidates`, or returns `None` when there are none.
    pub fn choose(
        self,
        key: Option<&[u8]>,
        candidates: &[Arc<Backend>],
        rng: &mut impl Rng,
    ) -> Option<Choice> {
        match (self, key) {
            (Self::Random, _) => balanced(random::choose(candidates, rng)),
            (Self::ConsistentHash, Some(key)) => consistent_hash::choose(key, candidates),
            (Self::LeastSessions | Self::ConsistentHash, _) => {
                balanced(least_sessions::choose(candidates, rng))
            }
        }
    }
}

/// The backends in the order in which the consistent hash prefers them for `key`.
pub fn ranking(key: &[u8], backends: &[Arc<Backend>]) -> Vec<Arc<Backend>> {
    consistent_hash::ranking(key, backends)
}

fn balanced(backend: Option<&Arc<Backend>>) -> Option<Choice> {
    backend.map(|backend| Choice { backend: Arc::clone(backend), outcome: Outcome::Balanced })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        address::Address,
        fleet::{Endpoint, Fleet},
        metrics::Metrics,
    };

    pub(crate) fn backends(count: usize) -> Vec<Arc<Backend>> {
        let fleet = Fleet::new(Arc::new(Metrics::new()));
        let endpoint = |index| {
            let address = Address::Tcp { host: "127.0.0.1".into(), port: 1234 };
            Endpoint::new(format!("buildkitd-{index}"), address)
        };
        fleet.replace((0..count).map(endpoint).collect());
        fleet.backends().to_vec()
    }

    #[test]
    fn no_candidate_no_choice() {
        let mut rng = StdRng::seed_from_u64(1);
        for policy in [Policy::Random, Policy::LeastSessions, Policy::ConsistentHash] {
            assert!(policy.choose(Some(b"key"), &[], &mut rng).is_none());
        }
    }

    #[test]
    fn random_reaches_every_backend_evenly() {
        let backends = backends(5);
        let mut rng = StdRng::seed_from_u64(2);
        let mut seen: HashMap<String, usize> = HashMap::new();
        for _ in 0..10_000 {
            let choice = Policy::Random.choose(Some(b"same"), &backends, &mut rng).expect("some");
            *seen.entry(choice.backend.name().to_owned()).or_default() += 1;
        }
        assert_eq!(seen.len(), 5);
        assert!(seen.values().all(|&count| (1800..2200).contains(&count)), "{seen:?}");
    }

    proptest! {
        #[test]
        fn every_policy_chooses_a_candidate(count in 1..40_usize, seed: u64, key: Option<Vec<u8>>) {
            let backends = backends(count);
            let mut rng = StdRng::seed_from_u64(seed);
            for policy in [Policy::Random, Policy::LeastSessions, Policy::ConsistentHash] {
                prop_assert!(policy.choose(key.as_deref(), &backends, &mut rng).is_some());
            }
        }
    }
}

//! Which backend takes a build, decided from its key, plain facts about the fleet, the time and random numbers.
//!
//! There is no I/O and no clock here, so the same input gives the same choice on every replica.

mod candidate;
mod candidates;
mod consistent_hash;
mod least_builds;
mod random;
mod rank;
mod round;

use std::{
    fmt,
    num::NonZeroU32,
    str::FromStr,
    time::{Duration, Instant},
};

use rand::Rng;
use twox_hash::XxHash3_64;

pub use self::{
    candidate::{Candidate, Status, Totals},
    candidates::Candidates,
};
use self::{
    candidates::Row,
    round::{Eligible, Round},
};
use crate::label::label_set;

/// A new backend gets its full share after this time, which is enough to pull its first base images.
const DEFAULT_SLOW_START: Duration = Duration::from_secs(30);

label_set! {
    /// How builds are spread over the backends.
    #[derive(Default, clap::ValueEnum)]
    pub enum PolicyKind {
        /// Any ready backend, each with the same chance.
        Random = "random",
        /// Of two backends drawn at random, the one that runs fewer builds for its capacity.
        #[value(alias = "least-sessions")]
        LeastBuilds = "least-builds",
        /// The backend that ranks highest for the build's affinity key and is below the load limit; least-builds for a
        /// build without a key.
        #[default]
        ConsistentHash = "consistent-hash",
    }
}

label_set! {
    /// How a backend was found: a value of the `outcome` label and of the `outcome` field in a build's log record.
    pub enum Outcome {
        /// The key's home, its highest-ranked backend.
        Home = "home",
        /// The key's home had no capacity left, so the next backend of the ranking was taken.
        Spill = "spill",
        /// The key's home is new, so the backend that built the key last was taken.
        Warm = "warm",
        /// Chosen at random or by load, because the policy uses no key or the build has none.
        Balanced = "balanced",
        /// The key's home takes no builds, or the first backend did not accept a connection, so another one was taken.
        Failover = "failover",
        /// A session or build that this build belongs with is bound there.
        Pinned = "pinned",
    }
}

/// How far above its share of all builds a backend may go before a key spills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadFactor(Option<u16>);

impl LoadFactor {
    /// No limit: a key stays at its home whatever runs there.
    pub const OFF: Self = Self(None);

    /// The factor in thousandths, so that all replicas calculate alike; `None` without a limit.
    fn thousandths(self) -> Option<u16> {
        self.0
    }
}

impl Default for LoadFactor {
    fn default() -> Self {
        Self(Some(1250))
    }
}

impl fmt::Display for LoadFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(thousandths) => write!(f, "{}", f64::from(thousandths) / 1000.0),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for LoadFactor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        let factor: f64 = text.parse().unwrap_or(f64::NAN);
        // At 1, all builds but the luckiest would spill. A factor above 10 would limit nothing.
        if !(1.01..=10.0).contains(&factor) {
            return Err(format!("`{text}` is not a number from 1.01 to 10, or off"));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(Self(Some((factor * 1000.0).round() as u16)))
    }
}

/// A policy and its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The rule by which builds are spread.
    pub kind: PolicyKind,
    /// The load limit of the consistent hash.
    pub load_factor: LoadFactor,
    /// How long a backend that joins a running fleet gets less than its share.
    pub slow_start: Duration,
    /// Whether the targets of one bake may go to different backends.
    pub spread_bake_targets: bool,
    /// Whether the warm memory is on. Without it no build counts as cold.
    pub remembers: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            kind: PolicyKind::default(),
            load_factor: LoadFactor::default(),
            slow_start: DEFAULT_SLOW_START,
            spread_bake_targets: false,
            remembers: true,
        }
    }
}

impl Policy {
    /// The same settings with another kind of policy.
    #[must_use]
    pub fn with(self, kind: PolicyKind) -> Self {
        Self { kind, ..self }
    }
}

/// An affinity key as the policies use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash of a key's text.
    pub fn new(key: &str) -> Self {
        Self(XxHash3_64::oneshot(key.as_bytes()))
    }
}

/// The one or two backends that built a key last, each as a short tag that saves memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm([u32; 2]);

impl Warm {
    /// The memory of a key that `candidate` built first.
    pub fn new(candidate: &Candidate) -> Self {
        Self([candidate.tag(); 2])
    }

    /// The memory of the key after `candidate` has built it too.
    #[must_use]
    pub fn and(self, candidate: &Candidate) -> Self {
        let tag = candidate.tag();
        if self.0[0] == tag { self } else { Self([tag, self.0[0]]) }
    }

    /// Whether `candidate` is one of the backends.
    pub fn includes(self, candidate: &Candidate) -> bool {
        self.has(candidate.tag())
    }

    fn has(self, tag: u32) -> bool {
        self.0.contains(&tag)
    }

    /// The tags of the backends, the last builder first.
    fn tags(self) -> impl Iterator<Item = u32> {
        self.0.into_iter()
    }
}

label_set! {
    /// Why a key's home was passed over.
    pub enum Obstacle {
        /// The backend runs as many builds as its limit allows.
        Full = "full",
        /// The backend's last capacity is kept for builds that find their cache there.
        Busy = "busy",
        /// The backend takes no new builds until a probe succeeds.
        Unhealthy = "unhealthy",
        /// The backend fails builds for reasons of its own.
        Degraded = "degraded",
        /// The backend takes no new builds, because somebody asked for that.
        Cordoned = "cordoned",
        /// The backend did not accept a connection for this build.
        Unreachable = "unreachable",
    }
}

/// A choice and the reasons for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The index of the chosen candidate, in the caller's order.
    pub index: usize,
    /// How the candidate was found.
    pub outcome: Outcome,
    /// How many candidates the key ranks above this one; `None` without a key.
    pub rank: Option<usize>,
    /// How many builds the candidate ran.
    pub builds: u32,
    /// How many builds the candidate may run; `None` without a limit.
    pub limit: Option<u64>,
    /// The key's home, if another candidate was chosen, and the reason.
    pub passed_over: Option<(usize, Obstacle)>,
    /// Whether the key's cache is on another candidate, which has no free slot.
    pub cache_is_busy: bool,
}

impl Choice {
    fn new(round: &Round<'_>, row: Row, outcome: Outcome) -> Self {
        Self {
            index: round.candidates.index(row),
            outcome,
            rank: None,
            builds: round.candidates.at(row).builds(),
            limit: None,
            passed_over: None,
            cache_is_busy: false,
        }
    }
}

/// The build that a choice is made for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The key of the build, if it has one.
    pub key: Option<KeyHash>,
    /// The candidates that built the key last, if that is known.
    pub warm: Option<Warm>,
    /// The candidates that must not be chosen, because they did not accept.
    pub tried: &'a [usize],
    /// How many builds a candidate runs at once for each unit of its capacity; `None` without a limit.
    pub slots: Option<NonZeroU32>,
}

impl Policy {
    /// Chooses one of `candidates`.
    ///
    /// Ready candidates come first, and degraded ones only if there is no other. If none is ready, every candidate that
    /// is not cordoned may be chosen, because wrong verdicts on all backends must not stop all builds. If the best of
    /// these groups has no free slot, nothing is chosen.
    pub fn choose(
        &self,
        request: &Request<'_>,
        candidates: &Candidates,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Choice> {
        let round = |eligible| Round {
            candidates,
            now,
            slow_start: self.slow_start,
            tried: request.tried,
            eligible,
            slots: request.slots,
        };
        for eligible in Eligible::ORDER {
            let round = round(eligible);
            let choice = self.choose_in(request, &round, rng);
            // The candidates of a better group will have a free slot again.
            if choice.is_some() || round.is_full() {
                return choice;
            }
        }
        None
    }

    fn choose_in(
        &self,
        request: &Request<'_>,
        round: &Round<'_>,
        rng: &mut impl Rng,
    ) -> Option<Choice> {
        let row = match (self.kind, request.key) {
            (PolicyKind::Random, _) => random::choose(round, rng),
            (PolicyKind::ConsistentHash, Some(KeyHash(key))) => {
                let settings = consistent_hash::Settings {
                    factor: self.load_factor,
                    remembers: self.remembers,
                };
                return consistent_hash::choose(key, request.warm, settings, round);
            }
            (PolicyKind::LeastBuilds | PolicyKind::ConsistentHash, _) => {
                least_builds::choose(round, rng)
            }
        };
        row.map(|row| Choice::new(round, row, Outcome::Balanced))
    }
}

/// All candidates, in the order in which the consistent hash ranks them for `key`.
pub fn ranking(key: KeyHash, candidates: &Candidates) -> Vec<usize> {
    let rows = rank::all(key.0, candidates);
    rows.into_iter().map(|row| candidates.index(row)).collect()
}

#[cfg(test)]
mod tests;

//! Which backend takes a build: a choice from key, plain facts of the fleet, time and random numbers.
//!
//! No I/O and no clock here, so the same input gives the same choice on every replica.

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
use serde::{Deserialize, Serialize};
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

/// A new backend gets its full share after this long: enough to pull its first base images.
const DEFAULT_SLOW_START: Duration = Duration::from_secs(30);

label_set! {
    /// How builds are spread.
    #[derive(Default, Serialize, Deserialize, clap::ValueEnum)]
    #[serde(rename_all = "kebab-case")]
    pub enum PolicyKind {
        /// Any ready backend, each with the same chance.
        Random = "random",
        /// The backend, of two drawn at random, that runs fewer builds for its capacity.
        #[serde(alias = "least-sessions")]
        #[value(alias = "least-sessions")]
        LeastBuilds = "least-builds",
        /// The backend that ranks highest for the build's affinity key and is below the load bound;
        /// least-builds for a build without a key.
        #[default]
        ConsistentHash = "consistent-hash",
    }
}

label_set! {
    /// How a backend was found; a value of the `outcome` label and the `outcome` field of a build's log.
    pub enum Outcome {
        /// The policy's first choice for the key.
        Home = "home",
        /// The key's home had no room for it: the next in its ranking.
        Spill = "spill",
        /// The key's home is new to it: where it was built last.
        Warm = "warm",
        /// Chosen by chance or load: the policy knows no key, or the build has none.
        Balanced = "balanced",
        /// The first choice takes no builds or did not accept a connection: another one.
        Failover = "failover",
        /// A session or build that it belongs with is bound there.
        Pinned = "pinned",
    }
}

/// How much more than its share of all builds a backend may run before a key spills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadFactor(Option<u16>);

impl LoadFactor {
    /// No bound: a key is at home whatever runs there.
    pub const OFF: Self = Self(None);

    /// In thousandths, so that no rounding differs between replicas; `None` without a bound.
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
        // At 1 every build but the luckiest spills; above 10 there is no bound worth its name.
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
    /// How builds are spread.
    pub kind: PolicyKind,
    /// The bound of the consistent hash.
    pub load_factor: LoadFactor,
    /// How long a backend that joins a running fleet is given less than its share.
    pub slow_start: Duration,
    /// Whether targets of one bake may go to different backends.
    pub spread_bake_targets: bool,
    /// Whether it is remembered where a key was built; without that no build counts as cold.
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
    /// The same settings of another kind.
    #[must_use]
    pub fn with(self, kind: PolicyKind) -> Self {
        Self { kind, ..self }
    }
}

/// An affinity key as the policies know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

impl KeyHash {
    /// The hash of a key's text.
    pub fn new(key: &str) -> Self {
        Self(XxHash3_64::oneshot(key.as_bytes()))
    }
}

/// The one or two backends that built a key last, by what stands for a name in a large memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warm([u32; 2]);

impl Warm {
    /// A key that `candidate` built.
    pub fn new(candidate: &Candidate) -> Self {
        Self([candidate.tag(); 2])
    }

    /// What is known once `candidate` has built it too.
    #[must_use]
    pub fn and(self, candidate: &Candidate) -> Self {
        let tag = candidate.tag();
        if self.0[0] == tag { self } else { Self([tag, self.0[0]]) }
    }

    fn has(self, tag: u32) -> bool {
        self.0.contains(&tag)
    }

    /// The last first.
    fn tags(self) -> impl Iterator<Item = u32> {
        self.0.into_iter()
    }
}

label_set! {
    /// Why a key's first choice was passed over.
    pub enum Obstacle {
        /// It runs as many builds as its bound allows.
        Full = "full",
        /// What it may run beyond its share is kept for builds that find their cache there.
        Busy = "busy",
        /// It takes no new builds until a probe succeeds.
        Unhealthy = "unhealthy",
        /// It fails builds for reasons of its own.
        Degraded = "degraded",
        /// It takes no new builds on request.
        Cordoned = "cordoned",
        /// It did not accept a connection for this build.
        Unreachable = "unreachable",
    }
}

/// A choice and how it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The index of the chosen candidate, in the order in which the candidates were given.
    pub index: usize,
    /// Why this one.
    pub outcome: Outcome,
    /// How many candidates the key would rather have; `None` without a key.
    pub rank: Option<usize>,
    /// Builds that ran there.
    pub builds: u32,
    /// Builds that may run there, if that is bounded.
    pub limit: Option<u64>,
    /// The key's first choice, if another was taken, and why.
    pub passed_over: Option<(usize, Obstacle)>,
    /// The key's cache is not there, but on a candidate that has no free slot.
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

/// What a choice is about.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The build's key, if it has one.
    pub key: Option<KeyHash>,
    /// Who built the key last, if that is known.
    pub warm: Option<Warm>,
    /// Candidates that are out of the question: they did not accept.
    pub tried: &'a [usize],
    /// Builds that a candidate runs at once for each unit of its capacity; `None` without a limit.
    pub slots: Option<NonZeroU32>,
}

impl Policy {
    /// Chooses among `candidates` that are ready, degraded ones only where there is no other, or among all
    /// that are not cordoned when none is ready: a wrong verdict on every one of them must not stop all
    /// builds. Nothing is chosen while the best of these have no free slot.
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
            // Those that are better will have a free slot again.
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

/// The candidates in the order in which the consistent hash prefers them for `key`.
pub fn ranking(key: KeyHash, candidates: &Candidates) -> Vec<usize> {
    let rows = rank::all(key.0, candidates);
    rows.into_iter().map(|row| candidates.index(row)).collect()
}

#[cfg(test)]
mod tests;

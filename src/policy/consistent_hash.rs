//! Rendezvous hashing with bounded load.
//!
//! The bound keeps the builds of a hot key from overloading its home (Mirrokni, Thorup and Zadimoghaddam, 2018).
//! Builds that spill go to the next backends in the key's own ranking, so a hot project always warms the same second
//! backend, and its builds come home when the home has capacity left. The last capacity below the limit is kept for
//! builds that find their cache: a build that finds none anywhere loses nothing on the next backend.

use super::{
    Choice, LoadFactor, Obstacle, Outcome, Warm,
    candidate::FULL_SHARE,
    candidates::Row,
    rank,
    round::{Eligible, Round},
};

/// Builds that each backend of a small fleet may always run. With six builds on three daemons, one build in five
/// would be the fourth on its home. Elsewhere its cache would be cold, and four builds are no high load.
const ALWAYS_ALLOWED_SMALL: u64 = 4;

/// A fleet is small if it has no more backends than this.
const SMALL_FLEET: usize = 8;

/// The same in a larger fleet. If that is idle, the mean load is below one, but the second build of a project belongs
/// where the first one warms the cache.
const ALWAYS_ALLOWED: u64 = 2;

/// The same for a backend in its slow start.
const ALWAYS_ALLOWED_STARTING: u64 = 1;

/// The share of the mean load, in thousandths, up to which a backend takes builds that find no cache.
///
/// Simulations lost more cache hits with other values: smaller ones scatter keys, and with larger ones warm builds find
/// their homes full.
const COLD_SHARE: u16 = 800;

/// A build that finds no cache anywhere is always accepted by a backend with fewer builds than this, so that no build
/// leaves its home because of one running build.
const COLD_ALLOWED: u64 = 2;

/// What a choice by key depends on, beside the candidates.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// How many times its share of all builds a backend may run.
    pub(super) factor: LoadFactor,
    /// Whether the proxy remembers which backends built a key. Only then is a key without such a backend cold.
    pub(super) remembers: bool,
}

pub(super) fn choose(
    key: u64,
    warm: Option<Warm>,
    settings: Settings,
    round: &Round<'_>,
) -> Option<Choice> {
    let limits = LoadLimits::new(settings.factor, round);
    let first = rank::first(key, round.candidates);
    let has_room = |row: &Row| round.takes(*row) && limits.has_room(*row);
    let (mut row, mut rank) = match first.rows().iter().position(&has_room) {
        Some(rank) => (first.rows()[rank], rank),
        None => beyond(key, has_room, round)?,
    };
    let known = |row: Row| warm.is_some_and(|warm| warm.has(round.candidates.at(row).tag()));
    if !known(row) {
        if let Some(row) = warm.and_then(|warm| warmest(warm, has_room, round)) {
            let rank = rank::rank(key, round.candidates, row);
            return Some(limits.choice(row, Outcome::Warm, rank));
        }
        let takes_cold = |row: &Row| has_room(row) && limits.has_room_for_cold(*row);
        if settings.remembers
            && let Some(better) = first.rows().iter().position(takes_cold)
        {
            (row, rank) = (first.rows()[better], better);
        }
    }
    let home = *first.rows().first()?;
    let mut choice = limits.choice(row, Outcome::Home, rank);
    choice.cache_is_busy = match warm {
        Some(warm) => !known(row) && warmest(warm, |row| round.is_busy(*row), round).is_some(),
        // Without that memory, a key counts as warm at its home.
        None => !settings.remembers && rank > 0 && round.is_busy(home),
    };
    if rank > 0 {
        let obstacle = limits.obstacle(home);
        choice.passed_over = Some((round.candidates.index(home), obstacle));
        choice.outcome = match obstacle {
            Obstacle::Full | Obstacle::Busy => Outcome::Spill,
            Obstacle::Unhealthy
            | Obstacle::Degraded
            | Obstacle::Cordoned
            | Obstacle::Unreachable => Outcome::Failover,
        };
    }
    Some(choice)
}

/// The best candidate below its limit if none of the first candidates is. If all seem full, the best one: counts change
/// meanwhile, and those with capacity left may be excluded.
fn beyond(key: u64, has_room: impl Fn(&Row) -> bool, round: &Round<'_>) -> Option<(Row, usize)> {
    let row = rank::best(key, round.candidates, |row| has_room(&row))
        .or_else(|| rank::best(key, round.candidates, |row| round.takes(row)))?;
    Some((row, rank::rank(key, round.candidates, row)))
}

/// The candidate that built the key last, if it has capacity left.
fn warmest(warm: Warm, has_room: impl Fn(&Row) -> bool, round: &Round<'_>) -> Option<Row> {
    warm.tags().filter_map(|tag| round.candidates.with_tag(tag)).find(has_room)
}

/// How many builds each candidate may run.
#[derive(Debug)]
struct LoadLimits<'a> {
    round: &'a Round<'a>,
    /// The builds of all, the new one included, their weights and the factor in thousandths;
    /// `None` without a bound.
    share: Option<(u64, u64, u16)>,
}

impl<'a> LoadLimits<'a> {
    fn new(factor: LoadFactor, round: &'a Round<'a>) -> Self {
        let (builds, weight) = (round.total_builds() + 1, round.total_weight());
        let share = factor.thousandths().map(|factor| (builds, weight, factor));
        // Without a fit candidate there is no mean load, and so no limit.
        let bounded = round.eligible == Eligible::Fit && weight > 0;
        Self { round, share: share.filter(|_| bounded) }
    }

    /// Builds that the candidate may run, the new one included.
    fn of(&self, row: Row) -> Option<u64> {
        let factor = self.share?.2;
        let candidates = self.round.candidates;
        let full = u64::from(candidates.at(row).capacity()) * FULL_SHARE;
        let least = if self.round.weight(row) < full {
            ALWAYS_ALLOWED_STARTING
        } else if candidates.len() <= SMALL_FLEET {
            ALWAYS_ALLOWED_SMALL
        } else {
            ALWAYS_ALLOWED
        };
        Some(self.part(row, factor)?.max(least))
    }

    /// `thousandths` of the candidate's share of all builds, rounded up.
    fn part(&self, row: Row, thousandths: u16) -> Option<u64> {
        let (builds, total, _) = self.share?;
        let builds = u128::from(builds) * u128::from(self.round.weight(row));
        let part = (builds * u128::from(thousandths)).div_ceil(u128::from(total) * 1000);
        Some(u64::try_from(part).unwrap_or(u64::MAX))
    }

    fn has_room(&self, row: Row) -> bool {
        let builds = u64::from(self.round.candidates.at(row).builds());
        self.of(row).is_none_or(|limit| builds < limit)
    }

    /// Whether the candidate takes a build that finds no cache anywhere.
    fn has_room_for_cold(&self, row: Row) -> bool {
        let builds = u64::from(self.round.candidates.at(row).builds());
        self.part(row, COLD_SHARE).is_none_or(|part| builds < part.max(COLD_ALLOWED))
    }

    /// Why the candidate was not chosen.
    fn obstacle(&self, row: Row) -> Obstacle {
        let candidate = self.round.candidates.at(row);
        if candidate.is_cordoned() {
            Obstacle::Cordoned
        } else if self.round.tried.contains(&self.round.candidates.index(row)) {
            Obstacle::Unreachable
        } else if !candidate.is_ready() {
            Obstacle::Unhealthy
        } else if candidate.is_degraded() {
            Obstacle::Degraded
        } else if self.has_room(row) && self.round.has_slot(row) {
            Obstacle::Busy
        } else {
            Obstacle::Full
        }
    }

    fn choice(&self, row: Row, outcome: Outcome, rank: usize) -> Choice {
        Choice { rank: Some(rank), limit: self.of(row), ..Choice::new(self.round, row, outcome) }
    }
}

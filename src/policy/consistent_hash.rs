//! Rendezvous hashing with bounded load.
//!
//! The bound keeps a hot key from drowning its home (Mirrokni, Thorup and Zadimoghaddam, 2018); what
//! spills goes down the key's own ranking, so a hot project warms the same second backend each time,
//! and comes home when there is room. The last of the room under the bound is kept for builds that find
//! their cache: one that will find none anywhere loses nothing by its next rank.

use super::{
    Choice, LoadFactor, Obstacle, Outcome, Warm,
    candidates::{Eligible, Round, Row},
    rank,
};

/// Builds that each backend of a small fleet may always run. With six builds on three daemons one in
/// five would be the fourth of its home: sent away, it would find the cache of a third of the fleet cold,
/// and four builds are no load.
const ALWAYS_ALLOWED_SMALL: u64 = 4;

/// Backends of a small fleet at most.
const SMALL_FLEET: usize = 8;

/// The same in a larger fleet: where it is idle the mean is below one, and the second build of a project
/// belongs where the first one warms the cache.
const ALWAYS_ALLOWED: u64 = 2;

/// The same for a backend in its slow start.
const ALWAYS_ALLOWED_STARTING: u64 = 1;

/// The share of the mean load, in thousandths, up to which a backend takes builds that find no cache.
///
/// Simulated, more hits are lost on either side of it: below, keys are scattered; above, warm builds
/// meet full homes.
const COLD_SHARE: u16 = 800;

/// Builds that a backend may run in any case when one comes that finds no cache: with one build
/// running nothing leaves its home.
const COLD_ALLOWED: u64 = 2;

/// How a key is to be placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// How much more than its share a backend may run.
    pub(super) factor: LoadFactor,
    /// Whether it is remembered who built a key: only then is a key without such a backend a cold one.
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
        // Without a memory, a key is taken for warm at its home.
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

/// The best below its bound when none of the first is. Counts change under us and rounds may exclude
/// who has room: when all seem full, the best is as good as any.
fn beyond(key: u64, has_room: impl Fn(&Row) -> bool, round: &Round<'_>) -> Option<(Row, usize)> {
    let row = rank::best(key, round.candidates, |row| has_room(&row))
        .or_else(|| rank::best(key, round.candidates, |row| round.takes(row)))?;
    Some((row, rank::rank(key, round.candidates, row)))
}

/// Where the key was built last, if there is room.
fn warmest(warm: Warm, has_room: impl Fn(&Row) -> bool, round: &Round<'_>) -> Option<Row> {
    warm.tags().filter_map(|tag| round.candidates.with_tag(tag)).find(has_room)
}

/// What each candidate may run.
#[derive(Debug)]
struct LoadLimits<'a> {
    round: &'a Round<'a>,
    /// The builds of all, the one to row included, their weights and the factor in thousandths;
    /// `None` without a bound.
    share: Option<(u64, u64, u16)>,
}

impl<'a> LoadLimits<'a> {
    fn new(factor: LoadFactor, round: &'a Round<'a>) -> Self {
        let (builds, weight) = (round.total_builds() + 1, round.total_weight());
        let share = factor.thousandths().map(|factor| (builds, weight, factor));
        // Without a fit one there is no mean; nothing is bounded then.
        let bounded = round.eligible == Eligible::Fit && weight > 0;
        Self { round, share: share.filter(|_| bounded) }
    }

    /// Builds that the candidate may run, the one to row included.
    fn of(&self, row: Row) -> Option<u64> {
        let factor = self.share?.2;
        let candidates = self.round.candidates;
        let full = u64::from(candidates.at(row).capacity()) * super::candidates::FULL_SHARE;
        let least = if self.round.weight(row) < full {
            ALWAYS_ALLOWED_STARTING
        } else if candidates.len() <= SMALL_FLEET {
            ALWAYS_ALLOWED_SMALL
        } else {
            ALWAYS_ALLOWED
        };
        Some(self.part(row, factor)?.max(least))
    }

    /// So many thousandths of the candidate's share of all builds, rounded up.
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

    /// Whether a build that finds no cache anywhere may go there.
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

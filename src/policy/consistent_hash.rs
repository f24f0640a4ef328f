//! Rendezvous hashing with bounded load.
//!
//! The bound keeps a hot key from drowning its home (Mirrokni, Thorup and Zadimoghaddam, 2018); what
//! spills goes down the key's own ranking, so a hot project warms the same second backend each time,
//! and comes home when there is room.

use super::{Choice, LoadFactor, Obstacle, Outcome, Warm, candidates::Round, rank};

/// Builds a backend may always run: in a small or idle fleet the mean is below one, and the second
/// build of a project belongs where the first one warms the cache.
const ALWAYS_ALLOWED: u64 = 2;

/// The same for a backend in its slow start.
const ALWAYS_ALLOWED_STARTING: u64 = 1;

pub(super) fn choose(
    key: u64,
    warm: Option<Warm>,
    factor: LoadFactor,
    round: &Round<'_>,
) -> Option<Choice> {
    let bounds = Bounds::new(factor, round);
    let first = rank::first(key, round.candidates);
    let has_room = |place: &usize| round.takes(*place) && bounds.has_room(*place);
    let (place, rank) = match first.places().iter().position(&has_room) {
        Some(rank) => (first.places()[rank], rank),
        None => beyond(key, has_room, round)?,
    };
    let known = |place: usize| warm.is_some_and(|warm| warm.has(round.candidates.at(place).tag()));
    if !known(place)
        && let Some(place) = warm.and_then(|warm| warmest(warm, has_room, round))
    {
        let rank = rank::rank(key, round.candidates, place);
        return Some(bounds.choice(place, Outcome::Warm, rank));
    }
    let home = *first.places().first()?;
    let mut choice = bounds.choice(place, Outcome::Home, rank);
    if rank > 0 {
        let obstacle = bounds.obstacle(home);
        choice.passed_over = Some((round.candidates.index(home), obstacle));
        choice.outcome =
            if obstacle == Obstacle::Full { Outcome::Spill } else { Outcome::Failover };
    }
    Some(choice)
}

/// The best below its bound when none of the first is. Counts change under us and rounds may exclude
/// who has room: when all seem full, the best is as good as any.
fn beyond(
    key: u64,
    has_room: impl Fn(&usize) -> bool,
    round: &Round<'_>,
) -> Option<(usize, usize)> {
    let place = rank::best(key, round.candidates, |place| has_room(&place))
        .or_else(|| rank::best(key, round.candidates, |place| round.takes(place)))?;
    Some((place, rank::rank(key, round.candidates, place)))
}

/// Where the key was built last, if there is room.
fn warmest(warm: Warm, has_room: impl Fn(&usize) -> bool, round: &Round<'_>) -> Option<usize> {
    warm.tags().filter_map(|tag| round.candidates.with_tag(tag)).find(has_room)
}

/// What each candidate may run.
#[derive(Debug)]
struct Bounds<'a> {
    round: &'a Round<'a>,
    /// Thousandths of a build for each unit of weight, as a fraction; `None` without a bound.
    share: Option<(u128, u128)>,
}

impl<'a> Bounds<'a> {
    fn new(factor: LoadFactor, round: &'a Round<'a>) -> Self {
        let weight = u128::from(round.total_weight()) * 1000;
        let builds = u128::from(round.total_builds()) + 1;
        let share = factor.thousandths().map(|factor| (builds * u128::from(factor), weight));
        // Without a ready one there is no mean; nothing is bounded then.
        Self { round, share: share.filter(|_| round.ready && weight > 0) }
    }

    /// Builds that the candidate may run, the one to place included.
    fn of(&self, place: usize) -> Option<u64> {
        let (builds, total) = self.share?;
        let weight = self.round.weight(place);
        let bound = (builds * u128::from(weight)).div_ceil(total);
        let starting = weight
            < u64::from(self.round.candidates.at(place).capacity()) * super::candidates::FULL_SHARE;
        let least = if starting { ALWAYS_ALLOWED_STARTING } else { ALWAYS_ALLOWED };
        Some(u64::try_from(bound).unwrap_or(u64::MAX).max(least))
    }

    fn has_room(&self, place: usize) -> bool {
        let builds = u64::from(self.round.candidates.at(place).builds());
        self.of(place).is_none_or(|bound| builds < bound)
    }

    /// Why the candidate was not chosen.
    fn obstacle(&self, place: usize) -> Obstacle {
        let candidate = self.round.candidates.at(place);
        if candidate.is_cordoned() {
            Obstacle::Cordoned
        } else if self.round.tried.contains(&self.round.candidates.index(place)) {
            Obstacle::Unreachable
        } else if !candidate.is_ready() {
            Obstacle::Unhealthy
        } else {
            Obstacle::Full
        }
    }

    fn choice(&self, place: usize, outcome: Outcome, rank: usize) -> Choice {
        Choice {
            rank: Some(rank),
            bound: self.of(place),
            ..Choice::new(self.round, place, outcome)
        }
    }
}

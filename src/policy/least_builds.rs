//! The better of two backends drawn at random. The spread is close to the best possible, and an idle backend is not
//! overrun by all builds at once.

use rand::Rng;

use super::{
    candidates::{Class, Row},
    round::Round,
};

/// Draws two candidates by capacity and returns the less loaded one. If the loads are equal, the first draw wins.
pub(super) fn choose(round: &Round<'_>, rng: &mut impl Rng) -> Option<Row> {
    let by_capacity = |class: &Class| class.range.len() as u64 * u64::from(class.capacity);
    let first = round.draw(None, by_capacity, rng)?;
    let Some(second) = round.draw(Some(first), by_capacity, rng) else {
        return Some(first);
    };
    let load = |row: Row| u128::from(round.candidates.at(row).builds());
    let weight = |row: Row| u128::from(round.weight(row));
    // The loads are compared by weight without a division.
    let better = load(second) * weight(first) < load(first) * weight(second);
    Some(if better { second } else { first })
}

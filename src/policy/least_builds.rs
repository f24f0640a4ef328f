//! The better of two: near the best possible spread, and no herd runs to the one idle backend.

use rand::Rng;

use super::{
    candidates::{Class, Row},
    round::Round,
};

/// Two drawn by capacity, then the less loaded one; between equals the draw has decided.
pub(super) fn choose(round: &Round<'_>, rng: &mut impl Rng) -> Option<Row> {
    let by_capacity = |class: &Class| class.range.len() as u64 * u64::from(class.capacity);
    let first = round.draw(None, by_capacity, rng)?;
    let Some(second) = round.draw(Some(first), by_capacity, rng) else {
        return Some(first);
    };
    let load = |row: Row| u128::from(round.candidates.at(row).builds());
    let weight = |row: Row| u128::from(round.weight(row));
    // Loads by weight, without a division.
    let better = load(second) * weight(first) < load(first) * weight(second);
    Some(if better { second } else { first })
}

//! Any backend that takes builds, each with the same chance.

use rand::Rng;

use super::{
    candidates::{Class, Row},
    round::Round,
};

pub(super) fn choose(round: &Round<'_>, rng: &mut impl Rng) -> Option<Row> {
    round.draw(None, |class: &Class| class.range.len() as u64, rng)
}

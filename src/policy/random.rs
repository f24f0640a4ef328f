//! Any backend, each with the same chance.

use std::sync::Arc;

use rand::{Rng, seq::IndexedRandom as _};

use crate::fleet::Backend;

pub(super) fn choose<'a>(
    candidates: &'a [Arc<Backend>],
    rng: &mut impl Rng,
) -> Option<&'a Arc<Backend>> {
    candidates.choose(rng)
}

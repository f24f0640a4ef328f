//! The keys that move when one daemon is lost.

use std::{sync::Arc, time::Instant};

use buildkit_lb::policy::{Candidate, Candidates, KeyHash, LoadFactor, Policy, Request, Totals};
use rand::{SeedableRng as _, rngs::StdRng};

/// The number of daemons that are lost, each by itself.
const LOST: usize = 20;

/// The effect of the loss of one daemon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moves {
    /// The mean share of the keys that moved.
    pub(crate) mean: f64,
    /// The largest share in any of the losses.
    pub(crate) most: f64,
    /// Keys that moved although their home was still there.
    pub(crate) needless: usize,
}

/// Loses up to [`LOST`] of `daemons` daemons in turn, with everything else unchanged.
pub(crate) fn measure(daemons: usize, keys: &[KeyHash]) -> Moves {
    let all: Vec<usize> = (0..daemons).collect();
    let before = homes(&all, keys);
    let lost: Vec<usize> = all.iter().copied().step_by(daemons.div_ceil(LOST)).collect();
    let (mut sum, mut most, mut needless) = (0.0, 0.0_f64, 0);
    for &lost in &lost {
        let rest: Vec<usize> = all.iter().copied().filter(|daemon| *daemon != lost).collect();
        let after = homes(&rest, keys);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        let moved: Vec<usize> = moved.map(|(before, _)| *before).collect();
        needless += moved.iter().filter(|before| **before != lost).count();
        let share = moved.len() as f64 / keys.len() as f64;
        sum += share;
        most = most.max(share);
    }
    Moves { mean: sum / lost.len() as f64, most, needless }
}

/// The home of each key when no builds run.
fn homes(daemons: &[usize], keys: &[KeyHash]) -> Vec<usize> {
    let totals = Arc::new(Totals::default());
    let candidate =
        |daemon: &usize| Arc::new(Candidate::new(&format!("buildkitd-{daemon}"), 1, None, &totals));
    let candidates = Candidates::new(daemons.iter().map(candidate).collect(), &totals);
    let config = Policy { load_factor: LoadFactor::OFF, ..Policy::default() };
    let now = Instant::now();
    let mut rng = StdRng::seed_from_u64(1);
    let home = |key: &KeyHash| {
        let request = Request { key: Some(*key), warm: None, tried: &[], slots: None };
        let choice = config.choose(&request, &candidates, now, &mut rng);
        daemons[choice.expect("a daemon is ready").index]
    };
    keys.iter().map(home).collect()
}

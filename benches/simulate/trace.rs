//! The arrivals: the same builds at the same times for every policy.

use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng};

/// The popularity of the n-th project is 1/n: one build in twelve is of the first project, and half are of the first
/// few hundred.
const ZIPF_EXPONENT: f64 = 1.0;

/// The time of a build without cache, in seconds. Half of the builds take longer, and one in a hundred takes ten times
/// as long.
const MEDIAN_WORK: f64 = 120.0;
const WORK_SIGMA: f64 = 1.0;

/// The part of the time that is left when the cache is warm.
pub(crate) const WARM_SHARE: f64 = 0.25;

/// The builds per daemon at which the rate of arrivals aims, if four builds in five find a warm cache.
const TARGET_LOAD: f64 = 4.0;
const TARGET_HITS: f64 = 0.8;

/// Every hour begins with some minutes of three times the usual rate.
const RUSH_INTERVAL: f64 = 3600.0;
const RUSH_LEN: f64 = 300.0;
const RUSH_FACTOR: f64 = 3.0;

/// One push in eight starts several builds of its project within two minutes.
const BURST_CHANCE: f64 = 0.125;
const BURST_MAX: usize = 20;
const BURST_LEN: f64 = 120.0;

/// One build of a project.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// When the build arrives, in seconds from the start.
    pub(crate) at: f64,
    pub(crate) project: u32,
    /// How long the build takes without cache, in seconds.
    pub(crate) work: f64,
}

/// `builds` builds of `projects` projects, at a rate that `daemons` daemons can serve.
pub(crate) fn arrivals(seed: u64, daemons: usize, projects: usize, builds: usize) -> Vec<Arrival> {
    let mut rng = StdRng::seed_from_u64(seed);
    let popularity = Popularity::new(projects);
    let mut arrivals = Vec::with_capacity(builds + BURST_MAX);
    let rate = push_rate(daemons);
    let mut now = 0.0;
    while arrivals.len() < builds {
        // A Poisson process of the highest rate, thinned where the rate is lower.
        now += exponential(&mut rng) / (rate * RUSH_FACTOR);
        let rush = now % RUSH_INTERVAL < RUSH_LEN;
        if !rush && !rng.random_bool(1.0 / RUSH_FACTOR) {
            continue;
        }
        let project = popularity.draw(&mut rng);
        let burst = rng.random_bool(BURST_CHANCE);
        let count = if burst { rng.random_range(2..=BURST_MAX) } else { 1 };
        for number in 0..count {
            let delay = if number == 0 { 0.0 } else { rng.random_range(0.0..BURST_LEN) };
            let work = MEDIAN_WORK * (WORK_SIGMA * normal(&mut rng)).exp();
            arrivals.push(Arrival { at: now + delay, project, work });
        }
    }
    arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
    arrivals.truncate(builds);
    arrivals
}

/// Pushes per second outside the rush.
fn push_rate(daemons: usize) -> f64 {
    let mean_work = MEDIAN_WORK * (WORK_SIGMA * WORK_SIGMA / 2.0).exp();
    let mean_duration = mean_work * (TARGET_HITS * WARM_SHARE + 1.0 - TARGET_HITS);
    let builds_a_push = 1.0 + BURST_CHANCE * (2 + BURST_MAX) as f64 / 2.0 - BURST_CHANCE;
    let rush = 1.0 + (RUSH_FACTOR - 1.0) * RUSH_LEN / RUSH_INTERVAL;
    daemons as f64 * TARGET_LOAD / mean_duration / builds_a_push / rush
}

/// Which project is built.
struct Popularity {
    /// The sums of the weights of all projects up to each project.
    sums: Vec<f64>,
}

impl Popularity {
    fn new(projects: usize) -> Self {
        let mut sum = 0.0;
        let sums = (1..=projects).map(|rank| {
            sum += (rank as f64).powf(-ZIPF_EXPONENT);
            sum
        });
        Self { sums: sums.collect() }
    }

    fn draw(&self, rng: &mut impl Rng) -> u32 {
        let whole = self.sums.last().copied().unwrap_or_default();
        let at = rng.random_range(0.0..whole);
        u32::try_from(self.sums.partition_point(|sum| *sum <= at)).unwrap_or(u32::MAX)
    }
}

fn exponential(rng: &mut impl Rng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// The method of Box and Muller; its second value is dropped.
fn normal(rng: &mut impl Rng) -> f64 {
    (2.0 * exponential(rng)).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

//! The results of the builds of one run, and the figures made from them.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    fleet::Placement,
    schedule::Job,
    table::{Figure, Goal, Limit},
};

/// One build that has ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) job: Job,
    pub(crate) placement: Placement,
    /// When the build began, in seconds from the first build.
    pub(crate) began: f64,
    pub(crate) seconds: f64,
    pub(crate) steps: Steps,
}

/// The steps of a Dockerfile build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) all: usize,
    pub(crate) cached: usize,
}

impl Steps {
    /// Counts the steps in buildctl's progress of the form `rawjson`.
    pub(crate) fn read(progress: &str) -> Result<Self> {
        let mut all = HashSet::new();
        let mut cached = HashSet::new();
        for line in progress.lines() {
            let Ok(status) = serde_json::from_str::<Value>(line) else { continue };
            for vertex in status["vertexes"].as_array().into_iter().flatten() {
                let name = vertex["name"].as_str().unwrap_or_default();
                if !is_step(name) {
                    continue;
                }
                let digest = vertex["digest"].as_str().context("a step without a digest")?;
                all.insert(digest.to_owned());
                if vertex["cached"] == true {
                    cached.insert(digest.to_owned());
                }
            }
        }
        Ok(Self { all: all.len(), cached: cached.len() })
    }
}

/// Whether this is a line of the Dockerfile, such as `[2/5] RUN …`, and not `[internal] load …`.
fn is_step(name: &str) -> bool {
    let position = name.strip_prefix('[').and_then(|rest| rest.split(']').next());
    position.is_some_and(|position| position.contains('/'))
}

const fn figure(name: &'static str, decimals: usize) -> Figure {
    Figure { name, decimals, ratio: false }
}

const fn goal(words: &'static str, figure: usize, limit: Limit) -> Goal {
    Goal { words, figure, limit }
}

/// The rows of the table.
pub(crate) const FIGURES: &[Figure] = &[
    figure("repeated builds on a daemon that has built the project, %", 0),
    figure("repeated builds with every step cached, %", 0),
    figure("steps cached, of all builds, %", 0),
    figure("repeated builds, median, s", 2),
    figure("repeated builds, p95, s", 2),
    figure("repeated builds, mean, s", 2),
    figure("all builds, wall, s", 0),
    figure("builds of the busiest daemon ÷ mean", 2),
    figure("time spent building on the busiest daemon ÷ mean", 2),
];

/// The targets of the consistent hash.
pub(crate) const GOALS: &[Goal] = &[
    goal("repeated builds on a warm daemon, % at least", 0, Limit::AtLeast(95.0)),
    goal("median a third of random's at most", 3, Limit::AtMostTimes(1.0 / 3.0, "random")),
];

/// One line for each build, with the columns of [`FIELDS`].
pub(crate) fn records(run: &str, outcomes: &[Outcome]) -> String {
    let mut lines = String::new();
    for outcome in outcomes {
        let Outcome { job, placement, began, seconds, steps } = outcome;
        let Placement { backend, reason, load } = placement;
        let _ = writeln!(
            lines,
            "{run},{began:.3},{seconds:.3},{},{},{backend},{reason},{load},{},{}",
            job.project, job.turn, steps.cached, steps.all
        );
    }
    lines
}

/// The columns of [`records`].
pub(crate) const FIELDS: &str =
    "disk,policy,began,seconds,project,turn,backend,reason,load,cached,steps\n";

/// The values of [`FIGURES`] for builds in the order in which they began.
pub(crate) fn figures(outcomes: &[Outcome], daemons: usize, wall: f64) -> Vec<f64> {
    let mut seen: HashSet<(usize, &str)> = HashSet::new();
    let (mut repeated, mut warm, mut all_cached) = (Vec::new(), 0, 0);
    let mut builds: HashMap<&str, f64> = HashMap::new();
    let mut seconds: HashMap<&str, f64> = HashMap::new();
    let (mut steps, mut cached) = (0, 0);
    for outcome in outcomes {
        let backend = outcome.placement.backend.as_str();
        let known = !seen.insert((outcome.job.project, backend));
        if outcome.job.turn > 0 {
            warm += usize::from(known);
            all_cached += usize::from(outcome.steps.cached == outcome.steps.all);
            repeated.push(outcome.seconds);
        }
        *builds.entry(backend).or_default() += 1.0;
        *seconds.entry(backend).or_default() += outcome.seconds;
        steps += outcome.steps.all;
        cached += outcome.steps.cached;
    }
    repeated.sort_by(f64::total_cmp);
    let share = |part: usize, whole: usize| 100.0 * part as f64 / whole as f64;
    let spread = |loads: &HashMap<&str, f64>| {
        let sum: f64 = loads.values().sum();
        loads.values().copied().fold(0.0, f64::max) * daemons as f64 / sum
    };
    vec![
        share(warm, repeated.len()),
        share(all_cached, repeated.len()),
        share(cached, steps),
        quantile(&repeated, 0.5),
        quantile(&repeated, 0.95),
        repeated.iter().sum::<f64>() / repeated.len() as f64,
        wall,
        spread(&builds),
        spread(&seconds),
    ]
}

/// The value below which this part of the sorted values lies.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

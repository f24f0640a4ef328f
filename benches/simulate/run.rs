//! One run: the policy places every arrival; the build runs and ends.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use buildkit_lb::{
    placement::warm::{self, WarmMemory},
    policy::{KeyHash, Policy, Request},
};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{
    cluster::{Cluster, Seat},
    trace::{Arrival, WARM_SHARE},
};

/// A daemon is back this many seconds after it left.
const AWAY: f64 = 60.0;

/// The builds that a daemon runs at full speed. With more builds, each waits for processors.
const SLOTS: u32 = 8;

/// The loads of all daemons are sampled once in this many arrivals.
const SAMPLE: usize = 50;

/// The phases of a run, and the share of the arrivals at which each phase ends.
const PHASES: [(Phase, f64); 4] =
    [(Phase::WarmUp, 0.4), (Phase::Steady, 0.7), (Phase::Losses, 0.85), (Phase::RollOut, 1.0)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Caches fill, and nothing is counted.
    WarmUp,
    /// The fleet does not change.
    Steady,
    /// One daemon in twenty is lost with its cache, and a daemon with a new name replaces it.
    Losses,
    /// Every daemon restarts, one in twenty at a time, and keeps its name and cache.
    RollOut,
}

/// The counts of one phase.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Count {
    builds: u64,
    hits: u64,
    moved: u64,
    repeated: u64,
    above_slots: u64,
    above_bound: u64,
    seconds: f64,
    samples: u64,
    spread: f64,
}

impl Count {
    /// The share of builds whose daemon had the project's cache.
    pub(crate) fn hits(&self) -> f64 {
        self.hits as f64 / self.builds as f64
    }

    /// The share of repeated builds that ran on another daemon than the project's last build.
    pub(crate) fn moved(&self) -> f64 {
        self.moved as f64 / self.repeated as f64
    }

    /// The share of builds on a daemon that was already running as many builds as it has slots.
    pub(crate) fn above_slots(&self) -> f64 {
        self.above_slots as f64 / self.builds as f64
    }

    /// Builds on a daemon that was running more than 1.25 times the mean plus one.
    pub(crate) fn above_bound(&self) -> u64 {
        self.above_bound
    }

    /// The time of a build, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds / self.builds as f64
    }

    /// The load of the busiest daemon as a multiple of the mean, averaged over time.
    pub(crate) fn spread(&self) -> f64 {
        self.spread / self.samples as f64
    }
}

/// The results of a run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) steady: Count,
    pub(crate) losses: Count,
    pub(crate) roll_out: Count,
}

/// The end of a build.
#[derive(Debug, Clone, Copy, PartialEq)]
struct End {
    at: f64,
    seat: Seat,
}

impl Eq for End {}

impl Ord for End {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at)
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A run in progress.
struct Run<'a> {
    config: Policy,
    cluster: Cluster,
    memory: WarmMemory,
    keys: &'a [KeyHash],
    ends: BinaryHeap<Reverse<End>>,
    last: Vec<Option<usize>>,
    /// Daemons that are away, with the time of their return, the earliest first.
    away: Vec<(f64, usize, bool)>,
    rng: StdRng,
}

/// Places all `arrivals` on `daemons` daemons.
pub(crate) fn run(
    config: Policy,
    daemons: usize,
    keys: &[KeyHash],
    arrivals: &[Arrival],
) -> Outcome {
    let cluster = Cluster::new(daemons);
    let mut run = Run {
        config,
        memory: WarmMemory::new(warm::Config::default(), cluster.instant(0.0)),
        cluster,
        keys,
        ends: BinaryHeap::new(),
        last: vec![None; keys.len()],
        away: Vec::new(),
        rng: StdRng::seed_from_u64(1),
    };
    let mut outcome = Outcome::default();
    let mut begin = 0;
    for (phase, end) in PHASES {
        let end = (end * arrivals.len() as f64) as usize;
        let count = run.phase(phase, &arrivals[begin..end]);
        begin = end;
        match phase {
            Phase::WarmUp => {}
            Phase::Steady => outcome.steady = count,
            Phase::Losses => outcome.losses = count,
            Phase::RollOut => outcome.roll_out = count,
        }
    }
    outcome
}

impl Run<'_> {
    fn phase(&mut self, phase: Phase, arrivals: &[Arrival]) -> Count {
        let daemons = self.cluster.len();
        // How many daemons leave at once, and how many leave in total.
        let batch = if phase == Phase::RollOut { daemons.div_ceil(20) } else { 1 };
        let leaving = match phase {
            Phase::Losses => daemons.div_ceil(20),
            Phase::RollOut => daemons,
            Phase::WarmUp | Phase::Steady => 0,
        };
        let steps = leaving.div_ceil(batch);
        let interval = arrivals.len() / (steps + 1);
        let mut count = Count::default();
        for (number, arrival) in arrivals.iter().enumerate() {
            self.advance(arrival.at);
            let step = number / interval.max(1);
            if steps > 0 && number % interval == 0 && (1..=steps).contains(&step) {
                for daemon in ((step - 1) * batch..step * batch).take_while(|it| *it < leaving) {
                    self.leave(daemon, arrival.at, phase == Phase::RollOut);
                }
            }
            self.place(arrival, &mut count);
            if number % SAMPLE == 0 {
                self.sample(&mut count);
            }
        }
        count
    }

    /// Ends the builds whose time is over, and lets daemons return whose time has come.
    fn advance(&mut self, now: f64) {
        while let Some(Reverse(end)) = self.ends.peek().copied().filter(|Reverse(e)| e.at <= now) {
            self.ends.pop();
            self.cluster.end_build(end.seat);
        }
        while let Some((at, daemon, keeps)) = self.away.first().copied().filter(|a| a.0 <= now) {
            self.away.remove(0);
            if keeps {
                self.cluster.come_back(daemon, at);
            } else {
                self.cluster.replace(daemon, at);
            }
        }
    }

    fn leave(&mut self, daemon: usize, now: f64, keeps: bool) {
        self.cluster.leave(daemon);
        self.away.push((now + AWAY, daemon, keeps));
    }

    fn place(&mut self, arrival: &Arrival, count: &mut Count) {
        let now = self.cluster.instant(arrival.at);
        let project = arrival.project as usize;
        let key = self.keys[project];
        let request =
            Request { key: Some(key), warm: self.memory.get(key, now), tried: &[], slots: None };
        let candidates = self.cluster.candidates();
        let choice = self.config.choose(&request, candidates, now, &mut self.rng);
        let Some(choice) = choice else { return };
        let daemon = self.cluster.daemon_at(choice.index);
        let (seat, warm) = self.cluster.start_build(daemon, arrival.project);
        self.memory.note(key, self.cluster.candidate_of(daemon), now);
        let seconds = arrival.work * if warm { WARM_SHARE } else { 1.0 };
        self.ends.push(Reverse(End { at: arrival.at + seconds, seat }));

        let mean = self.cluster.builds() as f64 / candidates_len(&self.cluster);
        let load = f64::from(choice.builds + 1);
        count.builds += 1;
        count.hits += u64::from(warm);
        count.seconds += seconds;
        count.above_slots += u64::from(choice.builds >= SLOTS);
        count.above_bound += u64::from(load > 1.25 * mean + 1.0);
        if let Some(last) = self.last[project].replace(daemon) {
            count.repeated += 1;
            count.moved += u64::from(last != daemon);
        }
    }

    fn sample(&self, count: &mut Count) {
        let most = self.cluster.loads().max().unwrap_or_default();
        count.samples += 1;
        count.spread +=
            f64::from(most) * candidates_len(&self.cluster) / self.cluster.builds() as f64;
    }
}

fn candidates_len(cluster: &Cluster) -> f64 {
    cluster.candidates().len() as f64
}

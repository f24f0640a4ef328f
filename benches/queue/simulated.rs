//! Builds wait for slots in made-up time, in the proxy's own order and by its own policies.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use buildkit_lb::{
    placement::{
        queue::order::{Offer, Order, Ticket},
        warm::{self, WarmMemory},
    },
    policy::{Choice, KeyHash, Policy, Request},
};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{
    cluster::{Cluster, Seat},
    share::{jain, mean, quantile},
    trace::{self, Arrival, WARM_SHARE},
};

const DAEMONS: usize = 20;
/// Three in four of them could be on the daemons' disks at once.
const PROJECTS: usize = 5_000;
const SLOTS: NonZeroU32 = NonZeroU32::new(4).expect("not 0");

/// Clients that build projects of their own, each as often as its projects are popular.
const CLIENTS: usize = 20;

/// One more client sends many builds of a few projects at once, as a nightly pipeline does.
const BURST_CLIENT: usize = CLIENTS;
const BURST_LEN: usize = 400;
const BURST_PROJECTS: u32 = 40;
const BURST_INTERVAL: f64 = 7200.0;
const BURST_WORK: f64 = 120.0;

/// In the first part of the time caches fill, and nothing is counted.
const WARM_UP: f64 = 1.0 / 3.0;

/// What arrives in one simulation, the same for every policy.
pub(crate) struct Work {
    load: f64,
    /// From when on things are counted, in seconds.
    counted_from: f64,
    arrivals: Vec<(usize, Arrival)>,
    keys: Vec<KeyHash>,
}

impl Work {
    /// As much as makes this load.
    pub(crate) fn new(seed: u64, load: f64, quick: bool) -> Self {
        let builds = if quick { 10_000 } else { 40_000 };
        let usual = trace::arrivals(seed, DAEMONS, PROJECTS, builds);
        let usual = usual.into_iter().map(|arrival| {
            let client = arrival.project as usize % CLIENTS;
            (client, Arrival { at: arrival.at / load, ..arrival })
        });
        let mut arrivals: Vec<_> = usual.collect();
        let end = arrivals.last().map_or(0.0, |(_, arrival)| arrival.at);
        let mut at = BURST_INTERVAL / 2.0;
        while at < end {
            arrivals.extend((0..BURST_LEN).map(|number| {
                let project = PROJECTS as u32 + number as u32 % BURST_PROJECTS;
                (BURST_CLIENT, Arrival { at, project, work: BURST_WORK })
            }));
            at += BURST_INTERVAL;
        }
        arrivals.sort_by(|(_, a), (_, b)| a.at.total_cmp(&b.at));
        let projects = PROJECTS + BURST_PROJECTS as usize;
        let keys = (0..projects).map(|number| KeyHash::new(&format!("team/project-{number}")));
        Self { load, counted_from: WARM_UP * end, arrivals, keys: keys.collect() }
    }

    /// What it is.
    pub(crate) fn title(&self) -> String {
        format!(
            "{} builds of {CLIENTS} clients, load {}, {DAEMONS} daemons with {SLOTS} slots each",
            self.arrivals.len(),
            self.load
        )
    }
}

/// How builds wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) policy: Policy,
    pub(crate) affinity_wait: Duration,
    /// Whether clients and keys take turns; otherwise whoever came first is first.
    pub(crate) turns: bool,
}

/// What came of a simulation.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Seconds that each build of the usual clients waited.
    waits: Vec<f64>,
    /// The same of the client that sends many at once.
    burst_waits: Vec<f64>,
    builds: usize,
    waited: usize,
    warm: usize,
    seconds: f64,
    /// Jain's index of what the clients run that wait, times seconds; and these seconds.
    fairness: (f64, f64),
}

impl Outcome {
    /// In the order of the table.
    pub(crate) fn figures(mut self) -> Vec<f64> {
        let percent = |count: usize| 100.0 * count as f64 / self.builds as f64;
        vec![
            percent(self.waited),
            mean(&self.waits),
            quantile(&mut self.waits, 0.95),
            quantile(&mut self.burst_waits, 0.95),
            self.fairness.0 / self.fairness.1,
            percent(self.warm),
            self.seconds / self.builds as f64,
        ]
    }
}

/// A build that has come.
#[derive(Debug, Clone, Copy)]
struct Build {
    client: usize,
    project: u32,
    work: f64,
    since: Instant,
}

/// A build's end, the earliest first in a heap of their reverses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    at: Instant,
    seat: Seat,
    client: usize,
}

impl Ord for End {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The daemons, and what chooses one of them.
struct Fleet<'a> {
    policy: Policy,
    keys: &'a [KeyHash],
    cluster: Cluster,
    memory: WarmMemory,
    rng: StdRng,
}

/// A simulation in progress.
struct Run<'a> {
    settings: Settings,
    counted_from: Instant,
    fleet: Fleet<'a>,
    order: Order<usize>,
    entries: HashMap<Ticket, Build>,
    ends: BinaryHeap<Reverse<End>>,
    running: [usize; CLIENTS + 1],
    waiting: [usize; CLIENTS + 1],
    now: Instant,
    outcome: Outcome,
}

/// Lets all of `work` arrive, wait and run.
pub(crate) fn run(settings: Settings, work: &Work) -> Outcome {
    let cluster = Cluster::new(DAEMONS);
    let now = cluster.instant(0.0);
    let fleet = Fleet {
        policy: settings.policy,
        keys: &work.keys,
        memory: WarmMemory::new(warm::Config::default(), now),
        cluster,
        rng: StdRng::seed_from_u64(1),
    };
    let mut run = Run {
        settings,
        counted_from: fleet.cluster.instant(work.counted_from),
        fleet,
        order: Order::new(settings.affinity_wait),
        entries: HashMap::new(),
        ends: BinaryHeap::new(),
        running: [0; CLIENTS + 1],
        waiting: [0; CLIENTS + 1],
        now,
        outcome: Outcome::default(),
    };
    for (client, Arrival { at, project, work }) in &work.arrivals {
        let since = run.fleet.cluster.instant(*at);
        run.until(Some(since));
        run.arrive(Build { client: *client, project: *project, work: *work, since });
    }
    run.until(None);
    run.outcome
}

impl Fleet<'_> {
    fn choose(&mut self, project: u32, now: Instant) -> Option<Choice> {
        let key = self.keys[project as usize];
        let warm = self.memory.get(key, now);
        let request = Request { key: Some(key), warm, tried: &[], slots: Some(SLOTS) };
        self.policy.choose(&request, self.cluster.candidates(), now, &mut self.rng)
    }

    /// Starts a build; its seat, and whether it finds its cache there.
    fn start(&mut self, project: u32, choice: Choice, now: Instant) -> (Seat, bool) {
        let daemon = self.cluster.daemon_at(choice.index);
        self.memory.note(self.keys[project as usize], self.cluster.candidate_of(daemon), now);
        self.cluster.start_build(daemon, project)
    }
}

impl Run<'_> {
    /// Lets time pass until `end`, or until nothing runs any more.
    fn until(&mut self, end: Option<Instant>) {
        loop {
            let ends = self.ends.peek().map(|Reverse(end)| end.at);
            let next = ends.into_iter().chain(self.order.affinity_wait_ends(self.now)).min();
            let Some(next) = next.filter(|next| end.is_none_or(|end| *next <= end)) else { break };
            self.pass(next);
            while let Some(Reverse(ended)) = self.ends.peek().copied().filter(|e| e.0.at <= next) {
                self.ends.pop();
                self.fleet.cluster.end_build(ended.seat);
                self.running[ended.client] -= 1;
                self.order.end(&self.owner(ended.client));
            }
            self.grant();
        }
        if let Some(end) = end {
            self.pass(end);
        }
    }

    /// Notes how the slots are shared until `next`.
    fn pass(&mut self, next: Instant) {
        let seconds = (next - self.now).as_secs_f64();
        self.now = next;
        let clients = || (0..=CLIENTS).filter(|client| self.waiting[*client] > 0);
        if self.now > self.counted_from && clients().count() > 1 {
            let index = jain(clients().map(|client| self.running[client] as f64));
            self.outcome.fairness.0 += index * seconds;
            self.outcome.fairness.1 += seconds;
        }
    }

    fn arrive(&mut self, build: Build) {
        let owner = self.owner(build.client);
        if self.order.is_empty()
            && let Some(choice) = self.fleet.choose(build.project, self.now)
            && (!choice.cache_is_busy || self.settings.affinity_wait.is_zero())
        {
            self.order.start(&owner);
            return self.start(build, choice);
        }
        let key = self.settings.turns.then(|| self.fleet.keys[build.project as usize]);
        let ticket = self.order.enter(&owner, key, self.now, false);
        self.entries.insert(ticket, build);
        self.waiting[build.client] += 1;
        self.grant();
    }

    /// Grants what can be granted now.
    fn grant(&mut self) {
        while self.fleet.cluster.candidates().has_free(Some(SLOTS)) {
            let Self { fleet, order, entries, now, .. } = self;
            let mut best = None;
            let ticket = order.grant(*now, |ticket| {
                best = fleet.choose(entries[&ticket].project, *now);
                match &best {
                    None => Offer::Nothing,
                    Some(choice) if choice.cache_is_busy => Offer::Cold,
                    Some(_) => Offer::Good,
                }
            });
            let granted = ticket.and_then(|ticket| self.entries.remove(&ticket)).zip(best);
            let Some((build, choice)) = granted else { return };
            self.waiting[build.client] -= 1;
            self.start(build, choice);
        }
    }

    fn start(&mut self, build: Build, choice: Choice) {
        let (seat, warm) = self.fleet.start(build.project, choice, self.now);
        let seconds = build.work * if warm { WARM_SHARE } else { 1.0 };
        let at = self.now + Duration::from_secs_f64(seconds);
        self.ends.push(Reverse(End { at, seat, client: build.client }));
        self.running[build.client] += 1;

        if build.since < self.counted_from {
            return;
        }
        let (outcome, wait) = (&mut self.outcome, self.now - build.since);
        let burst = build.client == BURST_CLIENT;
        let waits = if burst { &mut outcome.burst_waits } else { &mut outcome.waits };
        waits.push(wait.as_secs_f64());
        outcome.builds += 1;
        outcome.waited += usize::from(!wait.is_zero());
        outcome.warm += usize::from(warm);
        outcome.seconds += seconds;
    }

    /// Who takes turns.
    fn owner(&self, client: usize) -> usize {
        if self.settings.turns { client } else { 0 }
    }
}

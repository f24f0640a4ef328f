//! Builds that wait for their turn: for a backend that takes builds, or for a free slot.
//!
//! Nothing of such a build has been sent to a daemon, so it can wait as long as its client does. `order`
//! says whose turn it is; this gives out the slots.

mod order;
mod turn;

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use self::order::{Offer, Order, Ticket};
pub(super) use self::turn::Tell;
pub use self::turn::Waited;
use super::{Decision, Placement};
use crate::{
    affinity::AffinityKey,
    client::{Client, Owner},
    directory::{Cause, Waiting},
    error::ProxyError,
    fleet::{Backend, BuildCount, Roster},
    ids::Id,
    metrics::{Metrics, QueueExit},
    policy::{self, KeyHash},
};

/// How long a build waits for a backend: a node that a cluster adds is there in a few minutes, and its
/// image pulled.
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(300);

/// How long it waits where slots are limited: several long builds before it.
const DEFAULT_MAX_WAIT_FOR_SLOT: Duration = Duration::from_secs(1800);

/// How long a build waits for the daemon that has its cache while another is free: much less than a cold
/// build takes longer.
const DEFAULT_AFFINITY_WAIT: Duration = Duration::from_secs(10);

/// Builds that wait in a pool: some minutes' work of a large fleet.
const DEFAULT_MAX_WAITING: usize = 1000;

/// Those of one client: more than a pipeline starts at once.
const DEFAULT_MAX_WAITING_PER_CLIENT: usize = 100;

/// How often those that wait are told where they stand.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// How builds wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Builds that a backend runs at once for each unit of its capacity; `None` without a limit.
    pub max_builds: Option<NonZeroU32>,
    /// How long a build waits at most; not at all if zero.
    pub max_wait: Duration,
    /// How long a build waits for a slot where its cache is while there is one elsewhere.
    pub affinity_wait: Duration,
    /// Builds that wait at once.
    pub max_waiting: usize,
    /// Those of one client.
    pub max_waiting_per_client: usize,
    /// Whether their clients show that they wait.
    pub progress: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_builds: None,
            max_wait: DEFAULT_MAX_WAIT,
            affinity_wait: DEFAULT_AFFINITY_WAIT,
            max_waiting: DEFAULT_MAX_WAITING,
            max_waiting_per_client: DEFAULT_MAX_WAITING_PER_CLIENT,
            progress: true,
        }
    }
}

/// How long a build waits unless that is said; `limited` if for a slot too.
pub fn default_max_wait(limited: bool) -> Duration {
    if limited { DEFAULT_MAX_WAIT_FOR_SLOT } else { DEFAULT_MAX_WAIT }
}

/// The queue of one pool.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) config: Config,
    state: Mutex<State>,
    /// Builds that wait for their turn.
    waiting: AtomicUsize,
    /// Probes and sessions that wait for a backend.
    unordered: AtomicUsize,
    /// Builds that run, the probes of clients not counted.
    running: AtomicUsize,
    /// A build has come, which may have to wait.
    entered: Notify,
    /// What [`Placement::demand`] tells has changed.
    changed: Notify,
    /// The proxy accepts no builds any more.
    closed: CancellationToken,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    order: Order<Owner>,
    entries: HashMap<Ticket, Entry>,
}

/// A build that waits.
#[derive(Debug)]
struct Entry {
    request: Request,
    granted: oneshot::Sender<Grant>,
    turn: watch::Sender<Waiting>,
}

/// What is known of a build that waits.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its ref.
    pub build: Option<Id>,
    /// Address of its client.
    pub client: Option<IpAddr>,
    /// What its cache is known by.
    pub affinity: Option<Arc<AffinityKey>>,
    /// When its wait began.
    pub since: SystemTime,
    key: Option<KeyHash>,
    owner: Owner,
    policy: policy::Policy,
    /// Not there.
    avoid: Vec<Arc<Backend>>,
}

/// A build's turn: a slot that is counted as taken.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) count: BuildCount,
    pub(super) decision: Decision,
    pub(super) started: Started,
}

/// One build that runs, as its owner's.
#[derive(Debug)]
pub struct Started {
    queue: Arc<Queue>,
    /// Whose it is, where that matters.
    owner: Option<Owner>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.queue.running.fetch_sub(1, Ordering::Relaxed);
        if let Some(owner) = &self.owner {
            self.queue.state.lock().order.end(owner);
        }
        self.queue.changed.notify_waiters();
    }
}

/// What the builds of a pool ask of its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Builds that run, the probes of clients not counted.
    pub running: usize,
    /// Builds that wait for their turn.
    pub waiting: usize,
    /// Builds that a backend of capacity 1 runs at once; `None` without a limit.
    pub slots: Option<NonZeroU32>,
}

/// A place in the queue, for as long as it lives.
#[derive(Debug)]
struct Place {
    queue: Arc<Queue>,
    ticket: Ticket,
    granted: oneshot::Receiver<Grant>,
    turn: watch::Receiver<Waiting>,
    began: Instant,
    exit: QueueExit,
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.queue.state.lock();
            state.order.leave(self.ticket);
            state.entries.remove(&self.ticket);
        }
        self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
        self.queue.metrics.queue_depth.dec();
        self.queue.metrics.queue_left(self.exit, self.began.elapsed());
        self.queue.changed.notify_waiters();
    }
}

impl Queue {
    pub(super) fn new(config: Config, closed: CancellationToken, metrics: Arc<Metrics>) -> Self {
        let order = Order::new(config.affinity_wait);
        Self {
            config,
            state: Mutex::new(State { order, entries: HashMap::new() }),
            waiting: AtomicUsize::new(0),
            unordered: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            entered: Notify::new(),
            changed: Notify::new(),
            closed,
            metrics,
        }
    }

    /// Whether a build that comes now has others before it.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Counts a build of `client` that runs. Whose it is matters to the order alone, so without slots no
    /// lock is taken.
    pub(super) fn start(self: &Arc<Self>, client: &Client) -> Started {
        let owner = self.config.max_builds.map(|_| client.owner());
        if let Some(owner) = &owner {
            self.state.lock().order.start(owner);
        }
        self.started(owner)
    }

    fn started(self: &Arc<Self>, owner: Option<Owner>) -> Started {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_waiters();
        Started { queue: Arc::clone(self), owner }
    }

    /// Takes a place for `request`, which waits since `began`; one that comes `back` is the first of its
    /// owner again.
    fn enter(
        self: &Arc<Self>,
        request: Request,
        began: Instant,
        back: bool,
        cause: Cause,
    ) -> Result<Place, ProxyError> {
        let mut state = self.state.lock();
        let State { order, entries } = &mut *state;
        self.check_room(order, &request.owner, cause)?;
        let ticket = order.enter(&request.owner, request.key, began, back);
        let total = order.len();
        let waiting = Waiting { since: request.since, position: total, total, cause };
        let (granted, receiver) = oneshot::channel();
        let (turn, told) = watch::channel(waiting);
        entries.insert(ticket, Entry { request, granted, turn });
        drop(state);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.queue_depth.inc();
        self.changed.notify_waiters();
        let (queue, exit) = (Arc::clone(self), QueueExit::ClientGone);
        Ok(Place { queue, ticket, granted: receiver, turn: told, began, exit })
    }

    fn check_room(
        &self,
        order: &Order<Owner>,
        owner: &Owner,
        cause: Cause,
    ) -> Result<(), ProxyError> {
        let Config { max_waiting, max_waiting_per_client, .. } = self.config;
        let pool = self.metrics.pool();
        if order.len() >= max_waiting {
            let full =
                format!("the queue of pool {pool} is full: {max_waiting} builds wait, {cause}");
            return Err(ProxyError::QueueFull(full));
        }
        if order.waiting_of(owner) >= max_waiting_per_client {
            return Err(ProxyError::QueueFull(format!(
                "{max_waiting_per_client} builds of this client wait already in the queue of pool {pool}, as \
                 many as may: {cause}"
            )));
        }
        Ok(())
    }
}

impl Placement {
    /// How builds wait.
    pub fn queue(&self) -> &Config {
        &self.queue.config
    }

    /// Gives out slots as they become free until `stop`.
    pub async fn serve_queue(&self, stop: CancellationToken) {
        let mut told = Instant::now();
        loop {
            // Before the look, so that no change is missed.
            let changed = self.fleet.changed();
            self.grant_all();
            if self.queue.is_empty() {
                tokio::select! {
                    () = self.queue.entered.notified() => continue,
                    () = stop.cancelled() => return,
                }
            }
            let now = Instant::now();
            if told <= now {
                self.tell_all();
                told = now + TOLD_EVERY;
            }
            let patience_ends = self.queue.state.lock().order.patience_ends();
            let next = patience_ends.filter(|at| *at > now).map_or(told, |at| at.min(told));
            tokio::select! {
                () = changed => {}
                () = self.queue.entered.notified() => {}
                () = sleep_until(next.into()) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Grants what can be granted now.
    fn grant_all(&self) {
        while let Some((granted, grant)) = self.grant() {
            // Who has gone gives it back; outside of the lock, which that takes.
            let _ = granted.send(grant);
        }
    }

    fn grant(&self) -> Option<(oneshot::Sender<Grant>, Grant)> {
        let slots = self.queue.config.max_builds;
        let roster = self.fleet.roster();
        if self.queue.is_empty() || !roster.candidates().has_free(slots) {
            return None;
        }
        let now = Instant::now();
        let mut state = self.queue.state.lock();
        let State { order, entries } = &mut *state;
        let mut next = None;
        let started = self.fleet.start_build(&roster, |_candidates| {
            let mut best = None;
            let ticket = order.grant(now, |ticket| {
                best =
                    entries.get(&ticket).and_then(|entry| self.best(&roster, &entry.request, now));
                match &best {
                    None => Offer::Nothing,
                    Some(choice) if choice.cache_is_busy => Offer::Cold,
                    Some(_) => Offer::Good,
                }
            })?;
            next = Some(ticket);
            best
        });
        let Entry { request, granted, .. } = entries.remove(&next?)?;
        drop(state);
        let (count, choice) = started?;
        let started = self.queue.started(Some(request.owner));
        let decision = Decision::chosen(&choice, &roster);
        Some((granted, Grant { count, decision, started }))
    }

    /// The best free slot for a build that waits.
    fn best(&self, roster: &Roster, request: &Request, now: Instant) -> Option<policy::Choice> {
        let avoid = |backend: &Arc<Backend>| roster.position(backend);
        let tried: Vec<usize> = request.avoid.iter().filter_map(avoid).collect();
        let warm = request.key.and_then(|key| self.warm.lock().get(key, now));
        let slots = self.queue.config.max_builds;
        let asked = policy::Request { key: request.key, warm, tried: &tried, slots };
        request.policy.choose(&asked, roster.candidates(), now, &mut rand::rng())
    }

    /// Tells all that wait where they stand.
    fn tell_all(&self) {
        let cause = self.cause();
        let state = self.queue.state.lock();
        let total = state.order.len();
        for (before, ticket) in state.order.in_order().into_iter().enumerate() {
            let Some(entry) = state.entries.get(&ticket) else { continue };
            let since = entry.request.since;
            let now = Waiting { since, position: before + 1, total, cause };
            entry.turn.send_if_modified(|told| {
                let changes = *told != now;
                *told = now;
                changes
            });
        }
    }

    /// What those that wait wait for.
    fn cause(&self) -> Cause {
        match self.queue.config.max_builds {
            Some(slots) if self.fleet.is_ready() => {
                let (taken, slots) = self.fleet.roster().candidates().taken(slots);
                Cause::Busy { taken, slots }
            }
            _ => Cause::NoBackend,
        }
    }

    /// The builds that wait, the next one first.
    pub fn queued(&self) -> Vec<(Request, Waiting)> {
        let state = self.queue.state.lock();
        let entries = state.order.in_order().into_iter();
        let entries = entries.filter_map(|ticket| state.entries.get(&ticket)).enumerate();
        let told = entries.map(|(before, entry)| {
            let waiting = Waiting { position: before + 1, ..entry.turn.borrow().clone() };
            (entry.request.clone(), waiting)
        });
        told.collect()
    }

    /// Whether a build that comes now, and finds no backend or slot, could wait.
    pub fn has_room_to_wait(&self) -> bool {
        let Config { max_wait, max_waiting, .. } = self.queue.config;
        !max_wait.is_zero() && self.queue.waiting.load(Ordering::Relaxed) < max_waiting
    }

    /// What the builds ask of the fleet now.
    pub fn demand(&self) -> Demand {
        Demand {
            running: self.queue.running.load(Ordering::Relaxed),
            waiting: self.queue.waiting.load(Ordering::Relaxed),
            slots: self.queue.config.max_builds,
        }
    }

    /// Waits until [`Self::demand`] changes after this call.
    pub fn demand_changed(&self) -> impl Future<Output = ()> + '_ {
        self.queue.changed.notified()
    }
}

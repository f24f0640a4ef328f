//! Builds that wait for their turn: for a backend that takes builds, or for a free slot.
//!
//! Nothing of such a build has been sent to a daemon, so it can wait as long as its client does. `order` decides whose
//! turn it is, `turn` is the way of one build through the queue, and `serve` gives out the slots.

mod config;
pub mod order;
mod serve;
mod turn;

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::order::{Order, Ticket};
pub(super) use self::turn::Publisher;
pub use self::{
    config::{Config, default_max_wait},
    turn::Waited,
};
use super::{Decision, Placement};
use crate::{
    affinity::AffinityKey,
    capabilities::Promise,
    client::{Client, Owner, Weight},
    directory::{Cause, Waiting},
    error::ProxyError,
    fleet::{Backend, BuildCount},
    identity::Identity,
    ids::Id,
    metrics::{Metrics, QueueExit},
    policy::{self, KeyHash},
};

/// The queue of one pool.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) config: Config,
    state: Mutex<State>,
    /// How many builds wait for their turn.
    waiting: AtomicUsize,
    /// How many probes and sessions wait for a backend.
    unordered: AtomicUsize,
    /// How many builds run, without the probes of clients.
    running: AtomicUsize,
    /// Notified when a build has come that may have to wait.
    entered: Notify,
    /// Notified when the answer of [`Placement::demand`] has changed.
    changed: Notify,
    /// Cancelled when the proxy accepts no more builds.
    closed: CancellationToken,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    order: Order<Owner>,
    entries: HashMap<Ticket, Entry>,
}

/// An entry for one waiting build.
#[derive(Debug)]
struct Entry {
    request: Request,
    granted: oneshot::Sender<SlotGrant>,
    turn: watch::Sender<Waiting>,
}

/// What is known about a waiting build.
#[derive(Debug, Clone)]
pub struct Request {
    /// The ref of the build.
    pub build: Option<Id>,
    /// The address of its client.
    pub client: Option<IpAddr>,
    /// The affinity key, for the status page.
    pub affinity: Option<Arc<AffinityKey>>,
    /// When the wait began, as a time of day.
    pub since: SystemTime,
    key: Option<KeyHash>,
    owner: Owner,
    weight: Weight,
    policy: policy::Policy,
    /// The backends that the build must not go to.
    avoid: Vec<Arc<Backend>>,
    /// What the daemon of the build must be able to do.
    promise: Promise,
}

impl Request {
    /// The name of the build's client. `None` if the client has not shown any.
    pub fn identity(&self) -> Option<&Identity> {
        match &self.owner {
            Owner::Identity(identity) => Some(identity),
            Owner::Address(_) | Owner::Local => None,
        }
    }
}

/// A build's turn: a slot that is already counted as taken.
#[derive(Debug)]
pub(super) struct SlotGrant {
    pub(super) count: BuildCount,
    pub(super) decision: Decision,
    pub(super) started: Started,
}

/// Counts one running build for its owner.
#[derive(Debug)]
pub struct Started {
    queue: Arc<Queue>,
    /// The owner; `None` if slots are not limited, because the owner then does not matter.
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

/// What the builds of a pool need from its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// How many builds run, without the probes of clients.
    pub running: usize,
    /// How many builds wait for their turn.
    pub waiting: usize,
    /// How many builds a backend of capacity 1 runs at once; `None` without a limit.
    pub slots: Option<NonZeroU32>,
}

/// Keeps a build in the queue for as long as it lives.
#[derive(Debug)]
struct QueuedGuard {
    queue: Arc<Queue>,
    ticket: Ticket,
    granted: oneshot::Receiver<SlotGrant>,
    turn: watch::Receiver<Waiting>,
    began: Instant,
    exit: QueueExit,
}

impl Drop for QueuedGuard {
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

    /// Whether no build waits, so that a new one need not wait for others.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Counts a running build of `client`. The owner matters only to the order, so no lock is taken if slots are not
    /// limited.
    pub(super) fn start(self: &Arc<Self>, client: &Client, weight: Weight) -> Started {
        let owner = self.config.max_builds.map(|_| client.owner());
        if let Some(owner) = &owner {
            let order = &mut self.state.lock().order;
            order.start(owner);
            order.weigh(owner, weight);
        }
        self.started(owner)
    }

    fn started(self: &Arc<Self>, owner: Option<Owner>) -> Started {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_waiters();
        Started { queue: Arc::clone(self), owner }
    }

    /// Puts `request`, which has waited since `began`, into the queue. A build that comes `back` is the first of its
    /// owner again.
    fn enter(
        self: &Arc<Self>,
        request: Request,
        began: Instant,
        back: bool,
        cause: Cause,
    ) -> Result<QueuedGuard, ProxyError> {
        let mut state = self.state.lock();
        let State { order, entries } = &mut *state;
        self.check_limits(order, &request.owner, cause)?;
        let ticket = order.enter(&request.owner, request.key, began, back);
        order.weigh(&request.owner, request.weight);
        let total = order.len();
        let promise = request.promise.clone();
        let waiting = Waiting { since: request.since, position: total, total, cause, promise };
        let (granted, receiver) = oneshot::channel();
        let (turn, positions) = watch::channel(waiting);
        entries.insert(ticket, Entry { request, granted, turn });
        drop(state);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.queue_depth.inc();
        self.changed.notify_waiters();
        let (queue, exit) = (Arc::clone(self), QueueExit::ClientGone);
        Ok(QueuedGuard { queue, ticket, granted: receiver, turn: positions, began, exit })
    }

    fn check_limits(
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
                "{max_waiting_per_client} builds of this client already wait in the queue of pool {pool}, and one \
                 client may have no more there: {cause}"
            )));
        }
        Ok(())
    }
}

impl Placement {
    /// The limits of the queue.
    pub fn queue(&self) -> &Config {
        &self.queue.config
    }

    /// The waiting builds, the next one first.
    pub fn queued(&self) -> Vec<(Request, Waiting)> {
        let state = self.queue.state.lock();
        let entries = state.order.in_order().into_iter();
        let entries = entries.filter_map(|ticket| state.entries.get(&ticket)).enumerate();
        let queued = entries.map(|(before, entry)| {
            let waiting = Waiting { position: before + 1, ..entry.turn.borrow().clone() };
            (entry.request.clone(), waiting)
        });
        queued.collect()
    }

    /// Whether a new build could wait if it found no backend or no slot.
    pub fn can_wait(&self) -> bool {
        let Config { max_wait, max_waiting, .. } = self.queue.config;
        !max_wait.is_zero() && self.queue.waiting.load(Ordering::Relaxed) < max_waiting
    }

    /// What the builds need from the fleet now.
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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
mod tests;

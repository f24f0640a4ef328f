//! Decides where a build goes: what it is tied to before its key, its key before the load.
//!
//! The one room with an opinion on that: constraints, the policy's choice, the tries to reach a backend,
//! and the memory of where keys are warm. Nothing of a build is sent to a daemon before it is placed.

mod decision;
pub mod queue;
mod tries;
pub mod warm;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::decision::Decision;
use self::{
    queue::{Grant, Queue, Started, Tell, Waited},
    tries::{Opened, Tries},
    warm::WarmMemory,
};
use crate::{
    affinity::AffinityKey,
    client::Client,
    directory::{Binding, Claimed, Directory, Lease, Ties, Told},
    error::ProxyError,
    fleet::{Backend, BuildCount, Fleet},
    ids::Id,
    metrics::Metrics,
    policy::{self, KeyHash, Outcome, PolicyKind},
    upstream::SharedLinks,
};

/// How long it may take to place a build or a call, over all backends that are tried.
///
/// A client gives its build's Ping 15 s; by then it must have been told the Solve's error.
const LIMIT: Duration = Duration::from_secs(12);

/// What is known of where a build or a session belongs.
#[derive(Debug)]
pub struct Wish {
    /// What it is known by and belongs with.
    pub ties: Arc<Ties>,
    /// Ref of the build, for the log.
    pub build: Option<Id>,
    /// It uses the results of the builds that it follows.
    pub linked: bool,
    /// What its cache is known by.
    pub key: Option<KeyHash>,
    /// The same as a text.
    pub affinity: Option<Arc<AffinityKey>>,
    /// Where it goes unless its ties say otherwise, if that is known.
    pub preferred: Option<Arc<Backend>>,
    /// By load alone, whatever the policy is.
    pub by_load: bool,
    /// A client asks what daemons can do: what the oldest can, the others can too.
    pub probe: bool,
}

impl Wish {
    /// Whether it waits for a slot when there is none: a client's probe and a session take none.
    fn takes_turns(&self) -> bool {
        !self.probe && !self.by_load
    }

    /// What its client is told of `error`.
    fn refusal(&self, error: ProxyError) -> ProxyError {
        if self.ties.apart.is_empty() { error } else { self.taken() }
    }

    /// It cannot run where a build with the same ref runs, and nowhere else.
    fn taken(&self) -> ProxyError {
        let build = self.build.as_ref().map(ToString::to_string).unwrap_or_default();
        ProxyError::RefTaken { build, cause: "no other backend can take a second one" }
    }
}

/// A build's place, and how it was found.
#[derive(Debug)]
pub struct Placed {
    /// Where it belongs.
    pub binding: Arc<Binding>,
    /// Holds its keys.
    pub lease: Lease,
    /// Counts it as a build of its backend.
    pub count: BuildCount,
    /// Counts it as a build of its client, unless it is a probe or a session.
    pub started: Option<Started>,
    /// Why there.
    pub decision: Decision,
    /// How long it waited for its turn, if it did.
    pub waited: Option<Waited>,
}

/// How builds are placed.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How they are spread.
    pub policy: policy::Policy,
    /// What is remembered of where keys were built.
    pub warm: warm::Config,
    /// How they wait for a backend.
    pub queue: queue::Config,
}

/// What places the builds of one fleet.
#[derive(Debug)]
pub struct Placement {
    directory: Directory,
    fleet: Arc<Fleet>,
    shared: Arc<SharedLinks>,
    /// How builds are spread.
    policy: policy::Policy,
    /// Builds that wait.
    queue: Arc<Queue>,
    /// Where keys were built last.
    warm: Mutex<WarmMemory>,
    metrics: Arc<Metrics>,
}

impl Placement {
    /// A placement that has placed nothing yet; builds that wait when `closed` is cancelled are refused.
    pub fn new(
        directory: Directory,
        fleet: Arc<Fleet>,
        shared: Arc<SharedLinks>,
        config: Config,
        metrics: Arc<Metrics>,
        closed: CancellationToken,
    ) -> Self {
        let Config { policy, warm, queue } = config;
        let queue = Arc::new(Queue::new(queue, closed, Arc::clone(&metrics)));
        let warm = Mutex::new(WarmMemory::new(warm, Instant::now()));
        Self { directory, fleet, shared, policy, queue, warm, metrics }
    }

    /// When what is to be placed now has been placed or refused.
    fn deadline() -> Instant {
        Instant::now() + LIMIT
    }

    /// How builds are spread.
    pub fn policy(&self) -> &policy::Policy {
        &self.policy
    }

    /// Joins the binding that the wish's ties have, or makes one for `client`. While that waits for a
    /// backend, `told` is told.
    ///
    /// # Errors
    /// No backend could be reached in time. Who waits for the wish's own keys has been told.
    pub async fn place(
        &self,
        wish: Wish,
        client: &Client,
        told: &Told,
    ) -> Result<Placed, ProxyError> {
        let claimed = self.directory.claim(&wish.ties, told, LIMIT).await;
        let placed = match claimed {
            Some(Claimed::Decide(claim)) => {
                let tell = Tell { wish: &wish, claim: &claim, told };
                return match self.open_in_turn(&tell, client, Self::deadline()).await {
                    Ok((Opened { link, count, decision, started }, waited)) => {
                        let binding = Arc::new(Binding::new(link));
                        let lease = claim.bind(&binding);
                        let started = started.or_else(|| self.start(&wish, client));
                        Ok(Placed { binding, lease, count, started, decision, waited })
                    }
                    Err(error) => {
                        let error = wish.refusal(error);
                        claim.refuse(&error);
                        Err(error)
                    }
                };
            }
            Some(Claimed::Join(binding, lease)) => {
                let avoid = self.directory.backends(&wish.ties.apart);
                self.join(&wish, client, binding, lease, &avoid)
            }
            None => {
                let what = "what it belongs with has found no backend either".to_owned();
                Err(ProxyError::NoBackend(what))
            }
        };
        if let Err(error) = &placed {
            self.directory.refuse(wish.ties.own.clone(), error);
        }
        placed
    }

    fn start(&self, wish: &Wish, client: &Client) -> Option<Started> {
        wish.takes_turns().then(|| self.queue.start(client))
    }

    /// A build beside one that runs waits for no slot: that one may wait for what this one does.
    fn join(
        &self,
        wish: &Wish,
        client: &Client,
        binding: Arc<Binding>,
        lease: Lease,
        avoid: &[Arc<Backend>],
    ) -> Result<Placed, ProxyError> {
        let backend = binding.link.backend();
        if has(avoid, backend) {
            return Err(wish.taken());
        }
        self.warn_of_conflict(wish, &binding);
        let (count, decision) =
            (backend.start_build(), Decision::preferred(Outcome::Pinned, backend));
        let started = self.start(wish, client);
        Ok(Placed { binding, lease, count, started, decision, waited: None })
    }

    /// Notes that a build of `key` is on `backend`: it is warm for it from now on.
    pub fn note_warm(&self, key: KeyHash, backend: &Backend) {
        if self.policy.kind != PolicyKind::ConsistentHash {
            return;
        }
        let mut warm = self.warm.lock();
        warm.note(key, backend.candidate(), Instant::now());
        let keys = i64::try_from(warm.len()).unwrap_or(i64::MAX);
        self.metrics.affinity_keys.set(keys);
    }

    fn tries(
        &self,
        wish: &Wish,
        client: &Client,
        grant: Option<Grant>,
        deadline: Instant,
    ) -> Tries {
        let ties = &wish.ties;
        let avoid = self.directory.backends(&ties.apart);
        let input = || self.directory.recent_companion(&ties.follows, Instant::now());
        let input = wish.linked.then(input).flatten().and_then(|name| self.fleet.find(&name));
        let policy =
            if wish.by_load { self.policy.with(PolicyKind::LeastBuilds) } else { self.policy };
        let tied = wish.preferred.clone().or(input).map(|backend| (backend, Outcome::Pinned));
        let oldest = || {
            let oldest = self.fleet.oldest().into_iter().min_by_key(|backend| backend.builds());
            oldest.map(|backend| (backend, Outcome::Balanced))
        };
        let preferred = tied.or_else(|| wish.probe.then(oldest).flatten());
        let elsewhere = |(backend, _): &(Arc<Backend>, Outcome)| !has(&avoid, backend);
        Tries {
            preferred: preferred.filter(|_| grant.is_none()).filter(elsewhere),
            grant,
            takes_turns: wish.takes_turns(),
            avoid,
            client: client.clone(),
            policy,
            key: wish.key,
            deadline,
        }
    }

    /// Tells of a build that needs what is on two daemons: it can run on one only, and likely fails
    /// there.
    fn warn_of_conflict(&self, wish: &Wish, binding: &Binding) {
        // Only a linked target needs its companions, and only those that it is closest to.
        let companions = wish.linked.then(|| self.directory.first_bound(&wish.ties.follows));
        let needed = wish.ties.keys.iter().chain(companions.flatten());
        if let Some((key, elsewhere)) = self.directory.elsewhere(needed, binding) {
            self.metrics.binding_conflicts.inc();
            warn!(
                pool = self.metrics.pool(),
                r#ref = wish.build.as_ref().map(tracing::field::display),
                backend = binding.link.backend().name(),
                key = %key,
                elsewhere = elsewhere.name(),
                "build needs sessions on two backends"
            );
        }
    }
}

/// Whether `backend` is one of `backends`.
fn has(backends: &[Arc<Backend>], backend: &Arc<Backend>) -> bool {
    backends.iter().any(|other| Arc::ptr_eq(other, backend))
}

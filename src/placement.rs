//! Decides where a build goes. Ties to other builds come first, then the affinity key, then the load.
//!
//! This room alone decides that. It holds the constraints, the choice of the policy, the tries to reach a backend, and
//! the memory of where keys are warm. Nothing of a build is sent to a daemon before the build is placed.

mod decision;
pub mod queue;
mod spans;
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
    queue::{Publisher, Queue, SlotGrant, Started, Waited},
    tries::{Opened, Tries},
    warm::WarmMemory,
};
use crate::{
    affinity::AffinityKey,
    capabilities::{Capabilities, Promise},
    client::{Client, Weight},
    directory::{Binding, Claimed, Directory, KeyGuard, Ties, WaitSender},
    error::ProxyError,
    fleet::{Backend, BuildCount, Fleet},
    ids::Id,
    metrics::Metrics,
    policy::{self, KeyHash, Outcome, PolicyKind},
    traces::Span,
    upstream::SharedLinks,
};

/// How long it may take to place a build or a call, over all backends that are tried.
///
/// A client gives the Ping of its build 15 s, and must have the error of its Solve before that.
const LIMIT: Duration = Duration::from_secs(12);

/// What is known about where a build or a session belongs.
#[derive(Debug)]
pub struct Wish {
    /// The keys that bind it, and the builds that it belongs with.
    pub ties: Arc<Ties>,
    /// The ref of the build, for the log.
    pub build: Option<Id>,
    /// Whether the build uses the results of the builds that it follows.
    pub linked: bool,
    /// The hash of the affinity key.
    pub key: Option<KeyHash>,
    /// The affinity key as text, for the log and the status page.
    pub affinity: Option<Arc<AffinityKey>>,
    /// The backend that it goes to, unless its ties say otherwise.
    pub preferred: Option<Arc<Backend>>,
    /// Whether it is placed by load alone, whatever the policy.
    pub by_load: bool,
    /// Whether a client asks what daemons can do. The oldest backend answers, because the others can do at least as
    /// much.
    pub probe: bool,
    /// The client's share of the slots, where builds wait for them.
    pub weight: Weight,
    /// The span of the placement, if the build is traced.
    pub span: Option<Span>,
}

impl Wish {
    /// Whether it waits for a slot if none is free. A client's probe and a session take no slot.
    fn takes_turns(&self) -> bool {
        !self.probe && !self.by_load
    }

    /// The error that the client gets for `error`.
    fn refusal(&self, error: ProxyError) -> ProxyError {
        if self.ties.apart.is_empty() { error } else { self.taken() }
    }

    /// The error for a build that cannot run beside another build with the same ref, and has no other backend.
    fn taken(&self) -> ProxyError {
        let build = self.build.as_ref().map(ToString::to_string).unwrap_or_default();
        ProxyError::RefTaken { build, cause: "no other backend can take a second one" }
    }
}

/// The place of a build, and how it was found.
#[derive(Debug)]
pub struct Placed {
    /// The binding of the build.
    pub binding: Arc<Binding>,
    /// Holds the keys of the build.
    pub key_guard: KeyGuard,
    /// Counts the build on its backend.
    pub count: BuildCount,
    /// Counts the build for its client; `None` for a probe and for a session.
    pub started: Option<Started>,
    /// Why the build is on this backend.
    pub decision: Decision,
    /// How long the build waited for its turn, if it did.
    pub waited: Option<Waited>,
}

/// The settings of a placement.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The policy that chooses the backend of a build.
    pub policy: policy::Policy,
    /// What is remembered about where keys were built.
    pub warm: warm::Config,
    /// How builds wait for a backend.
    pub queue: queue::Config,
}

/// Places the builds of one fleet.
#[derive(Debug)]
pub struct Placement {
    directory: Directory,
    fleet: Arc<Fleet>,
    shared: Arc<SharedLinks>,
    /// What the daemons can do.
    capabilities: Arc<Capabilities>,
    /// The policy that chooses the backend of a build.
    policy: policy::Policy,
    /// The builds that wait for a backend or for a slot.
    queue: Arc<Queue>,
    /// Where keys were built last.
    warm: Mutex<WarmMemory>,
    metrics: Arc<Metrics>,
}

impl Placement {
    /// A placement that has placed nothing yet. When `closed` is cancelled, waiting builds are refused.
    pub fn new(
        directory: Directory,
        fleet: Arc<Fleet>,
        shared: Arc<SharedLinks>,
        capabilities: Arc<Capabilities>,
        config: Config,
        metrics: Arc<Metrics>,
        closed: CancellationToken,
    ) -> Self {
        let Config { policy, warm, queue } = config;
        let queue = Arc::new(Queue::new(queue, closed, Arc::clone(&metrics)));
        let warm = Mutex::new(WarmMemory::new(warm, Instant::now()));
        Self { directory, fleet, shared, capabilities, policy, queue, warm, metrics }
    }

    /// The time by which anything that is placed now has been placed or refused.
    fn deadline() -> Instant {
        Instant::now() + LIMIT
    }

    /// The policy that chooses the backend of a build.
    pub fn policy(&self) -> &policy::Policy {
        &self.policy
    }

    /// Joins the binding of the wish's ties, or makes one for `client`. `sender` publishes what the build waits for.
    ///
    /// # Errors
    /// No backend could be reached in time. The calls that wait for the wish's own keys have been told.
    pub async fn place(
        &self,
        wish: Wish,
        client: &Client,
        sender: &WaitSender,
    ) -> Result<Placed, ProxyError> {
        let claimed = self.directory.claim(&wish.ties, sender, LIMIT).await;
        let placed = match claimed {
            Some(Claimed::Decide(claim)) => {
                let publisher = Publisher { wish: &wish, claim: &claim, sender };
                return match self.open_in_turn(&publisher, client, Self::deadline()).await {
                    Ok((Opened { link, count, decision, started }, waited)) => {
                        let binding = Arc::new(Binding::new(link));
                        let key_guard = claim.bind(&binding);
                        let started = started.or_else(|| self.start(&wish, client));
                        Ok(Placed { binding, key_guard, count, started, decision, waited })
                    }
                    Err(error) => {
                        let error = wish.refusal(error);
                        claim.refuse(&error);
                        Err(error)
                    }
                };
            }
            Some(Claimed::Join(binding, key_guard)) => {
                let avoid = self.directory.backends(&wish.ties.apart);
                self.join(&wish, client, binding, key_guard, &avoid)
            }
            None => {
                let cause = "the build that it belongs with found no backend either".to_owned();
                Err(ProxyError::NoBackend(cause))
            }
        };
        if let Err(error) = &placed {
            self.directory.refuse(wish.ties.own.clone(), error);
        }
        placed
    }

    fn start(&self, wish: &Wish, client: &Client) -> Option<Started> {
        wish.takes_turns().then(|| self.queue.start(client, wish.weight))
    }

    /// Joins a running build. The new build takes no turn in the queue, because the running one may wait for its
    /// result.
    fn join(
        &self,
        wish: &Wish,
        client: &Client,
        binding: Arc<Binding>,
        key_guard: KeyGuard,
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
        Ok(Placed { binding, key_guard, count, started, decision, waited: None })
    }

    /// Notes that `backend` builds `key`, so that the key is warm there from now on. Returns whether the key was warm
    /// there before; `None` if no keys are remembered.
    pub fn note_warm(&self, key: KeyHash, backend: &Backend) -> Option<bool> {
        if self.policy.kind != PolicyKind::ConsistentHash {
            return None;
        }
        let mut warm = self.warm.lock();
        let before = warm.note(key, backend.candidate(), Instant::now());
        let keys = i64::try_from(warm.len()).unwrap_or(i64::MAX);
        self.metrics.affinity_keys.set(keys);
        before
    }

    fn tries(
        &self,
        wish: &Wish,
        client: &Client,
        grant: Option<SlotGrant>,
        promise: &Promise,
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
        let unable = if wish.takes_turns() {
            self.unable(promise, self.fleet.roster().backends())
        } else {
            Vec::new()
        };
        let elsewhere = |(backend, _): &(Arc<Backend>, Outcome)| {
            !has(&avoid, backend) && !has(&unable, backend)
        };
        Tries {
            preferred: preferred.filter(|_| grant.is_none()).filter(elsewhere),
            grant,
            takes_turns: wish.takes_turns(),
            avoid,
            unable,
            client: client.clone(),
            policy,
            key: wish.key,
            deadline,
        }
    }

    /// Warns about a build that needs sessions or results on two backends. It can run on only one of them, and will
    /// probably fail there.
    fn warn_of_conflict(&self, wish: &Wish, binding: &Binding) {
        // Only a linked target needs its companions, and only the closest ones.
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

/// Whether `backend` is among `backends`.
fn has(backends: &[Arc<Backend>], backend: &Arc<Backend>) -> bool {
    backends.iter().any(|other| Arc::ptr_eq(other, backend))
}

//! What the handlers of all streams share: who is bound where, the fleet, the links, the counts.
//!
//! And the moves they have in common: read the first message, find a link, relay, or answer with the
//! proxy's own error. Which stream gets which treatment is decided above, in `build` and `fanout`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, request::Parts};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::{
    affinity::{Rules, shared_keys::SharedKeys},
    call::CallResult,
    directory::{Bound, Directory, Lookup},
    error::ProxyError,
    first_message::{FirstMessage, Reader},
    fleet::{Backend, BuildCount, Fleet, Roster},
    ids::Key,
    metrics::Metrics,
    policy::{self, KeyHash, Outcome, Policy, warm::WarmMemory},
    relay::{self, Body, End, OnEnd, ResetError, Tally},
    running::{Running, Why},
    upstream::{Link, SendError, SharedLinks},
};

/// Streams parked at once, over all clients; a build parks three.
const MAX_PARKED: i64 = 100_000;

/// How long a build waits at the start of the proxy for the first probe of each backend. A daemon
/// answers in milliseconds; one that does not must not hold up builds for the others.
const FIRST_VERDICTS: Duration = Duration::from_secs(1);

/// The proxy's shared state. Clones share it.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Who is bound where.
    pub directory: Directory,
    /// The live backends.
    pub fleet: Arc<Fleet>,
    /// Links for calls that belong to no build.
    pub shared: Arc<SharedLinks>,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// How builds are spread.
    pub policy: policy::Config,
    /// The builds that have been placed and not ended.
    pub running: Running,
    /// Where keys were built last.
    warm: Arc<Mutex<WarmMemory>>,
    /// What makes a build's affinity key.
    pub rules: Arc<Rules>,
    /// What Session streams declare.
    pub shared_keys: SharedKeys,
    tasks: TaskTracker,
    reader: Reader,
}

/// A link to a backend that accepts, and why to that one.
#[derive(Debug)]
pub struct Opened {
    /// The connection.
    pub link: Link,
    /// Counts as a build there while it lives.
    pub count: BuildCount,
    /// Why there.
    pub why: Why,
}

/// Which connection a call goes over.
#[derive(Debug, Clone, Copy)]
pub enum LinkKind {
    /// One of its own: if it breaks, one build is lost.
    Own,
    /// The backend's long-lived one.
    Shared,
}

impl Proxy {
    /// A proxy that has seen no stream yet; its tasks run on `tasks`.
    pub fn new(
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        policy: policy::Config,
        rules: Arc<Rules>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            directory: Directory::default(),
            fleet,
            shared: Arc::new(SharedLinks::new(tasks.clone())),
            metrics,
            policy,
            running: Running::default(),
            warm: Arc::new(Mutex::new(WarmMemory::new(policy.warm, Instant::now()))),
            rules,
            shared_keys: SharedKeys::default(),
            tasks,
            reader: Reader::default(),
        }
    }

    /// Runs `task` beside the stream that asked for it.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(task)
    }

    /// Reads the first message of a request's body.
    ///
    /// # Errors
    /// It does not come in time, is too large or is no message.
    pub async fn read_message(
        &self,
        body: Incoming,
    ) -> Result<(FirstMessage, Incoming), ProxyError> {
        self.reader.first_message(body).await
    }

    /// The link for a call that belongs to `key`, if that is live or has ended not long ago.
    ///
    /// # Errors
    /// The Solve was refused, or the backend has left.
    pub fn known_link(&self, key: &Key) -> Result<Option<(Link, Arc<Tally>)>, ProxyError> {
        match self.directory.lookup(key) {
            Lookup::Live(bound) => Ok(Some((bound.binding.link.clone(), bound.tally))),
            Lookup::Ended(name) => match self.fleet.find(&name) {
                Some(backend) => Ok(Some((self.shared.link(&backend), Arc::default()))),
                None => Err(ProxyError::BackendDeparted {
                    backend: name.to_string(),
                    build: key.to_string(),
                }),
            },
            Lookup::Refused(error) => Err(error),
            Lookup::Unknown => Ok(None),
        }
    }

    /// Waits until `key` is bound, at most `limit`; `None` then.
    ///
    /// # Errors
    /// The Solve was refused, or too many streams wait already.
    pub async fn wait(&self, key: &Key, limit: Duration) -> Result<Option<Bound>, ProxyError> {
        if self.metrics.parked_streams.get() >= MAX_PARKED {
            return Err(ProxyError::Limit("too many streams wait for their build"));
        }
        self.metrics.parked_streams.inc();
        let _counted = ParkedGauge(&self.metrics);
        tokio::time::timeout(limit, self.directory.bound(key)).await.ok().transpose()
    }

    /// Opens a connection to the backend the policy chooses; to another one while that fails.
    ///
    /// Nothing of the build has been sent to anyone yet, so trying the next is safe.
    ///
    /// # Errors
    /// No backend could be reached.
    pub async fn open_link(
        &self,
        mut preferred: Option<Arc<Backend>>,
        policy: &policy::Config,
        key: Option<KeyHash>,
        kind: LinkKind,
    ) -> Result<Opened, ProxyError> {
        if !self.fleet.is_ready() {
            // At start the first probes are under way: their verdicts are milliseconds off.
            let _ = tokio::time::timeout(FIRST_VERDICTS, self.fleet.settled()).await;
        }
        let roster = self.fleet.roster();
        let mut failures: Vec<String> = Vec::new();
        let mut tried: Vec<usize> = Vec::new();
        loop {
            let chosen = match preferred.take() {
                Some(backend) => Some((backend.start_build(), Why::pinned(&backend))),
                None => self.choose(&roster, policy, key, &tried),
            };
            let Some((count, mut why)) = chosen else {
                return Err(ProxyError::NoBackend(describe(roster.backends(), &failures)));
            };
            let backend = count.backend();
            let link = match kind {
                LinkKind::Own => Link::new(Arc::clone(backend), self.tasks.clone()),
                LinkKind::Shared => self.shared.link(backend),
            };
            match link.open().await {
                Ok(()) => {
                    if !failures.is_empty() {
                        why.outcome = Outcome::Failover;
                    }
                    return Ok(Opened { link, count, why });
                }
                Err(error) => failures.push(error.to_string()),
            }
            let same = |other: &Arc<Backend>| Arc::ptr_eq(other, backend);
            tried.extend(roster.backends().iter().position(same));
        }
    }

    fn choose(
        &self,
        roster: &Roster,
        policy: &policy::Config,
        key: Option<KeyHash>,
        tried: &[usize],
    ) -> Option<(BuildCount, Why)> {
        let now = Instant::now();
        let warm = key.and_then(|key| self.warm.lock().get(key, now));
        let request = policy::Request { key, warm, tried };
        let (count, choice) = self.fleet.start_build(roster, |candidates| {
            policy.choose(&request, candidates, now, &mut rand::rng())
        })?;
        Some((count, Why::chosen(&choice, roster)))
    }

    /// Notes that a build of `key` is on `backend`: it is warm for it from now on.
    pub fn placed(&self, key: KeyHash, backend: &Backend) {
        if self.policy.policy != Policy::ConsistentHash {
            return;
        }
        let mut warm = self.warm.lock();
        warm.note(key, backend.candidate(), Instant::now());
        let keys = i64::try_from(warm.len()).unwrap_or(i64::MAX);
        self.metrics.affinity_keys.set(keys);
    }

    /// Relays a call that any daemon can answer, or that only a daemon can refuse; `prefix` has been
    /// read from it.
    ///
    /// # Errors
    /// The proxy's own error, or the daemon's reset.
    pub async fn relay_to_any(&self, parts: Parts, prefix: Bytes, rest: Incoming) -> CallResult {
        let policy = self.policy.with(Policy::LeastSessions);
        let Opened { link, .. } = self.open_link(None, &policy, None, LinkKind::Shared).await?;
        self.relay_call(&link, parts, prefix, rest).await
    }

    /// Relays a call whose bytes and end concern nobody; `prefix` has been read from it.
    ///
    /// # Errors
    /// The proxy's own error, or the daemon's reset.
    pub async fn relay_call(
        &self,
        link: &Link,
        parts: Parts,
        prefix: Bytes,
        rest: Incoming,
    ) -> CallResult {
        let request = Request::from_parts(parts, rest);
        self.relay(link, prefix, request, Arc::default(), OnEnd::new(drop)).await
    }

    /// Relays `request` over `link`; `prefix` has been read from its body.
    ///
    /// # Errors
    /// The proxy's own error, or the daemon's reset.
    pub fn relay(
        &self,
        link: &Link,
        prefix: Bytes,
        request: Request<Incoming>,
        tally: Arc<Tally>,
        mut on_end: OnEnd,
    ) -> impl Future<Output = CallResult> + Send {
        let backend = link.backend();
        // Boxed before anything is waited for: a Solve waits for hours, and each future around it
        // would hold the memory of a request that has been sent.
        let request = Box::new(relay::request(request, |rest| {
            Body::upload(prefix, rest, Arc::clone(backend), Arc::clone(&tally))
        }));
        async move {
            match link.send(request).await {
                Ok(response) => Ok(relay::response(response, Arc::clone(backend), tally, on_end)),
                Err(SendError::Proxy(error)) => {
                    on_end.fire(End::BackendLost);
                    Err(error.into())
                }
                Err(SendError::Reset(error)) => {
                    on_end.fire(End::DaemonReset);
                    Err(ResetError::like(&error).into())
                }
            }
        }
    }
}

fn describe(backends: &[Arc<Backend>], failures: &[String]) -> String {
    if !failures.is_empty() {
        return failures.join("; ");
    }
    if backends.is_empty() {
        return "the fleet is empty".to_owned();
    }
    let states: Vec<_> = backends
        .iter()
        .map(|backend| format!("{} is {}", backend.name(), backend.state()))
        .collect();
    states.join("; ")
}

struct ParkedGauge<'a>(&'a Metrics);

impl Drop for ParkedGauge<'_> {
    fn drop(&mut self) {
        self.0.parked_streams.dec();
    }
}

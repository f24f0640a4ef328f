//! Which backend each session and build belongs to: `key -> binding`.
//!
//! Bindings are found by id, never by connection. The streams that need a key hold it: a Solve holds its ref and every
//! session that it names, and a Session stream holds its uuid. A key leaves with its last stream. The backend of an
//! ended key is remembered by name, in bounded memory, so that later calls still find the daemon. One lock guards the
//! directory; it is held for a few map operations at most.

mod claim;
mod live;
mod memory;
mod namesakes;
mod waiting;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{oneshot, watch},
    time::timeout_at,
};

pub use self::{
    claim::{Claim, Claimed, KeyGuard, Placing, Ties},
    namesakes::Caller,
    waiting::{Cause, WaitSender, Waiting, publish},
};
use self::{
    live::{BindingState, Live},
    memory::{Memory, Remembered},
    namesakes::Which,
};
use crate::{
    error::ProxyError,
    fleet::{Backend, BindingCount},
    identity::Identity,
    ids::{BindingKey, Id, TraceId},
    relay::ByteCounts,
    upstream::Link,
};

/// How long a call waits for a Solve on its own connection, although a build with its ref came on another one. A client
/// sends all calls of a build within milliseconds, or a little more on a busy machine.
const OWN_SOLVE: Duration = Duration::from_secs(1);

/// Sessions and builds that belong to one backend, over one connection.
#[derive(Debug)]
pub struct Binding {
    /// The connection to the backend.
    pub link: Link,
    _count: BindingCount,
}

impl Binding {
    /// Makes a binding over `link` and counts it on the backend.
    pub fn new(link: Link) -> Self {
        let _count = link.backend().bind();
        Self { link, _count }
    }
}

/// The binding of a live key, and the counters of the bytes that are relayed for the key.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The binding of the key.
    pub binding: Arc<Binding>,
    /// The counters of the key's own streams.
    pub byte_counts: Arc<ByteCounts>,
}

/// What the directory knows about a key.
#[derive(Debug)]
pub enum Lookup {
    /// Streams of the key are open.
    Live(Bound),
    /// The key ended on the backend of this name.
    Ended(Arc<str>),
    /// The Solve of the key was refused.
    Refused(ProxyError),
    /// Nothing is known yet.
    Unknown,
}

#[derive(Debug)]
struct Inner {
    live: Live,
    memory: Memory,
}

/// The directory. Clones share the same state.
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Mutex<Inner>>,
}

impl Default for Directory {
    fn default() -> Self {
        let inner = Inner { live: Live::default(), memory: Memory::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl Directory {
    /// What is known about `key`.
    pub fn lookup(&self, key: &BindingKey) -> Lookup {
        self.inner.lock().lookup(key)
    }

    /// Whether nothing is known about `key`, not even that its Solve is being placed.
    pub fn is_unseen(&self, key: &BindingKey) -> bool {
        let mut inner = self.inner.lock();
        !inner.live.is_placing(key) && matches!(inner.lookup(key), Lookup::Unknown)
    }

    /// What is known about the build of a call from `caller` that names the ref `build`. The answer is `Unknown` as
    /// long as the call may belong to another build with the same ref whose Solve is still to come.
    pub fn lookup_build(&self, build: &Id, caller: Caller) -> Lookup {
        let mut inner = self.inner.lock();
        match inner.which(build, caller) {
            Ok(Which::First) => inner.lookup(&BindingKey::Build(build.clone())),
            Ok(Which::Namesake(key)) => inner.lookup(&key),
            Ok(Which::Early) => Lookup::Unknown,
            Err(error) => Lookup::Refused(error),
        }
    }

    /// Waits until something is known about `key` for `caller`.
    ///
    /// If the Solve of the key has not come within `unseen`, nothing is known. While the Solve is being placed, the
    /// wait lasts as long as the limits of the placement allow. Dropping the future ends the wait.
    pub async fn bound(&self, key: &BindingKey, caller: Caller, unseen: Duration) -> Lookup {
        let now = tokio::time::Instant::now();
        let (deadline, early) = (now + unseen, now + OWN_SOLVE);
        // The Solve of this call may still come, although another one with the same ref has come.
        let mut early_yet = true;
        loop {
            match self.step(key, caller, early_yet) {
                Step::Known(lookup) => return lookup,
                // The channel closes when the Solve is placed, refused or gone.
                Step::Placing(mut placed) => while placed.changed().await.is_ok() {},
                Step::Early(parked) => {
                    if parked.outcome(early).await.is_none() {
                        early_yet = false;
                        self.inner.lock().live.ask_elsewhere(key);
                    }
                }
                Step::Parked(parked) => match parked.outcome(deadline).await {
                    Some(Ok(Ok(bound))) => return Lookup::Live(bound),
                    Some(Ok(Err(refusal))) => return Lookup::Refused(refusal),
                    Some(Err(_closed)) => {}
                    None if self.is_placing(key) => {}
                    None => return Lookup::Unknown,
                },
            }
        }
    }

    fn step(&self, key: &BindingKey, caller: Caller, early_yet: bool) -> Step<'_> {
        let mut inner = self.inner.lock();
        let which = match key {
            BindingKey::Build(build) => inner.which(build, caller),
            _ => Ok(Which::First),
        };
        let key = match &which {
            Ok(Which::Namesake(key)) => key,
            Ok(Which::Early) if early_yet => {
                return Step::Early(Parked::new(self, &mut inner, key, caller.connection));
            }
            Ok(Which::First | Which::Early) => key,
            Err(error) => return Step::Known(Lookup::Refused(error.clone())),
        };
        if let Some(bound) = inner.live.bound(key) {
            return Step::Known(Lookup::Live(bound));
        }
        if let Some(arrived) = inner.live.placing.get(key) {
            return Step::Placing(arrived.placed.clone());
        }
        // A short build may have ended before this lookup.
        match inner.lookup(key) {
            Lookup::Unknown => Step::Parked(Parked::new(self, &mut inner, key, caller.connection)),
            known => Step::Known(known),
        }
    }

    fn is_placing(&self, key: &BindingKey) -> bool {
        self.inner.lock().live.placing.contains_key(key)
    }

    /// The backends of those `keys` that are bound.
    pub fn backends(&self, keys: &[BindingKey]) -> Vec<Arc<Backend>> {
        let inner = self.inner.lock();
        let bound = keys.iter().filter_map(|key| inner.live.bound(key));
        bound.map(|bound| Arc::clone(bound.binding.link.backend())).collect()
    }

    /// The first of `keys` that is bound.
    pub fn first_bound<'a>(&self, keys: &'a [BindingKey]) -> Option<&'a BindingKey> {
        let inner = self.inner.lock();
        keys.iter().find(|key| inner.live.bound(key).is_some())
    }

    /// The first of `keys` that is bound to a backend other than that of `binding`, with its backend.
    pub fn elsewhere<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a BindingKey>,
        binding: &Binding,
    ) -> Option<(&'a BindingKey, Arc<Backend>)> {
        let inner = self.inner.lock();
        keys.into_iter().find_map(|key| {
            let other = inner.live.bound(key)?;
            let other = other.binding.link.backend();
            let differs = !Arc::ptr_eq(other, binding.link.backend());
            differs.then(|| (key, Arc::clone(other)))
        })
    }

    /// The backend where a build of the same invocation ended a short time ago.
    pub fn recent_companion(&self, companions: &[BindingKey], now: Instant) -> Option<Arc<str>> {
        self.inner.lock().memory.recent(companions, now)
    }

    /// Whether a build of `trace` had its Solve and its Session on different connections. An HTTP/2 hop between the
    /// client and the proxy then mixes connections, so a connection does not show which calls belong together.
    pub fn is_scattered(&self, trace: &TraceId) -> bool {
        self.inner.lock().memory.is_scattered(trace)
    }

    /// Marks the Session stream of `key` as open, and holds the key while the guard lives. Returns `None` if a stream
    /// is open already, because a daemon would silently replace that one.
    ///
    /// The stream is a call of `trace` and came on `connection`.
    pub fn open_session(
        &self,
        key: &BindingKey,
        binding: &Arc<Binding>,
        connection: u64,
        trace: Option<TraceId>,
    ) -> Option<KeyGuard> {
        let mut inner = self.inner.lock();
        if inner.live.keys.get(key).is_some_and(|live| live.session_open) {
            return None;
        }
        let (guard, scattered) = inner.open(self, key, binding, connection);
        if let Some(trace) = trace.filter(|_| scattered) {
            inner.memory.scatter(trace);
        }
        Some(guard)
    }

    /// Remembers that the Solve of `keys` was refused, and tells the calls that wait for it.
    pub fn refuse(&self, keys: Vec<BindingKey>, error: &ProxyError) {
        self.inner.lock().refuse(keys, error);
    }

    /// Remembers that `key` belongs to `backend`, which the history of the daemon says.
    pub fn remember(&self, key: BindingKey, backend: Arc<str>) {
        self.inner.lock().memory.end(key, backend);
    }

    /// Remembers that `backend` has the image index `index`, whose manifests nobody has read yet.
    pub fn remember_index(&self, index: Id, backend: Arc<str>) {
        self.inner.lock().memory.remember_index(index, backend);
    }

    /// The image indexes of `owner` that nobody has read yet, each with the name of its backend, the latest first.
    pub fn indexes_of(&self, owner: Option<&Arc<Identity>>) -> Vec<(Id, Arc<str>)> {
        self.inner.lock().memory.indexes_of(owner)
    }

    /// Forgets an image index, because its manifests are remembered.
    pub fn forget_index(&self, index: &Id) {
        self.inner.lock().memory.forget_index(index);
    }

    /// Forgets what is remembered about an ended key.
    pub fn forget(&self, key: &BindingKey) {
        self.inner.lock().memory.forget(key);
    }

    /// All live builds, each with the name of its backend.
    pub fn builds(&self) -> Vec<(String, String)> {
        let inner = self.inner.lock();
        let builds = inner.live.keys.iter().filter_map(|(key, live)| match (key, &live.state) {
            (BindingKey::Build(id) | BindingKey::Namesake(id, _), BindingState::Bound(binding)) => {
                Some((id.to_string(), binding.link.backend().name().to_owned()))
            }
            _ => None,
        });
        builds.collect()
    }
}

impl Inner {
    fn lookup(&mut self, key: &BindingKey) -> Lookup {
        if let Some(bound) = self.live.bound(key) {
            return Lookup::Live(bound);
        }
        match self.memory.get(key) {
            Some(Remembered::Ended { backend, .. }) => Lookup::Ended(Arc::clone(backend)),
            Some(Remembered::Refused(error)) => Lookup::Refused(error.clone()),
            None => Lookup::Unknown,
        }
    }
}

/// What a stream that waits for a key does next.
enum Step<'a> {
    Known(Lookup),
    /// The Solve is being placed. The stream looks again when that has ended.
    Placing(watch::Receiver<Option<Waiting>>),
    /// The stream's own Solve may still come, although a build with the same ref is known.
    Early(Parked<'a>),
    Parked(Parked<'a>),
}

/// An entry in the list of those who wait for a key.
struct Parked<'a> {
    directory: &'a Directory,
    key: BindingKey,
    number: u64,
    outcome: oneshot::Receiver<Result<Bound, ProxyError>>,
}

impl<'a> Parked<'a> {
    fn new(directory: &'a Directory, inner: &mut Inner, key: &BindingKey, connection: u64) -> Self {
        let (number, outcome) = inner.live.park(key, connection);
        Self { directory, key: key.clone(), number, outcome }
    }

    /// The outcome of the wait. An error means that the stream must look again, `None` that nothing came before
    /// `deadline`.
    async fn outcome(
        mut self,
        deadline: tokio::time::Instant,
    ) -> Option<Result<Result<Bound, ProxyError>, oneshot::error::RecvError>> {
        timeout_at(deadline, &mut self.outcome).await.ok()
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.directory.inner.lock().live.unpark(&self.key, self.number);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
mod tests;

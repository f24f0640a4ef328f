//! Which backend each session and build belongs to: `key -> binding`.
//!
//! Bindings are found by id, never by connection. A key is held by the streams that need it (a Solve
//! holds its ref and every session it names, a Session stream its uuid) and leaves with the last of
//! them; what ended is remembered by name, in bounded memory, so that later calls still find the
//! daemon. One lock, held for a few map operations at most.

mod claim;
mod live;
mod memory;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{oneshot, watch},
    time::timeout_at,
};

pub use self::claim::{Claim, Claimed, Lease, Placing, Ties};
use self::{
    live::{Live, Slot},
    memory::{Memory, Remembered},
};
use crate::{
    error::ProxyError,
    fleet::{Backend, BindingCount},
    ids::{Key, TraceId},
    relay::Tally,
    upstream::Link,
};

/// These sessions and builds belong to that backend, over this connection.
#[derive(Debug)]
pub struct Binding {
    /// The connection to their backend.
    pub link: Link,
    _count: BindingCount,
}

impl Binding {
    /// A binding over `link`; its backend counts it.
    pub fn new(link: Link) -> Self {
        let _count = link.backend().bind();
        Self { link, _count }
    }
}

/// A live key's binding and the bytes relayed for the key.
#[derive(Debug, Clone)]
pub struct Bound {
    /// Where it belongs.
    pub binding: Arc<Binding>,
    /// Bytes of the key's own streams.
    pub tally: Arc<Tally>,
}

/// What is known of a key.
#[derive(Debug)]
pub enum Lookup {
    /// Streams of it are open.
    Live(Bound),
    /// It ended on the backend of this name.
    Ended(Arc<str>),
    /// Its Solve was refused.
    Refused(ProxyError),
    /// Nothing, yet.
    Unknown,
}

#[derive(Debug)]
struct Inner {
    live: Live,
    memory: Memory,
}

/// The directory. Clones share it.
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
    /// What is known of `key`.
    pub fn lookup(&self, key: &Key) -> Lookup {
        let mut inner = self.inner.lock();
        if let Some(bound) = inner.live.bound(key) {
            return Lookup::Live(bound);
        }
        match inner.memory.get(key) {
            Some(Remembered::Ended { backend, .. }) => Lookup::Ended(Arc::clone(backend)),
            Some(Remembered::Refused(error)) => Lookup::Refused(error.clone()),
            None => Lookup::Unknown,
        }
    }

    /// Waits until `key` is bound or its Solve refused; `None` if its Solve has not come within
    /// `unseen`. While the Solve is being placed, that takes as long as its own limit allows. Dropping
    /// the future stops waiting.
    ///
    /// # Errors
    /// The refusal.
    pub async fn bound(&self, key: &Key, unseen: Duration) -> Result<Option<Bound>, ProxyError> {
        let deadline = tokio::time::Instant::now() + unseen;
        let mut seen = false;
        loop {
            let step = self.step(key, seen)?;
            match step {
                Step::Bound(bound) => return Ok(Some(bound)),
                Step::Placing(mut placed) => {
                    seen = true;
                    // The channel closes when the Solve is placed, refused or gone.
                    while placed.changed().await.is_ok() {}
                }
                Step::Parked(mut parked) => match timeout_at(deadline, &mut parked.outcome).await {
                    Ok(Ok(outcome)) => return outcome.map(Some),
                    Ok(Err(_closed)) => {}
                    Err(_elapsed) if self.is_placing(key) => {}
                    Err(_elapsed) => return Ok(None),
                },
            }
        }
    }

    fn step<'a>(&'a self, key: &'a Key, seen: bool) -> Result<Step<'a>, ProxyError> {
        let mut inner = self.inner.lock();
        if let Some(bound) = inner.live.bound(key) {
            return Ok(Step::Bound(bound));
        }
        if let Some(placed) = inner.live.placing.get(key) {
            return Ok(Step::Placing(placed.clone()));
        }
        // Before its Solve was seen, a refusal may be that of an earlier Solve with this id.
        if let Some(error) = inner.memory.refused(key).filter(|_| seen) {
            return Err(error);
        }
        let (number, outcome) = inner.live.park(key);
        Ok(Step::Parked(Parked { directory: self, key, number, outcome }))
    }

    fn is_placing(&self, key: &Key) -> bool {
        self.inner.lock().live.placing.contains_key(key)
    }

    /// The first of `keys` that is bound.
    pub fn first_bound<'a>(&self, keys: &'a [Key]) -> Option<&'a Key> {
        let inner = self.inner.lock();
        keys.iter().find(|key| inner.live.bound(key).is_some())
    }

    /// The first of `keys` that is bound to another backend than `binding`'s, and that backend.
    pub fn elsewhere<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a Key>,
        binding: &Binding,
    ) -> Option<(&'a Key, Arc<Backend>)> {
        let inner = self.inner.lock();
        keys.into_iter().find_map(|key| {
            let other = inner.live.bound(key)?;
            let other = other.binding.link.backend();
            let differs = !Arc::ptr_eq(other, binding.link.backend());
            differs.then(|| (key, Arc::clone(other)))
        })
    }

    /// The backend where a build of the same invocation ended a moment ago.
    pub fn recent_companion(&self, companions: &[Key], now: Instant) -> Option<Arc<str>> {
        self.inner.lock().memory.recent(companions, now)
    }

    /// Whether a build of `trace` had its Solve and its Session on different connections: an HTTP/2 hop
    /// between the client and the proxy mixes them, so a connection says nothing of who belongs together.
    pub fn is_scattered(&self, trace: &TraceId) -> bool {
        self.inner.lock().memory.is_scattered(trace)
    }

    /// Marks the Session stream of `key` as open and holds the key while the lease lives, or returns
    /// `None` if one is open already: a daemon would silently replace it.
    ///
    /// The stream is a call of `trace` and came on `connection`.
    pub fn open_session(
        &self,
        key: &Key,
        binding: &Arc<Binding>,
        connection: u64,
        trace: Option<TraceId>,
    ) -> Option<Lease> {
        let mut inner = self.inner.lock();
        if inner.live.keys.get(key).is_some_and(|live| live.session_open) {
            return None;
        }
        let (lease, scattered) = inner.open(self, key, binding, connection);
        if let Some(trace) = trace.filter(|_| scattered) {
            inner.memory.scatter(trace);
        }
        Some(lease)
    }

    /// Remembers that the Solve of `keys` was refused, and tells who waits for it.
    pub fn refuse(&self, keys: Vec<Key>, error: &ProxyError) {
        self.inner.lock().refuse(keys, error);
    }

    /// Remembers that `key` belongs to `backend`, as a daemon's history told.
    pub fn remember(&self, key: Key, backend: Arc<str>) {
        self.inner.lock().memory.end(key, backend);
    }

    /// Forgets what is remembered of an ended key.
    pub fn forget(&self, key: &Key) {
        self.inner.lock().memory.forget(key);
    }

    /// Live builds and the backend of each.
    pub fn builds(&self) -> Vec<(String, String)> {
        let inner = self.inner.lock();
        let builds = inner.live.keys.iter().filter_map(|(key, live)| match (key, &live.slot) {
            (Key::Build(id), Slot::Bound(binding)) => {
                Some((id.to_string(), binding.link.backend().name().to_owned()))
            }
            _ => None,
        });
        builds.collect()
    }
}

/// What a stream that waits for a key does next.
enum Step<'a> {
    Bound(Bound),
    /// Its Solve is being placed: look again when that has ended.
    Placing(watch::Receiver<()>),
    Parked(Parked<'a>),
}

/// A place among those who wait for a key.
struct Parked<'a> {
    directory: &'a Directory,
    key: &'a Key,
    number: u64,
    outcome: oneshot::Receiver<Result<Bound, ProxyError>>,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.directory.inner.lock().live.unpark(self.key, self.number);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
mod tests;

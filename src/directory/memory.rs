//! What is remembered about ended keys: the name of the backend, in bounded memory.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::{
    error::ProxyError,
    identity::Identity,
    ids::{BindingKey, Id, TraceId},
};

/// How many ended keys are remembered. A build leaves four at most, of 250 bytes each: the last 15 000 builds take 15
/// MB plus the overhead of the allocator.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(60_000).expect("not zero");

/// How many scattered traces are remembered, at 100 bytes each: more invocations than run at once behind one hop.
const SCATTERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// How many image indexes are remembered until the manifests that they name are: a build of images has one.
const INDEXES: NonZeroUsize = NonZeroUsize::new(1_000).expect("not zero");

/// How long after its end a build still draws the next target of its invocation to its backend.
///
/// A linked target starts right after its input was built, and the files of the input lie on that daemon.
pub(super) const COMPANION_GRACE: Duration = Duration::from_secs(60);

/// What is remembered about one key.
#[derive(Debug)]
pub(super) enum Remembered {
    /// The key ended on this backend.
    Ended {
        /// The name of the backend.
        backend: Arc<str>,
        /// The time of the end.
        at: Instant,
    },
    /// The Solve of the key was refused.
    Refused(ProxyError),
}

/// The memory of one directory.
#[derive(Debug)]
pub(super) struct Memory {
    keys: LruCache<BindingKey, Remembered>,
    /// The traces in which the calls of one build came on several connections.
    scattered: LruCache<TraceId, ()>,
    /// Image indexes of clients with an identity, and the backends that have them. Nobody has read them yet.
    indexes: LruCache<Id, Arc<str>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            keys: LruCache::new(REMEMBERED),
            scattered: LruCache::new(SCATTERED),
            indexes: LruCache::new(INDEXES),
        }
    }

    pub(super) fn get(&mut self, key: &BindingKey) -> Option<&Remembered> {
        self.keys.get(key)
    }

    /// Notes that `key` ended on `backend`.
    pub(super) fn end(&mut self, key: BindingKey, backend: Arc<str>) {
        self.keys.put(key, Remembered::Ended { backend, at: Instant::now() });
    }

    /// Notes that the Solve of `key` was refused.
    pub(super) fn refuse(&mut self, key: BindingKey, error: ProxyError) {
        self.keys.put(key, Remembered::Refused(error));
    }

    pub(super) fn forget(&mut self, key: &BindingKey) {
        self.keys.pop(key);
    }

    /// The backend where the first of `companions` ended within the last [`COMPANION_GRACE`].
    pub(super) fn recent(&mut self, companions: &[BindingKey], now: Instant) -> Option<Arc<str>> {
        companions.iter().find_map(|key| match self.keys.get(key) {
            Some(Remembered::Ended { backend, at }) if now < *at + COMPANION_GRACE => {
                Some(Arc::clone(backend))
            }
            _ => None,
        })
    }

    /// Notes that the calls of one build of `trace` came on several connections.
    pub(super) fn scatter(&mut self, trace: TraceId) {
        self.scattered.put(trace, ());
    }

    pub(super) fn remember_index(&mut self, index: Id, backend: Arc<str>) {
        self.indexes.put(index, backend);
    }

    /// The image indexes of `owner` that nobody has read yet, the latest first.
    pub(super) fn indexes_of(&self, owner: Option<&Arc<Identity>>) -> Vec<(Id, Arc<str>)> {
        let own = self.indexes.iter().filter(|(index, _backend)| index.owner() == owner);
        own.map(|(index, backend)| (index.clone(), Arc::clone(backend))).collect()
    }

    pub(super) fn forget_index(&mut self, index: &Id) {
        self.indexes.pop(index);
    }

    pub(super) fn is_scattered(&mut self, trace: &TraceId) -> bool {
        self.scattered.get(trace).is_some()
    }
}

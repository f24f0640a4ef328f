//! Which backend each session and build belongs to: `key -> binding`.
//!
//! Bindings are found by id, never by connection. A key is held by the streams that need it (a Solve
//! holds its ref and every session it names, a Session stream its uuid) and leaves with the last of
//! them; what ended is remembered by name, in bounded memory, so that later calls still find the
//! daemon. One lock, held for a few map operations at most.

use std::{
    collections::{HashMap, hash_map},
    num::NonZeroUsize,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::{
    error::ProxyError,
    fleet::{Backend, BindingCount},
    ids::Key,
    relay::Tally,
    upstream::Link,
};

/// Ended keys remembered. A build leaves three, 250 bytes each: the last 20 000 builds in 15 MB, and
/// what the allocator adds.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(60_000).expect("not zero");

/// How long after its end a build still draws its invocation's next target to its backend.
///
/// A linked target starts right after its input was built; its files lie on that daemon.
const COMPANION_GRACE: Duration = Duration::from_secs(60);

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
enum Memory {
    Ended { backend: Arc<str>, at: Instant },
    Refused(ProxyError),
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    holders: usize,
    tally: Arc<Tally>,
    /// A Session stream for this key is open.
    session_open: bool,
}

#[derive(Debug)]
enum Slot {
    /// A Solve is choosing; the receiver closes when it is done.
    Deciding(watch::Receiver<()>),
    Bound(Arc<Binding>),
}

type Waiter = oneshot::Sender<Result<Bound, ProxyError>>;

#[derive(Debug)]
struct Inner {
    live: HashMap<Key, Entry>,
    waiters: HashMap<Key, HashMap<u64, Waiter>>,
    next_waiter: u64,
    memory: LruCache<Key, Memory>,
}

/// The directory. Clones share it.
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Mutex<Inner>>,
}

/// The answer to [`Directory::claim`].
#[derive(Debug)]
pub enum Claim {
    /// Bound already: go there.
    Join(Arc<Binding>, Lease),
    /// Another Solve is deciding for one of the keys: claim again when it has.
    Wait(watch::Receiver<()>),
    /// The caller decides.
    Decide(Decision),
}

impl Default for Directory {
    fn default() -> Self {
        let inner = Inner {
            live: HashMap::new(),
            waiters: HashMap::new(),
            next_waiter: 0,
            memory: LruCache::new(REMEMBERED),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl Directory {
    /// What is known of `key`.
    pub fn lookup(&self, key: &Key) -> Lookup {
        let mut inner = self.inner.lock();
        if let Some(bound) = inner.bound(key) {
            return Lookup::Live(bound);
        }
        match inner.memory.get(key) {
            Some(Memory::Ended { backend, .. }) => Lookup::Ended(Arc::clone(backend)),
            Some(Memory::Refused(error)) => Lookup::Refused(error.clone()),
            None => Lookup::Unknown,
        }
    }

    /// Waits until `key` is bound or its Solve refused. Dropping the future stops waiting.
    ///
    /// # Errors
    /// The refusal.
    pub async fn bound(&self, key: &Key) -> Result<Bound, ProxyError> {
        loop {
            let (parked, outcome) = {
                let mut inner = self.inner.lock();
                if let Some(bound) = inner.bound(key) {
                    return Ok(bound);
                }
                let id = inner.next_waiter;
                inner.next_waiter += 1;
                let (sender, receiver) = oneshot::channel();
                inner.waiters.entry(key.clone()).or_default().insert(id, sender);
                (Parked { directory: self, key, id }, receiver)
            };
            let outcome = outcome.await;
            drop(parked);
            if let Ok(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// Finds the binding that a Solve or an early Session must join, or lets the caller decide.
    ///
    /// `keys` bind, the strongest first. `companions` only attract: the Solve joins a live binding
    /// under them, and unless it is a probe (`pin` is false) draws later builds to its own.
    pub fn claim(&self, keys: &[Key], companions: &[Key], pin: bool) -> Claim {
        let mut inner = self.inner.lock();
        let known = keys.iter().chain(companions).find_map(|key| inner.live.get(key));
        let all = || keys.iter().chain(companions.iter().filter(|_| pin)).cloned().collect();
        match known.map(|entry| &entry.slot) {
            Some(Slot::Deciding(decision)) => Claim::Wait(decision.clone()),
            Some(Slot::Bound(binding)) => {
                let binding = Arc::clone(binding);
                let lease = inner.hold(self, all(), &binding);
                Claim::Join(binding, lease)
            }
            None => {
                let (done, decision) = watch::channel(());
                let keys: Vec<Key> = all();
                for key in &keys {
                    let entry = Entry {
                        slot: Slot::Deciding(decision.clone()),
                        holders: 0,
                        tally: Arc::default(),
                        session_open: false,
                    };
                    inner.live.insert(key.clone(), entry);
                }
                Claim::Decide(Decision { directory: self.clone(), keys, _done: done })
            }
        }
    }

    /// The first of `keys` that is bound to another backend than `binding`'s, and that backend.
    pub fn elsewhere<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a Key>,
        binding: &Binding,
    ) -> Option<(&'a Key, Arc<Backend>)> {
        let inner = self.inner.lock();
        keys.into_iter().find_map(|key| {
            let other = inner.bound(key)?;
            let other = other.binding.link.backend();
            let differs = !Arc::ptr_eq(other, binding.link.backend());
            differs.then(|| (key, Arc::clone(other)))
        })
    }

    /// The backend where a build of the same invocation ended a moment ago.
    pub fn recent_companion(&self, companions: &[Key], now: Instant) -> Option<Arc<str>> {
        let mut inner = self.inner.lock();
        companions.iter().find_map(|key| match inner.memory.get(key) {
            Some(Memory::Ended { backend, at }) if now < *at + COMPANION_GRACE => {
                Some(Arc::clone(backend))
            }
            _ => None,
        })
    }

    /// Marks the Session stream of `key` as open and holds the key while the lease lives, or returns
    /// `None` if one is open already: a daemon would silently replace it.
    pub fn open_session(&self, key: &Key, binding: &Arc<Binding>) -> Option<Lease> {
        let mut inner = self.inner.lock();
        if inner.live.get(key).is_some_and(|entry| entry.session_open) {
            return None;
        }
        let mut lease = inner.hold(self, vec![key.clone()], binding);
        lease.session = true;
        if let Some(entry) = inner.live.get_mut(key) {
            entry.session_open = true;
        }
        Some(lease)
    }

    /// Remembers that `key` belongs to `backend`, as a daemon's history told.
    pub fn remember(&self, key: Key, backend: Arc<str>) {
        let memory = Memory::Ended { backend, at: Instant::now() };
        self.inner.lock().memory.put(key, memory);
    }

    /// Forgets what is remembered of an ended key.
    pub fn forget(&self, key: &Key) {
        self.inner.lock().memory.pop(key);
    }

    /// Live builds and the backend of each.
    pub fn builds(&self) -> Vec<(String, String)> {
        let inner = self.inner.lock();
        let builds = inner.live.iter().filter_map(|(key, entry)| match (key, &entry.slot) {
            (Key::Build(id), Slot::Bound(binding)) => {
                Some((id.to_string(), binding.link.backend().name().to_owned()))
            }
            _ => None,
        });
        builds.collect()
    }
}

impl Inner {
    fn bound(&self, key: &Key) -> Option<Bound> {
        let entry = self.live.get(key)?;
        match &entry.slot {
            Slot::Bound(binding) => {
                Some(Bound { binding: Arc::clone(binding), tally: Arc::clone(&entry.tally) })
            }
            Slot::Deciding(_) => None,
        }
    }

    /// Binds what is not bound of `keys`, holds all of them and serves who waited.
    fn hold(&mut self, directory: &Directory, keys: Vec<Key>, binding: &Arc<Binding>) -> Lease {
        for key in &keys {
            match self.live.entry(key.clone()) {
                hash_map::Entry::Occupied(mut entry) => {
                    let entry = entry.get_mut();
                    entry.holders += 1;
                    if matches!(entry.slot, Slot::Deciding(_)) {
                        entry.slot = Slot::Bound(Arc::clone(binding));
                    }
                }
                hash_map::Entry::Vacant(entry) => {
                    entry.insert(Entry {
                        slot: Slot::Bound(Arc::clone(binding)),
                        holders: 1,
                        tally: Arc::default(),
                        session_open: false,
                    });
                }
            }
            // A live key has no past: an old refusal of it must not answer again.
            self.memory.pop(key);
            if let Some(bound) = self.bound(key) {
                for waiter in self.waiters.remove(key).into_iter().flatten() {
                    // A waiter that went away needs no answer.
                    let _ = waiter.1.send(Ok(bound.clone()));
                }
            }
        }
        Lease { directory: Arc::downgrade(&directory.inner), keys, session: false }
    }

    /// Frees a claimed key, unless another stream has bound it meanwhile.
    fn undecide(&mut self, key: &Key) {
        if self.live.get(key).is_some_and(|entry| matches!(entry.slot, Slot::Deciding(_))) {
            self.live.remove(key);
        }
    }

    fn release(&mut self, key: Key, session: bool) {
        let hash_map::Entry::Occupied(mut entry) = self.live.entry(key) else {
            return;
        };
        entry.get_mut().holders -= 1;
        if session {
            entry.get_mut().session_open = false;
        }
        if entry.get().holders > 0 {
            return;
        }
        let (key, entry) = entry.remove_entry();
        if let Slot::Bound(binding) = entry.slot {
            let backend = binding.link.backend().shared_name();
            if !matches!(key, Key::Connection(_) | Key::TraceOnConnection(..)) {
                self.memory.put(key, Memory::Ended { backend, at: Instant::now() });
            }
        }
    }
}

/// The right, and duty, to decide where the claimed keys belong.
///
/// Dropping it undecided (the client went away) frees the keys for the next to claim.
#[derive(Debug)]
pub struct Decision {
    directory: Directory,
    keys: Vec<Key>,
    /// Closes on drop: claims that wait try again.
    _done: watch::Sender<()>,
}

impl Decision {
    /// Binds the claimed keys to `binding` and serves who is parked on them.
    pub fn bind(mut self, binding: &Arc<Binding>) -> Lease {
        let keys = std::mem::take(&mut self.keys);
        self.directory.inner.lock().hold(&self.directory, keys, binding)
    }

    /// Refuses: who is parked on the keys gets `error`, and so does who comes later.
    pub fn refuse(mut self, error: &ProxyError) {
        let mut inner = self.directory.inner.lock();
        for key in std::mem::take(&mut self.keys) {
            inner.undecide(&key);
            for waiter in inner.waiters.remove(&key).into_iter().flatten() {
                let _ = waiter.1.send(Err(error.clone()));
            }
            if matches!(key, Key::Session(_) | Key::Build(_)) {
                inner.memory.put(key, Memory::Refused(error.clone()));
            }
        }
    }
}

impl Drop for Decision {
    fn drop(&mut self) {
        let mut inner = self.directory.inner.lock();
        for key in &self.keys {
            inner.undecide(key);
        }
    }
}

/// Holds keys while a stream is open.
#[derive(Debug)]
pub struct Lease {
    directory: Weak<Mutex<Inner>>,
    keys: Vec<Key>,
    session: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(inner) = self.directory.upgrade() {
            let mut inner = inner.lock();
            for key in std::mem::take(&mut self.keys) {
                inner.release(key, self.session);
            }
        }
    }
}

/// A place among those who wait for a key.
struct Parked<'a> {
    directory: &'a Directory,
    key: &'a Key,
    id: u64,
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let mut inner = self.directory.inner.lock();
        if let Some(waiters) = inner.waiters.get_mut(self.key) {
            waiters.remove(&self.id);
            if waiters.is_empty() {
                inner.waiters.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{fleet::tests::backends, ids::Id};

    fn key(text: &str) -> Key {
        Key::Build(Id::new(text.as_bytes()).expect("valid"))
    }

    fn session(text: &str) -> Key {
        Key::Session(Id::new(text.as_bytes()).expect("valid"))
    }

    fn binding(index: usize) -> Arc<Binding> {
        let link = Link::new(Arc::clone(&backends(3)[index]), TaskTracker::new());
        Arc::new(Binding::new(link))
    }

    fn decide(claim: Claim) -> Decision {
        match claim {
            Claim::Decide(decision) => decision,
            other => panic!("expected a decision, found {other:?}"),
        }
    }

    fn name(binding: &Binding) -> &str {
        binding.link.backend().name()
    }

    #[tokio::test]
    async fn who_parked_first_is_served_when_the_solve_binds() {
        let directory = Directory::default();
        let waiting = tokio::spawn({
            let directory = directory.clone();
            async move { directory.bound(&key("r")).await }
        });
        tokio::task::yield_now().await;
        let decision = decide(directory.claim(&[session("s"), key("r")], &[], true));
        let lease = decision.bind(&binding(1));
        let bound = waiting.await.expect("no panic").expect("bound");
        assert_eq!(name(&bound.binding), "buildkitd-1");
        assert!(directory.inner.lock().waiters.is_empty());
        drop(lease);
        assert!(
            matches!(directory.lookup(&key("r")), Lookup::Ended(name) if &*name == "buildkitd-1")
        );
    }

    #[tokio::test]
    async fn a_shared_session_decides_and_outlives_the_first_target() {
        let directory = Directory::default();
        let first = decide(directory.claim(&[session("shared"), key("a")], &[], true));
        assert!(matches!(
            directory.claim(&[session("shared"), key("b")], &[], true),
            Claim::Wait(_)
        ));
        let first = first.bind(&binding(2));
        let Claim::Join(joined, second) =
            directory.claim(&[session("shared"), key("b")], &[], true)
        else {
            panic!("must join");
        };
        assert_eq!(name(&joined), "buildkitd-2");
        drop(first);
        assert!(matches!(directory.lookup(&session("shared")), Lookup::Live(_)));
        drop(second);
        assert!(matches!(directory.lookup(&session("shared")), Lookup::Ended(_)));
        assert!(directory.inner.lock().live.is_empty());
    }

    #[tokio::test]
    async fn a_refusal_reaches_those_who_wait_and_those_who_come_later() {
        let directory = Directory::default();
        let waiting = tokio::spawn({
            let directory = directory.clone();
            async move { directory.bound(&key("r")).await }
        });
        tokio::task::yield_now().await;
        let decision = decide(directory.claim(&[key("r")], &[], true));
        decision.refuse(&ProxyError::NoBackend("none".into()));
        assert!(waiting.await.expect("no panic").is_err());
        assert!(matches!(directory.lookup(&key("r")), Lookup::Refused(_)));
        assert!(matches!(directory.claim(&[key("r")], &[], true), Claim::Decide(_)));
    }

    #[test]
    fn a_key_on_another_backend_is_found() {
        let directory = Directory::default();
        let decide = |name| decide(directory.claim(&[session(name)], &[], true));
        let all = backends(3);
        let on = |index: usize| {
            Arc::new(Binding::new(Link::new(Arc::clone(&all[index]), TaskTracker::new())))
        };
        let (here, there) = (on(0), on(1));
        let _leases = [decide("a").bind(&here), decide("b").bind(&on(0)), decide("c").bind(&there)];
        let keys = ["unknown", "a", "b", "c"].map(session);
        let (key, backend) = directory.elsewhere(&keys, &here).expect("one is elsewhere");
        assert_eq!((key, backend.name()), (&keys[3], "buildkitd-1"));
        // Two connections to one daemon are no conflict.
        assert!(directory.elsewhere(&keys[..3], &here).is_none());
    }

    #[test]
    fn an_abandoned_decision_frees_its_keys() {
        let directory = Directory::default();
        drop(decide(directory.claim(&[key("r")], &[Key::Connection(1)], true)));
        assert!(directory.inner.lock().live.is_empty());
        assert!(matches!(directory.lookup(&key("r")), Lookup::Unknown));
    }

    #[test]
    fn a_probe_follows_companions_and_pins_nothing() {
        let directory = Directory::default();
        let companions = [Key::Trace([1; 16])];
        let probe = decide(directory.claim(&[key("probe")], &companions, false));
        let probe = probe.bind(&binding(0));
        let build = decide(directory.claim(&[key("build")], &companions, true));
        let build = build.bind(&binding(1));
        assert!(matches!(
            directory.claim(&[key("probe2")], &companions, false),
            Claim::Join(joined, _) if name(&joined) == "buildkitd-1"
        ));
        drop((probe, build));
        let now = Instant::now();
        assert!(directory.recent_companion(&companions, now).is_some());
        assert!(directory.recent_companion(&companions, now + COMPANION_GRACE * 2).is_none());
    }

    #[test]
    fn a_session_opens_once() {
        let directory = Directory::default();
        let binding = binding(0);
        let open = directory.open_session(&session("s"), &binding).expect("first");
        assert!(directory.open_session(&session("s"), &binding).is_none());
        drop(open);
        assert!(directory.open_session(&session("s"), &binding).is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_leaves_nothing() {
        let directory = Directory::default();
        let wait = tokio::time::timeout(Duration::from_millis(1), directory.bound(&key("r"))).await;
        assert!(wait.is_err());
        assert!(directory.inner.lock().waiters.is_empty());
    }
}

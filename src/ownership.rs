//! The owners of the sessions and builds that daemons know: the client that names an id first owns it.
//!
//! An id of the proxy contains its owner, so no client finds what belongs to another. Daemons know only the bare
//! id: a client that names the id of another there could build with the other's files and credentials, or overwrite
//! its record. So no call with another client's id reaches a daemon.

use std::{collections::hash_map, num::NonZeroUsize, sync::Arc, time::Duration};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use crate::{
    error::ProxyError,
    identity::Identity,
    ids::{Id, SessionId},
    map::Map,
};

/// The number of ended builds whose owner is remembered, as many as the directory remembers. Each takes about 200
/// bytes.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(15_000).expect("not zero");

/// How long a Solve waits for the sessions that it names: as long as a daemon waits before it reports that one is
/// missing (BuildKit session/group.go, twice 5 s for a Dockerfile).
const SESSION_WAIT: Duration = Duration::from_secs(10);

/// An id as a daemon knows it, without its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Bare {
    Session(Arc<[u8]>),
    Build(Arc<[u8]>),
}

/// The current owner of an id.
#[derive(Debug)]
struct Held {
    owner: Option<Arc<Identity>>,
    /// The number of open streams that name the id.
    streams: usize,
}

#[derive(Debug)]
struct State {
    held: Map<Bare, Held>,
    /// The owners of ended builds. Only owners with an identity are remembered.
    ended: LruCache<Arc<[u8]>, Arc<Identity>>,
}

/// The owners of all ids of a pool. Clones share them.
#[derive(Debug, Clone)]
pub struct Ownership(Arc<(Mutex<State>, Notify)>);

impl Default for Ownership {
    fn default() -> Self {
        let state = State { held: Map::default(), ended: LruCache::new(REMEMBERED) };
        Self(Arc::new((Mutex::new(state), Notify::new())))
    }
}

impl Ownership {
    /// Notes that a Session stream with `session` is open while the returned guard lives. `None` if the session
    /// belongs to another client.
    pub fn open_session(&self, session: &SessionId) -> Option<Owned> {
        let id = session.as_id();
        let owned = self.take(Bare::Session(id.shared_bytes()), id.owner())?;
        self.0.1.notify_waiters();
        Some(owned)
    }

    /// Notes that `build` runs while the returned guard lives. `None` if the build belongs or belonged to another
    /// client.
    pub fn start_build(&self, build: &Id) -> Option<Owned> {
        let ended = self.0.0.lock().ended.get(build.as_bytes()).cloned();
        if ended.is_some_and(|owner| Some(&owner) != build.owner()) {
            return None;
        }
        self.take(Bare::Build(build.shared_bytes()), build.owner())
    }

    /// The owner of the running or ended build with these bytes. `None` if it has no identity.
    pub fn of_build(&self, build: &Id) -> Option<Arc<Identity>> {
        let mut state = self.0.0.lock();
        match state.held.get(&Bare::Build(build.shared_bytes())) {
            Some(held) => held.owner.clone(),
            None => state.ended.get(build.as_bytes()).cloned(),
        }
    }

    /// Whether a client with an identity has had a build.
    pub fn is_used(&self) -> bool {
        let state = self.0.0.lock();
        let named = |held: &Held| held.owner.is_some();
        !state.ended.is_empty() || state.held.values().any(named)
    }

    /// Waits until a Solve may name all `sessions`. A client with an identity may name the sessions that it has
    /// opened; a client without one may name all but those of clients with an identity.
    ///
    /// A session of another client gets the same answer as a session that does not exist.
    ///
    /// # Errors
    /// A session did not appear in time.
    pub async fn may_name(&self, sessions: &[SessionId]) -> Result<(), ProxyError> {
        let waiting = timeout(SESSION_WAIT, async {
            loop {
                let opened = self.0.1.notified();
                if self.withheld(sessions).is_none() {
                    return;
                }
                opened.await;
            }
        });
        match (waiting.await, self.withheld(sessions)) {
            (Err(_elapsed), Some(session)) => Err(ProxyError::NoSession(session.to_string())),
            _ => Ok(()),
        }
    }

    /// The first of `sessions` that their owner may not name.
    fn withheld<'a>(&self, sessions: &'a [SessionId]) -> Option<&'a SessionId> {
        let state = self.0.0.lock();
        sessions.iter().find(|session| {
            let id = session.as_id();
            match state.held.get(&Bare::Session(id.shared_bytes())) {
                Some(held) => held.owner.as_ref() != id.owner(),
                None => id.owner().is_some(),
            }
        })
    }

    fn take(&self, id: Bare, owner: Option<&Arc<Identity>>) -> Option<Owned> {
        let mut state = self.0.0.lock();
        let new = || Held { owner: owner.cloned(), streams: 0 };
        let held = state.held.entry(id.clone()).or_insert_with(new);
        if held.owner.as_ref() != owner {
            return None;
        }
        held.streams += 1;
        Some(Owned { ownership: self.clone(), id })
    }

    fn release(&self, id: &Bare) {
        let mut state = self.0.0.lock();
        let hash_map::Entry::Occupied(mut entry) = state.held.entry(id.clone()) else { return };
        entry.get_mut().streams -= 1;
        if entry.get().streams > 0 {
            return;
        }
        let held = entry.remove();
        if let (Bare::Build(build), Some(owner)) = (id, held.owner) {
            state.ended.put(Arc::clone(build), owner);
        }
    }
}

/// The hold of one stream on an id, until dropped.
#[derive(Debug)]
pub struct Owned {
    ownership: Ownership,
    id: Bare,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.ownership.release(&self.id);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn identities() -> [Option<Arc<Identity>>; 3] {
        [Some("a"), Some("b"), None].map(|name| name.map(|name| Arc::new(Identity::named(name))))
    }

    fn session(owner: Option<&Arc<Identity>>) -> SessionId {
        SessionId::new(b"s", owner).expect("valid")
    }

    fn build(owner: Option<&Arc<Identity>>) -> Id {
        Id::new(b"r", owner).expect("valid")
    }

    #[test]
    fn who_names_an_id_first_has_it_and_a_build_for_good() {
        let owners = identities();
        for (owner, other) in owners.iter().flat_map(|one| owners.iter().map(move |two| (one, two)))
        {
            let ownership = Ownership::default();
            let (own_session, own_build) = (session(owner.as_ref()), build(owner.as_ref()));
            let held = (ownership.open_session(&own_session), ownership.start_build(&own_build));
            assert!(held.0.is_some() && held.1.is_some());
            let (session, build) = (session(other.as_ref()), build(other.as_ref()));
            let same = owner == other;
            assert_eq!(ownership.open_session(&session).is_some(), same);
            assert_eq!(ownership.start_build(&build).is_some(), same);
            assert_eq!(ownership.of_build(&build), *owner);
            drop(held);
            assert!(ownership.0.0.lock().held.is_empty());
            assert_eq!(ownership.of_build(&build), *owner);
            assert!(ownership.open_session(&session).is_some());
            assert_eq!(ownership.start_build(&build).is_some(), same || owner.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn anothers_session_and_one_that_is_not_there_are_refused_alike() {
        let [a, b, nobody] = identities();
        let ownership = Ownership::default();
        let _held = ownership.open_session(&session(a.as_ref())).expect("the first");
        let may_name = async |id: SessionId| {
            let began = tokio::time::Instant::now();
            let outcome = ownership.may_name(&[id]).await.map_err(|error| error.code());
            (outcome, began.elapsed() >= SESSION_WAIT)
        };
        let unknown = SessionId::new(b"unknown", b.as_ref()).expect("valid");
        let refused = (Err(tonic::Code::DeadlineExceeded), true);
        assert_eq!(may_name(unknown).await, refused);
        assert_eq!(may_name(session(b.as_ref())).await, refused);
        assert_eq!(may_name(session(nobody.as_ref())).await, refused);
        assert_eq!(may_name(session(a.as_ref())).await, (Ok(()), false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_solve_may_come_before_the_session_that_it_names() {
        let [a, _, _] = identities();
        let ownership = Ownership::default();
        let id = session(a.as_ref());
        let waiting = tokio::spawn({
            let (ownership, id) = (ownership.clone(), id.clone());
            async move { ownership.may_name(&[id]).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let _held = ownership.open_session(&id).expect("the first");
        assert!(waiting.await.expect("no panic").is_ok());
        let unnamed = SessionId::new(b"unknown", None).expect("valid");
        assert!(
            ownership.may_name(&[unnamed]).now_or_never().is_some_and(|outcome| outcome.is_ok())
        );
    }
}

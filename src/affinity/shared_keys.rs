//! The shared keys that Session calls declare, for a Solve without another source of a key.
//!
//! The Session and the Solve of one build arrive at the same time and in any order, so the Solve waits briefly.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use http::HeaderMap;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::ids::SessionId;

/// Metadata of Control/Session: buildx sets it to DIRECTORY:NODE (BuildKit session/session.go).
const HEADER: &str = "x-docker-expose-session-sharedkey";

/// A client opens both streams within milliseconds; a bake's session may come much later.
const WAIT: Duration = Duration::from_millis(250);

/// The longest shared key, in bytes. Longer ones are cut.
const MAX_LEN: usize = 1024;

/// The most sessions that are remembered. A session is needed only until its Solve has come.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

type Slot = watch::Sender<Option<Arc<str>>>;

/// The shared keys of recent sessions. Clones share them.
#[derive(Debug, Clone)]
pub struct SharedKeys(Arc<Mutex<LruCache<SessionId, Slot>>>);

impl Default for SharedKeys {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(CAPACITY))))
    }
}

impl SharedKeys {
    /// Notes the shared key of a Session, or that it has none.
    pub fn declare(&self, session: &SessionId, headers: &HeaderMap) {
        let value = headers.get(HEADER).map_or(&[][..], |value| value.as_bytes());
        let key = String::from_utf8_lossy(&value[..value.len().min(MAX_LEN)]).into();
        self.with_slot(session, |slot| slot.send_replace(Some(key)));
    }

    /// The shared key of `session`. Waits briefly for the Session to arrive.
    pub async fn of(&self, session: &SessionId) -> Option<Arc<str>> {
        let mut declared = self.with_slot(session, watch::Sender::subscribe);
        let key = tokio::time::timeout(WAIT, declared.wait_for(Option::is_some)).await;
        key.ok()?.ok()?.clone()
    }

    fn with_slot<T>(&self, session: &SessionId, then: impl FnOnce(&Slot) -> T) -> T {
        then(self.0.lock().get_or_insert(session.clone(), Slot::default))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SessionId {
        SessionId::new(text.as_bytes(), None).expect("valid")
    }

    fn headers(key: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HEADER.parse().expect("a name"), key.parse().expect("a value"))])
    }

    #[tokio::test]
    async fn a_solve_finds_what_its_session_declared_before_or_after() {
        let keys = SharedKeys::default();
        keys.declare(&id("early"), &headers("app:1"));
        assert_eq!(keys.of(&id("early")).await.as_deref(), Some("app:1"));
        let late = id("late");
        let declare = async {
            tokio::task::yield_now().await;
            keys.declare(&late, &headers("app:2"));
        };
        let (found, ()) = tokio::join!(keys.of(&late), declare);
        assert_eq!(found.as_deref(), Some("app:2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_never_comes_is_not_waited_for_long() {
        assert_eq!(SharedKeys::default().of(&id("never")).await, None);
    }
}

//! What all who look at the page share: one rendering a second at most, and the events that say that it has changed.
//!
//! Nothing is rendered while nobody asks. A watcher is a connection that gets events; it holds a seat of the admin port
//! like any other, and asks again from time to time so that its seat is not taken for an idle one.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use twox_hash::XxHash3_64;

use super::super::Admin;
use crate::snapshot::Snapshot;

/// The shortest time between two renderings. A person sees no difference to a shorter one.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long one answer has events. It ends before the admin port takes the connection for one that nobody reads, and the
/// browser asks again.
const STREAM: Duration = Duration::from_secs(45);

/// The most watchers. Half of the port's connections stay for probes, scrapes and commands.
const MAX_WATCHERS: usize = 128;

/// One rendering.
#[derive(Debug, Clone)]
pub(super) struct Rendered {
    at: Instant,
    /// What was rendered.
    pub(super) snapshot: Arc<Snapshot>,
    /// The page.
    pub(super) page: Bytes,
    /// A hash of the page, which changes with it.
    version: u64,
}

/// The last rendering, and the watchers.
#[derive(Debug)]
pub(in crate::admin) struct Live {
    last: Mutex<Option<Rendered>>,
    watchers: Arc<Semaphore>,
}

impl Default for Live {
    fn default() -> Self {
        Self { last: Mutex::default(), watchers: Arc::new(Semaphore::new(MAX_WATCHERS)) }
    }
}

impl Live {
    /// The last rendering if it is new enough, or a new one. Others wait meanwhile and get the same one.
    pub(super) fn rendered(&self, admin: &Admin) -> Rendered {
        let mut last = self.last.lock();
        if let Some(rendered) = last.as_ref().filter(|rendered| rendered.at.elapsed() < INTERVAL) {
            return rendered.clone();
        }
        let snapshot = Arc::new(admin.snapshot());
        let page = Bytes::from(super::home(&snapshot).into_string());
        let version = XxHash3_64::oneshot(&page);
        let rendered = Rendered { at: Instant::now(), snapshot, page, version };
        *last = Some(rendered.clone());
        rendered
    }

    /// A place among the watchers. `None` if there are too many.
    pub(super) fn watch(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.watchers).try_acquire_owned().ok()
    }
}

/// The events for one watcher: one at once and one for each change.
struct Events {
    admin: Admin,
    ends: Instant,
    /// The version that the watcher was told of; `None` at first.
    told: Option<u64>,
    _watcher: OwnedSemaphorePermit,
}

impl Events {
    /// Waits for the next event. `None` at the end of the answer.
    async fn next(&mut self) -> Option<String> {
        loop {
            if Instant::now() >= self.ends {
                return None;
            }
            if self.told.is_some() {
                tokio::time::sleep(INTERVAL).await;
            }
            let version = self.admin.live.rendered(&self.admin).version;
            if self.told.replace(version) != Some(version) {
                // The browser connects again one second after the end of the answer.
                return Some(format!("retry: 1000\nevent: changed\ndata: {version:016x}\n\n"));
            }
        }
    }
}

/// The body of an answer with events.
pub(super) fn events(admin: Admin, watcher: OwnedSemaphorePermit) -> Body {
    let events = Events { admin, ends: Instant::now() + STREAM, told: None, _watcher: watcher };
    Body::from_stream(stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(event), events))
    }))
}

//! Links that no build owns: one for the proxy's own questions, and those for the calls of clients.
//!
//! A connection's window is shared by its streams, so answers that their client does not read take it
//! from the others. The proxy reads the answers to its own questions whole and at once: nobody can fill
//! their connection. Calls of clients share another one for as long as each of them could leave its whole
//! window unread; a call that finds no place there goes over a link of its client's own.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::{Hold, Inner, Link, Windows};
use crate::{
    client::Client,
    fleet::{Backend, Fleet},
    http2_limits::{
        CONNECTION_WINDOW, SHARED_CONNECTION_WINDOW, SHARED_STREAM_WINDOW, STREAM_WINDOW,
    },
    shares::{Limits, Shares},
};

/// Calls on one shared connection: if nobody reads the answer to any, its window is just full.
const PLACES: u64 = (SHARED_CONNECTION_WINDOW / SHARED_STREAM_WINDOW) as u64;

/// How many of them one connection of a client's may have: more than its commands have open at once.
const PLACES_OF_CONNECTION: u64 = 16;

const SHARED_WINDOWS: Windows =
    Windows { stream: SHARED_STREAM_WINDOW, connection: SHARED_CONNECTION_WINDOW };

/// Those of a link that one client alone uses for calls.
const CLIENT_WINDOWS: Windows =
    Windows { stream: SHARED_STREAM_WINDOW, connection: CONNECTION_WINDOW };

/// Those of the link for the proxy's own questions.
const QUESTION_WINDOWS: Windows = Windows { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW };

/// The links to each backend that no build owns.
#[derive(Debug)]
pub struct SharedLinks {
    backends: Mutex<HashMap<Arc<str>, BackendLinks>>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct BackendLinks {
    questions: Link,
    calls: Link,
    places: Shares,
    /// By the number of the client's connection. A link goes with the last call on it.
    clients: HashMap<u64, Weak<Inner>>,
}

impl SharedLinks {
    /// No links yet; their tasks run on `tasks`.
    pub fn new(tasks: TaskTracker) -> Self {
        Self { backends: Mutex::default(), tasks }
    }

    /// The link to `backend` for a question whose answer is read whole, whatever its client does.
    pub fn for_question(&self, backend: &Arc<Backend>) -> Link {
        self.with(backend, |links| links.questions.clone())
    }

    /// The link to `backend` for a call of `client` that is passed on.
    pub fn for_call(&self, backend: &Arc<Backend>, client: &Client) -> Link {
        self.with(backend, |links| match links.places.take_spare(client, 1) {
            Ok(place) => links.calls.held(Arc::new(place)),
            Err(_over) => {
                let link = links.of_client(client.connection, || {
                    Link::with_windows(Arc::clone(backend), CLIENT_WINDOWS, self.tasks.clone())
                });
                let hold: Hold = Arc::clone(&link.inner) as Hold;
                link.held(hold)
            }
        })
    }

    /// Lets go of links to backends that left `fleet`.
    pub fn retain(&self, fleet: &Fleet) {
        let stays = |links: &BackendLinks| {
            let backend = links.questions.backend();
            fleet.find(backend.name()).is_some_and(|found| Arc::ptr_eq(&found, backend))
        };
        self.backends.lock().retain(|_, links| stays(links));
    }

    fn with<T>(&self, backend: &Arc<Backend>, take: impl FnOnce(&mut BackendLinks) -> T) -> T {
        let mut all = self.backends.lock();
        let new = || BackendLinks::new(backend, &self.tasks);
        let links = all.entry(backend.shared_name()).or_insert_with(new);
        if !Arc::ptr_eq(links.questions.backend(), backend) {
            *links = new();
        }
        take(links)
    }
}

impl BackendLinks {
    fn new(backend: &Arc<Backend>, tasks: &TaskTracker) -> Self {
        let link = |windows| Link::with_windows(Arc::clone(backend), windows, tasks.clone());
        let limits = Limits { total: PLACES, address: PLACES, connection: PLACES_OF_CONNECTION };
        Self {
            questions: link(QUESTION_WINDOWS),
            calls: link(SHARED_WINDOWS),
            places: Shares::new(limits),
            clients: HashMap::new(),
        }
    }

    fn of_client(&mut self, connection: u64, new: impl FnOnce() -> Link) -> Link {
        if let Some(inner) = self.clients.get(&connection).and_then(Weak::upgrade) {
            return Link::of(inner);
        }
        // Those of clients that have gone.
        self.clients.retain(|_, link| link.strong_count() > 0);
        let link = new();
        self.clients.insert(connection, Arc::downgrade(&link.inner));
        link
    }
}

//! Which link a call goes over: a build's own, that of the proxy's own questions, or one for the calls of
//! clients.
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

use super::{Hold, Inner, Link, Owner, Windows};
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

/// Connections to daemons that calls of one client connection may have. A build has one, and so has a
/// whole bake, unless its targets are spread: a bake of forty had 42 sessions. A hop may bring the builds
/// of many clients over one connection.
const MOST_OF_CONNECTION: u64 = 1 << 10;

/// The same where there are few in all: a spread bake of forty targets fits.
const LEAST_OF_CONNECTION: u64 = 64;

const SHARED_WINDOWS: Windows =
    Windows { stream: SHARED_STREAM_WINDOW, connection: SHARED_CONNECTION_WINDOW };

/// Those of a link that one client alone uses for calls.
const CLIENT_WINDOWS: Windows =
    Windows { stream: SHARED_STREAM_WINDOW, connection: CONNECTION_WINDOW };

/// Those of the link for the proxy's own questions.
const OWN_WINDOWS: Windows = Windows { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW };

/// The `total` connections to daemons that there may be for clients, to be shared by these.
pub fn client_connections(total: u64) -> Shares {
    let connection = (total / 2).clamp(LEAST_OF_CONNECTION, MOST_OF_CONNECTION);
    Shares::new(Limits { total, address: total, connection })
}

/// The links to each backend that no build owns, and what all links of clients take a share of.
#[derive(Debug)]
pub struct SharedLinks {
    backends: Mutex<HashMap<Arc<str>, BackendLinks>>,
    connections: Shares,
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
    /// No links yet; each of a client's takes one of `connections`. Their tasks run on `tasks`.
    pub fn new(connections: Shares, tasks: TaskTracker) -> Self {
        Self { backends: Mutex::default(), connections, tasks }
    }

    /// A new link to `backend` for a build or a session of `client`.
    pub fn for_build(&self, backend: &Arc<Backend>, client: &Client) -> Link {
        self.of_client(backend, client, OWN_WINDOWS)
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
                    self.of_client(backend, client, CLIENT_WINDOWS)
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

    fn of_client(&self, backend: &Arc<Backend>, client: &Client, windows: Windows) -> Link {
        let owner = Owner { client: client.clone(), connections: self.connections.clone() };
        Link::with_windows(Arc::clone(backend), windows, self.tasks.clone(), Some(owner))
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
        let link = |windows| Link::with_windows(Arc::clone(backend), windows, tasks.clone(), None);
        let limits = Limits { total: PLACES, address: PLACES, connection: PLACES_OF_CONNECTION };
        Self {
            questions: link(OWN_WINDOWS),
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn client(connection: u64) -> Client {
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        Client::new(connection, address)
    }

    #[test]
    fn a_spread_bake_of_forty_targets_fits_where_there_are_few_connections() {
        let shares = client_connections(crate::descriptors::Budget::of(256).upstream);
        let bake: Result<Vec<_>, _> = (0..42).map(|_| shares.take_spare(&client(1), 1)).collect();
        assert!(bake.is_ok());
    }

    #[tokio::test]
    async fn calls_above_a_clients_places_go_over_one_link_of_its_own() {
        let links = SharedLinks::new(client_connections(100), TaskTracker::new());
        let backend = &crate::fleet::tests::backends(1)[0];
        let call = |number| links.for_call(backend, &client(number));
        let same = |one: &Link, other: &Link| Arc::ptr_eq(&one.inner, &other.inner);
        let first: Vec<_> = (0..PLACES_OF_CONNECTION).map(|_| call(1)).collect();
        let (more, most) = (call(1), call(1));
        assert!(first.iter().all(|link| same(link, &first[0])));
        assert!(same(&more, &most) && !same(&more, &first[0]));
        assert!(same(&call(2), &first[0]), "another client has its own places");
        assert!(!same(&links.for_question(backend), &first[0]));
        drop((first, more, most));
        assert!(same(&call(1), &call(2)), "what has ended gives its place back");
    }
}

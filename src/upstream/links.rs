//! Which link a call uses: the build's own, the link of the proxy's own questions, or a link for the calls of clients.
//!
//! The streams of a connection share its window, so answers that a client does not read take capacity from the others.
//! The proxy reads the answers to its own questions completely and at once, so nobody can fill that connection. The
//! calls of clients share another connection. It takes only as many calls as could leave their whole windows unread;
//! any other call goes over a link of its client's own.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::{Guard, Inner, Link, Owner, Spares, Windows, dial::Dialer};
use crate::{
    client::Client,
    descriptors::Budget,
    fleet::{Backend, Fleet},
    http2_limits::{
        CONNECTION_WINDOW, SHARED_CONNECTION_WINDOW, SHARED_STREAM_WINDOW, STREAM_WINDOW,
    },
    map::Map,
    shares::{Limits, Shares},
};

/// How many calls one shared connection takes. If nobody reads any of the answers, its window is just full.
const SHARED_CALLS: u64 = (SHARED_CONNECTION_WINDOW / SHARED_STREAM_WINDOW) as u64;

/// How many of these calls one connection of a client may have: more than a client's commands have open at once.
const SHARED_CALLS_OF_CONNECTION: u64 = 16;

/// How many connections to daemons the calls of one client connection may use. A build uses one, and so does a whole
/// bake, unless its targets are spread: a bake of forty had 42 sessions. A hop may bring the builds of many clients
/// over one connection.
const MAX_OF_CONNECTION: u64 = 1 << 10;

/// The limit above if there are few connections in all. A spread bake of forty targets fits.
const MIN_OF_CONNECTION: u64 = 64;

const SHARED_WINDOWS: Windows =
    Windows { stream: SHARED_STREAM_WINDOW, connection: SHARED_CONNECTION_WINDOW };

/// The windows of a link that one client uses alone for calls.
const CLIENT_WINDOWS: Windows =
    Windows { stream: SHARED_STREAM_WINDOW, connection: CONNECTION_WINDOW };

/// The windows of the link for the proxy's own questions.
const OWN_WINDOWS: Windows = Windows { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW };

/// The limits of connections to daemons, which all pools share. Clones share them, too.
#[derive(Debug, Clone)]
pub struct Connections {
    /// The connections that clients use.
    clients: Shares,
    /// The connections that no client uses, kept for the next build.
    spares: Arc<Semaphore>,
}

impl Connections {
    /// Divides the connections to daemons of the `budget` among the clients.
    pub fn of(budget: Budget) -> Self {
        let total = budget.upstream;
        let connection = (total / 2).clamp(MIN_OF_CONNECTION, MAX_OF_CONNECTION);
        let clients = Shares::new(Limits { total, address: total, connection });
        Self { clients, spares: Arc::new(Semaphore::new(budget.spare)) }
    }
}

/// The links to each backend that no build owns, and the limit of all links of clients.
#[derive(Debug)]
pub struct SharedLinks {
    backends: Mutex<Map<Arc<str>, BackendLinks>>,
    connections: Connections,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct BackendLinks {
    questions: Link,
    calls: Link,
    shared_calls: Shares,
    /// The connections that builds have left.
    spares: Arc<Spares>,
    /// The links of single clients, by the number of the client's connection. A link goes with its last call.
    clients: Map<u64, Weak<Inner>>,
}

impl SharedLinks {
    /// No links yet. Each link of a client counts towards `connections`. Their tasks run on `tasks`.
    pub fn new(connections: Connections, tasks: TaskTracker) -> Self {
        Self { backends: Mutex::default(), connections, tasks }
    }

    /// A new link to `backend` for a build or a session of `client`.
    pub fn for_build(&self, backend: &Arc<Backend>, client: &Client) -> Link {
        let spares = self.with(backend, |links| Arc::clone(&links.spares));
        self.of_client(backend, client, OWN_WINDOWS, Some(spares))
    }

    /// The link to `backend` for a question whose answer is read completely, whatever its client does.
    pub fn for_question(&self, backend: &Arc<Backend>) -> Link {
        self.with(backend, |links| links.questions.clone())
    }

    /// The link to `backend` for a call of `client` that is relayed.
    pub fn for_call(&self, backend: &Arc<Backend>, client: &Client) -> Link {
        self.with(backend, |links| match links.shared_calls.take_spare(client, 1) {
            Ok(share) => links.calls.guarded(Arc::new(share)),
            Err(_over) => {
                let link = links.of_client(client.connection, || {
                    self.of_client(backend, client, CLIENT_WINDOWS, None)
                });
                let guard: Guard = Arc::clone(&link.inner) as Guard;
                link.guarded(guard)
            }
        })
    }

    /// Drops the links to backends that have left `fleet`.
    pub fn retain(&self, fleet: &Fleet) {
        let stays = |links: &BackendLinks| {
            let backend = links.questions.backend();
            fleet.find(backend.name()).is_some_and(|found| Arc::ptr_eq(&found, backend))
        };
        self.backends.lock().retain(|_, links| stays(links));
    }

    fn of_client(
        &self,
        backend: &Arc<Backend>,
        client: &Client,
        windows: Windows,
        spares: Option<Arc<Spares>>,
    ) -> Link {
        let connections = self.connections.clients.clone();
        let owner = Some(Owner { client: client.clone(), connections });
        let (backend, tasks) = (Arc::clone(backend), self.tasks.clone());
        Link::with(Dialer { backend, windows, tasks, owner, spares })
    }

    fn with<T>(&self, backend: &Arc<Backend>, take: impl FnOnce(&mut BackendLinks) -> T) -> T {
        let mut all = self.backends.lock();
        let new = || BackendLinks::new(backend, &self.connections.spares, &self.tasks);
        let links = all.entry(backend.shared_name()).or_insert_with(new);
        if !Arc::ptr_eq(links.questions.backend(), backend) {
            *links = new();
        }
        take(links)
    }
}

impl BackendLinks {
    fn new(backend: &Arc<Backend>, room: &Arc<Semaphore>, tasks: &TaskTracker) -> Self {
        let link = |windows| {
            let (backend, tasks) = (Arc::clone(backend), tasks.clone());
            Link::with(Dialer { backend, windows, tasks, owner: None, spares: None })
        };
        let limits = Limits {
            total: SHARED_CALLS,
            address: SHARED_CALLS,
            connection: SHARED_CALLS_OF_CONNECTION,
        };
        Self {
            questions: link(OWN_WINDOWS),
            calls: link(SHARED_WINDOWS),
            shared_calls: Shares::new(limits),
            spares: Arc::new(Spares::new(Arc::clone(room), tasks.clone())),
            clients: Map::default(),
        }
    }

    fn of_client(&mut self, connection: u64, new: impl FnOnce() -> Link) -> Link {
        if let Some(inner) = self.clients.get(&connection).and_then(Weak::upgrade) {
            return Link::of(inner);
        }
        // Removes the links of clients that have gone.
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
        let shares = Connections::of(Budget::of(256)).clients;
        let bake: Result<Vec<_>, _> = (0..42).map(|_| shares.take_spare(&client(1), 1)).collect();
        assert!(bake.is_ok());
    }

    #[tokio::test]
    async fn calls_above_a_clients_share_go_over_one_link_of_its_own() {
        let links = SharedLinks::new(Connections::of(Budget::of(300)), TaskTracker::new());
        let backend = &crate::fleet::tests::backends(1)[0];
        let call = |number| links.for_call(backend, &client(number));
        let same = |one: &Link, other: &Link| Arc::ptr_eq(&one.inner, &other.inner);
        let first: Vec<_> = (0..SHARED_CALLS_OF_CONNECTION).map(|_| call(1)).collect();
        let (more, most) = (call(1), call(1));
        assert!(first.iter().all(|link| same(link, &first[0])));
        assert!(same(&more, &most) && !same(&more, &first[0]));
        assert!(same(&call(2), &first[0]), "another client has its own share");
        assert!(!same(&links.for_question(backend), &first[0]));
        drop((first, more, most));
        assert!(same(&call(1), &call(2)), "what has ended gives its share back");
    }
}

//! Which client connections carry the Solve of a build. Only calls from there may use the build's own link.
//!
//! All streams of a link share one window. If a client could open calls on the link of another client's build and
//! not read the answers, it could stop that build. A ref is no secret, so the ref alone is not enough.

use std::{net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use crate::{
    client::Client,
    ids::{Id, TraceId},
    map::Map,
};

/// Where a Solve came from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Carrier {
    connection: u64,
    address: Option<IpAddr>,
    trace: Option<TraceId>,
}

impl Carrier {
    fn new(client: &Client, trace: Option<TraceId>) -> Self {
        Self { connection: client.connection, address: client.address, trace }
    }

    /// Whether a call from `other` belongs to the same build: it is on the same connection, or it has the same
    /// trace and address, as after a client had to reconnect.
    fn covers(&self, other: &Self) -> bool {
        let same_trace = self.trace.is_some() && self.trace == other.trace;
        self.connection == other.connection || (same_trace && self.address == other.address)
    }
}

/// The connections that carry Solves, by build. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Carriers(Arc<Mutex<Map<Id, Vec<Carrier>>>>);

impl Carriers {
    /// Notes that the connection of `client` carries the Solve of `build`, as long as the returned guard lives.
    ///
    /// `None` if the build already runs from elsewhere: sending another Solve with its ref gives no access to its
    /// link.
    pub fn enter(&self, build: &Id, client: &Client, trace: Option<TraceId>) -> Option<Carried> {
        let carrier = Carrier::new(client, trace);
        let mut all = self.0.lock();
        let carriers = all.entry(build.clone()).or_default();
        if !carriers.is_empty() && !carriers.iter().any(|one| one.covers(&carrier)) {
            return None;
        }
        carriers.push(carrier.clone());
        Some(Carried { carriers: self.clone(), build: build.clone(), carrier })
    }

    /// Whether a call of `build` from `client` comes from where the Solve of the build came from.
    pub fn carries(&self, build: &Id, client: &Client, trace: Option<TraceId>) -> bool {
        let caller = Carrier::new(client, trace);
        let all = self.0.lock();
        all.get(build).is_some_and(|carriers| carriers.iter().any(|one| one.covers(&caller)))
    }
}

/// One Solve on its connection, until dropped.
#[derive(Debug)]
pub struct Carried {
    carriers: Carriers,
    build: Id,
    carrier: Carrier,
}

impl Drop for Carried {
    fn drop(&mut self) {
        let mut all = self.carriers.0.lock();
        let Some(carriers) = all.get_mut(&self.build) else { return };
        if let Some(at) = carriers.iter().position(|carrier| *carrier == self.carrier) {
            carriers.swap_remove(at);
        }
        if carriers.is_empty() {
            all.remove(&self.build);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(connection: u64, address: u8) -> Client {
        let address = Some(IpAddr::from([127, 0, 0, address]));
        Client::new(connection, address)
    }

    #[test]
    fn a_build_is_its_connections_and_its_traces() {
        let build = Id::new(b"r", None).expect("valid");
        let trace = Some(TraceId::new([1; 16], None));
        let carriers = Carriers::default();
        let carried = carriers.enter(&build, &client(1, 1), trace);
        assert!(carriers.carries(&build, &client(1, 1), None));
        assert!(carriers.carries(&build, &client(2, 1), trace), "connected anew");
        assert!(!carriers.carries(&build, &client(2, 2), trace), "another machine");
        assert!(!carriers.carries(&build, &client(2, 1), None));
        assert!(carriers.enter(&build, &client(3, 3), trace).is_none(), "it has the ref alone");
        assert!(!carriers.carries(&build, &client(3, 3), trace));
        assert!(!carriers.carries(&Id::new(b"other", None).expect("valid"), &client(1, 1), trace));
        drop(carried);
        assert!(carriers.0.lock().is_empty());
    }

    #[test]
    fn two_that_trace_nothing_are_not_alike() {
        let build = Id::new(b"r", None).expect("valid");
        let carriers = Carriers::default();
        let _carried = carriers.enter(&build, &client(1, 1), None);
        assert!(!carriers.carries(&build, &client(2, 1), None));
    }
}

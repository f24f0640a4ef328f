//! The limit on client connections, which clients share by their addresses and by their names.
//!
//! Each connection holds a permit. If no permit is free, the oldest connection without a call is closed, of the
//! address or the name that has the most connections. A connection with an open call stays: closing it could end a
//! build.

mod named;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use self::named::Named;
use crate::{
    client::{ActiveStreams, Client},
    connection_table::{ConnectionTable, Connections},
    identity::Identity,
    shares::network,
};

/// The part of all permits that one address, and one name, must leave to others: one in this many.
const LEFT_TO_OTHERS: usize = 8;

/// The most connections that are closing at once. Each still holds a descriptor, beyond the limit.
const LEAVING: usize = 32;

/// The most clients without a permit that are answered at once. The connections of further clients are closed without an
/// answer.
const ANSWERED: usize = 32;

/// How long a client waits for a permit before it is refused. A gRPC client waits 20 s for a connection, and
/// then prints no cause.
const WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The limit, and the permits that are taken. Clones share them.
#[derive(Debug, Clone)]
pub struct ConnectionLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    ledger: Mutex<Ledger>,
    freed: Notify,
    answered: Arc<Semaphore>,
}

#[derive(Debug)]
struct Ledger {
    /// The connections that have a permit and are not about to close.
    open: ConnectionTable<Arc<ActiveStreams>>,
    /// The connections whose clients have a name. A connection stays here while it closes.
    named: Named,
    /// The connections that were asked to close and have not closed.
    leaving: usize,
    /// When the first of the clients that wait now began to wait.
    full_since: Option<Instant>,
}

/// Why a client gets no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooManyConnections {
    /// Its address has as many connections as one address may have.
    #[error("this client's address has as many connections as one address may have")]
    Address,
    /// Its name has as many connections as one name may have, and all of them have an open call.
    #[error(
        "clients of this name have as many connections as one name may have, and all are in use"
    )]
    Name,
    /// All permits are taken, and every connection that could be closed has an open call.
    #[error("the proxy has as many connections as it may have, and all are in use")]
    All,
}

impl ConnectionLimit {
    /// A limit of `limit` connections, all of them free.
    pub fn new(limit: usize) -> Self {
        let ledger = Ledger {
            open: ConnectionTable::new(oldest_silent),
            named: Named::default(),
            leaving: 0,
            full_since: None,
        };
        Self(Arc::new(Inner {
            limit,
            ledger: Mutex::new(ledger),
            freed: Notify::new(),
            answered: Arc::new(Semaphore::new(ANSWERED)),
        }))
    }

    /// Takes a permit for `client`. If none is free, an idle connection is closed for it.
    ///
    /// # Errors
    /// No permit is free, and no connection can be closed.
    pub fn take(&self, client: &Client) -> Result<ConnectionPermit, TooManyConnections> {
        let Inner { limit, ledger, .. } = &*self.0;
        let address = network(client.address);
        let mut ledger = ledger.lock();
        let own = ledger.open.count(address);
        let evicted_another = if own >= self.share() {
            if !ledger.evict(|open| open.evict_one_of(address)) {
                // Permits become free again once the connections that are closing have closed.
                let soon = ledger.leaving >= LEAVING;
                return Err(if soon {
                    TooManyConnections::All
                } else {
                    TooManyConnections::Address
                });
            }
            true
        } else if ledger.open.len() >= *limit {
            if !ledger.evict_heaviest(own) {
                return Err(TooManyConnections::All);
            }
            true
        } else {
            false
        };
        ledger.full_since = None;
        ledger.open.insert(address, client.connection, Arc::clone(&client.active));
        Ok(ConnectionPermit {
            limit: self.clone(),
            address,
            connection: client.connection,
            name: None,
            evicted_another,
        })
    }

    /// The most connections of one address, and of one name.
    fn share(&self) -> usize {
        (self.0.limit - self.0.limit / LEFT_TO_OTHERS).max(1)
    }

    /// Takes a permit for `client`, and waits until one is free, but no longer than 5 s after the first client that
    /// still waits began to wait.
    ///
    /// # Errors
    /// No permit became free in time.
    pub async fn wait(&self, client: &Client) -> Result<ConnectionPermit, TooManyConnections> {
        loop {
            let freed = self.0.freed.notified();
            let full = match self.take(client) {
                Err(TooManyConnections::All) => TooManyConnections::All,
                result => return result,
            };
            let since = *self.0.ledger.lock().full_since.get_or_insert_with(Instant::now);
            let left = WAIT_TIMEOUT.checked_sub(since.elapsed()).ok_or(full)?;
            if tokio::time::timeout(left, freed).await.is_err() {
                return Err(full);
            }
        }
    }

    /// The right to answer a client that gets no permit. `None` if too many such clients are answered already.
    pub fn answer_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.answered).try_acquire_owned().ok()
    }

    /// The number of permits.
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

impl Ledger {
    /// Asks the connection that `choose` removes to close. Returns whether there was one.
    fn evict(
        &mut self,
        choose: impl FnOnce(&mut ConnectionTable<Arc<ActiveStreams>>) -> Option<Arc<ActiveStreams>>,
    ) -> bool {
        if self.leaving >= LEAVING {
            return false;
        }
        let Some(active) = choose(&mut self.open) else { return false };
        active.dismiss();
        self.leaving += 1;
        true
    }

    /// Asks an idle connection to close: of the name that has the most connections, if these are more than any address
    /// has, and otherwise of the address that has the most. Addresses with fewer than `least` connections keep theirs.
    fn evict_heaviest(&mut self, least: usize) -> bool {
        let heaviest = self.named.heaviest().filter(|(_name, count)| *count > self.open.most());
        heaviest.is_some_and(|(name, _count)| self.evict_named(&name))
            || self.evict(|open| open.evict_any(least))
    }

    /// Asks the oldest idle connection of `name` to close. Returns whether there was one.
    fn evict_named(&mut self, name: &Arc<Identity>) -> bool {
        let Self { open, named, .. } = self;
        let oldest = named.oldest(name, |address, number| {
            open.get_mut(address, number).is_some_and(|active| active.is_silent())
        });
        let Some((address, number)) = oldest else { return false };
        self.evict(|open| open.remove(address, number))
    }

    fn leave(&mut self, address: Option<IpAddr>, connection: u64) {
        if self.open.remove(address, connection).is_none() {
            self.leaving -= 1;
        }
    }
}

/// The oldest connection without a call: no build can be on it.
fn oldest_silent(connections: &Connections<Arc<ActiveStreams>>) -> Option<u64> {
    connections.iter().find(|(_, active)| active.is_silent()).map(|(number, _)| *number)
}

/// The right to one connection, until dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    limit: ConnectionLimit,
    address: Option<IpAddr>,
    connection: u64,
    /// The name of the client, once it is counted.
    name: Option<Arc<Identity>>,
    /// Whether another connection was closed for this one.
    evicted_another: bool,
}

impl ConnectionPermit {
    /// Counts the connection for the `name` that its client has shown. If that name has all it may have, an idle
    /// connection of the name is closed for this one.
    ///
    /// # Errors
    /// The name has all it may have, and none of these connections can be closed.
    pub fn count_for(&mut self, name: &Arc<Identity>) -> Result<(), TooManyConnections> {
        let mut ledger = self.limit.0.ledger.lock();
        if ledger.named.count(name) >= self.limit.share() && !ledger.evict_named(name) {
            return Err(TooManyConnections::Name);
        }
        ledger.named.insert(name, self.connection, self.address);
        self.name = Some(Arc::clone(name));
        Ok(())
    }

    /// The limit that the connection counts for.
    pub fn limit(&self) -> &ConnectionLimit {
        &self.limit
    }

    /// Whether another connection was closed for this one.
    pub fn evicted_another(&self) -> bool {
        self.evicted_another
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut ledger = self.limit.0.ledger.lock();
        if let Some(name) = &self.name {
            ledger.named.remove(name, self.connection);
        }
        ledger.leave(self.address, self.connection);
        drop(ledger);
        self.limit.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn client(address: u8, connection: u64) -> Client {
        let address = Some(IpAddr::from([127, 0, 0, address]));
        Client::new(connection, address)
    }

    fn fill(
        limit: &ConnectionLimit,
        address: u8,
        numbers: std::ops::Range<u64>,
    ) -> Vec<(Client, ConnectionPermit)> {
        let take = |number| {
            let client = client(address, number);
            let permit = limit.take(&client).expect("a permit");
            (client, permit)
        };
        numbers.map(take).collect()
    }

    fn dismissed(client: &Client) -> bool {
        client.active.dismissed().now_or_never().is_some()
    }

    #[test]
    fn one_address_leaves_permits_to_others_and_its_oldest_idle_connection_goes_first() {
        let limit = ConnectionLimit::new(16);
        let greedy = fill(&limit, 1, 0..14);
        let busy = greedy[0].0.active.enter_call();
        let more = limit.take(&client(1, 14)).expect("an idle one leaves");
        assert!(more.evicted_another() && !dismissed(&greedy[0].0) && dismissed(&greedy[1].0));
        let other = limit.take(&client(2, 15)).expect("kept free");
        assert!(!other.evicted_another());
        drop((busy, greedy, more, other));
        let ledger = limit.0.ledger.lock();
        assert_eq!((ledger.open.len(), ledger.leaving), (0, 0));
    }

    #[test]
    fn a_connection_with_a_call_on_it_stays() {
        let limit = ConnectionLimit::new(2);
        let both = fill(&limit, 1, 0..2);
        let calls: Vec<_> = both.iter().map(|(client, _)| client.active.enter_call()).collect();
        assert_eq!(limit.take(&client(1, 2)).err(), Some(TooManyConnections::Address));
        assert_eq!(limit.take(&client(2, 3)).err(), Some(TooManyConnections::All));
        drop(calls);
        assert!(limit.take(&client(2, 3)).is_ok_and(|permit| permit.evicted_another()));
    }

    #[test]
    fn the_address_with_the_most_connections_loses_one() {
        let limit = ConnectionLimit::new(8);
        let (many, few) = (fill(&limit, 1, 0..6), fill(&limit, 2, 6..8));
        let permit = limit.take(&client(3, 8)).expect("a permit");
        assert!(permit.evicted_another() && dismissed(&many[0].0));
        assert!(few.iter().all(|(client, _)| !dismissed(client)));
    }

    #[test]
    fn one_name_leaves_permits_to_others_wherever_its_clients_are() {
        let limit = ConnectionLimit::new(16);
        let name = Arc::new(Identity::named("greedy"));
        let named = |address: u8, number: u64| {
            let client = client(address, number);
            let mut permit = limit.take(&client).expect("its address has few");
            let counted = permit.count_for(&name);
            (client, permit, counted)
        };
        let greedy: Vec<_> = (0..14).map(|n| named(n, n.into())).collect();
        assert!(greedy.iter().all(|(_, _, counted)| counted.is_ok()));
        let calls: Vec<_> = greedy.iter().map(|(client, ..)| client.active.enter_call()).collect();
        let (_, permit, counted) = named(100, 100);
        assert_eq!(counted, Err(TooManyConnections::Name));
        drop((permit, calls));
        let (_, _permit, counted) = named(101, 101);
        assert!(counted.is_ok() && dismissed(&greedy[0].0) && !dismissed(&greedy[1].0));
        let other = limit.take(&client(102, 102)).expect("kept free");
        assert!(!other.evicted_another());
    }

    #[test]
    fn the_name_with_the_most_connections_loses_one() {
        let limit = ConnectionLimit::new(8);
        let name = Arc::new(Identity::named("many"));
        let spread: Vec<_> = (0..6)
            .map(|n| {
                let client = client(n, n.into());
                let mut permit = limit.take(&client).expect("a permit");
                permit.count_for(&name).expect("below its share");
                (client, permit)
            })
            .collect();
        let two = fill(&limit, 100, 6..8);
        let permit = limit.take(&client(101, 8)).expect("a permit");
        assert!(permit.evicted_another() && dismissed(&spread[0].0));
        assert!(two.iter().all(|(client, _)| !dismissed(client)));
        drop((spread, two, permit));
        let ledger = limit.0.ledger.lock();
        assert_eq!((ledger.open.len(), ledger.leaving, ledger.named.count(&name)), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_many_are_leaving_waits_for_them() {
        let limit = ConnectionLimit::new(8);
        let mut all: Vec<_> = fill(&limit, 1, 0..(7 + LEAVING as u64));
        let newcomer = client(1, 100);
        let waiting = limit.wait(&newcomer);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none(), "its address has idle ones");
        drop(all.remove(0));
        assert!(waiting.await.is_ok_and(|permit| permit.evicted_another()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_permit_gets_the_next_one_or_is_refused_in_time() {
        let limit = ConnectionLimit::new(1);
        let mut only = fill(&limit, 1, 0..1);
        let call = only[0].0.active.enter_call();
        let other = client(2, 1);
        let waiting = limit.wait(&other);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop((call, only.pop()));
        assert!(waiting.await.is_ok());
    }
}

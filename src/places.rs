//! Who may have a connection: a bounded number of places, which the addresses of clients share.
//!
//! When all are taken, the oldest connection without a stream makes place, of an address that has the
//! most. One that a call is open on is left alone: to end it could end a build.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::{
    client::{ActiveStreams, Client},
    shares::network,
};

/// The part of all places that one address leaves to others: an eighth.
const LEFT_TO_OTHERS: usize = 8;

/// Connections that make place may take a moment to close, and so many at once hold descriptors beyond the
/// limit meanwhile.
const LEAVING: usize = 32;

/// Clients without a place that are told so at once; the connections of others are just closed.
const TOLD: usize = 32;

/// How long a client waits for a place before it is told that there is none. A gRPC client gives a
/// connection 20 s and then does not know what is wrong.
const PATIENCE: Duration = Duration::from_secs(5);

/// The places. Clones share them.
#[derive(Debug, Clone)]
pub struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    ledger: Mutex<Ledger>,
    freed: Notify,
    told: Arc<Semaphore>,
}

type Occupants = BTreeMap<u64, Arc<ActiveStreams>>;

#[derive(Debug, Default)]
struct Ledger {
    taken: usize,
    leaving: usize,
    addresses: HashMap<Option<IpAddr>, Occupants>,
    /// Since when nobody has got a place who wanted one.
    full_since: Option<Instant>,
}

/// Why there is no place for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// Its address has all that one address may have.
    #[error("this client's address has as many connections as one address may have")]
    Address,
    /// Every connection is in use, by addresses that have no more than this one or on calls.
    #[error("the proxy has as many connections as it may have, and all are in use")]
    All,
}

impl Places {
    /// `limit` places, all of them free.
    pub fn new(limit: usize) -> Self {
        let told = Arc::new(Semaphore::new(TOLD));
        Self(Arc::new(Inner { limit, ledger: Mutex::default(), freed: Notify::new(), told }))
    }

    /// Takes a place for `client`; an idle connection leaves for it if need be.
    ///
    /// # Errors
    /// There is none, and none can be made.
    pub fn take(&self, client: &Client) -> Result<Place, NoPlace> {
        let Inner { limit, ledger, .. } = &*self.0;
        let address = network(client.address);
        let mut ledger = ledger.lock();
        let own = ledger.count(address);
        let made = if own >= (limit - limit / LEFT_TO_OTHERS).max(1) {
            if !ledger.dismiss_one_of(address) {
                // Those that are about to close soon leave more.
                let soon = ledger.leaving >= LEAVING;
                return Err(if soon { NoPlace::All } else { NoPlace::Address });
            }
            true
        } else if ledger.taken >= *limit {
            ledger.dismiss_one(own).then_some(()).ok_or(NoPlace::All)?;
            true
        } else {
            false
        };
        ledger.taken += 1;
        ledger.full_since = None;
        let active = Arc::clone(&client.active);
        ledger.addresses.entry(address).or_default().insert(client.connection, active);
        Ok(Place { places: self.clone(), address, connection: client.connection, made })
    }

    /// Takes a place, and waits for one unless others have waited in vain.
    ///
    /// # Errors
    /// There is none.
    pub async fn wait(&self, client: &Client) -> Result<Place, NoPlace> {
        loop {
            let freed = self.0.freed.notified();
            let full = match self.take(client) {
                Err(NoPlace::All) => NoPlace::All,
                result => return result,
            };
            let since = *self.0.ledger.lock().full_since.get_or_insert_with(Instant::now);
            let left = PATIENCE.checked_sub(since.elapsed()).ok_or(full)?;
            if tokio::time::timeout(left, freed).await.is_err() {
                return Err(full);
            }
        }
    }

    /// The right to tell a client that there is no place for it.
    pub fn teller(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.told).try_acquire_owned().ok()
    }

    /// How many there are.
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

impl Ledger {
    fn count(&self, address: Option<IpAddr>) -> usize {
        self.addresses.get(&address).map_or(0, BTreeMap::len)
    }

    /// Lets an idle connection go, of the address that has the most of those with `least` or more.
    fn dismiss_one(&mut self, least: usize) -> bool {
        let mut addresses: Vec<_> =
            self.addresses.iter().map(|(address, all)| (all.len(), *address)).collect();
        addresses.sort_unstable_by_key(|(count, _)| std::cmp::Reverse(*count));
        let heavy = addresses.into_iter().take_while(|(count, _)| *count >= least);
        heavy.into_iter().any(|(_, address)| self.dismiss_one_of(address))
    }

    /// Lets the oldest idle connection of `address` go.
    fn dismiss_one_of(&mut self, address: Option<IpAddr>) -> bool {
        if self.leaving >= LEAVING {
            return false;
        }
        let Some(occupants) = self.addresses.get_mut(&address) else { return false };
        let idle = occupants.iter().find(|(_, active)| active.is_silent());
        let Some(number) = idle.map(|(number, _)| *number) else { return false };
        if let Some(active) = occupants.remove(&number) {
            active.dismiss();
        }
        self.taken -= 1;
        self.leaving += 1;
        true
    }

    fn leave(&mut self, address: Option<IpAddr>, connection: u64) {
        let occupants = self.addresses.get_mut(&address);
        let stayed = occupants.is_some_and(|occupants| occupants.remove(&connection).is_some());
        if stayed {
            self.taken -= 1;
        } else {
            self.leaving -= 1;
        }
        if self.count(address) == 0 {
            self.addresses.remove(&address);
        }
    }
}

/// The place of one connection.
#[derive(Debug)]
pub struct Place {
    places: Places,
    address: Option<IpAddr>,
    connection: u64,
    /// Whether another connection left for it.
    made: bool,
}

impl Place {
    /// Whether another connection had to leave for it.
    pub fn was_made(&self) -> bool {
        self.made
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.ledger.lock().leave(self.address, self.connection);
        self.places.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn client(address: u8, connection: u64) -> Client {
        let address = Some(IpAddr::from([127, 0, 0, address]));
        Client { connection, address, active: Arc::default() }
    }

    fn fill(places: &Places, address: u8, numbers: std::ops::Range<u64>) -> Vec<(Client, Place)> {
        let take = |number| {
            let client = client(address, number);
            let place = places.take(&client).expect("a place");
            (client, place)
        };
        numbers.map(take).collect()
    }

    fn dismissed(client: &Client) -> bool {
        client.active.dismissed().now_or_never().is_some()
    }

    #[test]
    fn one_address_leaves_places_to_others_and_its_oldest_idle_connection_goes_first() {
        let places = Places::new(16);
        let greedy = fill(&places, 1, 0..14);
        let busy = greedy[0].0.active.enter_call();
        let more = places.take(&client(1, 14)).expect("an idle one leaves");
        assert!(more.was_made() && !dismissed(&greedy[0].0) && dismissed(&greedy[1].0));
        let other = places.take(&client(2, 15)).expect("kept free");
        assert!(!other.was_made());
        drop((busy, greedy, more, other));
        let ledger = places.0.ledger.lock();
        assert_eq!((ledger.taken, ledger.leaving, ledger.addresses.len()), (0, 0, 0));
    }

    #[test]
    fn a_connection_with_a_call_on_it_stays() {
        let places = Places::new(2);
        let both = fill(&places, 1, 0..2);
        let calls: Vec<_> = both.iter().map(|(client, _)| client.active.enter_call()).collect();
        assert_eq!(places.take(&client(1, 2)).err(), Some(NoPlace::Address));
        assert_eq!(places.take(&client(2, 3)).err(), Some(NoPlace::All));
        drop(calls);
        assert!(places.take(&client(2, 3)).is_ok_and(|place| place.was_made()));
    }

    #[test]
    fn the_address_with_the_most_makes_place() {
        let places = Places::new(8);
        let (many, few) = (fill(&places, 1, 0..6), fill(&places, 2, 6..8));
        let place = places.take(&client(3, 8)).expect("a place");
        assert!(place.was_made() && dismissed(&many[0].0));
        assert!(few.iter().all(|(client, _)| !dismissed(client)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_many_are_leaving_waits_for_them() {
        let places = Places::new(8);
        let mut all: Vec<_> = fill(&places, 1, 0..(7 + LEAVING as u64));
        let newcomer = client(1, 100);
        let waiting = places.wait(&newcomer);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none(), "its address has idle ones");
        drop(all.remove(0));
        assert!(waiting.await.is_ok_and(|place| place.was_made()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_gets_the_next_one_or_is_told_in_time() {
        let places = Places::new(1);
        let mut only = fill(&places, 1, 0..1);
        let call = only[0].0.active.enter_call();
        let other = client(2, 1);
        let waiting = places.wait(&other);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop((call, only.pop()));
        assert!(waiting.await.is_ok());
    }
}

//! The connections of a port by the address of their clients, and which idle one is closed to admit another.
//!
//! Two limits count with this table: [`crate::connection_limit`] for clients, and the admin port for its own. They differ
//! in what they call idle. [`crate::shares`] has a ledger of its own, because it counts amounts of calls or bytes, and
//! takes the newest from the client that has most, whether it is used or not.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use crate::map::Map;

/// The connections of one address, by their numbers. Newer connections have higher numbers.
pub type Connections<T> = BTreeMap<u64, T>;

/// Finds the idle connection that is closed first, if there is any.
pub type ChooseIdle<T> = fn(&Connections<T>) -> Option<u64>;

/// All connections of a port, each with what its owner notes of it.
///
/// IPv6 clients are counted by their network of 64 bits, as by `shares::network`.
#[derive(Debug)]
pub struct ConnectionTable<T> {
    addresses: Map<Option<IpAddr>, Connections<T>>,
    len: usize,
    choose_idle: ChooseIdle<T>,
}

impl<T> ConnectionTable<T> {
    /// A table without connections.
    pub fn new(choose_idle: ChooseIdle<T>) -> Self {
        Self { addresses: Map::default(), len: 0, choose_idle }
    }

    /// The number of connections of all addresses.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of connections of `address`.
    pub fn count(&self, address: Option<IpAddr>) -> usize {
        self.addresses.get(&address).map_or(0, BTreeMap::len)
    }

    /// The number of connections of the address that has the most.
    pub fn most(&self) -> usize {
        self.addresses.values().map(BTreeMap::len).max().unwrap_or(0)
    }

    /// Enters a connection. No two of one table may have the same `number`.
    pub fn insert(&mut self, address: Option<IpAddr>, number: u64, noted: T) {
        if self.addresses.entry(address).or_default().insert(number, noted).is_none() {
            self.len += 1;
        }
    }

    /// What is noted of a connection, unless it was removed or evicted.
    pub fn get_mut(&mut self, address: Option<IpAddr>, number: u64) -> Option<&mut T> {
        self.addresses.get_mut(&address)?.get_mut(&number)
    }

    /// Removes a connection, unless it was removed or evicted before.
    pub fn remove(&mut self, address: Option<IpAddr>, number: u64) -> Option<T> {
        let connections = self.addresses.get_mut(&address)?;
        let removed = connections.remove(&number)?;
        if connections.is_empty() {
            self.addresses.remove(&address);
        }
        self.len -= 1;
        Some(removed)
    }

    /// Removes an idle connection of `address`, which the caller must close.
    pub fn evict_one_of(&mut self, address: Option<IpAddr>) -> Option<T> {
        let number = (self.choose_idle)(self.addresses.get(&address)?)?;
        self.remove(address, number)
    }

    /// Removes an idle connection of the address that has the most, which the caller must close. Addresses with fewer
    /// than `least` connections keep theirs.
    pub fn evict_any(&mut self, least: usize) -> Option<T> {
        let counts = self.addresses.iter().map(|(address, all)| (all.len(), *address));
        let mut heavy: Vec<_> = counts.filter(|(count, _)| *count >= least).collect();
        heavy.sort_unstable_by_key(|(count, address)| (Reverse(*count), *address));
        heavy.into_iter().find_map(|(_, address)| self.evict_one_of(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some([127, 0, 0, last].into())
    }

    /// A table in which the connections that are noted as `true` are idle.
    fn table(connections: &[(u8, u64, bool)]) -> ConnectionTable<bool> {
        let choose_idle = |connections: &Connections<bool>| {
            connections.iter().find(|(_, idle)| **idle).map(|(number, _)| *number)
        };
        let mut table = ConnectionTable::new(choose_idle);
        for &(last, number, idle) in connections {
            table.insert(address(last), number, idle);
        }
        table
    }

    #[test]
    fn the_address_with_the_most_loses_one_if_it_has_an_idle_one() {
        let mut table =
            table(&[(1, 0, false), (1, 1, false), (1, 2, false), (2, 3, false), (2, 4, true)]);
        assert!(table.evict_any(3).is_none(), "the second address has fewer than three");
        assert!(table.evict_any(2).is_some());
        assert_eq!((table.len(), table.count(address(1)), table.count(address(2))), (4, 3, 1));
        assert!(table.evict_any(0).is_none(), "all others are in use");
    }

    #[test]
    fn what_is_gone_counts_once() {
        let mut table = table(&[(1, 0, true)]);
        assert!(table.evict_one_of(address(1)).is_some());
        assert!(table.remove(address(1), 0).is_none() && table.get_mut(address(1), 0).is_none());
        assert!(table.is_empty() && table.addresses.is_empty());
    }
}

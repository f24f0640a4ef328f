//! The connections of clients that have a name, by that name.
//!
//! A client is counted by its address when it connects, and by its name once it has shown that. Many machines may share
//! one name, and one machine may have clients of many names.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::identity::Identity;

/// The connections of each name: their numbers, and the addresses under which they are counted, too.
#[derive(Debug, Default)]
pub(super) struct Named(HashMap<Arc<Identity>, BTreeMap<u64, Option<IpAddr>>>);

impl Named {
    /// The number of connections of `name`.
    pub(super) fn count(&self, name: &Arc<Identity>) -> usize {
        self.0.get(name).map_or(0, BTreeMap::len)
    }

    /// Enters the connection `number` from `address`.
    pub(super) fn insert(&mut self, name: &Arc<Identity>, number: u64, address: Option<IpAddr>) {
        self.0.entry(Arc::clone(name)).or_default().insert(number, address);
    }

    /// Removes a connection, if it is there.
    pub(super) fn remove(&mut self, name: &Arc<Identity>, number: u64) {
        if let Some(connections) = self.0.get_mut(name) {
            connections.remove(&number);
            if connections.is_empty() {
                self.0.remove(name);
            }
        }
    }

    /// The first connection of `name`, from the oldest on, that is `idle`.
    pub(super) fn oldest(
        &self,
        name: &Arc<Identity>,
        mut idle: impl FnMut(Option<IpAddr>, u64) -> bool,
    ) -> Option<(Option<IpAddr>, u64)> {
        let connections = self.0.get(name)?.iter();
        let mut connections = connections.map(|(number, address)| (*address, *number));
        connections.find(|(address, number)| idle(*address, *number))
    }

    /// The name with the most connections, and how many it has.
    pub(super) fn heaviest(&self) -> Option<(Arc<Identity>, usize)> {
        let counts = self.0.iter().map(|(name, connections)| (name, connections.len()));
        let most = counts.max_by_key(|(_name, count)| *count);
        most.map(|(name, count)| (Arc::clone(name), count))
    }
}

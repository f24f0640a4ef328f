//! Who has how much: the book that [`super::Shares`] keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tokio::sync::oneshot;

use super::{LimitReached, Limits};
use crate::map::Map;

type Address = Option<IpAddr>;

/// How many times what is left one address may have of what nobody takes back.
const SPARE: u64 = 3;

/// Whose a share is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) address: Address,
    pub(super) connection: u64,
}

/// All shares, by holder and by weight.
#[derive(Debug)]
pub(super) struct Ledger {
    limits: Limits,
    used: u64,
    next: u64,
    addresses: Map<Address, AddressUse>,
    /// The same addresses, the heaviest last.
    by_weight: BTreeSet<(u64, Address)>,
}

#[derive(Debug, Default)]
struct AddressUse {
    used: u64,
    connections: Map<u64, ConnectionUse>,
    /// The same connections, the heaviest last.
    by_weight: BTreeSet<(u64, u64)>,
}

#[derive(Debug, Default)]
struct ConnectionUse {
    used: u64,
    shares: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    amount: u64,
    /// Dropped with the entry, which tells the holder that the share is gone.
    _kept: oneshot::Sender<()>,
}

impl Ledger {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, used: 0, next: 0, addresses: Map::default(), by_weight: BTreeSet::new() }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Enters a share of `amount`; its number.
    pub(super) fn take(
        &mut self,
        holder: Holder,
        amount: u64,
        kept: oneshot::Sender<()>,
    ) -> Result<u64, LimitReached> {
        self.make_room(holder, amount)?;
        Ok(self.enter(holder, amount, kept))
    }

    /// The same if it is free, and leaves enough for others.
    pub(super) fn take_spare(
        &mut self,
        holder: Holder,
        amount: u64,
        kept: oneshot::Sender<()>,
    ) -> Result<u64, LimitReached> {
        let (address, connection) = self.weights(holder);
        if connection.saturating_add(amount) > self.limits.connection {
            return Err(LimitReached::Connection);
        }
        let address = address.saturating_add(amount);
        let left = self.limits.total.saturating_sub(self.used).checked_sub(amount);
        let left = left.ok_or(LimitReached::Total)?;
        if address > self.limits.address.min(left.saturating_mul(SPARE)) {
            return Err(LimitReached::Address);
        }
        Ok(self.enter(holder, amount, kept))
    }

    fn enter(&mut self, holder: Holder, amount: u64, kept: oneshot::Sender<()>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.change(holder, |connection| {
            connection.shares.insert(id, Entry { amount, _kept: kept });
            connection.used += amount;
        });
        id
    }

    pub(super) fn grow(&mut self, holder: Holder, id: u64, more: u64) -> Result<(), LimitReached> {
        if !self.has(holder, id) {
            // Evicted: its holder is about to learn of it.
            return Err(LimitReached::Total);
        }
        self.make_room(holder, more)?;
        self.change(holder, |connection| {
            if let Some(entry) = connection.shares.get_mut(&id) {
                entry.amount += more;
                connection.used += more;
            }
        });
        Ok(())
    }

    pub(super) fn shrink(&mut self, holder: Holder, id: u64, less: u64) {
        self.change(holder, |connection| {
            if let Some(entry) = connection.shares.get_mut(&id) {
                let less = less.min(entry.amount);
                entry.amount -= less;
                connection.used -= less;
            }
        });
    }

    /// Removes a share; one that was evicted is gone already.
    pub(super) fn give_back(&mut self, holder: Holder, id: u64) {
        self.change(holder, |connection| {
            if let Some(entry) = connection.shares.remove(&id) {
                connection.used -= entry.amount;
            }
        });
    }

    fn has(&self, holder: Holder, id: u64) -> bool {
        let address = self.addresses.get(&holder.address);
        let connection = address.and_then(|address| address.connections.get(&holder.connection));
        connection.is_some_and(|connection| connection.shares.contains_key(&id))
    }

    /// What `holder`'s address and connection have.
    fn weights(&self, holder: Holder) -> (u64, u64) {
        self.addresses.get(&holder.address).map_or((0, 0), |address| {
            let connection = address.connections.get(&holder.connection);
            (address.used, connection.map_or(0, |connection| connection.used))
        })
    }

    /// Evicts from who is heavier than `holder` would be, until `amount` more is within all limits.
    fn make_room(&mut self, holder: Holder, amount: u64) -> Result<(), LimitReached> {
        let (address, connection) = self.weights(holder);
        if connection.saturating_add(amount) > self.limits.connection {
            return Err(LimitReached::Connection);
        }
        let lacking = address.saturating_add(amount).saturating_sub(self.limits.address);
        if lacking > 0 {
            self.evict_connections(holder, connection + amount, lacking)
                .ok_or(LimitReached::Address)?;
        }
        let lacking = self.used.saturating_add(amount).saturating_sub(self.limits.total);
        if lacking > 0 {
            let (address, _) = self.weights(holder);
            self.evict_addresses(holder, address + amount, lacking)
                .or_else(|| self.evict_connections(holder, connection + amount, lacking))
                .ok_or(LimitReached::Total)?;
        }
        Ok(())
    }

    /// Evicts `lacking` from other addresses that have more than `fair`; `None`, and nobody, if they
    /// have not so much more.
    fn evict_addresses(&mut self, holder: Holder, fair: u64, lacking: u64) -> Option<()> {
        let heavier = self.by_weight.iter().rev().take_while(|(weight, _)| *weight > fair);
        let above = heavier.filter(|(_, address)| *address != holder.address);
        if above.map(|(weight, _)| weight - fair).sum::<u64>() < lacking {
            return None;
        }
        let goal = self.used - lacking;
        while self.used > goal {
            let other = |(_, address): &&(u64, Address)| *address != holder.address;
            let &(_, address) = self.by_weight.iter().rev().find(other)?;
            let &(_, connection) = self.addresses.get(&address)?.by_weight.last()?;
            self.evict_last(Holder { address, connection });
        }
        Some(())
    }

    /// The same among the other connections of `holder`'s address.
    fn evict_connections(&mut self, holder: Holder, fair: u64, lacking: u64) -> Option<()> {
        let own = self.addresses.get(&holder.address)?;
        let heavier = own.by_weight.iter().rev().take_while(|(weight, _)| *weight > fair);
        let above = heavier.filter(|(_, connection)| *connection != holder.connection);
        if above.map(|(weight, _)| weight - fair).sum::<u64>() < lacking {
            return None;
        }
        let goal = self.used - lacking;
        while self.used > goal {
            let other = |(_, connection): &&(u64, u64)| *connection != holder.connection;
            let own = self.addresses.get(&holder.address)?;
            let &(_, connection) = own.by_weight.iter().rev().find(other)?;
            self.evict_last(Holder { connection, ..holder });
        }
        Some(())
    }

    /// Removes what `holder` took last.
    fn evict_last(&mut self, holder: Holder) {
        self.change(holder, |connection| {
            if let Some((_, entry)) = connection.shares.pop_last() {
                connection.used -= entry.amount;
            }
        });
    }

    /// Changes what one connection has, and the sums and orders with it.
    fn change(&mut self, holder: Holder, change: impl FnOnce(&mut ConnectionUse)) {
        let address = self.addresses.entry(holder.address).or_default();
        let connection = address.connections.entry(holder.connection).or_default();
        let before = (address.used, connection.used);
        change(connection);
        let after = (address.used - before.1 + connection.used, connection.used);
        self.used = self.used - before.1 + after.1;
        address.used = after.0;
        address.by_weight.remove(&(before.1, holder.connection));
        if connection.shares.is_empty() {
            address.connections.remove(&holder.connection);
        } else {
            address.by_weight.insert((after.1, holder.connection));
        }
        self.by_weight.remove(&(before.0, holder.address));
        if address.connections.is_empty() {
            self.addresses.remove(&holder.address);
        } else {
            self.by_weight.insert((after.0, holder.address));
        }
    }
}

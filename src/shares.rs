//! Limits that clients share: calls, connections, bytes.
//!
//! While some of it is free, every client gets what it asks for, up to what one connection and one address may have.
//! When it runs out, the heaviest client gives way to those that have less: first among addresses, then among the
//! connections of one address. So a client that takes all there is can keep nobody else out, and one
//! that is alone may use nearly all.

mod ledger;

use std::{net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use self::ledger::{Holder, Ledger};
use crate::client::Client;

/// How much there is, and how much of it one client may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All clients together.
    pub total: u64,
    /// All connections of one address; of IPv6, one network of 64 bits. Clients of a Unix socket are
    /// one address.
    pub address: u64,
    /// One connection.
    pub connection: u64,
}

/// Which limit a client has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// The limit of one connection.
    #[error("this connection has reached its limit")]
    Connection,
    /// The limit of one address, and no other connection of the address has more than this one.
    #[error("this client's address has reached its limit")]
    Address,
    /// The limit of all clients, and no other client has more than this one.
    #[error("the limit of all clients together is reached")]
    Total,
}

/// The share was taken from its holder, who must free what it was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a client that holds less got this share")]
pub struct Evicted;

/// A limit that clients share. Clones share it, too.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ledger: Mutex<Ledger>,
    freed: Notify,
}

impl Shares {
    /// Limits of which nothing is taken.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner { ledger: Mutex::new(Ledger::new(limits)), freed: Notify::new() }))
    }

    /// Takes `amount` for `client`, if necessary from a client that holds more.
    ///
    /// # Errors
    /// The limit that the client has reached.
    pub fn take(&self, client: &Client, amount: u64) -> Result<Share, LimitReached> {
        let holder = Holder { address: network(client.address), connection: client.connection };
        let (kept, evicted) = oneshot::channel();
        let id = self.0.ledger.lock().take(holder, amount, kept)?;
        Ok(Share { shares: self.clone(), holder, id, evicted })
    }

    /// Takes `amount` for `client` for as long as it likes, from nobody else.
    ///
    /// What cannot be taken back must not run out: one address gets no more than three times what it
    /// leaves. So one may have three quarters, two have three sevenths each, and whoever comes next
    /// always finds some.
    ///
    /// # Errors
    /// The limit that the client has reached.
    pub fn take_spare(&self, client: &Client, amount: u64) -> Result<Share, LimitReached> {
        let holder = Holder { address: network(client.address), connection: client.connection };
        let (kept, evicted) = oneshot::channel();
        let id = self.0.ledger.lock().take_spare(holder, amount, kept)?;
        Ok(Share { shares: self.clone(), holder, id, evicted })
    }

    /// The amount that all clients hold.
    pub fn used(&self) -> u64 {
        self.0.ledger.lock().used()
    }

    /// Waits until `amount` can be taken for `client`, if necessary from a client that holds more.
    pub async fn take_when_free(&self, client: &Client, amount: u64) -> Share {
        loop {
            // Created before the attempt, so that what is given back in between is noticed.
            let freed = self.0.freed.notified();
            if let Ok(share) = self.take(client, amount) {
                return share;
            }
            freed.await;
        }
    }
}

/// The amount that one holder has, until the share is dropped or evicted.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    holder: Holder,
    id: u64,
    /// Closes when a client that holds less got this share.
    evicted: oneshot::Receiver<()>,
}

impl Share {
    /// Takes `more` in addition, if necessary from a client that holds more.
    ///
    /// # Errors
    /// The limit that the client has reached. The share stays as large as it was.
    pub fn grow(&mut self, more: u64) -> Result<(), LimitReached> {
        self.shares.0.ledger.lock().grow(self.holder, self.id, more)
    }

    /// Waits until `more` can be taken in addition.
    ///
    /// # Errors
    /// A client that holds less got this share.
    pub async fn grow_when_free(&mut self, more: u64) -> Result<(), Evicted> {
        let shares = self.shares.clone();
        loop {
            // Created before the attempt, so that what is given back in between is noticed.
            let freed = shares.0.freed.notified();
            if self.grow(more).is_ok() {
                return Ok(());
            }
            tokio::select! {
                () = freed => {}
                () = self.evicted() => return Err(Evicted),
            }
        }
    }

    /// Gives `less` back.
    pub fn shrink(&mut self, less: u64) {
        self.shares.0.ledger.lock().shrink(self.holder, self.id, less);
        self.shares.0.freed.notify_waiters();
    }

    /// Completes when a client that holds less got this share. The holder must then free what the share is for.
    pub async fn evicted(&mut self) {
        // Nothing is ever sent: the other half is dropped.
        if !self.evicted.is_terminated() {
            let _ = (&mut self.evicted).await;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.0.ledger.lock().give_back(self.holder, self.id);
        self.shares.0.freed.notify_waiters();
    }
}

/// The address that limits count. For IPv6 it is the network of 64 bits, because a client can use any address in it.
pub(crate) fn network(address: Option<IpAddr>) -> Option<IpAddr> {
    address.map(|address| match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn client(address: u8, connection: u64) -> Client {
        let address = Some(IpAddr::from([127, 0, 0, address]));
        Client::new(connection, address)
    }

    fn shares(total: u64, address: u64, connection: u64) -> Shares {
        Shares::new(Limits { total, address, connection })
    }

    fn gone(share: &mut Share) -> bool {
        share.evicted().now_or_never().is_some()
    }

    #[test]
    fn what_is_given_back_is_free_again() {
        let shares = shares(2, 2, 2);
        let first = shares.take(&client(1, 1), 2).expect("free");
        assert_eq!(shares.take(&client(1, 1), 1).err(), Some(LimitReached::Connection));
        drop(first);
        assert_eq!(shares.used(), 0);
        assert!(shares.take(&client(1, 1), 2).is_ok());
    }

    #[test]
    fn what_nobody_takes_back_never_runs_out() {
        let shares = shares(100, 100, 100);
        let mut held = Vec::new();
        let mut counts = Vec::new();
        for address in 1..=4 {
            let take = || shares.take_spare(&client(address, address.into()), 1);
            let before = held.len();
            while let Ok(share) = take() {
                held.push(share);
            }
            assert_eq!(take().err(), Some(LimitReached::Address));
            counts.push(held.len() - before);
        }
        assert_eq!(counts[0], 75, "one alone may have three quarters");
        assert!(counts[1..].iter().all(|count| *count > 0), "{counts:?}");
        assert!(held.iter_mut().all(|share| !gone(share)), "nobody gives way");
    }

    #[test]
    fn one_connection_and_one_address_have_their_limits() {
        let shares = shares(100, 5, 3);
        let _first = shares.take(&client(1, 1), 3).expect("free");
        assert_eq!(shares.take(&client(1, 1), 1).err(), Some(LimitReached::Connection));
        let _second = shares.take(&client(1, 2), 2).expect("free");
        assert_eq!(shares.take(&client(1, 2), 1).err(), Some(LimitReached::Address));
        assert!(shares.take(&client(2, 3), 3).is_ok());
    }

    #[test]
    fn when_all_is_taken_the_heaviest_gives_way() {
        let shares = shares(10, 10, 10);
        let mut greedy: Vec<_> =
            (0..10).map(|_| shares.take(&client(1, 1), 1).expect("free")).collect();
        let _modest = shares.take(&client(2, 2), 3).expect("from the heavy one");
        assert_eq!(shares.used(), 10);
        assert_eq!(greedy.iter_mut().map(gone).filter(|gone| *gone).count(), 3);
        assert!(gone(&mut greedy[9]), "what it took last goes first");
        assert_eq!(shares.take(&client(1, 1), 1).err(), Some(LimitReached::Total));
    }

    #[test]
    fn connections_of_one_address_are_told_apart() {
        let shares = shares(10, 10, 10);
        let mut greedy: Vec<_> =
            (0..10).map(|_| shares.take(&client(1, 1), 1).expect("free")).collect();
        let mut modest = shares.take(&client(1, 2), 4).expect("from the heavy one");
        assert!(
            !gone(&mut modest) && greedy.iter_mut().map(gone).filter(|gone| *gone).count() == 4
        );
    }

    #[test]
    fn growth_evicts_others_but_never_itself() {
        let shares = shares(10, 10, 10);
        let mut small = shares.take(&client(1, 1), 1).expect("free");
        let mut large = shares.take(&client(2, 2), 9).expect("free");
        assert_eq!(large.grow(1).err(), Some(LimitReached::Total));
        assert!(!gone(&mut large));
        small.grow(3).expect("from the heavy one");
        assert!(gone(&mut large) && !gone(&mut small));
        assert_eq!(shares.used(), 4);
        small.shrink(2);
        assert_eq!(shares.used(), 2);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let at = |text: &str| network(Some(text.parse().expect("an address")));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:2"));
        assert_ne!(at("2001:db8:0:1::1"), at("2001:db8:0:2::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
    }

    proptest! {
        /// Whatever comes in which order: the sums are those of the shares that live, no limit is
        /// passed, and a client that has nothing gets one as long as somebody has two.
        #[test]
        fn limits_hold_and_nobody_is_kept_out(
            steps in prop::collection::vec((1..4_u8, 0..6_u64, 1..5_u64, any::<bool>()), 1..200)
        ) {
            let shares = shares(12, 9, 6);
            let mut held: Vec<(u8, u64, u64, Share)> = Vec::new();
            for (address, connection, amount, takes) in steps {
                let connection = u64::from(address) * 10 + connection;
                if takes {
                    if let Ok(share) = shares.take(&client(address, connection), amount) {
                        held.push((address, connection, amount, share));
                    }
                } else if !held.is_empty() {
                    held.swap_remove(usize::try_from(amount).expect("small") % held.len());
                }
                held.retain_mut(|(.., share)| !gone(share));
                let sum = |of: &dyn Fn(u8, u64) -> bool| -> u64 {
                    held.iter().filter(|(a, c, ..)| of(*a, *c)).map(|(_, _, amount, _)| amount).sum()
                };
                prop_assert_eq!(shares.used(), sum(&|_, _| true));
                prop_assert!(shares.used() <= 12);
                for address in 1..4 {
                    prop_assert!(sum(&|a, _| a == address) <= 9);
                }
                for (_, connection, ..) in &held {
                    prop_assert!(sum(&|_, c| c == *connection) <= 6);
                }
            }
            let heavy = (1..4_u8).any(|address| {
                held.iter().filter(|(a, ..)| *a == address).map(|(_, _, n, _)| n).sum::<u64>() > 1
            });
            if heavy || shares.used() < 12 {
                prop_assert!(shares.take(&client(9, 99), 1).is_ok());
            }
        }
    }
}

//! What merged answers hold in memory while their clients do not read them: an account in bytes, which
//! clients share.

use std::{collections::VecDeque, time::Duration};

use tokio::time::timeout;

use crate::{
    client::Client,
    shares::{Limits, Share, Shares},
};

/// Memory for messages of daemons that wait for their clients. One client may have half of it, and one of
/// its connections a quarter: four of the largest messages.
const LIMITS: Limits = Limits { total: 256 << 20, address: 128 << 20, connection: 64 << 20 };

/// How long an answer waits for room. What others hold moves on within milliseconds, unless they do not
/// read.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages that have been handed on and may still be in memory: one between merging and sending, one in
/// the HTTP/2 library.
const ON_THEIR_WAY: usize = 2;

/// No room came in time, or a client that holds less got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client does not read its answers, and others need the memory")]
pub struct NoRoom;

/// The account. Clones share it.
#[derive(Debug, Clone)]
pub struct Account(Shares);

impl Default for Account {
    fn default() -> Self {
        Self(Shares::new(LIMITS))
    }
}

impl Account {
    /// Nothing yet, for `client`.
    pub fn open(&self, client: &Client) -> Held {
        Held {
            shares: self.0.clone(),
            client: client.clone(),
            share: None,
            current: 0,
            handed_on: VecDeque::new(),
        }
    }
}

/// What one daemon's reply holds, until dropped.
#[derive(Debug)]
pub struct Held {
    shares: Shares,
    client: Client,
    share: Option<Share>,
    /// Length of the message that is coming or has come; none is 0.
    current: usize,
    /// Lengths of the last ones that were handed on.
    handed_on: VecDeque<usize>,
}

impl Held {
    /// Makes sure that a message of `len` bytes is on the account; waits a while for room.
    ///
    /// # Errors
    /// There is none, and no client holds more than this one.
    pub async fn hold(&mut self, len: usize) -> Result<(), NoRoom> {
        if self.current > 0 {
            return Ok(());
        }
        timeout(ROOM_TIMEOUT, self.wait_for(len as u64)).await.unwrap_or(Err(NoRoom))?;
        self.current = len;
        Ok(())
    }

    async fn wait_for(&mut self, more: u64) -> Result<(), NoRoom> {
        loop {
            let shares = self.shares.clone();
            // Asked for before the try, so that what is given back in between counts.
            let freed = shares.freed();
            let got = match &mut self.share {
                Some(share) => share.grow(more),
                None => shares.take(&self.client, more).map(|share| self.share = Some(share)),
            };
            if got.is_ok() {
                return Ok(());
            }
            tokio::select! {
                () = freed => {}
                () = self.evicted() => return Err(NoRoom),
            }
        }
    }

    /// Notes that the message has been handed on.
    pub fn hand_on(&mut self) {
        self.handed_on.push_back(std::mem::take(&mut self.current));
        if self.handed_on.len() > ON_THEIR_WAY
            && let (Some(len), Some(share)) = (self.handed_on.pop_front(), &mut self.share)
        {
            share.shrink(len as u64);
        }
    }

    /// Completes when a client that holds less got this memory.
    pub async fn evicted(&mut self) {
        match &mut self.share {
            Some(share) => share.evicted().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> Client {
        let address = Some([127, 0, 0, number].into());
        Client { connection: number.into(), address, active: std::sync::Arc::default() }
    }

    fn account(total: u64) -> Account {
        Account(Shares::new(Limits { total, address: total, connection: total }))
    }

    #[tokio::test(start_paused = true)]
    async fn two_messages_on_their_way_still_count() {
        let account = account(100);
        let mut held = account.open(&client(1));
        for expected in [10, 20, 30, 30, 30] {
            held.hold(10).await.expect("room");
            held.hold(10).await.expect("the same message");
            assert_eq!(account.0.used(), expected);
            held.hand_on();
        }
        drop(held);
        assert_eq!(account.0.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_most_gives_way_and_waits_only_a_while() {
        let account = account(100);
        let mut heavy = account.open(&client(1));
        heavy.hold(90).await.expect("room");
        let mut more = account.open(&client(1));
        assert_eq!(more.hold(20).await, Err(NoRoom));
        let mut light = account.open(&client(2));
        light.hold(20).await.expect("from the heavy one");
        heavy.evicted().await;
    }
}

//! The memory that one daemon's reply to a merged call holds on the account as long as the client does not read it.

use std::collections::VecDeque;

use crate::account::Charge;

/// How many messages that were handed on may still be in memory: one between merging and sending, and one in the HTTP/2
/// library.
const ON_THEIR_WAY: usize = 2;

/// No memory became free in time, or a client that holds less got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client does not read its answers, and others need the memory")]
pub(super) struct OutOfMemory;

/// The memory that one daemon's reply holds, until this is dropped.
#[derive(Debug)]
pub(super) struct ReplyCharge {
    charge: Charge,
    /// The length of the message that is arriving or has arrived; 0 if there is none.
    current: usize,
    /// The lengths of the last messages that were handed on.
    handed_on: VecDeque<usize>,
}

impl ReplyCharge {
    /// Holds nothing yet. `charge` is the account of the client.
    pub(super) fn new(charge: Charge) -> Self {
        Self { charge, current: 0, handed_on: VecDeque::new() }
    }

    /// Makes sure that a message of `len` bytes is on the account. Waits a short time for free memory.
    ///
    /// # Errors
    /// There is no free memory, and no client holds more than this one.
    pub(super) async fn hold(&mut self, len: usize) -> Result<(), OutOfMemory> {
        if self.current > 0 {
            return Ok(());
        }
        self.charge.add_in_time(len).await.map_err(|_full| OutOfMemory)?;
        self.current = len;
        Ok(())
    }

    /// Notes that the message has been handed on.
    pub(super) fn hand_on(&mut self) {
        self.handed_on.push_back(std::mem::take(&mut self.current));
        if self.handed_on.len() > ON_THEIR_WAY
            && let Some(len) = self.handed_on.pop_front()
        {
            self.charge.give_back(len);
        }
    }

    /// Completes when a client that holds less got this memory.
    pub(super) async fn evicted(&mut self) {
        self.charge.evicted().await;
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;
    use crate::{account::Account, client::Client};

    fn client(number: u8) -> Client {
        let address = Some([127, 0, 0, number].into());
        Client::new(number.into(), address)
    }

    #[tokio::test(start_paused = true)]
    async fn two_messages_on_their_way_still_count() {
        let gauge = Gauge::default();
        let mut held = ReplyCharge::new(Account::new(100, gauge.clone()).open(&client(1)));
        for expected in [10, 20, 30, 30, 30] {
            held.hold(10).await.expect("room");
            held.hold(10).await.expect("the same message");
            assert_eq!(gauge.get(), expected);
            held.hand_on();
        }
        drop(held);
        assert_eq!(gauge.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_most_gives_way_and_waits_only_a_while() {
        let account = Account::new(100, Gauge::default());
        let mut heavy = ReplyCharge::new(account.open(&client(1)));
        heavy.hold(90).await.expect("room");
        let mut more = ReplyCharge::new(account.open(&client(1)));
        assert_eq!(more.hold(20).await, Err(OutOfMemory));
        let mut light = ReplyCharge::new(account.open(&client(2)));
        light.hold(20).await.expect("from the heavy one");
        heavy.evicted().await;
    }
}

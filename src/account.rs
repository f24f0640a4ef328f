//! The account of the memory, in bytes, that holds data of clients before it is sent on: metadata, first messages, data
//! of calls that wait for their build, and answers of a whole fleet.
//!
//! Bytes are charged when they have arrived, never when they are announced. If the account is full, the client that
//! holds most loses memory to the others. If that client itself needs more, it waits: its streams are not read
//! meanwhile, which costs other clients nothing.

mod limit;

use std::time::Duration;

use http::HeaderMap;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

pub use self::limit::default_budget;
use crate::{
    client::Client,
    error::ProxyError,
    shares::{Limits, Share, Shares},
};

/// How long the client that holds most of a full account waits for memory. Held data is sent on within milliseconds,
/// unless a daemon is silent or a client is slow.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// The most calls that wait for memory at once; further calls are refused. The HTTP/2 library may hold a stream's window
/// of each waiting call, which is not charged.
static WAITING: Semaphore = Semaphore::const_new(32);

/// The memory of one header beside its name and value: its entries in the map, and two handles.
const HEADER_LEN: usize = 128;

/// Metadata below this size is not charged, because the library holds as much for every stream. The metadata of a
/// Session, with its fourteen methods, has 5 KiB.
const UNCHARGED_METADATA_LEN: usize = 8 << 10;

/// The memory of a call's metadata, if it is more than usual.
pub fn metadata_len(headers: &HeaderMap) -> Option<usize> {
    let texts: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let len = texts + headers.len() * HEADER_LEN;
    (len > UNCHARGED_METADATA_LEN).then_some(len)
}

/// The account of the process. Clones share it.
#[derive(Debug, Clone)]
pub struct Account {
    shares: Shares,
    held: Gauge,
}

impl Account {
    /// An account of `budget` bytes. The gauge `held` shows how many are taken.
    pub fn new(budget: u64, held: Gauge) -> Self {
        // One client may take the whole account, because all clients behind an HTTP/2 hop are one connection.
        let limits = Limits { total: budget, address: budget, connection: budget };
        Self { shares: Shares::new(limits), held }
    }

    /// An empty charge for `client`.
    pub fn open(&self, client: &Client) -> Charge {
        Charge { account: self.clone(), client: client.clone(), share: None, amount: 0 }
    }
}

/// The bytes that one call has taken from the account. They are given back on drop.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    client: Client,
    share: Option<Share>,
    amount: u64,
}

impl Charge {
    /// Takes `more` bytes, if necessary from a client that holds more.
    ///
    /// # Errors
    /// The account is full, and no client holds more than this one.
    pub fn add(&mut self, more: usize) -> Result<(), ProxyError> {
        let more = more as u64;
        let added = match &mut self.share {
            Some(share) => share.grow(more),
            None => self.account.shares.take(&self.client, more).map(|share| {
                self.share = Some(share);
            }),
        };
        added.map_err(|_over| ProxyError::Memory)?;
        self.note(more);
        Ok(())
    }

    fn note(&mut self, more: u64) {
        self.amount += more;
        self.account.held.inc_by(i64::try_from(more).unwrap_or(i64::MAX));
    }

    /// Like [`Self::add`], but waits up to 5 s for memory.
    ///
    /// # Errors
    /// No memory was free in time, too many calls wait already, or another client got the bytes of this call.
    pub async fn add_soon(&mut self, more: usize) -> Result<(), ProxyError> {
        if self.add(more).is_ok() {
            return Ok(());
        }
        let Ok(_waiting) = WAITING.try_acquire() else {
            return Err(ProxyError::Memory);
        };
        self.add_in_time(more).await
    }

    /// Like [`Self::add_soon`], but without a limit of waiting calls: for data of daemons, which hold it meanwhile.
    ///
    /// # Errors
    /// No memory was free in time, or another client got the bytes of this call.
    pub async fn add_in_time(&mut self, more: usize) -> Result<(), ProxyError> {
        let added = tokio::time::timeout(ROOM_TIMEOUT, self.add_when_free(more)).await;
        added.unwrap_or(Err(ProxyError::Memory))
    }

    async fn add_when_free(&mut self, more: usize) -> Result<(), ProxyError> {
        let more = more as u64;
        match &mut self.share {
            Some(share) => {
                share.grow_when_free(more).await.map_err(|_evicted| ProxyError::Memory)?;
            }
            None => {
                let share = self.account.shares.take_when_free(&self.client, more).await;
                self.share = Some(share);
            }
        }
        self.note(more);
        Ok(())
    }

    /// Gives `less` bytes back.
    pub fn give_back(&mut self, less: usize) {
        let less = (less as u64).min(self.amount);
        if let Some(share) = &mut self.share {
            share.shrink(less);
            self.amount -= less;
            self.account.held.dec_by(i64::try_from(less).unwrap_or(i64::MAX));
        }
    }

    /// Whether anything has been charged.
    pub fn is_used(&self) -> bool {
        self.share.is_some()
    }

    /// Completes when another client got the bytes of this call. The caller must then free the memory.
    pub async fn evicted(&mut self) {
        match &mut self.share {
            Some(share) => share.evicted().await,
            None => std::future::pending().await,
        }
    }

    /// Runs `work`, and gives up when another client gets the bytes of this call. The caller pins `work`: an async
    /// function that is given a future keeps room for it twice.
    ///
    /// # Errors
    /// Another client got the bytes.
    pub async fn during<T>(
        &mut self,
        work: impl Future<Output = T> + Unpin,
    ) -> Result<T, ProxyError> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.evicted() => Err(ProxyError::Memory),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.held.dec_by(i64::try_from(self.amount).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(connection: u64) -> Client {
        let address = Some([127, 0, 0, u8::try_from(connection).expect("small")].into());
        Client::new(connection, address)
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_most_waits_and_gives_way() {
        let held = Gauge::default();
        let account = Account::new(100, held.clone());
        let mut heavy = account.open(&client(1));
        heavy.add(60).expect("free");
        heavy.add(40).expect("free");
        assert!(matches!(heavy.add_soon(1).await, Err(ProxyError::Memory)));
        let mut light = account.open(&client(2));
        light.add(10).expect("from the heavy one");
        assert!(matches!(
            heavy.during(std::future::pending::<()>()).await,
            Err(ProxyError::Memory)
        ));
        assert_eq!(held.get(), 110, "what is still there counts");
        drop(heavy);
        assert_eq!(held.get(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn room_that_comes_in_time_is_taken() {
        let account = Account::new(100, Gauge::default());
        let mut first = account.open(&client(1));
        first.add(100).expect("free");
        let mut second = account.open(&client(1));
        let give_back = async {
            tokio::time::sleep(ROOM_TIMEOUT / 2).await;
            drop(first);
        };
        let (added, ()) = tokio::join!(second.add_soon(50), give_back);
        added.expect("room in time");
    }
}

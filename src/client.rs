//! The client of a call: its connection, its address, its identity, and the calls that are open on the connection.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::identity::Identity;

/// The client that sent a call.
#[derive(Debug, Clone)]
pub struct Client {
    /// The number of the client's connection, unique in this process.
    pub connection: u64,
    /// The address of the client. `None` if it came through a Unix socket.
    pub address: Option<IpAddr>,
    /// The identity of the client. `None` if it has not shown any.
    pub identity: Option<Arc<Identity>>,
    /// Whether the connection speaks TLS.
    pub secured: bool,
    /// The calls that are open on the connection.
    pub active: Arc<ActiveStreams>,
}

impl Client {
    /// A client without identity, without TLS and without calls.
    pub fn new(connection: u64, address: Option<IpAddr>) -> Self {
        Self { connection, address, identity: None, secured: false, active: Arc::default() }
    }

    /// The owner of what this client uses: its identity if it has one, else its address.
    pub fn owner(&self) -> Owner {
        match (&self.identity, self.address) {
            (Some(identity), _) => Owner::Identity(Arc::clone(identity)),
            (None, Some(address)) => Owner::Address(address),
            (None, None) => Owner::Local,
        }
    }
}

/// How many slots a client gets for each slot of a client of weight 1, while both wait for slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(u8);

impl Weight {
    /// The weight of a client for which no rule says otherwise.
    pub const ONE: Self = Self(1);

    /// The largest weight: with more, other clients would hardly get a turn.
    pub const MAX: u8 = 100;

    /// The weight `number`, if it is from 1 to [`Self::MAX`].
    pub fn new(number: i64) -> Option<Self> {
        let number = u8::try_from(number).ok();
        number.filter(|number| (1..=Self::MAX).contains(number)).map(Self)
    }

    /// The weight as a number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The party that a limit is shared between: all clients with one identity or, of clients without identity, all at
/// one address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// All clients with this identity.
    Identity(Arc<Identity>),
    /// All clients without identity at this address.
    Address(IpAddr),
    /// All clients without identity that come through a Unix socket.
    Local,
}

/// Counts the open calls of one client connection.
///
/// While a Solve or Session is open, a drain leaves the connection open for later calls of the same build. While
/// any call is open, the connection is not closed to admit another client.
#[derive(Debug, Default)]
pub struct ActiveStreams {
    /// Open Solve and Session calls.
    builds: AtomicUsize,
    /// Open calls of any kind.
    calls: AtomicUsize,
    /// Notified when either count reaches zero.
    ended: Notify,
    dismissed: Notify,
    /// Whether the client gave up a Solve before any of its message came.
    withdrew_solve: AtomicBool,
    withdrawn: Notify,
}

impl ActiveStreams {
    /// Counts a Solve or Session as long as the returned guard lives.
    pub fn enter(self: &Arc<Self>) -> ActiveStream {
        self.builds.fetch_add(1, Ordering::Relaxed);
        ActiveStream(Arc::clone(self))
    }

    /// Counts a call of any kind as long as the returned guard lives.
    pub fn enter_call(self: &Arc<Self>) -> ActiveCall {
        self.calls.fetch_add(1, Ordering::Relaxed);
        ActiveCall(Arc::clone(self))
    }

    /// Whether no Solve and no Session is open.
    pub fn is_idle(&self) -> bool {
        self.builds.load(Ordering::Relaxed) == 0
    }

    /// Waits until the last Solve or Session ends.
    pub async fn idle(&self) {
        while !self.is_idle() {
            self.ended.notified().await;
        }
    }

    /// Whether no call of any kind is open.
    pub fn is_silent(&self) -> bool {
        self.calls.load(Ordering::Relaxed) == 0
    }

    /// Waits until the last call of any kind ends.
    pub async fn silent(&self) {
        while !self.is_silent() {
            self.ended.notified().await;
        }
    }

    /// Notes that the client gave up a Solve before any of its message came, as a client does that finds the
    /// message too large to send. The proxy cannot know which build the Solve was of.
    pub fn withdraw_solve(&self) {
        self.withdrew_solve.store(true, Ordering::Release);
        self.withdrawn.notify_waiters();
    }

    /// Waits until a Solve is given up on this connection. Completes at once if one was given up before.
    pub async fn solve_withdrawn(&self) {
        let withdrawn = self.withdrawn.notified();
        if !self.withdrew_solve.load(Ordering::Acquire) {
            withdrawn.await;
        }
    }

    /// Asks the connection to close. The waiter of [`Self::dismissed`] does so.
    pub fn dismiss(&self) {
        self.dismissed.notify_one();
    }

    /// Waits until the connection is asked to close.
    pub async fn dismissed(&self) {
        self.dismissed.notified().await;
    }
}

/// Counts one open Solve or Session until dropped.
#[derive(Debug)]
pub struct ActiveStream(Arc<ActiveStreams>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        if self.0.builds.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.ended.notify_one();
        }
    }
}

/// Counts one open call until dropped.
#[derive(Debug)]
pub struct ActiveCall(Arc<ActiveStreams>);

impl Drop for ActiveCall {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.ended.notify_one();
        }
    }
}

//! Who calls: the connection a stream came on, its address, and what runs on that connection.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::identity::Identity;

/// The client that a stream came from.
#[derive(Debug, Clone)]
pub struct Client {
    /// Number of the downstream connection, unique in this process.
    pub connection: u64,
    /// Its address, unless it came through a Unix socket.
    pub address: Option<IpAddr>,
    /// Who it is, if it has shown that.
    pub identity: Option<Arc<Identity>>,
    /// The builds and sessions that run on that connection.
    pub active: Arc<ActiveStreams>,
}

impl Client {
    /// A client on the connection `connection` that has not shown who it is, and runs nothing yet.
    pub fn new(connection: u64, address: Option<IpAddr>) -> Self {
        Self { connection, address, identity: None, active: Arc::default() }
    }

    /// For whom what it uses is counted: who it is, else where it comes from.
    pub fn owner(&self) -> Owner {
        match (&self.identity, self.address) {
            (Some(identity), _) => Owner::Identity(Arc::clone(identity)),
            (None, Some(address)) => Owner::Address(address),
            (None, None) => Owner::Local,
        }
    }
}

/// Somebody who has a share of what there is: all clients with one name, or, of those without, all from
/// one address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// By name.
    Identity(Arc<Identity>),
    /// By address.
    Address(IpAddr),
    /// Through a Unix socket.
    Local,
}

/// The streams of one downstream connection. While there are Solves and Sessions, a drain must leave it
/// open for the later calls of their builds; while there is any, it makes no place for others.
#[derive(Debug, Default)]
pub struct ActiveStreams {
    /// Solves and Sessions.
    builds: AtomicUsize,
    /// Calls of any kind.
    calls: AtomicUsize,
    /// Told when there are no more of either.
    ended: Notify,
    dismissed: Notify,
    /// A Solve was opened here and given up before any of it came.
    withdrew_solve: AtomicBool,
    withdrawn: Notify,
}

impl ActiveStreams {
    /// Counts one Solve or Session while the guard lives.
    pub fn enter(self: &Arc<Self>) -> ActiveStream {
        self.builds.fetch_add(1, Ordering::Relaxed);
        ActiveStream(Arc::clone(self))
    }

    /// Counts one call of any kind while the guard lives.
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

    /// Whether no call at all is open.
    pub fn is_silent(&self) -> bool {
        self.calls.load(Ordering::Relaxed) == 0
    }

    /// Waits until the last call ends.
    pub async fn silent(&self) {
        while !self.is_silent() {
            self.ended.notified().await;
        }
    }

    /// Notes that the client has given a Solve up before any of it came, as one does that finds it too
    /// large to send. Nobody knows of which build it was.
    pub fn withdraw_solve(&self) {
        self.withdrew_solve.store(true, Ordering::Release);
        self.withdrawn.notify_waiters();
    }

    /// Waits until a Solve has been given up on this connection, now or before.
    pub async fn solve_withdrawn(&self) {
        let withdrawn = self.withdrawn.notified();
        if !self.withdrew_solve.load(Ordering::Acquire) {
            withdrawn.await;
        }
    }

    /// Asks the connection to close.
    pub fn dismiss(&self) {
        self.dismissed.notify_one();
    }

    /// Waits until the connection is asked to close.
    pub async fn dismissed(&self) {
        self.dismissed.notified().await;
    }
}

/// One open Solve or Session stream.
#[derive(Debug)]
pub struct ActiveStream(Arc<ActiveStreams>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        if self.0.builds.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.ended.notify_one();
        }
    }
}

/// One open call.
#[derive(Debug)]
pub struct ActiveCall(Arc<ActiveStreams>);

impl Drop for ActiveCall {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.ended.notify_one();
        }
    }
}

//! Where a stream came from, and what its connection carries.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

/// Where a stream came from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Number of the downstream connection, unique in this process.
    pub connection: u64,
    /// Address of the client, unless it came through a Unix socket.
    pub client: Option<IpAddr>,
    /// What runs on that connection.
    pub load: Arc<ConnectionLoad>,
    /// When the stream arrived.
    pub arrived: Instant,
}

/// The Solve and Session streams of one downstream connection: while there are any, a drain must
/// leave it open for the later calls of their builds.
#[derive(Debug, Default)]
pub struct ConnectionLoad {
    open: AtomicUsize,
    idle: Notify,
}

impl ConnectionLoad {
    /// Counts one stream while the guard lives.
    pub fn enter(self: &Arc<Self>) -> LoadGuard {
        self.open.fetch_add(1, Ordering::Relaxed);
        LoadGuard(Arc::clone(self))
    }

    /// Whether no Solve and no Session is open.
    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Waits until the last one ends.
    pub async fn idle(&self) {
        while !self.is_idle() {
            self.idle.notified().await;
        }
    }
}

/// One open Solve or Session stream.
#[derive(Debug)]
pub struct LoadGuard(Arc<ConnectionLoad>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.idle.notify_one();
        }
    }
}

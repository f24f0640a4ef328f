//! Who calls: the connection a stream came on, its address, and what runs on that connection.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

/// The client that a stream came from.
#[derive(Debug, Clone)]
pub struct Client {
    /// Number of the downstream connection, unique in this process.
    pub connection: u64,
    /// Its address, unless it came through a Unix socket.
    pub address: Option<IpAddr>,
    /// The builds and sessions that run on that connection.
    pub active: Arc<ActiveStreams>,
}

/// The Solve and Session streams of one downstream connection: while there are any, a drain must
/// leave it open for the later calls of their builds.
#[derive(Debug, Default)]
pub struct ActiveStreams {
    open: AtomicUsize,
    idle: Notify,
}

impl ActiveStreams {
    /// Counts one stream while the guard lives.
    pub fn enter(self: &Arc<Self>) -> ActiveStream {
        self.open.fetch_add(1, Ordering::Relaxed);
        ActiveStream(Arc::clone(self))
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
pub struct ActiveStream(Arc<ActiveStreams>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.idle.notify_one();
        }
    }
}

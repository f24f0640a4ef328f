//! Builds that wait for their turn: for a backend that takes builds.
//!
//! Nothing of such a build has been sent to a daemon, so it can wait as long as its client does.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant, SystemTime},
};

use tokio::time::timeout_at;

use super::{Placement, Wish, tries::Opened};
use crate::{
    client::Client,
    directory::{Cause, Claim, Told, Waiting, publish},
    error::ProxyError,
};

/// How long a build waits: a node that a cluster adds is there in a few minutes, and its image pulled.
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(300);

/// How builds wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How long one waits at most; not at all if zero.
    pub max_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_wait: DEFAULT_MAX_WAIT }
    }
}

/// Those that wait in one pool.
#[derive(Debug, Default)]
pub(super) struct Queue {
    config: Config,
    waiting: AtomicUsize,
}

/// A place in the queue.
#[derive(Debug)]
struct Place<'a>(&'a Queue);

impl Queue {
    pub(super) fn new(config: Config) -> Self {
        Self { config, ..Self::default() }
    }

    fn enter(&self) -> Place<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Place(self)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a build that waits says so.
#[derive(Debug)]
pub(super) struct Tell<'a> {
    pub(super) wish: &'a Wish,
    pub(super) claim: &'a Claim,
    pub(super) told: &'a Told,
}

impl Placement {
    /// Opens a link for a build; waits until there is a backend that takes builds.
    ///
    /// # Errors
    /// No backend could be reached, or none was there in time.
    pub(super) async fn open_in_turn(
        &self,
        tell: &Tell<'_>,
        client: &Client,
        mut deadline: Instant,
    ) -> Result<Opened, ProxyError> {
        let (began, max_wait) = (Instant::now(), self.queue.config.max_wait);
        let mut place = None;
        loop {
            let was_ready = self.fleet.is_ready();
            if !was_ready && !max_wait.is_zero() && place.is_none() {
                place = Some(self.queue.enter());
                self.tell(tell, SystemTime::now());
            }
            let avoid = self.directory.backends(&tell.wish.ties.apart);
            let error = match self.open(self.tries(tell.wish, avoid, client, deadline)).await {
                Err(error @ ProxyError::NoBackend(_)) if !max_wait.is_zero() => error,
                done => return done,
            };
            if was_ready && self.fleet.is_ready() {
                // It did not fail for want of a backend.
                return Err(error);
            }
            if timeout_at((began + max_wait).into(), self.fleet.ready()).await.is_err() {
                let waited = max_wait;
                return Err(ProxyError::WaitedOut { waited, cause: error.to_string() });
            }
            deadline = Self::deadline();
        }
    }

    fn tell(&self, Tell { wish, claim, told }: &Tell<'_>, since: SystemTime) {
        let total = self.queue.waiting.load(Ordering::Relaxed);
        let waiting = Waiting { since, position: total, total, cause: Cause::NoBackend };
        publish(told, Some(&waiting));
        publish(claim.told(), Some(&waiting));
        // They do not know yet that it waits.
        self.directory.look_again(&wish.ties.own);
    }
}

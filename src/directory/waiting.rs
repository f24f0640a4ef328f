//! What a Solve that waits for its turn is told, and what it tells the calls that wait for it.

use std::{fmt, time::SystemTime};

use tokio::sync::watch;

use super::{Caller, Directory, Step};
use crate::ids::BindingKey;

/// Where a Solve that waits for its turn stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// When its wait began.
    pub since: SystemTime,
    /// 1 if it is next.
    pub position: usize,
    /// Builds that wait in its pool, itself included.
    pub total: usize,
    /// What it waits for.
    pub cause: Cause,
}

/// What a Solve waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A backend that takes builds.
    NoBackend,
    /// A free slot.
    Busy {
        /// Slots that are taken.
        taken: u64,
        /// All slots of the backends that take builds.
        slots: u64,
    },
}

impl Cause {
    /// A word for logs and the status page.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::Busy { .. } => "busy",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBackend => f.write_str("no backend is ready"),
            Self::Busy { taken, slots } => write!(f, "{taken} of {slots} slots are taken"),
        }
    }
}

/// Publishes what a Solve waits for; `None` while it does not wait. A Solve that was granted its turn may
/// wait again, if its backend does not accept.
pub type Told = watch::Sender<Option<Waiting>>;

impl Directory {
    /// Waits until the Solve that a call of `caller` with `key` belongs to waits for its turn, which
    /// may never be. What it waits for is published until it is placed, refused or gone; then the channel
    /// closes.
    pub async fn queued(
        &self,
        key: &BindingKey,
        caller: Caller,
    ) -> watch::Receiver<Option<Waiting>> {
        loop {
            match self.step(key, caller, false) {
                Step::Known(_) => std::future::pending().await,
                Step::Placing(mut placing) => {
                    if placing.wait_for(Option::is_some).await.is_ok() {
                        return placing;
                    }
                }
                // It may yet come: whoever is parked is told.
                Step::Early(mut parked) | Step::Parked(mut parked) => {
                    let _ = (&mut parked.outcome).await;
                }
            }
        }
    }
}

impl Directory {
    /// Lets the calls that wait for one of `keys` look again, because their Solve waits for its turn.
    pub fn look_again(&self, keys: &[BindingKey]) {
        let mut inner = self.inner.lock();
        keys.iter().for_each(|key| inner.live.wake(key, None));
    }
}

/// Publishes in `told` what a Solve waits for, unless that is known.
pub fn publish(told: &Told, waiting: Option<&Waiting>) {
    told.send_if_modified(|known| {
        let changes = known.as_ref() != waiting;
        *known = waiting.cloned();
        changes
    });
}

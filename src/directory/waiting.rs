//! What a queued Solve waits for, told to the Solve and to the calls that wait for it.

use std::{fmt, time::SystemTime};

use tokio::sync::watch;

use super::{Caller, Directory, Step};
use crate::{capabilities::Promise, ids::BindingKey};

/// The position of a Solve that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// When the wait began, as a time of day.
    pub since: SystemTime,
    /// The position in the queue; 1 is the next one.
    pub position: usize,
    /// How many builds wait in the pool, including this one.
    pub total: usize,
    /// What the Solve waits for.
    pub cause: Cause,
    /// What the client was told that the build's daemon can do.
    pub promise: Promise,
}

/// What a Solve waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A backend that takes builds.
    NoBackend,
    /// A free slot on any ready backend.
    Busy {
        /// How many slots are taken.
        taken: u64,
        /// How many slots the ready backends have in all.
        slots: u64,
    },
}

impl Cause {
    /// The label in logs and on the status page.
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

/// Publishes what a Solve waits for, and `None` while it does not wait. A Solve that had its turn may wait again, if
/// its backend does not accept the connection.
pub type WaitSender = watch::Sender<Option<Waiting>>;

impl Directory {
    /// Waits until the Solve of a call from `caller` with `key` is queued, which may never happen. The channel tells
    /// what the Solve waits for. It closes when the Solve is placed, refused or gone.
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
                // The Solve may still come. It wakes the parked calls when it does.
                Step::Early(mut parked) | Step::Parked(mut parked) => {
                    let _ = (&mut parked.outcome).await;
                }
            }
        }
    }
}

impl Directory {
    /// Wakes the calls that wait for one of `keys`, because their Solve is now queued.
    pub fn look_again(&self, keys: &[BindingKey]) {
        let mut inner = self.inner.lock();
        keys.iter().for_each(|key| inner.live.wake(key, None));
    }
}

/// Publishes with `sender` what a Solve waits for, unless that has not changed.
pub fn publish(sender: &WaitSender, waiting: Option<&Waiting>) {
    sender.send_if_modified(|known| {
        let changes = known.as_ref() != waiting;
        *known = waiting.cloned();
        changes
    });
}

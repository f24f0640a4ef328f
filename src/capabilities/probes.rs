//! Builds with which clients only ask what a daemon can do, while they wait for one.
//!
//! buildx starts such a build before each real one, and does not show it. The build ends when the client has its
//! answer and returns nothing. If the answer is remembered, the build needs no daemon, and the client goes on to
//! the real build, whose wait it shows.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{client::Client, ids::Id};

/// A ref and the connection of its Solve. Builds on different connections may have the same ref.
type Key = (Id, u64);

/// The probes that wait.
#[derive(Debug, Default)]
pub struct Probes(Mutex<HashMap<Key, Arc<Notify>>>);

impl Probes {
    /// Lists `build` of `client` as a probe as long as the returned guard lives.
    pub fn enter(&self, build: &Id, client: &Client) -> Probe<'_> {
        let (key, returned) = ((build.clone(), client.connection), Arc::<Notify>::default());
        self.0.lock().insert(key.clone(), Arc::clone(&returned));
        Probe { probes: self, key, returned }
    }

    /// Ends the probe `build` of `client`, which returns nothing. Returns whether the probe is listed.
    pub fn end(&self, build: &Id, client: &Client) -> bool {
        let listed = self.0.lock().get(&(build.clone(), client.connection)).cloned();
        listed.inspect(|returned| returned.notify_one()).is_some()
    }
}

/// A listed probe, until dropped.
#[derive(Debug)]
pub struct Probe<'a> {
    probes: &'a Probes,
    key: Key,
    returned: Arc<Notify>,
}

impl Probe<'_> {
    /// Waits until the client has ended the probe.
    pub async fn ended(&self) {
        self.returned.notified().await;
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let mut probes = self.probes.0.lock();
        // A second Solve with the same ref may have replaced this entry.
        if probes.get(&self.key).is_some_and(|returned| Arc::ptr_eq(returned, &self.returned)) {
            probes.remove(&self.key);
        }
    }
}

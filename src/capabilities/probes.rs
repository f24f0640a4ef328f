//! Builds by which a client only asks what a daemon can do, and that wait for one.
//!
//! buildx makes one before each build and shows nothing of it. It is over when the client has its answer
//! and returns nothing, so where the answer is remembered it needs no daemon, and the client goes on to
//! the build whose wait it shows.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{client::Client, ids::Id};

/// A ref and the connection of its Solve: builds of different connections may have one ref.
type Key = (Id, u64);

/// The builds of this kind that wait.
#[derive(Debug, Default)]
pub struct Probes(Mutex<HashMap<Key, Arc<Notify>>>);

impl Probes {
    /// Lists `build` of `client` for as long as the guard lives.
    pub fn enter(&self, build: &Id, client: &Client) -> Probe<'_> {
        let (key, returned) = ((build.clone(), client.connection), Arc::<Notify>::default());
        self.0.lock().insert(key.clone(), Arc::clone(&returned));
        Probe { probes: self, key, returned }
    }

    /// Tells `build` of `client` that its client returns nothing; whether it is listed.
    pub fn end(&self, build: &Id, client: &Client) -> bool {
        let listed = self.0.lock().get(&(build.clone(), client.connection)).cloned();
        listed.inspect(|returned| returned.notify_one()).is_some()
    }
}

/// One of them.
#[derive(Debug)]
pub struct Probe<'a> {
    probes: &'a Probes,
    key: Key,
    returned: Arc<Notify>,
}

impl Probe<'_> {
    /// Waits until its client has returned nothing.
    pub async fn ended(&self) {
        self.returned.notified().await;
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let mut probes = self.probes.0.lock();
        // A second Solve with its ref may have taken the place.
        if probes.get(&self.key).is_some_and(|returned| Arc::ptr_eq(returned, &self.returned)) {
            probes.remove(&self.key);
        }
    }
}

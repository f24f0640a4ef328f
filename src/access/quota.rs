//! The number of builds that each client runs now, over all pools.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::identity::Identity;

type Owner = Option<Arc<Identity>>;

/// The counted builds. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Quota(Arc<Mutex<HashMap<Owner, usize>>>);

impl Quota {
    /// Counts a build of `client` while the returned guard lives. `None` if the client already runs `most` builds.
    pub fn start(&self, client: Option<&Arc<Identity>>, most: usize) -> Option<Running> {
        let owner = client.cloned();
        let mut running = self.0.lock();
        let count = running.entry(owner.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Running { quota: self.clone(), owner })
    }
}

/// A counted build, until dropped.
#[derive(Debug)]
pub struct Running {
    quota: Quota,
    owner: Owner,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.quota.0.lock();
        if let Some(count) = running.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_runs_so_many_builds_and_others_theirs() {
        let quota = Quota::default();
        let [a, b] = ["a", "b"].map(|name| Arc::new(Identity::named(name)));
        let first = quota.start(Some(&a), 2);
        let second = quota.start(Some(&Arc::new(Identity::named("a"))), 2);
        assert!(first.is_some() && second.is_some() && quota.start(Some(&a), 2).is_none());
        assert!(quota.start(Some(&b), 1).is_some() && quota.start(None, 1).is_some());
        drop(first);
        let third = quota.start(Some(&a), 2);
        assert!(third.is_some());
        drop((second, third));
        assert!(quota.0.lock().is_empty());
    }
}

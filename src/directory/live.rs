//! The keys that streams hold now, the streams that wait for one, and the Solves that are being placed.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
};

use tokio::sync::{oneshot, watch};

use super::{Binding, Bound, memory::Memory};
use crate::{error::ProxyError, ids::Key, relay::Tally};

type Waiter = oneshot::Sender<Result<Bound, ProxyError>>;

/// One key.
#[derive(Debug)]
pub(super) struct LiveKey {
    pub(super) slot: Slot,
    pub(super) holders: usize,
    tally: Arc<Tally>,
    /// A Session stream for this key is open.
    pub(super) session_open: bool,
    /// The connection of the Solve whose own key this is.
    pub(super) solved_on: Option<u64>,
}

/// Whether it is known where a key belongs.
#[derive(Debug)]
pub(super) enum Slot {
    /// A Solve is choosing; the receiver closes when it is done.
    Deciding(watch::Receiver<()>),
    /// There.
    Bound(Arc<Binding>),
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) keys: HashMap<Key, LiveKey>,
    pub(super) waiters: HashMap<Key, HashMap<u64, Waiter>>,
    next_waiter: u64,
    /// Own keys of Solves that have been read and not yet placed; each receiver closes when its Solve is
    /// placed, refused or gone.
    pub(super) placing: HashMap<Key, watch::Receiver<()>>,
}

impl LiveKey {
    fn new(slot: Slot, holders: usize) -> Self {
        Self { slot, holders, tally: Arc::default(), session_open: false, solved_on: None }
    }
}

impl Live {
    /// The binding of `key`.
    pub(super) fn bound(&self, key: &Key) -> Option<Bound> {
        let live = self.keys.get(key)?;
        match &live.slot {
            Slot::Bound(binding) => {
                Some(Bound { binding: Arc::clone(binding), tally: Arc::clone(&live.tally) })
            }
            Slot::Deciding(_) => None,
        }
    }

    /// Marks `key` as being decided.
    pub(super) fn decide(&mut self, key: &Key, decision: &watch::Receiver<()>) {
        let slot = Slot::Deciding(decision.clone());
        self.keys.entry(key.clone()).or_insert_with(|| LiveKey::new(slot, 0));
    }

    /// Frees a claimed key, unless another stream has bound it meanwhile.
    pub(super) fn undecide(&mut self, key: &Key) {
        if self.keys.get(key).is_some_and(|live| matches!(live.slot, Slot::Deciding(_))) {
            self.keys.remove(key);
        }
    }

    /// Counts one more holder of `key`, binds it to `binding` unless it is bound, and serves who waits.
    pub(super) fn hold(&mut self, key: &Key, binding: &Arc<Binding>) -> &mut LiveKey {
        let slot = || Slot::Bound(Arc::clone(binding));
        let live = match self.keys.entry(key.clone()) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => entry.insert(LiveKey::new(slot(), 0)),
        };
        live.holders += 1;
        if matches!(live.slot, Slot::Deciding(_)) {
            live.slot = slot();
        }
        if let Slot::Bound(binding) = &live.slot {
            let bound = Bound { binding: Arc::clone(binding), tally: Arc::clone(&live.tally) };
            for (_, waiter) in self.waiters.remove(key).into_iter().flatten() {
                // A waiter that went away needs no answer.
                let _ = waiter.send(Ok(bound.clone()));
            }
        }
        live
    }

    /// Counts one holder less; the last one takes the key along, and `memory` keeps where it was.
    pub(super) fn release(&mut self, key: Key, session: bool, memory: &mut Memory) {
        let hash_map::Entry::Occupied(mut entry) = self.keys.entry(key) else {
            return;
        };
        entry.get_mut().holders -= 1;
        if session {
            entry.get_mut().session_open = false;
        }
        if entry.get().holders > 0 {
            return;
        }
        let (key, live) = entry.remove_entry();
        if let Slot::Bound(binding) = live.slot
            && !matches!(key, Key::Connection(_))
        {
            memory.end(key, binding.link.backend().shared_name());
        }
    }

    /// Adds a waiter for `key`; its number takes it out again.
    pub(super) fn park(
        &mut self,
        key: &Key,
    ) -> (u64, oneshot::Receiver<Result<Bound, ProxyError>>) {
        let number = self.next_waiter;
        self.next_waiter += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiters.entry(key.clone()).or_default().insert(number, sender);
        (number, receiver)
    }

    /// Takes a waiter out.
    pub(super) fn unpark(&mut self, key: &Key, number: u64) {
        if let Some(waiters) = self.waiters.get_mut(key) {
            waiters.remove(&number);
            if waiters.is_empty() {
                self.waiters.remove(key);
            }
        }
    }

    /// Tells who waits for `key` that its Solve was refused.
    pub(super) fn refuse(&mut self, key: &Key, error: &ProxyError) {
        for (_, waiter) in self.waiters.remove(key).into_iter().flatten() {
            let _ = waiter.send(Err(error.clone()));
        }
    }
}

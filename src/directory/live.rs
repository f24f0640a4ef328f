//! The keys that streams hold now, the streams that wait for a key, and the Solves that are being placed.

use std::{collections::hash_map, sync::Arc};

use tokio::sync::{oneshot, watch};

use super::{Binding, Bound, Waiting, memory::Memory};
use crate::{
    error::ProxyError,
    ids::{BindingKey, Id},
    map::Map,
    relay::ByteCounts,
};

/// A stream that waits for a key.
#[derive(Debug)]
pub(super) struct Waiter {
    /// The number of the stream's connection.
    connection: u64,
    /// Closes without an outcome if the stream must look again.
    outcome: oneshot::Sender<Result<Bound, ProxyError>>,
}

/// A Solve that has been read and not yet placed.
#[derive(Debug)]
pub(super) struct Arrived {
    connection: u64,
    /// Closes when the Solve is placed, refused or gone.
    pub(super) placed: watch::Receiver<Option<Waiting>>,
}

/// A key that streams hold.
#[derive(Debug)]
pub(super) struct LiveKey {
    pub(super) state: BindingState,
    pub(super) holders: usize,
    byte_counts: Arc<ByteCounts>,
    /// Whether a Session stream of this key is open.
    pub(super) session_open: bool,
    /// The connection of the Solve that owns the key.
    pub(super) solved_on: Option<u64>,
    /// For the session of a Solve: the key of the Solve's build.
    pub(super) build: Option<BindingKey>,
    /// For a build: its session, whose id only its client knows, came on a connection other than that of its Solve.
    pub(super) scattered: bool,
    /// For a build: a call on another connection has waited in vain for a Solve there.
    pub(super) asked_elsewhere: bool,
}

/// The later builds with one ref.
#[derive(Debug, Default)]
pub(super) struct Namesakes {
    /// The connections of their Solves.
    pub(super) on: Vec<u64>,
    /// Whether calls of different builds came on the same connections. This lasts as long as the first build lives.
    pub(super) mixed: bool,
}

/// Whether the backend of a key has been decided.
#[derive(Debug)]
pub(super) enum BindingState {
    /// A Solve is choosing a backend. The receiver closes when it has chosen.
    Deciding(watch::Receiver<Option<Waiting>>),
    /// The key belongs to this binding.
    Bound(Arc<Binding>),
}

/// All live keys of a directory, with the streams and the Solves around them.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) keys: Map<BindingKey, LiveKey>,
    pub(super) waiters: Map<BindingKey, Map<u64, Waiter>>,
    next_waiter: u64,
    /// The own keys of Solves that have been read and not yet placed.
    pub(super) placing: Map<BindingKey, Arrived>,
    /// The refs that several builds have.
    pub(super) namesakes: Map<Id, Namesakes>,
}

impl LiveKey {
    fn new(state: BindingState, holders: usize) -> Self {
        let (byte_counts, session_open, solved_on) = (Arc::default(), false, None);
        let (scattered, asked_elsewhere) = (false, false);
        let build = None;
        Self {
            state,
            holders,
            byte_counts,
            session_open,
            solved_on,
            build,
            scattered,
            asked_elsewhere,
        }
    }
}

impl Live {
    /// The binding of `key`, if it is bound.
    pub(super) fn bound(&self, key: &BindingKey) -> Option<Bound> {
        let live = self.keys.get(key)?;
        match &live.state {
            BindingState::Bound(binding) => Some(Bound {
                binding: Arc::clone(binding),
                byte_counts: Arc::clone(&live.byte_counts),
            }),
            BindingState::Deciding(_) => None,
        }
    }

    /// Notes that a Solve is deciding for `key`.
    pub(super) fn decide(&mut self, key: &BindingKey, decision: &watch::Receiver<Option<Waiting>>) {
        let state = BindingState::Deciding(decision.clone());
        self.keys.entry(key.clone()).or_insert_with(|| LiveKey::new(state, 0));
    }

    /// Frees a claimed key, unless another stream has bound it meanwhile.
    pub(super) fn undecide(&mut self, key: &BindingKey) {
        if self.keys.get(key).is_some_and(|live| matches!(live.state, BindingState::Deciding(_))) {
            self.keys.remove(key);
        }
    }

    /// Counts one more holder of `key`, binds the key to `binding` if it is not bound, and answers the streams that
    /// wait for it.
    ///
    /// `solved_on` is the connection of the Solve that owns the key.
    pub(super) fn hold(
        &mut self,
        key: &BindingKey,
        binding: &Arc<Binding>,
        solved_on: Option<u64>,
    ) -> &mut LiveKey {
        let state = || BindingState::Bound(Arc::clone(binding));
        let live = match self.keys.entry(key.clone()) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => entry.insert(LiveKey::new(state(), 0)),
        };
        live.holders += 1;
        live.solved_on = live.solved_on.or(solved_on);
        if matches!(live.state, BindingState::Deciding(_)) {
            live.state = state();
        }
        if let BindingState::Bound(binding) = &live.state {
            let bound =
                Bound { binding: Arc::clone(binding), byte_counts: Arc::clone(&live.byte_counts) };
            for (_, waiter) in self.waiters.remove(key).into_iter().flatten() {
                // A stream on another connection may belong to another build with the same ref, so it looks again.
                if !matches!(key, BindingKey::Build(_)) || live.solved_on == Some(waiter.connection)
                {
                    // The waiting stream may have gone away; it then needs no answer.
                    let _ = waiter.outcome.send(Ok(bound.clone()));
                }
            }
        }
        live
    }

    /// Counts one holder less. With the last holder the key leaves, and `memory` keeps the name of its backend.
    pub(super) fn release(&mut self, key: BindingKey, session: bool, memory: &mut Memory) {
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
        self.prune_namesakes(&key);
        if let BindingState::Bound(binding) = live.state
            && !matches!(key, BindingKey::Connection(_))
        {
            memory.end(key, binding.link.backend().shared_name());
        }
    }

    /// Adds a stream on `connection` to those that wait for `key`. The returned number removes it again.
    pub(super) fn park(
        &mut self,
        key: &BindingKey,
        connection: u64,
    ) -> (u64, oneshot::Receiver<Result<Bound, ProxyError>>) {
        let number = self.next_waiter;
        self.next_waiter += 1;
        let (outcome, receiver) = oneshot::channel();
        let waiter = Waiter { connection, outcome };
        self.waiters.entry(key.clone()).or_default().insert(number, waiter);
        (number, receiver)
    }

    /// Removes a waiting stream. Nothing happens if it has left already.
    pub(super) fn unpark(&mut self, key: &BindingKey, number: u64) {
        if let Some(waiters) = self.waiters.get_mut(key) {
            waiters.remove(&number);
            if waiters.is_empty() {
                self.waiters.remove(key);
            }
        }
    }

    /// Tells the streams that wait for `key` that its Solve was refused.
    pub(super) fn refuse(&mut self, key: &BindingKey, error: &ProxyError) {
        for (_, waiter) in self.waiters.remove(key).into_iter().flatten() {
            let _ = waiter.outcome.send(Err(error.clone()));
        }
    }

    /// Wakes the streams that wait for `key`: those on `connection`, or all of them. They look again.
    pub(super) fn wake(&mut self, key: &BindingKey, connection: Option<u64>) {
        if let Some(waiters) = self.waiters.get_mut(key) {
            waiters.retain(|_, waiter| connection.is_some_and(|on| on != waiter.connection));
        }
    }

    /// Whether a Solve with `key` is being placed.
    pub(super) fn is_placing(&self, key: &BindingKey) -> bool {
        self.placing.contains_key(key)
    }

    /// Notes that the Solve of `key` has come on `connection` and is being placed.
    pub(super) fn arrive(
        &mut self,
        key: &BindingKey,
        connection: u64,
        placed: &watch::Receiver<Option<Waiting>>,
    ) {
        self.placing.insert(key.clone(), Arrived { connection, placed: placed.clone() });
    }

    /// Notes that the Solve of `key` is no longer being placed.
    pub(super) fn arrived(&mut self, key: &BindingKey, placed: &watch::Receiver<Option<Waiting>>) {
        // A second Solve with the same id may have replaced this one.
        if self.placing.get(key).is_some_and(|other| other.placed.same_channel(placed)) {
            self.placing.remove(key);
            self.prune_namesakes(key);
        }
    }

    /// Notes that the calls of `build` come on several connections.
    pub(super) fn scatter(&mut self, build: &BindingKey) {
        if let Some(live) = self.keys.get_mut(build) {
            live.scattered = true;
        }
        self.wake(build, None);
    }

    /// Notes that calls of `build` come on other connections. Later calls do not wait there for a Solve of their own.
    pub(super) fn ask_elsewhere(&mut self, build: &BindingKey) {
        if let Some(live) = self.keys.get_mut(build) {
            live.asked_elsewhere = true;
        }
        self.wake(build, None);
    }

    /// The connection of the Solve that owns `key`, if that Solve is placed or being placed.
    pub(super) fn came_on(&self, key: &BindingKey) -> Option<u64> {
        let live = self.keys.get(key).and_then(|live| live.solved_on);
        live.or_else(|| self.placing.get(key).map(|arrived| arrived.connection))
    }

    /// Notes that another build with the ref `build` came on `connection`. Returns the key of that build.
    pub(super) fn add_namesake(&mut self, build: &Id, connection: u64) -> BindingKey {
        let namesakes = self.namesakes.entry(build.clone()).or_default();
        if !namesakes.on.contains(&connection) {
            namesakes.on.push(connection);
        }
        // Calls of this build may have come before the Solve.
        self.wake(&BindingKey::Build(build.clone()), Some(connection));
        BindingKey::Namesake(build.clone(), connection)
    }

    /// Notes that nothing shows which build a call with the ref `build` belongs to.
    pub(super) fn mix(&mut self, build: &Id) {
        self.namesakes.entry(build.clone()).or_default().mixed = true;
        self.wake(&BindingKey::Build(build.clone()), None);
    }

    /// Forgets those builds with the ref of `gone` that are neither placed nor being placed.
    fn prune_namesakes(&mut self, gone: &BindingKey) {
        let (BindingKey::Namesake(build, _) | BindingKey::Build(build)) = gone else { return };
        let Some(mut namesakes) = self.namesakes.remove(build) else { return };
        let here = |key: &BindingKey| self.keys.contains_key(key) || self.placing.contains_key(key);
        namesakes.on.retain(|on| here(&BindingKey::Namesake(build.clone(), *on)));
        namesakes.mixed &= here(&BindingKey::Build(build.clone()));
        if namesakes.mixed || !namesakes.on.is_empty() {
            self.namesakes.insert(build.clone(), namesakes);
        }
    }
}

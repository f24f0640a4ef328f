//! The keys that streams hold now, the streams that wait for one, and the Solves that are being placed.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
};

use tokio::sync::{oneshot, watch};

use super::{Binding, Bound, Waiting, memory::Memory};
use crate::{
    error::ProxyError,
    ids::{BindingKey, Id},
    relay::ByteCounts,
};

/// A stream that waits for a key.
#[derive(Debug)]
pub(super) struct Waiter {
    /// The connection it came on.
    connection: u64,
    /// Closes without an outcome if it is to look again.
    outcome: oneshot::Sender<Result<Bound, ProxyError>>,
}

/// A Solve that has been read and not yet placed.
#[derive(Debug)]
pub(super) struct Arrived {
    connection: u64,
    /// Closes when it is placed, refused or gone.
    pub(super) placed: watch::Receiver<Option<Waiting>>,
}

/// One key.
#[derive(Debug)]
pub(super) struct LiveKey {
    pub(super) state: BindingState,
    pub(super) holders: usize,
    byte_counts: Arc<ByteCounts>,
    /// A Session stream for this key is open.
    pub(super) session_open: bool,
    /// The connection of the Solve whose own key this is.
    pub(super) solved_on: Option<u64>,
    /// Of a Solve's own session: the key of its build.
    pub(super) build: Option<BindingKey>,
    /// Of a build: its session, whose id only its client knows, came on another connection than its Solve.
    pub(super) scattered: bool,
    /// Of a build: whoever asks for it on other connections has waited in vain for a Solve there.
    pub(super) asked_elsewhere: bool,
}

/// The builds with one ref, beside the first one that has it.
#[derive(Debug, Default)]
pub(super) struct Namesakes {
    /// The connections of their Solves.
    pub(super) on: Vec<u64>,
    /// Calls of different builds came on the same connections, as long as the first one lives.
    pub(super) mixed: bool,
}

/// Whether it is known where a key belongs.
#[derive(Debug)]
pub(super) enum BindingState {
    /// A Solve is choosing; the receiver closes when it is done.
    Deciding(watch::Receiver<Option<Waiting>>),
    /// There.
    Bound(Arc<Binding>),
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) keys: HashMap<BindingKey, LiveKey>,
    pub(super) waiters: HashMap<BindingKey, HashMap<u64, Waiter>>,
    next_waiter: u64,
    /// Own keys of Solves that have been read and not yet placed.
    pub(super) placing: HashMap<BindingKey, Arrived>,
    /// Refs that several builds have.
    pub(super) namesakes: HashMap<Id, Namesakes>,
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
    /// The binding of `key`.
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

    /// Marks `key` as being decided.
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

    /// Counts one more holder of `key`, binds it to `binding` unless it is bound, and serves who waits.
    ///
    /// `solved_on` is the connection of the Solve whose own key it is.
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
                // On another connection it may be a call of a build that has the same ref: it looks again.
                if !matches!(key, BindingKey::Build(_)) || live.solved_on == Some(waiter.connection)
                {
                    // A waiter that went away needs no answer.
                    let _ = waiter.outcome.send(Ok(bound.clone()));
                }
            }
        }
        live
    }

    /// Counts one holder less; the last one takes the key along, and `memory` keeps where it was.
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

    /// Adds a waiter for `key` that came on `connection`; its number takes it out again.
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

    /// Takes a waiter out.
    pub(super) fn unpark(&mut self, key: &BindingKey, number: u64) {
        if let Some(waiters) = self.waiters.get_mut(key) {
            waiters.remove(&number);
            if waiters.is_empty() {
                self.waiters.remove(key);
            }
        }
    }

    /// Tells who waits for `key` that its Solve was refused.
    pub(super) fn refuse(&mut self, key: &BindingKey, error: &ProxyError) {
        for (_, waiter) in self.waiters.remove(key).into_iter().flatten() {
            let _ = waiter.outcome.send(Err(error.clone()));
        }
    }

    /// Lets the waiters for `key` look again, of `connection` or all.
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
        // A second Solve with the same id may have taken the place.
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

    /// Notes that calls of `build` come on other connections, whoever's they are: the next ones need not
    /// wait for a Solve of their own.
    pub(super) fn ask_elsewhere(&mut self, build: &BindingKey) {
        if let Some(live) = self.keys.get_mut(build) {
            live.asked_elsewhere = true;
        }
        self.wake(build, None);
    }

    /// The connection of the Solve whose own `key` is, if that is placed or being placed.
    pub(super) fn came_on(&self, key: &BindingKey) -> Option<u64> {
        let live = self.keys.get(key).and_then(|live| live.solved_on);
        live.or_else(|| self.placing.get(key).map(|arrived| arrived.connection))
    }

    /// Notes that another build with the ref `build` came on `connection`, and returns its key.
    pub(super) fn add_namesake(&mut self, build: &Id, connection: u64) -> BindingKey {
        let namesakes = self.namesakes.entry(build.clone()).or_default();
        if !namesakes.on.contains(&connection) {
            namesakes.on.push(connection);
        }
        // Calls of this build may have come before it.
        self.wake(&BindingKey::Build(build.clone()), Some(connection));
        BindingKey::Namesake(build.clone(), connection)
    }

    /// Notes that nobody can tell whose the calls with the ref `build` are.
    pub(super) fn mix(&mut self, build: &Id) {
        self.namesakes.entry(build.clone()).or_default().mixed = true;
        self.wake(&BindingKey::Build(build.clone()), None);
    }

    /// Forgets the builds with the ref of `gone` that are neither placed nor being placed any more.
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

//! The right to decide where keys belong: one Solve gets it, and the others join its decision.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Binding, Directory, Inner, WaitSender, Waiting, live::BindingState, waiting::publish};
use crate::{error::ProxyError, ids::BindingKey};

/// The keys of a Solve, or of a Session that no Solve names, and the builds that it belongs with.
#[derive(Debug, Clone, Default)]
pub struct Ties {
    /// The keys that bind it, the strongest first.
    pub keys: Vec<BindingKey>,
    /// Those of `keys` that belong to the Solve itself.
    pub own: Vec<BindingKey>,
    /// The keys under which it looks for a live build to join, the strongest first.
    pub follows: Vec<BindingKey>,
    /// The keys under which later builds find it.
    pub attracts: Vec<BindingKey>,
    /// The keys of other builds with the same ref. The Solve waits until they are placed, and must not go to their
    /// backends.
    pub apart: Vec<BindingKey>,
    /// The number of the connection that it came on.
    pub connection: u64,
}

/// The answer to [`Directory::claim`].
#[derive(Debug)]
pub enum Claimed {
    /// The keys are bound: join this binding.
    Join(Arc<Binding>, KeyGuard),
    /// The keys are free: the caller decides.
    Decide(Claim),
}

/// The outcome of one attempt to claim.
enum Attempt {
    Done(Claimed),
    /// Another Solve is deciding for one of the keys.
    Wait(watch::Receiver<Option<Waiting>>),
}

impl Directory {
    /// Finds the binding that a stream with these `ties` must join, or lets the caller decide.
    ///
    /// While another Solve decides for one of the keys, the call waits and publishes with `sender` what that Solve
    /// waits for. Returns `None` if there is no decision within `limit`. The time that the other Solve spends in the
    /// queue does not count.
    pub async fn claim(
        &self,
        ties: &Arc<Ties>,
        sender: &WaitSender,
        limit: Duration,
    ) -> Option<Claimed> {
        let mut deadline = Instant::now() + limit;
        loop {
            match self.try_claim(ties) {
                Attempt::Done(claimed) => return Some(claimed),
                Attempt::Wait(decision) => {
                    self.decided(decision, ties, sender, &mut deadline, limit).await?;
                }
            }
        }
    }

    /// Waits until the other's `decision` is made or abandoned; either closes the channel.
    async fn decided(
        &self,
        mut decision: watch::Receiver<Option<Waiting>>,
        ties: &Ties,
        sender: &WaitSender,
        deadline: &mut Instant,
        limit: Duration,
    ) -> Option<()> {
        loop {
            let waiting = decision.borrow_and_update().clone();
            publish(sender, waiting.as_ref());
            let changed = if waiting.is_some() {
                self.look_again(&ties.own);
                let changed = decision.changed().await;
                *deadline = Instant::now() + limit;
                changed
            } else {
                timeout_at(*deadline, decision.changed()).await.ok()?
            };
            if changed.is_err() {
                return Some(());
            }
        }
    }

    fn try_claim(&self, ties: &Arc<Ties>) -> Attempt {
        let mut inner = self.inner.lock();
        if let Some(other) = ties.apart.iter().find_map(|key| inner.live.placing.get(key)) {
            return Attempt::Wait(other.placed.clone());
        }
        let known = ties.keys.iter().chain(&ties.follows);
        let known = known.filter_map(|key| inner.live.keys.get(key)).next();
        match known.map(|live| &live.state) {
            Some(BindingState::Deciding(decision)) => Attempt::Wait(decision.clone()),
            Some(BindingState::Bound(binding)) => {
                let binding = Arc::clone(binding);
                let guard = inner.bind(self, ties, &binding);
                Attempt::Done(Claimed::Join(binding, guard))
            }
            None => {
                let (wait_sender, decision) = watch::channel(None);
                let mut keys = ties.keys.clone();
                // A key that only attracts later builds is not worth a wait of those builds.
                let both = ties.attracts.iter().filter(|key| ties.follows.contains(key));
                keys.extend(both.cloned());
                keys.iter().for_each(|key| inner.live.decide(key, &decision));
                let directory = self.clone();
                let claim = Claim { directory, ties: Arc::clone(ties), keys, wait_sender };
                Attempt::Done(Claimed::Decide(claim))
            }
        }
    }
}

impl Inner {
    /// Binds those keys of `ties` that are not bound, holds all of them, and answers the calls that wait for them.
    pub(super) fn bind(
        &mut self,
        directory: &Directory,
        ties: &Ties,
        binding: &Arc<Binding>,
    ) -> KeyGuard {
        let keys: Vec<BindingKey> = ties.keys.iter().chain(&ties.attracts).cloned().collect();
        for key in &keys {
            let solved_on = ties.own.contains(key).then_some(ties.connection);
            let live = self.live.hold(key, binding, solved_on);
            if solved_on.is_some() && matches!(key, BindingKey::Session(_)) {
                live.build = ties.own.last().cloned();
            }
            // A live key has no past: an old refusal must not answer its calls.
            self.memory.forget(key);
        }
        KeyGuard { directory: Arc::downgrade(&directory.inner), keys, session: false }
    }

    /// Holds `key` for the Session stream that opens it. Returns also whether its Solve came on another connection.
    pub(super) fn open(
        &mut self,
        directory: &Directory,
        key: &BindingKey,
        binding: &Arc<Binding>,
        connection: u64,
    ) -> (KeyGuard, bool) {
        let live = self.live.hold(key, binding, None);
        live.session_open = true;
        let scattered = live.solved_on.is_some_and(|solved_on| solved_on != connection);
        if let Some(build) = live.build.clone().filter(|_| scattered) {
            self.live.scatter(&build);
        }
        self.memory.forget(key);
        let directory = Arc::downgrade(&directory.inner);
        (KeyGuard { directory, keys: vec![key.clone()], session: true }, scattered)
    }

    /// Tells the calls that wait for `keys`, and later ones, that their Solve was refused.
    pub(super) fn refuse(&mut self, keys: Vec<BindingKey>, error: &ProxyError) {
        for key in keys {
            self.live.refuse(&key, error);
            if matches!(
                key,
                BindingKey::Session(_) | BindingKey::Build(_) | BindingKey::Namesake(..)
            ) {
                self.memory.refuse(key, error.clone());
            }
        }
    }
}

/// The right and the duty to decide where keys belong.
///
/// If the claim is dropped undecided, because the client went away, the keys are free for the next claim.
#[derive(Debug)]
pub struct Claim {
    directory: Directory,
    ties: Arc<Ties>,
    /// The keys for which others wait.
    keys: Vec<BindingKey>,
    /// Closes on drop, and other claims then try again.
    wait_sender: WaitSender,
}

impl Claim {
    /// The channel that tells other claims what this one waits for.
    pub fn wait_sender(&self) -> &WaitSender {
        &self.wait_sender
    }

    /// Binds the claimed keys to `binding`, and answers the calls that wait for them.
    pub fn bind(mut self, binding: &Arc<Binding>) -> KeyGuard {
        self.keys.clear();
        self.directory.inner.lock().bind(&self.directory, &self.ties, binding)
    }

    /// Refuses the Solve: calls that wait for its keys get `error`, and so do later ones.
    pub fn refuse(mut self, error: &ProxyError) {
        let keys = std::mem::take(&mut self.keys);
        let mut inner = self.directory.inner.lock();
        keys.iter().for_each(|key| inner.live.undecide(key));
        inner.refuse(keys, error);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut inner = self.directory.inner.lock();
        self.keys.iter().for_each(|key| inner.live.undecide(key));
    }
}

/// Holds keys while a stream is open.
#[derive(Debug)]
pub struct KeyGuard {
    directory: Weak<Mutex<Inner>>,
    keys: Vec<BindingKey>,
    session: bool,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        if let Some(inner) = self.directory.upgrade() {
            let inner = &mut *inner.lock();
            for key in std::mem::take(&mut self.keys) {
                inner.live.release(key, self.session, &mut inner.memory);
            }
        }
    }
}

/// A Solve that has been read and not yet placed.
#[derive(Debug)]
pub struct Placing {
    directory: Directory,
    own: Vec<BindingKey>,
    apart: Vec<BindingKey>,
    placed: watch::Receiver<Option<Waiting>>,
    /// Closes on drop, and the waiting calls then look again.
    wait_sender: WaitSender,
}

impl Placing {
    pub(super) fn new(
        directory: &Directory,
        own: Vec<BindingKey>,
        apart: Vec<BindingKey>,
        placed: watch::Receiver<Option<Waiting>>,
        wait_sender: WaitSender,
    ) -> Self {
        Self { directory: directory.clone(), own, apart, placed, wait_sender }
    }

    /// The channel that tells the calls of the Solve what it waits for.
    pub fn wait_sender(&self) -> &WaitSender {
        &self.wait_sender
    }

    /// The Solve's own keys: first that of its session, then that of its build.
    pub fn own(&self) -> &[BindingKey] {
        &self.own
    }

    /// The keys of other builds with the same ref.
    pub fn apart(&self) -> &[BindingKey] {
        &self.apart
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        let mut inner = self.directory.inner.lock();
        self.own.iter().for_each(|key| inner.live.arrived(key, &self.placed));
    }
}

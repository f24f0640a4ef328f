//! The way of one build through the queue: from its arrival to a link to its backend.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use tokio::time::sleep_until;

use super::{Queue, QueuedGuard, Request, SlotGrant};
use crate::{
    capabilities::{Answers, Promise},
    client::Client,
    directory::{Cause, Claim, WaitSender, Waiting, publish},
    error::ProxyError,
    fleet::Backend,
    metrics::QueueExit,
    placement::{
        Placement, Wish,
        spans::Step,
        tries::{Failed, Opened, less},
    },
};

/// Publishes what one build waits for.
#[derive(Debug)]
pub(in crate::placement) struct Publisher<'a> {
    pub(in crate::placement) wish: &'a Wish,
    pub(in crate::placement) claim: &'a Claim,
    pub(in crate::placement) sender: &'a WaitSender,
}

/// How long a build waited for its turn, and what it waited for first.
#[derive(Debug, Clone, Copy)]
pub struct Waited {
    /// How long the build waited.
    pub wait: Duration,
    /// What the build waited for.
    pub cause: Cause,
}

/// The wait of one build, over all its turns.
#[derive(Debug)]
struct Wait {
    began: Instant,
    since: SystemTime,
    /// What the build waited for first; `None` if it did not wait.
    cause: Option<Cause>,
    /// Whether the build had its turn and could not use it.
    back: bool,
    /// What the client was told that the build's daemon can do.
    promise: Promise,
}

/// Counts a probe or a session that waits for a backend.
#[derive(Debug)]
struct Unordered<'a>(&'a Queue);

impl Drop for Unordered<'_> {
    fn drop(&mut self) {
        self.0.unordered.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    fn enter_unordered(&self) -> Result<Unordered<'_>, ProxyError> {
        let before = self.unordered.fetch_add(1, Ordering::Relaxed);
        let waiting = Unordered(self);
        if before >= self.config.max_waiting {
            let full = format!("{before} probes and sessions already wait for a backend");
            return Err(ProxyError::QueueFull(full));
        }
        Ok(waiting)
    }
}

impl Placement {
    /// Opens a link for a build. Waits until a backend takes the build.
    ///
    /// # Errors
    /// No backend could be reached, none was there in time, or too many builds wait.
    pub(in crate::placement) async fn open_in_turn(
        &self,
        publisher: &Publisher<'_>,
        client: &Client,
        mut deadline: Instant,
    ) -> Result<(Opened, Option<Waited>), ProxyError> {
        let (began, since) = (Instant::now(), SystemTime::now());
        // The build may have waited for another build's turn before.
        let promise = publisher.sender.borrow().as_ref().map(|waiting| waiting.promise.renewed());
        let promise = promise.unwrap_or_default();
        let mut wait = Wait { began, since, cause: None, back: false, promise };
        let may_wait = !self.queue.config.max_wait.is_zero();
        let mut grant = None;
        loop {
            let was_ready = self.fleet.is_ready();
            if may_wait && !was_ready && grant.is_none() {
                // The build already counts as waiting while backends that are not ready are tried.
                self.publish_wait(publisher, &self.estimate(&wait));
            }
            wait.back = grant.is_some();
            let tries = self.tries(publisher.wish, client, grant.take(), &wait.promise, deadline);
            let error = match self
                .open(tries, publisher.wish)
                .await
                .and_then(|opened| self.promised(opened, publisher, &wait))
            {
                Ok(opened) => return Ok((opened, wait.waited())),
                Err(Failed::Other(error)) => return Err(error),
                Err(failed) if !may_wait => return Err(self.refusal(failed)),
                // The build failed for another reason than a missing backend.
                Err(Failed::Nobody(error)) if was_ready && self.fleet.is_ready() => {
                    return Err(error);
                }
                Err(failed) => self.refusal(failed),
            };
            let cause = *wait.cause.get_or_insert_with(|| self.cause());
            let step = Step::wait(publisher.wish, cause);
            // Boxed, so that a build that need not wait keeps no room for its wait.
            let waited = if publisher.wish.takes_turns() {
                Box::pin(self.wait_for_slot(publisher, client, &wait, cause, &error))
                    .await
                    .map(Some)
            } else {
                Box::pin(self.wait_for_backend(publisher, &wait, &error)).await.map(|()| None)
            };
            grant = waited.inspect_err(|error| step.failed(error))?;
            drop(step);
            publish(publisher.sender, None);
            publish(publisher.claim.wait_sender(), None);
            deadline = Self::deadline();
        }
    }

    async fn wait_for_slot(
        &self,
        publisher: &Publisher<'_>,
        client: &Client,
        wait: &Wait,
        cause: Cause,
        error: &ProxyError,
    ) -> Result<SlotGrant, ProxyError> {
        let request = self.request(publisher.wish, client, wait);
        let mut queued = self.queue.enter(request, wait.began, wait.back, cause)?;
        self.grant_all();
        self.queue.entered.notify_one();
        if let Ok(grant) = queued.granted.try_recv() {
            queued.exit = QueueExit::Granted;
            return Ok(grant);
        }
        loop {
            let waiting = queued.turn.borrow_and_update().clone();
            self.publish_wait(publisher, &waiting);
            let QueuedGuard { granted, turn, .. } = &mut queued;
            let (exit, outcome) = tokio::select! {
                biased;
                granted = granted => {
                    (QueueExit::Granted, granted.map_err(|_dropped| self.waited_out(error)))
                }
                () = sleep_until((wait.began + self.queue.config.max_wait).into()) => {
                    (QueueExit::WaitedOut, Err(self.waited_out(error)))
                }
                () = self.queue.closed.cancelled() => {
                    (QueueExit::Draining, Err(ProxyError::Draining))
                }
                _ = turn.changed() => continue,
            };
            queued.exit = exit;
            return outcome;
        }
    }

    async fn wait_for_backend(
        &self,
        publisher: &Publisher<'_>,
        wait: &Wait,
        error: &ProxyError,
    ) -> Result<(), ProxyError> {
        let _waiting = self.queue.enter_unordered()?;
        self.publish_wait(publisher, &self.estimate(wait));
        tokio::select! {
            biased;
            () = self.fleet.ready() => Ok(()),
            () = sleep_until((wait.began + self.queue.config.max_wait).into()) => {
                Err(self.waited_out(error))
            }
            () = self.queue.closed.cancelled() => Err(ProxyError::Draining),
        }
    }

    /// Accepts what was opened for a build, unless its client has meanwhile been told more than the backend can do.
    fn promised(
        &self,
        opened: Opened,
        publisher: &Publisher<'_>,
        wait: &Wait,
    ) -> Result<Opened, Failed> {
        let backend = opened.count.backend();
        let keeps =
            |promised: &Answers| self.capabilities.keeps(promised, backend.version().as_deref());
        if !publisher.wish.takes_turns() || wait.promise.settle(keeps) {
            return Ok(opened);
        }
        let error = ProxyError::NoBackend(less(backend));
        Err(Failed::Unable(error))
    }

    /// Those of `backends` that cannot do everything that was promised, or of which that is unknown.
    pub(in crate::placement) fn unable(
        &self,
        promise: &Promise,
        backends: &[Arc<Backend>],
    ) -> Vec<Arc<Backend>> {
        let Some(promised) = promise.given() else { return Vec::new() };
        let unable = |backend: &&Arc<Backend>| {
            !self.capabilities.keeps(&promised, backend.version().as_deref())
        };
        backends.iter().filter(unable).cloned().collect()
    }

    fn waited_out(&self, error: &ProxyError) -> ProxyError {
        let waiting = self.queue.waiting.load(Ordering::Relaxed);
        let cause = format!("{error}; waiting builds: {waiting}");
        ProxyError::WaitedOut { waited: self.queue.config.max_wait, cause }
    }

    fn refusal(&self, failed: Failed) -> ProxyError {
        match failed {
            Failed::Full => ProxyError::NoBackend(self.cause().to_string()),
            Failed::Nobody(error) | Failed::Unable(error) | Failed::Other(error) => error,
        }
    }

    fn request(&self, wish: &Wish, client: &Client, wait: &Wait) -> Request {
        Request {
            build: wish.build.clone(),
            client: client.address,
            affinity: wish.affinity.clone(),
            since: wait.since,
            key: wish.key,
            owner: client.owner(),
            weight: wish.weight,
            policy: self.policy,
            avoid: self.directory.backends(&wish.ties.apart),
            promise: wait.promise.clone(),
        }
    }

    /// The position of a build that is not in the queue yet.
    fn estimate(&self, wait: &Wait) -> Waiting {
        let total = self.queue.waiting.load(Ordering::Relaxed) + 1;
        let (since, promise) = (wait.since, wait.promise.clone());
        Waiting { since, position: total, total, cause: self.cause(), promise }
    }

    fn publish_wait(&self, Publisher { wish, claim, sender }: &Publisher<'_>, waiting: &Waiting) {
        let first = sender.borrow().is_none();
        publish(sender, Some(waiting));
        publish(claim.wait_sender(), Some(waiting));
        if first {
            // The other calls of the build do not know yet that it waits.
            self.directory.look_again(&wish.ties.own);
        }
    }
}

impl Wait {
    fn waited(&self) -> Option<Waited> {
        self.cause.map(|cause| Waited { wait: self.began.elapsed(), cause })
    }
}

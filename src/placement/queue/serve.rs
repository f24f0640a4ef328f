//! Gives out slots as they become free, and tells the waiting builds their positions.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Entry, Request, SlotGrant, State, order::Offer};
use crate::{
    directory::{Cause, Waiting},
    fleet::{Backend, Roster},
    placement::{Decision, Placement},
    policy,
};

/// How often the waiting builds are told their positions.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

impl Placement {
    /// Gives out slots as they become free, until `stop`.
    pub async fn serve_queue(&self, stop: CancellationToken) {
        let mut publish_at = Instant::now();
        loop {
            // Subscribed before the check, so that no change is missed.
            let changed = self.fleet.changed();
            self.grant_all();
            if self.queue.is_empty() {
                tokio::select! {
                    () = self.queue.entered.notified() => continue,
                    () = stop.cancelled() => return,
                }
            }
            let now = Instant::now();
            if publish_at <= now {
                self.publish_positions();
                publish_at = now + PUBLISH_INTERVAL;
            }
            let affinity_wait_ends = self.queue.state.lock().order.affinity_wait_ends(now);
            let next = affinity_wait_ends.map_or(publish_at, |at| at.min(publish_at));
            tokio::select! {
                () = changed => {}
                () = self.queue.entered.notified() => {}
                () = sleep_until(next.into()) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Grants all slots that can be granted now.
    pub(super) fn grant_all(&self) {
        while let Some((granted, grant)) = self.grant() {
            // If the build has gone, dropping the grant gives the slot back. That takes the lock, so it must not be
            // held here.
            let _ = granted.send(grant);
        }
    }

    fn grant(&self) -> Option<(oneshot::Sender<SlotGrant>, SlotGrant)> {
        let slots = self.queue.config.max_builds;
        let roster = self.fleet.roster();
        if self.queue.is_empty() || !roster.candidates().has_free(slots) {
            return None;
        }
        let now = Instant::now();
        let mut state = self.queue.state.lock();
        let State { order, entries } = &mut *state;
        let mut next = None;
        let started = self.fleet.start_build(&roster, |_candidates| {
            let mut best = None;
            let ticket = order.grant(now, |ticket| {
                best =
                    entries.get(&ticket).and_then(|entry| self.best(&roster, &entry.request, now));
                match &best {
                    None => Offer::Nothing,
                    Some(choice) if choice.cache_is_busy => Offer::Cold,
                    Some(_) => Offer::Good,
                }
            })?;
            next = Some(ticket);
            best
        });
        let Entry { request, granted, .. } = entries.remove(&next?)?;
        drop(state);
        let (count, choice) = started?;
        let started = self.queue.started(Some(request.owner));
        let decision = Decision::chosen(&choice, &roster);
        Some((granted, SlotGrant { count, decision, started }))
    }

    /// The best free slot for a waiting build.
    fn best(&self, roster: &Roster, request: &Request, now: Instant) -> Option<policy::Choice> {
        let at = |backend: &Arc<Backend>| roster.position(backend);
        let mut tried: Vec<usize> = request.avoid.iter().filter_map(at).collect();
        let warm = request.key.and_then(|key| self.warm.lock().get(key, now));
        let slots = self.queue.config.max_builds;
        let choose = |tried: &[usize]| {
            let asked = policy::Request { key: request.key, warm, tried, slots };
            request.policy.choose(&asked, roster.candidates(), now, &mut rand::rng())
        };
        let choice = choose(&tried)?;
        let unable = self.unable(&request.promise, &roster.backends()[choice.index..=choice.index]);
        if unable.is_empty() {
            return Some(choice);
        }
        // This is rare, so all backends are checked only then.
        tried.extend(self.unable(&request.promise, roster.backends()).iter().filter_map(at));
        choose(&tried)
    }

    /// Tells all waiting builds their positions.
    fn publish_positions(&self) {
        let cause = self.cause();
        let state = self.queue.state.lock();
        let total = state.order.len();
        for (before, ticket) in state.order.in_order().into_iter().enumerate() {
            let Some(entry) = state.entries.get(&ticket) else { continue };
            let Request { since, promise, .. } = &entry.request;
            let (since, promise) = (*since, promise.clone());
            let now = Waiting { since, position: before + 1, total, cause, promise };
            entry.turn.send_if_modified(|known| {
                let changes = *known != now;
                *known = now;
                changes
            });
        }
    }

    /// What the waiting builds wait for.
    pub(super) fn cause(&self) -> Cause {
        match self.queue.config.max_builds {
            Some(slots) if self.fleet.is_ready() => {
                let (taken, slots) = self.fleet.roster().candidates().taken(slots);
                Cause::Busy { taken, slots }
            }
            _ => Cause::NoBackend,
        }
    }
}

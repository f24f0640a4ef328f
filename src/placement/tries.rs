//! Opens a connection to the backend of the policy's choice; while that fails, to another one.
//!
//! Nothing of the call has been sent to anyone yet, so to try the next is safe.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{Decision, Placement};
use crate::{
    error::{ProxyError, first_few},
    fleet::{Backend, BuildCount, Roster},
    policy::{self, KeyHash, Outcome},
    upstream::Link,
};

/// How long a build waits at the start of the proxy for the first probe of each backend. A daemon
/// answers in milliseconds; one that does not must not hold up builds for the others.
const FIRST_VERDICTS: Duration = Duration::from_secs(1);

/// The least that one backend is given. A daemon that is there answers in milliseconds.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// Which connection a call goes over.
#[derive(Debug, Clone, Copy)]
pub(super) enum LinkKind {
    /// One of its own: if it breaks, one build is lost.
    Own,
    /// The backend's long-lived one.
    Shared,
}

/// Which backends are tried.
#[derive(Debug)]
pub(super) struct Tries {
    /// The first one, whatever the policy says, and how it was found.
    pub(super) preferred: Option<(Arc<Backend>, Outcome)>,
    /// Chooses the others.
    pub(super) policy: policy::Config,
    pub(super) key: Option<KeyHash>,
    pub(super) kind: LinkKind,
    /// When all of them have had their time.
    pub(super) deadline: Instant,
}

/// A link to a backend that accepts, and why to that one.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) link: Link,
    /// Counts as a build there while it lives.
    pub(super) count: BuildCount,
    pub(super) decision: Decision,
}

impl Placement {
    /// Tries one backend after the other.
    ///
    /// # Errors
    /// No backend could be reached in time.
    pub(super) async fn open(&self, mut tries: Tries) -> Result<Opened, ProxyError> {
        if !self.fleet.is_ready() {
            // At start the first probes are under way: their verdicts are milliseconds off.
            let limit = FIRST_VERDICTS.min(left(tries.deadline));
            let _ = timeout(limit, self.fleet.settled()).await;
        }
        let roster = self.fleet.roster();
        let mut failures: Vec<String> = Vec::new();
        let mut tried: Vec<usize> = Vec::new();
        loop {
            let chosen = match tries.preferred.take() {
                Some((backend, outcome)) => {
                    Some((backend.start_build(), Decision::preferred(outcome, &backend)))
                }
                None => self.choose(&roster, &tries, &tried),
            };
            let Some((count, mut decision)) = chosen else {
                return Err(ProxyError::NoBackend(describe(roster.backends(), &failures)));
            };
            let backend = count.backend();
            let link = match tries.kind {
                LinkKind::Own => Link::new(Arc::clone(backend), self.tasks.clone()),
                LinkKind::Shared => self.shared.link(backend),
            };
            // Half of what is left: each has its time, and several have a turn. The first has more than
            // a connection is given anyway.
            let limit = (left(tries.deadline) / 2).max(SHORTEST_TRY);
            match timeout(limit, link.open()).await {
                Ok(Ok(())) => {
                    if !failures.is_empty() {
                        decision.outcome = Outcome::Failover;
                    }
                    return Ok(Opened { link, count, decision });
                }
                // No other backend could be reached either.
                Ok(Err(error @ ProxyError::Shortage { .. })) => return Err(error),
                Ok(Err(error)) => failures.push(error.to_string()),
                Err(_elapsed) => {
                    failures.push(format!("backend {} was silent for {limit:.1?}", backend.name()));
                }
            }
            if left(tries.deadline).is_zero() {
                return Err(ProxyError::NoBackend(describe(roster.backends(), &failures)));
            }
            let same = |other: &Arc<Backend>| Arc::ptr_eq(other, backend);
            tried.extend(roster.backends().iter().position(same));
        }
    }

    fn choose(
        &self,
        roster: &Roster,
        tries: &Tries,
        tried: &[usize],
    ) -> Option<(BuildCount, Decision)> {
        let now = Instant::now();
        let warm = tries.key.and_then(|key| self.warm.lock().get(key, now));
        let request = policy::Request { key: tries.key, warm, tried };
        let (count, choice) = self.fleet.start_build(roster, |candidates| {
            tries.policy.choose(&request, candidates, now, &mut rand::rng())
        })?;
        Some((count, Decision::chosen(&choice, roster)))
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn describe(backends: &[Arc<Backend>], failures: &[String]) -> String {
    if !failures.is_empty() {
        return first_few(failures);
    }
    if backends.is_empty() {
        return "the fleet is empty".to_owned();
    }
    let state =
        |backend: &Arc<Backend>| format!("{} is {}", backend.name(), backend.state().label());
    first_few(backends.iter().map(state))
}

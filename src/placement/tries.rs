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
    client::Client,
    error::{ProxyError, first_few},
    fleet::{Backend, BuildCount, Roster},
    policy::{self, KeyHash, Outcome, PolicyKind},
    upstream::Link,
};

/// How long a build waits at the start of the proxy for the first probe of each backend. A daemon
/// answers in milliseconds; one that does not must not hold up builds for the others.
const FIRST_VERDICTS: Duration = Duration::from_secs(1);

/// The least that one backend is given. A daemon that is there answers in milliseconds.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// Which backends are tried.
#[derive(Debug)]
pub(super) struct Tries {
    /// The first one, whatever the policy says, and how it was found.
    pub(super) preferred: Option<(Arc<Backend>, Outcome)>,
    /// Not these.
    pub(super) avoid: Vec<Arc<Backend>>,
    /// Whose connection it will be.
    pub(super) client: Client,
    /// Chooses the others.
    pub(super) policy: policy::Policy,
    pub(super) key: Option<KeyHash>,
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

/// What has been tried so far, and until when there is time for more.
#[derive(Debug)]
struct Progress {
    roster: Arc<Roster>,
    failures: Vec<String>,
    tried: Vec<usize>,
    deadline: Instant,
}

impl Progress {
    /// Tries whether `link`'s backend accepts.
    ///
    /// # Errors
    /// No other backend can be tried either.
    async fn accepts(&mut self, link: &Link) -> Result<bool, ProxyError> {
        let backend = link.backend();
        // Half of what is left: each has its time, and several have a turn. The first has more than
        // a connection is given anyway.
        let limit = (left(self.deadline) / 2).max(SHORTEST_TRY);
        match timeout(limit, link.open()).await {
            Ok(Ok(())) => return Ok(true),
            // No other backend could be reached either.
            Ok(Err(error @ (ProxyError::Shortage { .. } | ProxyError::Limit(_)))) => {
                return Err(error);
            }
            Ok(Err(error)) => self.failures.push(error.to_string()),
            Err(_elapsed) => {
                self.failures
                    .push(format!("backend {} was silent for {limit:.1?}", backend.name()));
            }
        }
        if left(self.deadline).is_zero() {
            return Err(self.nobody());
        }
        self.pass_over(backend);
        Ok(false)
    }

    fn pass_over(&mut self, backend: &Arc<Backend>) {
        let same = |other: &Arc<Backend>| Arc::ptr_eq(other, backend);
        self.tried.extend(self.roster.backends().iter().position(same));
    }

    fn nobody(&self) -> ProxyError {
        ProxyError::NoBackend(describe(self.roster.backends(), &self.failures))
    }
}

impl Placement {
    /// Opens a link for a build.
    ///
    /// # Errors
    /// No backend could be reached in time.
    pub(super) async fn open(&self, mut tries: Tries) -> Result<Opened, ProxyError> {
        let mut progress = self.progress(tries.deadline).await;
        tries.avoid.iter().for_each(|backend| progress.pass_over(backend));
        loop {
            let chosen = match tries.preferred.take() {
                Some((backend, outcome)) => {
                    Some((backend.start_build(), Decision::preferred(outcome, &backend)))
                }
                None => self.choose(&progress.roster, &tries, &progress.tried),
            };
            let (count, mut decision) = chosen.ok_or_else(|| progress.nobody())?;
            let link = self.shared.for_build(count.backend(), &tries.client);
            if progress.accepts(&link).await? {
                if !progress.failures.is_empty() {
                    decision.outcome = Outcome::Failover;
                }
                return Ok(Opened { link, count, decision });
            }
        }
    }

    /// The link to a backend that accepts, by load, for a call of `client` that belongs to no build and
    /// counts as none.
    ///
    /// # Errors
    /// No backend could be reached in time.
    pub async fn any(&self, client: &Client) -> Result<Link, ProxyError> {
        let policy = self.policy.with(PolicyKind::LeastBuilds);
        let mut progress = self.progress(Self::deadline()).await;
        loop {
            let request = policy::Request { key: None, warm: None, tried: &progress.tried };
            let candidates = progress.roster.candidates();
            let choice = policy.choose(&request, candidates, Instant::now(), &mut rand::rng());
            let choice = choice.ok_or_else(|| progress.nobody())?;
            let link = self.shared.for_call(&progress.roster.backends()[choice.index], client);
            if progress.accepts(&link).await? {
                return Ok(link);
            }
        }
    }

    async fn progress(&self, deadline: Instant) -> Progress {
        if !self.fleet.is_ready() {
            // At start the first probes are under way: their verdicts are milliseconds off.
            let limit = FIRST_VERDICTS.min(left(deadline));
            let _ = timeout(limit, self.fleet.settled()).await;
        }
        let roster = self.fleet.roster();
        Progress { roster, failures: Vec::new(), tried: Vec::new(), deadline }
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

//! Opens a connection to the backend that the policy chooses. If that fails, the next backend is tried.
//!
//! Nothing of the call has been sent to a daemon yet, so another try is safe.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    Decision, Placement, Wish,
    queue::{SlotGrant, Started},
    spans::Step,
};
use crate::{
    client::Client,
    error::{ProxyError, first_few},
    fleet::{Backend, BuildCount, Roster},
    policy::{self, KeyHash, Outcome, PolicyKind},
    upstream::Link,
};

/// How long a build waits at the start of the proxy for the first probe of each backend. A daemon answers in
/// milliseconds, and one that does not answer must not delay the builds of the others.
const FIRST_VERDICTS: Duration = Duration::from_secs(1);

/// The shortest time that one backend is given. A daemon that is there answers in milliseconds.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// Which backends are tried, and how.
#[derive(Debug)]
pub(super) struct Tries {
    /// The first backend, chosen without the policy, and how it was found.
    pub(super) preferred: Option<(Arc<Backend>, Outcome)>,
    /// The slot that the build was granted before any choice.
    pub(super) grant: Option<SlotGrant>,
    /// Whether the build needs a slot and must let waiting builds go first.
    pub(super) takes_turns: bool,
    /// The backends that must not be tried.
    pub(super) avoid: Vec<Arc<Backend>>,
    /// The backends that can do less than the client was told. They must not be tried either.
    pub(super) unable: Vec<Arc<Backend>>,
    /// The client that owns the connection.
    pub(super) client: Client,
    /// The policy that chooses the other backends.
    pub(super) policy: policy::Policy,
    pub(super) key: Option<KeyHash>,
    /// The time after which no more backends are tried.
    pub(super) deadline: Instant,
}

/// A link to a backend that accepts, and why that backend was chosen.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) link: Link,
    /// Counts the build on the backend.
    pub(super) count: BuildCount,
    pub(super) decision: Decision,
    /// Counts the build for its client, if it had to wait.
    pub(super) started: Option<Started>,
}

/// Why no link was opened.
#[derive(Debug)]
pub(super) enum Failed {
    /// No backend has a free slot, or other builds come first.
    Full,
    /// No backend took the build.
    Nobody(ProxyError),
    /// A backend would have taken the build, but can do less than the client was told.
    Unable(ProxyError),
    /// Another backend would have failed in the same way.
    Other(ProxyError),
}

/// The tries so far, and the time that is left for more.
#[derive(Debug)]
struct Progress {
    roster: Arc<Roster>,
    failures: Vec<String>,
    tried: Vec<usize>,
    deadline: Instant,
}

impl Progress {
    /// Tries whether the backend of `link` accepts, and notes in `step` why it does not.
    ///
    /// # Errors
    /// No other backend can be tried either.
    async fn accepts(&mut self, link: &Link, step: &Step) -> Result<bool, Failed> {
        let backend = link.backend();
        // Half of the time that is left, so that several backends have a turn. The first gets more time than a
        // connection may take anyway.
        let limit = (left(self.deadline) / 2).max(SHORTEST_TRY);
        match timeout(limit, link.open()).await {
            Ok(Ok(())) => return Ok(true),
            // The proxy could not reach another backend either.
            Ok(Err(error @ (ProxyError::Shortage { .. } | ProxyError::Limit(_)))) => {
                step.failed(&error);
                return Err(Failed::Other(error));
            }
            Ok(Err(error)) => {
                step.failed(&error);
                self.failures.push(error.to_string());
            }
            Err(_elapsed) => {
                step.timed_out();
                self.failures
                    .push(format!("backend {} did not answer within {limit:.1?}", backend.name()));
            }
        }
        if left(self.deadline).is_zero() {
            return Err(Failed::Nobody(self.nobody()));
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
    /// Opens a link for the build of `wish`.
    ///
    /// # Errors
    /// No backend could be reached in time, or none has a free slot.
    pub(super) async fn open(&self, mut tries: Tries, wish: &Wish) -> Result<Opened, Failed> {
        let mut progress = self.progress(tries.deadline).await;
        tries.avoid.iter().chain(&tries.unable).for_each(|backend| progress.pass_over(backend));
        loop {
            let (count, mut decision, started) = self.next(&mut tries, &progress)?;
            let link = self.shared.for_build(count.backend(), &tries.client);
            let step = Step::connect(wish, count.backend());
            if progress.accepts(&link, &step).await? {
                if !progress.failures.is_empty() {
                    decision.outcome = Outcome::Failover;
                }
                return Ok(Opened { link, count, decision, started });
            }
        }
    }

    /// The link to the least loaded backend that accepts, for a call of `client` that belongs to no build and is not
    /// counted.
    ///
    /// # Errors
    /// No backend could be reached in time.
    pub async fn any(&self, client: &Client) -> Result<Link, ProxyError> {
        let policy = self.policy.with(PolicyKind::LeastBuilds);
        let mut progress = self.progress(Self::deadline()).await;
        loop {
            let tried = &progress.tried;
            let request = policy::Request { key: None, warm: None, tried, slots: None };
            let candidates = progress.roster.candidates();
            let choice = policy.choose(&request, candidates, Instant::now(), &mut rand::rng());
            let choice = choice.ok_or_else(|| progress.nobody())?;
            let link = self.shared.for_call(&progress.roster.backends()[choice.index], client);
            match progress.accepts(&link, &Step::default()).await {
                Ok(true) => return Ok(link),
                Ok(false) => {}
                Err(Failed::Nobody(error) | Failed::Other(error)) => return Err(error),
                Err(Failed::Full | Failed::Unable(_)) => return Err(progress.nobody()),
            }
        }
    }

    async fn progress(&self, deadline: Instant) -> Progress {
        if !self.fleet.is_ready() {
            // At the start the first probes are running and end within milliseconds.
            let limit = FIRST_VERDICTS.min(left(deadline));
            let _ = timeout(limit, self.fleet.settled()).await;
        }
        let roster = self.fleet.roster();
        Progress { roster, failures: Vec::new(), tried: Vec::new(), deadline }
    }

    /// The backend to try next. The build is already counted there.
    fn next(
        &self,
        tries: &mut Tries,
        progress: &Progress,
    ) -> Result<(BuildCount, Decision, Option<Started>), Failed> {
        if let Some((backend, outcome)) = tries.preferred.take() {
            return Ok((backend.start_build(), Decision::preferred(outcome, &backend), None));
        }
        if let Some(SlotGrant { count, decision, started }) = tries.grant.take() {
            return Ok((count, decision, Some(started)));
        }
        if tries.takes_turns && !self.queue.is_empty() {
            return Err(Failed::Full);
        }
        match self.choose(&progress.roster, tries, &progress.tried) {
            Some((count, decision)) => Ok((count, decision, None)),
            None if self.is_full(tries, progress) => Err(Failed::Full),
            None if !tries.unable.is_empty() => {
                let less = first_few(tries.unable.iter().map(|backend| less(backend)));
                Err(Failed::Unable(ProxyError::NoBackend(less)))
            }
            None => Err(Failed::Nobody(progress.nobody())),
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
        let slots = self.queue.config.max_builds.filter(|_| tries.takes_turns);
        let waits_for_cache = slots.is_some() && !self.queue.config.affinity_wait.is_zero();
        let request = policy::Request { key: tries.key, warm, tried, slots };
        let (count, choice) = self.fleet.start_build(roster, |candidates| {
            let choice = tries.policy.choose(&request, candidates, now, &mut rand::rng());
            choice.filter(|choice| !(waits_for_cache && choice.cache_is_busy))
        })?;
        Some((count, Decision::chosen(&choice, roster)))
    }

    /// Whether nothing could be chosen because no slot is free.
    fn is_full(&self, tries: &Tries, progress: &Progress) -> bool {
        let backends = progress.roster.backends().iter().enumerate();
        let mut left = backends.filter(|(at, _)| !progress.tried.contains(at));
        let limited = tries.takes_turns && self.queue.config.max_builds.is_some();
        limited && left.any(|(_, backend)| backend.is_ready())
    }
}

/// Says that the client of a build was told of more than `backend` can do.
pub(super) fn less(backend: &Backend) -> String {
    let version = backend.version().map_or_else(String::new, |version| format!(" ({version})"));
    format!("{}{version} can do less than the client was told", backend.name())
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

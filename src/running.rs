//! The builds that run now, and why each is where it is: for the log record at its end, and for the page and
//! `/status.json` before that. `running/recent` keeps those that ended last, `running/placements` counts how builds were
//! placed.

mod placements;
mod recent;

use std::{
    collections::BTreeMap,
    mem,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

pub use self::{
    placements::Minute,
    recent::{EndedBuild, Ending},
};
use self::{placements::Placements, recent::Recent};
use crate::{
    affinity::AffinityKey,
    fleet::Backend,
    identity::Identity,
    placement::{Decision, queue::Waited},
    policy::PolicyKind,
    relay::ByteCounts,
};

/// A build that has been placed.
#[derive(Debug)]
pub struct RunningBuild {
    /// The ref of the build.
    pub build: String,
    /// Whether the build is a probe of the client, which builds nothing.
    pub internal: bool,
    /// The session of the build, as logs show it.
    pub session: String,
    /// The address of the client. `None` if it came through a Unix socket.
    pub client: Option<IpAddr>,
    /// The identity of the client. `None` if it has not shown any.
    pub identity: Option<Arc<Identity>>,
    /// The affinity key of the build. `None` if no rule finds one.
    pub affinity: Option<Arc<AffinityKey>>,
    /// The policy of the pool.
    pub policy: PolicyKind,
    /// The backend on which the build runs.
    pub backend: Arc<Backend>,
    /// Why the build runs there.
    pub decision: Decision,
    /// Whether the backend had built the key lately when the build was placed. `None` without a key, or if the policy
    /// remembers no keys.
    pub warm: Option<bool>,
    /// When the Solve arrived.
    pub arrived: Instant,
    /// The time from arrival to placement.
    pub wait: Duration,
    /// The part of that time that the build waited in the queue, if it did.
    pub waited: Option<Waited>,
    /// The bytes of the build's own calls, without those of its session.
    pub byte_counts: Arc<ByteCounts>,
    /// The bytes of the build's session.
    pub session_byte_counts: Arc<ByteCounts>,
}

impl RunningBuild {
    /// The affinity key as text. Empty if there is none.
    pub fn key(&self) -> &str {
        self.affinity.as_ref().map_or("", |affinity| affinity.key.as_str())
    }

    /// The source of the key, or `none`.
    pub fn key_source(&self) -> &'static str {
        self.affinity.as_ref().map_or("none", |affinity| affinity.source)
    }

    /// The message bytes of the build and its session until now: from the client, and from the daemon.
    pub fn bytes(&self) -> (u64, u64) {
        let both = [&self.byte_counts, &self.session_byte_counts];
        let up = both.map(|counts| counts.up.load(Ordering::Relaxed));
        let down = both.map(|counts| counts.down.load(Ordering::Relaxed));
        (up.iter().sum(), down.iter().sum())
    }

    /// The home of the key and why the build is not there, if it runs elsewhere.
    pub fn home(&self) -> (Option<&str>, Option<&'static str>) {
        let home = self.decision.passed_over.as_ref();
        home.map(|(home, obstacle)| (home.name(), obstacle.label())).unzip()
    }
}

/// The builds of a pool: those that run, and those that ended last. Clones share the lists.
#[derive(Debug, Clone)]
pub struct Running(Arc<Mutex<Lists>>);

#[derive(Debug)]
struct Lists {
    /// The number of the last build.
    last: u64,
    /// The running builds by their numbers, so in the order of their placement.
    builds: BTreeMap<u64, Arc<RunningBuild>>,
    recent: Recent,
    placements: Placements,
}

impl Running {
    /// A list without builds, which remembers at most `recent` builds that have ended.
    pub fn new(recent: usize) -> Self {
        Self(Arc::new(Mutex::new(Lists {
            last: 0,
            builds: BTreeMap::new(),
            recent: Recent::new(recent),
            placements: Placements::new(Instant::now()),
        })))
    }

    /// Lists a build as long as the returned guard lives.
    pub fn enter(&self, build: RunningBuild) -> RunningGuard {
        let build = Arc::new(build);
        let mut lists = self.0.lock();
        lists.last += 1;
        let number = lists.last;
        lists.builds.insert(number, Arc::clone(&build));
        // The probe of a client is no build to a person who looks.
        if !build.internal {
            lists.placements.note(build.decision.outcome, build.arrived);
        }
        RunningGuard { build, number, ending: None, running: self.clone() }
    }

    /// The running builds in the order of their placement.
    pub fn builds(&self) -> Vec<Arc<RunningBuild>> {
        self.0.lock().builds.values().cloned().collect()
    }

    /// The builds that ended last, the latest first.
    pub fn recent(&self) -> Vec<Arc<EndedBuild>> {
        self.0.lock().recent.builds()
    }

    /// How the builds of the last hour were placed, minute by minute, the current minute last.
    pub fn placements(&self) -> Vec<Minute> {
        self.0.lock().placements.last_hour(Instant::now())
    }
}

/// Keeps a build in the list until dropped.
#[derive(Debug)]
pub struct RunningGuard {
    build: Arc<RunningBuild>,
    number: u64,
    ending: Option<Ending>,
    running: Running,
}

impl RunningGuard {
    /// Takes the build from the running ones and remembers how it ended. A build whose guard is only dropped is
    /// forgotten.
    pub fn end(mut self, ending: Ending) {
        self.ending = Some(ending);
    }
}

impl std::ops::Deref for RunningGuard {
    type Target = RunningBuild;

    fn deref(&self) -> &RunningBuild {
        &self.build
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        let ending = self.ending.take().filter(|_known| !self.build.internal);
        let ended = ending.map(|ending| EndedBuild::new(Arc::clone(&self.build), ending));
        let mut lists = self.running.0.lock();
        lists.builds.remove(&self.number);
        let forgotten = ended.and_then(|ended| lists.recent.note(ended));
        // The facts of the forgotten build are freed after the lock, because other builds wait for it.
        mem::drop(lists);
        mem::drop(forgotten);
    }
}

#[cfg(test)]
mod tests;

//! The builds that run now, and why each is where it is: for the log record at its end, and for `/status.json`
//! before that.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

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

type Builds = BTreeMap<u64, Arc<RunningBuild>>;

/// The running builds of a pool. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<(u64, Builds)>>);

impl Running {
    /// Lists a build as long as the returned guard lives.
    pub fn enter(&self, build: RunningBuild) -> RunningGuard {
        let build = Arc::new(build);
        let mut list = self.0.lock();
        list.0 += 1;
        let number = list.0;
        list.1.insert(number, Arc::clone(&build));
        RunningGuard { build, number, running: self.clone() }
    }

    /// The builds in the order of their placement.
    pub fn builds(&self) -> Vec<Arc<RunningBuild>> {
        self.0.lock().1.values().cloned().collect()
    }
}

/// Keeps a build in the list until dropped.
#[derive(Debug)]
pub struct RunningGuard {
    build: Arc<RunningBuild>,
    number: u64,
    running: Running,
}

impl std::ops::Deref for RunningGuard {
    type Target = RunningBuild;

    fn deref(&self) -> &RunningBuild {
        &self.build
    }
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.running.0.lock().1.remove(&self.number);
    }
}

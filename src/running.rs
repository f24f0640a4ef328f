//! The builds that run now and why each is where it is: for the log record at its end, and for whoever
//! looks before that.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    affinity::AffinityKey,
    fleet::Backend,
    identity::Identity,
    placement::{Decision, queue::Waited},
    policy::PolicyKind,
};

/// One build that has been placed.
#[derive(Debug)]
pub struct RunningBuild {
    /// Its ref.
    pub build: String,
    /// It is a client's probe, which builds nothing.
    pub internal: bool,
    /// Its session, as it is shown.
    pub session: String,
    /// Address of its client, unless that came through a Unix socket.
    pub client: Option<IpAddr>,
    /// Who its client is, if that has shown it.
    pub identity: Option<Arc<Identity>>,
    /// What its cache is known by.
    pub affinity: Option<Arc<AffinityKey>>,
    /// The policy in force.
    pub policy: PolicyKind,
    /// Where it runs.
    pub backend: Arc<Backend>,
    /// Why there.
    pub decision: Decision,
    /// When its Solve arrived.
    pub arrived: Instant,
    /// How long it took to place it.
    pub wait: Duration,
    /// How long of that it waited for its turn, if it did.
    pub waited: Option<Waited>,
}

impl RunningBuild {
    /// The key's text, empty without one.
    pub fn key(&self) -> &str {
        self.affinity.as_ref().map_or("", |affinity| affinity.key.as_str())
    }

    /// The word for where the key comes from.
    pub fn key_source(&self) -> &'static str {
        self.affinity.as_ref().map_or("none", |affinity| affinity.source)
    }

    /// The key's home and what keeps the build from it, if it is elsewhere.
    pub fn home(&self) -> (Option<&str>, Option<&'static str>) {
        let home = self.decision.passed_over.as_ref();
        home.map(|(home, obstacle)| (home.name(), obstacle.label())).unzip()
    }
}

type Builds = BTreeMap<u64, Arc<RunningBuild>>;

/// All of them. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<(u64, Builds)>>);

impl Running {
    /// Lists a build for as long as the entry lives.
    pub fn enter(&self, build: RunningBuild) -> RunningGuard {
        let build = Arc::new(build);
        let mut list = self.0.lock();
        list.0 += 1;
        let number = list.0;
        list.1.insert(number, Arc::clone(&build));
        RunningGuard { build, number, running: self.clone() }
    }

    /// The builds in the order of their placing.
    pub fn builds(&self) -> Vec<Arc<RunningBuild>> {
        self.0.lock().1.values().cloned().collect()
    }
}

/// A place in the list.
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

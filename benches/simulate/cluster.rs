//! Daemons that run builds and keep caches, and the view of the policies on them.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use buildkit_lb::policy::{Candidate, Candidates, Status, Totals};
use lru::LruCache;

/// The number of projects whose caches fit on one daemon's disk.
const CACHED_PROJECTS: NonZeroUsize = NonZeroUsize::new(200).expect("not 0");

/// One daemon.
pub(crate) struct Daemon {
    name: String,
    candidate: Arc<Candidate>,
    cache: LruCache<u32, ()>,
    /// Changes with each restart: builds from before the restart have ended.
    life: u32,
}

/// The daemon that runs a build, and the life of the daemon in which it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) daemon: usize,
    life: u32,
}

/// All daemons, and the time.
pub(crate) struct Cluster {
    daemons: Vec<Daemon>,
    totals: Arc<Totals>,
    candidates: Candidates,
    /// The daemon of each place among the candidates.
    places: Vec<usize>,
    present: Vec<bool>,
    builds: u64,
    epoch: Instant,
    /// The number in the name of the next new daemon.
    next_name: usize,
}

impl Cluster {
    pub(crate) fn new(count: usize) -> Self {
        let mut cluster = Self {
            daemons: Vec::new(),
            totals: Arc::default(),
            candidates: Candidates::default(),
            places: Vec::new(),
            present: vec![true; count],
            builds: 0,
            epoch: Instant::now(),
            next_name: count,
        };
        let daemons = (0..count).map(|number| Daemon {
            name: format!("buildkitd-{number}"),
            candidate: cluster.candidate(&format!("buildkitd-{number}"), None),
            cache: LruCache::new(CACHED_PROJECTS),
            life: 0,
        });
        cluster.daemons = daemons.collect();
        cluster.enlist();
        cluster
    }

    pub(crate) fn len(&self) -> usize {
        self.daemons.len()
    }

    /// The candidates of the policies.
    pub(crate) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    /// The time, this many seconds after the start, as the policies see it.
    pub(crate) fn instant(&self, seconds: f64) -> Instant {
        self.epoch + Duration::from_secs_f64(seconds)
    }

    /// The daemon at a place among the candidates.
    pub(crate) fn daemon_at(&self, place: usize) -> usize {
        self.places[place]
    }

    pub(crate) fn candidate_of(&self, daemon: usize) -> &Candidate {
        &self.daemons[daemon].candidate
    }

    /// Starts a build. Returns its seat, and whether the daemon's cache was warm.
    ///
    /// A running build counts, because BuildKit joins equal steps of builds that run at the same time.
    pub(crate) fn start_build(&mut self, daemon: usize, project: u32) -> (Seat, bool) {
        let entry = &mut self.daemons[daemon];
        entry.candidate.start_build();
        self.builds += 1;
        let warm = entry.cache.put(project, ()).is_some();
        (Seat { daemon, life: entry.life }, warm)
    }

    pub(crate) fn end_build(&mut self, seat: Seat) {
        let daemon = &self.daemons[seat.daemon];
        if daemon.life == seat.life {
            daemon.candidate.end_build();
            self.builds -= u64::from(self.present[seat.daemon]);
        }
    }

    /// The number of builds on each daemon that takes new ones.
    pub(crate) fn loads(&self) -> impl Iterator<Item = u32> {
        let ready = self.daemons.iter().zip(&self.present).filter(|(_, present)| **present);
        ready.map(|(daemon, _)| daemon.candidate.builds())
    }

    /// The number of builds on all daemons that take new ones.
    pub(crate) fn builds(&self) -> u64 {
        self.builds
    }

    /// Removes the daemon from the fleet. Its running builds may finish.
    pub(crate) fn leave(&mut self, daemon: usize) {
        self.present[daemon] = false;
        self.builds -= u64::from(self.daemons[daemon].candidate.builds());
        self.daemons[daemon].candidate.set_status(Status { departed: true, ..Status::default() });
        self.enlist();
    }

    /// A daemon with the same name and cache is back, like a restarted pod of a StatefulSet.
    pub(crate) fn come_back(&mut self, daemon: usize, seconds: f64) {
        let name = self.daemons[daemon].name.clone();
        self.begin(daemon, name, seconds);
    }

    /// A daemon with an empty cache replaces one that has left, like after the loss of a node.
    pub(crate) fn replace(&mut self, daemon: usize, seconds: f64) {
        let name = format!("buildkitd-{}", self.next_name);
        self.next_name += 1;
        self.daemons[daemon].cache.clear();
        self.begin(daemon, name, seconds);
    }

    fn begin(&mut self, daemon: usize, name: String, seconds: f64) {
        let joined = Some(self.instant(seconds));
        let candidate = self.candidate(&name, joined);
        let entry = &mut self.daemons[daemon];
        entry.candidate = candidate;
        entry.name = name;
        entry.life += 1;
        self.present[daemon] = true;
        self.enlist();
    }

    fn candidate(&self, name: &str, joined: Option<Instant>) -> Arc<Candidate> {
        Arc::new(Candidate::new(name, 1, joined, &self.totals))
    }

    fn enlist(&mut self) {
        self.places = (0..self.daemons.len()).filter(|daemon| self.present[*daemon]).collect();
        let candidates =
            self.places.iter().map(|&daemon| Arc::clone(&self.daemons[daemon].candidate));
        self.candidates = Candidates::new(candidates.collect(), &self.totals);
    }
}

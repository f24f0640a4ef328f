//! The builds that ended last. Each entry shares the facts of the running build, so an end costs one small allocation.

use std::{
    collections::VecDeque,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::Code;

use super::RunningBuild;

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The time from the arrival of the Solve to its end.
    pub duration: Duration,
    /// The gRPC code of the end.
    pub code: Code,
    /// The bytes from the client, those of its session too.
    pub bytes_up: u64,
    /// The bytes to the client, those of its session too.
    pub bytes_down: u64,
}

/// A build that has ended.
#[derive(Debug)]
pub struct EndedBuild {
    placed: Arc<RunningBuild>,
    /// How the build ended.
    pub ending: Ending,
}

impl EndedBuild {
    pub(super) fn new(placed: Arc<RunningBuild>, ending: Ending) -> Self {
        Self { placed, ending }
    }

    /// When the build ended.
    pub fn ended(&self) -> Instant {
        self.placed.arrived + self.ending.duration
    }
}

impl Deref for EndedBuild {
    type Target = RunningBuild;

    fn deref(&self) -> &RunningBuild {
        &self.placed
    }
}

/// A list of at most `max` builds.
#[derive(Debug)]
pub(super) struct Recent {
    max: usize,
    /// The earliest end comes first.
    builds: VecDeque<Arc<EndedBuild>>,
}

impl Recent {
    pub(super) fn new(max: usize) -> Self {
        Self { max, builds: VecDeque::new() }
    }

    /// Adds `build`, and returns the build that it replaces.
    pub(super) fn note(&mut self, build: EndedBuild) -> Option<Arc<EndedBuild>> {
        if self.max == 0 {
            return Some(Arc::new(build));
        }
        let full = self.builds.len() >= self.max;
        let forgotten = full.then(|| self.builds.pop_front()).flatten();
        self.builds.push_back(Arc::new(build));
        forgotten
    }

    /// The builds, the latest end first.
    pub(super) fn builds(&self) -> Vec<Arc<EndedBuild>> {
        self.builds.iter().rev().cloned().collect()
    }
}

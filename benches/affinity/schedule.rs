//! The order of the builds: shuffled, and several at once.

use std::{
    collections::HashSet,
    sync::{Condvar, Mutex},
};

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// One build of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) project: usize,
    /// 0 for the first build of the project.
    pub(crate) turn: usize,
}

/// The builds that have not started yet.
///
/// No project is built twice at the same time. The second build would join the steps of the first on the same daemon,
/// and luck would decide whether it finds them cached.
#[derive(Debug)]
pub(crate) struct Schedule {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// In reverse order, so that the next build is the last element.
    waiting: Vec<Job>,
    running: HashSet<usize>,
}

impl Schedule {
    /// Every project `builds` times, in an order that only `seed` determines.
    pub(crate) fn new(projects: usize, builds: usize, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..projects * builds).map(|slot| slot % projects).collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed));
        let mut turns = vec![0; projects];
        let mut waiting: Vec<Job> = order
            .into_iter()
            .map(|project| {
                turns[project] += 1;
                Job { project, turn: turns[project] - 1 }
            })
            .collect();
        waiting.reverse();
        let state = Mutex::new(State { waiting, running: HashSet::new() });
        Self { state, changed: Condvar::new() }
    }

    /// The next build of a project that is not being built, or `None` when all have started.
    pub(crate) fn take(&self) -> Option<Job> {
        let mut state = self.state.lock().expect("no holder panics");
        loop {
            if state.waiting.is_empty() {
                return None;
            }
            let running = &state.running;
            if let Some(at) = state.waiting.iter().rposition(|job| !running.contains(&job.project))
            {
                let job = state.waiting.remove(at);
                state.running.insert(job.project);
                return Some(job);
            }
            state = self.changed.wait(state).expect("no holder panics");
        }
    }

    /// Records that a build has ended.
    pub(crate) fn ended(&self, job: Job) {
        self.state.lock().expect("no holder panics").running.remove(&job.project);
        self.changed.notify_all();
    }

    /// Starts no more builds.
    pub(crate) fn abandon(&self) {
        self.state.lock().expect("no holder panics").waiting.clear();
        self.changed.notify_all();
    }
}

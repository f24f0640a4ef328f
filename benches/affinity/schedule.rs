//! Which build comes when: a shuffled order, and several builds at once.

use std::{
    collections::HashSet,
    sync::{Condvar, Mutex},
};

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// One build of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) project: usize,
    /// 0 for the project's first build.
    pub(crate) turn: usize,
}

/// The builds that have not been started.
///
/// No project is built twice at the same time: the second would join the first one's steps on the same
/// daemon, and whether it found them cached would be a matter of luck.
#[derive(Debug)]
pub(crate) struct Schedule {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// In reverse: the last comes first.
    waiting: Vec<Job>,
    running: HashSet<usize>,
}

impl Schedule {
    /// Every project `builds` times, in an order that `seed` alone determines.
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

    /// The next build of a project that is not being built; `None` when all have been started.
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

    /// Notes that a build has ended.
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

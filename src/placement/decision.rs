//! Why a build is where it is: what its log record and the status page tell.

use std::sync::Arc;

use crate::{
    fleet::{Backend, Roster},
    policy::{Choice, Obstacle, Outcome},
};

/// How a backend was found, and what it ran at that moment.
#[derive(Debug, Clone)]
pub struct Decision {
    /// How the backend was found.
    pub outcome: Outcome,
    /// How many backends the key would rather have; `None` without a key.
    pub rank: Option<usize>,
    /// Builds that ran there.
    pub load: u32,
    /// Builds that could run there before the key spilled, if that was bounded.
    pub limit: Option<u64>,
    /// The key's home, if the build is elsewhere, and what kept it out.
    pub passed_over: Option<(Arc<Backend>, Obstacle)>,
}

impl Decision {
    /// `backend`, whatever the policy says.
    pub(super) fn preferred(outcome: Outcome, backend: &Backend) -> Self {
        let load = backend.builds();
        Self { outcome, rank: None, load, limit: None, passed_over: None }
    }

    /// A policy chose it from `roster`.
    pub(super) fn chosen(choice: &Choice, roster: &Roster) -> Self {
        let backend = |index: usize| Arc::clone(&roster.backends()[index]);
        Self {
            outcome: choice.outcome,
            rank: choice.rank,
            load: choice.builds,
            limit: choice.limit,
            passed_over: choice.passed_over.map(|(index, obstacle)| (backend(index), obstacle)),
        }
    }
}

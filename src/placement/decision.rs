//! Why a build is on its backend, for its log record and the status page.

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
    /// How many backends the key ranks above this one; `None` without a key.
    pub rank: Option<usize>,
    /// How many builds the backend ran.
    pub load: u32,
    /// How many builds the backend may run before the key spills; `None` without a limit.
    pub limit: Option<u64>,
    /// The key's home and the obstacle there, if the build is on another backend.
    pub passed_over: Option<(Arc<Backend>, Obstacle)>,
}

impl Decision {
    /// The decision for `backend`, made without the policy.
    pub(super) fn preferred(outcome: Outcome, backend: &Backend) -> Self {
        let load = backend.builds();
        Self { outcome, rank: None, load, limit: None, passed_over: None }
    }

    /// The decision of a policy that chose from `roster`.
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

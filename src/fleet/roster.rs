//! The fleet at one moment, for the data path and for the policies.

use std::sync::Arc;

use super::Backend;
use crate::policy::Candidates;

/// All backends at one moment, sorted by name.
pub type Snapshot = Arc<Vec<Arc<Backend>>>;

/// All backends at one moment, and the same backends in the same order as the policies see them.
#[derive(Debug, Default)]
pub struct Roster {
    pub(super) backends: Snapshot,
    pub(super) candidates: Candidates,
}

impl Roster {
    /// All backends, sorted by name.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// The index of `backend` in [`Self::backends`].
    pub fn position(&self, backend: &Arc<Backend>) -> Option<usize> {
        self.backends.iter().position(|other| Arc::ptr_eq(other, backend))
    }

    /// The table that a policy chooses from. A choice is an index in [`Roster::backends`].
    pub fn candidates(&self) -> &Candidates {
        &self.candidates
    }
}

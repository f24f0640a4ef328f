//! The fleet at one moment, for the data path and for the policies.

use std::sync::Arc;

use super::Backend;
use crate::policy::Candidates;

/// All backends at one moment, sorted by name.
pub type Snapshot = Arc<Vec<Arc<Backend>>>;

/// A snapshot and the same backends as the policies see them, in the same order.
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

    /// Where `backend` stands among [`Self::backends`].
    pub fn position(&self, backend: &Arc<Backend>) -> Option<usize> {
        self.backends.iter().position(|other| Arc::ptr_eq(other, backend))
    }

    /// What a policy chooses from: a choice names a place in [`Roster::backends`].
    pub fn candidates(&self) -> &Candidates {
        &self.candidates
    }
}

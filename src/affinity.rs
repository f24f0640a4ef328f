//! The affinity key: what two builds of one project have in common, wherever they run.
//!
//! Left out on purpose: tags, commits, build arguments' values, paths of a checkout and random names,
//! which differ between jobs; target and platform too unless the rules ask for them, for the targets of
//! one project share stages.

mod facts;
mod normal;
pub mod rules;
pub mod shared_keys;
mod sources;

pub use self::{facts::Facts, rules::Rules};

/// A key and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffinityKey {
    /// The normalised text that is hashed.
    pub key: String,
    /// The source's word in logs and metrics.
    pub source: &'static str,
}

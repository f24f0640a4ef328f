//! The affinity key: what two builds of one project have in common, wherever they run.
//!
//! Left out on purpose: tags, commits, build arguments' values, paths of a checkout and random names,
//! which differ between jobs; target and platform too unless the rules ask for them, for the targets of
//! one project share stages.

mod normal;
pub mod rules;
pub mod shared_keys;
mod sources;

use crate::wire::control::SolveRequest;

pub use self::rules::Rules;

/// A key and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffinityKey {
    /// The normalised text that is hashed.
    pub key: String,
    /// The source's word in logs and metrics.
    pub source: &'static str,
}

/// All that a key can be made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The build.
    pub request: &'a SolveRequest,
    /// Metadata [`rules::HINT_HEADER`] of the call.
    pub hint: Option<&'a str>,
    /// Address of the client, without its port.
    pub client: Option<&'a str>,
    /// What its Session stream declares as the shared key (BuildKit session/session.go).
    pub shared_key: Option<&'a str>,
}

impl<'a> Facts<'a> {
    /// What the request alone tells.
    pub fn new(request: &'a SolveRequest) -> Self {
        Self { request, hint: None, client: None, shared_key: None }
    }
}

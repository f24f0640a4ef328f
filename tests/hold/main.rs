//! A build that has no daemon yet keeps its client, and continues as if there had been no wait.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod clients;
mod outcomes;
#[path = "../support/mod.rs"]
mod support;
mod versions;
mod wire;

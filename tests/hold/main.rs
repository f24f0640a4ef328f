//! A build that has no daemon yet keeps its client, and is then as it would have been without the wait.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod clients;
#[path = "../support/mod.rs"]
mod support;
mod versions;
mod wire;

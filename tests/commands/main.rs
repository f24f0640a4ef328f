//! What an operator sees of the proxy, and the commands that show it.

mod snapshot;
#[path = "../support/mod.rs"]
mod support;

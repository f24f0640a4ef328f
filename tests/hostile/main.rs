//! Hostile or careless clients harm nobody else. During each attack a real build of somebody else runs and succeeds.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod admin;
mod bystander;
mod cancels;
mod connections;
mod grouping;
mod held;
mod impostors;
mod logging;
mod memory;
mod messages;
mod pace;
mod parking;
mod secrets;
mod stalled_readers;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod unread_answers;
mod upstream_connections;

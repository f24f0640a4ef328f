//! TLS to clients and to daemons, with real clients and real daemons.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod admin;
mod authorities;
mod handshakes;
mod limits;
mod names;
mod renewal;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
mod versions;

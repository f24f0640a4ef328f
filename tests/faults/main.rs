//! Faults that a relay meets, one at a time: the relay splits, reorders, hides or invents nothing.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod answers;
mod builds;
mod connections;
mod resets;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod unreachable;

use std::time::Duration;

use bytes::Bytes;
use support::{
    fake_daemon::FakeDaemon,
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};

const EMPTY: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0]);

/// The longest time that anything expected may take, also on a busy machine.
const WAIT: Duration = Duration::from_secs(20);

/// The calls of every build.
const CALLS: [&str; 4] = ["Control/Session", "Control/Solve", "Control/Status", "LLBBridge/Ping"];

fn proxy(fleet: &[FakeDaemon]) -> Proxy {
    let builder =
        fleet.iter().fold(Builder::default(), |builder, daemon| builder.backend(&daemon.backend()));
    builder.policy("random").start()
}

async fn one() -> (FakeDaemon, Proxy, RawClient) {
    let daemon = FakeDaemon::start("only").await;
    let proxy = proxy(std::slice::from_ref(&daemon));
    let client = RawClient::connect(&proxy.socket()).await;
    (daemon, proxy, client)
}

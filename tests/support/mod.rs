//! Fixtures: real daemons, the real proxy, real clients. Each has working defaults, and dies with the
//! test process however that ends.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

pub(crate) mod buildkitd;
pub(crate) mod child;
pub(crate) mod client;
pub(crate) mod compare;
pub(crate) mod fake_daemon;
pub(crate) mod proxy;
pub(crate) mod raw_client;
pub(crate) mod registry;
pub(crate) mod tools;

use std::time::{Duration, Instant};

/// Waits until `condition` gives a value, and fails the test after `limit`.
pub(crate) fn eventually<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port nobody listens on at the moment.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

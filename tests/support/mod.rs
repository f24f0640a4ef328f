//! Fixtures: real daemons, the real proxy, real clients. Each has working defaults, and dies with the test process,
//! however that ends.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

pub(crate) mod buildkitd;
pub(crate) mod certificates;
pub(crate) mod child;
pub(crate) mod client;
pub(crate) mod compare;
pub(crate) mod fake_daemon;
pub(crate) mod frames;
pub(crate) mod kubernetes;
pub(crate) mod pages;
pub(crate) mod proxy;
pub(crate) mod raw_client;
pub(crate) mod registry;
pub(crate) mod rendered;
pub(crate) mod spray;
pub(crate) mod tools;

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Waits until `condition` gives a value, and fails the test after `limit`.
///
/// Any test may call this: in a runtime of several threads, another thread takes over the tasks of the waiting one.
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
        tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(20)));
    }
}

/// A port that nobody uses at the moment, below the ports that the system gives to clients.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run at the same time begin with different ports.
    let start = std::process::id().wrapping_mul(37);
    for _ in 0..12_000 {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = 20_000 + u16::try_from(offset).expect("below 12 000");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    unreachable!("12 000 ports are in use")
}

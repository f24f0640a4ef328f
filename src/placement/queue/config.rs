//! How builds wait: the limits of a queue and what they are unless that is said.

use std::{num::NonZeroU32, time::Duration};

/// How long a build waits for a backend: a node that a cluster adds is there in a few minutes, and its
/// image pulled.
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(300);

/// How long it waits where slots are limited: several long builds before it.
const DEFAULT_MAX_WAIT_FOR_SLOT: Duration = Duration::from_secs(1800);

/// How long a build waits for the daemon that has its cache while another is free: much less than a cold
/// build takes longer.
const DEFAULT_AFFINITY_WAIT: Duration = Duration::from_secs(10);

/// Builds that wait in a pool: some minutes' work of a large fleet.
const DEFAULT_MAX_WAITING: usize = 1000;

/// Those of one client: more than a pipeline starts at once.
const DEFAULT_MAX_WAITING_PER_CLIENT: usize = 100;

/// How builds wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Builds that a backend runs at once for each unit of its capacity; `None` without a limit.
    pub max_builds: Option<NonZeroU32>,
    /// How long a build waits at most; not at all if zero.
    pub max_wait: Duration,
    /// How long a build waits for a slot where its cache is while there is one elsewhere.
    pub affinity_wait: Duration,
    /// Builds that wait at once.
    pub max_waiting: usize,
    /// Those of one client.
    pub max_waiting_per_client: usize,
    /// Whether their clients show that they wait.
    pub progress: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_builds: None,
            max_wait: DEFAULT_MAX_WAIT,
            affinity_wait: DEFAULT_AFFINITY_WAIT,
            max_waiting: DEFAULT_MAX_WAITING,
            max_waiting_per_client: DEFAULT_MAX_WAITING_PER_CLIENT,
            progress: true,
        }
    }
}

/// How long a build waits unless that is said; `limited` if for a slot too.
pub fn default_max_wait(limited: bool) -> Duration {
    if limited { DEFAULT_MAX_WAIT_FOR_SLOT } else { DEFAULT_MAX_WAIT }
}

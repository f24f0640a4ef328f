//! The limits of a queue, and their defaults.

use std::{num::NonZeroU32, time::Duration};

/// How long a build waits for a backend. A node that a cluster adds is ready in a few minutes, with the image pulled.
const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(300);

/// How long a build waits if slots are limited: the time of several long builds before it.
const DEFAULT_MAX_WAIT_FOR_SLOT: Duration = Duration::from_secs(1800);

/// How long a build waits for the daemon that has its cache while another daemon has a free slot. The time is much
/// shorter than what a build without its cache takes longer.
const DEFAULT_AFFINITY_WAIT: Duration = Duration::from_secs(10);

/// How many builds may wait in a pool: what a large fleet builds in some minutes.
const DEFAULT_MAX_WAITING: usize = 1000;

/// How many builds of one client may wait: more than a pipeline starts at once.
const DEFAULT_MAX_WAITING_PER_CLIENT: usize = 100;

/// The limits of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How many builds a backend runs at once for each unit of its capacity; `None` without a limit.
    pub max_builds: Option<NonZeroU32>,
    /// How long a build waits at most; zero if builds do not wait at all.
    pub max_wait: Duration,
    /// How long a build waits for a slot on the backend of its cache, while another backend has a free slot.
    pub affinity_wait: Duration,
    /// How many builds may wait at once.
    pub max_waiting: usize,
    /// How many builds of one client may wait at once.
    pub max_waiting_per_client: usize,
    /// Whether clients show their position in the queue.
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

/// The default of `max_wait`; `limited` if slots are limited, so that builds wait for slots too.
pub fn default_max_wait(limited: bool) -> Duration {
    if limited { DEFAULT_MAX_WAIT_FOR_SLOT } else { DEFAULT_MAX_WAIT }
}

//! One daemon, as an operator sees it.

use serde::{Deserialize, Serialize};

use super::Time;

/// One backend.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// The pool of the backend.
    pub pool: String,
    /// The stable name of the backend, as in logs and metrics.
    pub name: String,
    /// The address on which the daemon listens.
    pub address: String,
    /// The state in one word, as in metrics.
    pub state: String,
    /// Since when the backend has been in this state.
    pub since: Time,
    /// Why the backend is unhealthy or degraded.
    pub cause: Option<String>,
    /// How long the probation of a degraded backend still takes, in seconds.
    pub probation_seconds: Option<u64>,
    /// The version that the daemon reports.
    pub buildkit_version: Option<String>,
    /// How many builds run on the backend.
    pub builds: u32,
    /// How many builds may run on the backend at once; `None` without a limit.
    pub slots: Option<u64>,
    /// The size of the backend relative to others.
    pub capacity: u32,
    /// The failure domain of the daemon.
    pub zone: Option<String>,
    /// The machine of the daemon.
    pub node: Option<String>,
    /// The version that the labels of the daemon's pod name.
    pub version: Option<String>,
    /// The architecture that the labels of the daemon's pod name.
    pub architecture: Option<String>,
    /// How many steps the daemon found in its cache since the proxy first read its metrics; `None` if they are not read.
    pub steps_cached: Option<u64>,
    /// How many steps the daemon's builds had in that time.
    pub steps_total: Option<u64>,
}

impl Backend {
    /// The share of the steps that the daemon found in its cache, in percent; `None` if it has counted none.
    pub fn cached_percent(&self) -> Option<u64> {
        let (cached, total) = self.steps_cached.zip(self.steps_total)?;
        u64::try_from((u128::from(cached) * 100).checked_div(u128::from(total))?).ok()
    }

    /// The builds of the backend and its slots, as `3/4`; without a limit only the builds.
    pub fn load(&self) -> String {
        match self.slots {
            Some(slots) => format!("{}/{slots}", self.builds),
            None => self.builds.to_string(),
        }
    }
}

//! What an operator sees of the proxy at one moment: `/status.json`, the page and the commands are made from one
//! [`Snapshot`].
//!
//! A snapshot is plain data, and knows nothing of the parts that it was taken from. Whoever reads one ignores fields
//! that it does not know, and takes the default for a field that is missing, so that a command can ask an older or a
//! newer proxy.

mod backend;
mod build;
mod time;
mod warnings;
mod why;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::{
    backend::Backend,
    build::{Build, EndedBuild, QueuedBuild},
    time::{Time, brief},
    warnings::EXPIRES_SOON,
    why::why,
};

/// All pools of one proxy at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// The version of the proxy.
    pub version: String,
    /// The moment, by the proxy's clock.
    pub time: Time,
    /// Whether the proxy has been told to end.
    pub draining: bool,
    /// What the proxy waits for before it ends; `None` unless it has been told to end.
    pub drain: Option<Drain>,
    /// How many log records were dropped since the start.
    pub log_records_dropped: u64,
    /// What somebody should look at, the most urgent first.
    pub warnings: Vec<Warning>,
    /// The pools, in the order of the configuration.
    pub pools: Vec<Pool>,
    /// The sources of discovery of all pools.
    pub discovery: Vec<Source>,
    /// The proxy's own certificates.
    pub certificates: Vec<Certificate>,
    /// The backends of all pools, sorted by pool and name.
    pub backends: Vec<Backend>,
    /// The running builds of all pools, those that were placed first first.
    pub builds: Vec<Build>,
    /// The builds of all pools that ended last, the latest first.
    pub recent: Vec<EndedBuild>,
    /// The waiting builds of all pools, the next one of each pool first.
    pub queue: Vec<QueuedBuild>,
}

/// What a proxy that has been told to end waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drain {
    /// How many builds are bound.
    pub builds: usize,
    /// How many connections of clients are open.
    pub connections: u64,
}

/// One sentence about something that somebody should look at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Warning {
    /// The pool that the warning is about; `None` if it is about the whole proxy.
    pub pool: Option<String>,
    /// The kind of the warning as one word, for scripts.
    pub kind: String,
    /// The warning as a sentence.
    pub text: String,
}

/// One pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// The name of the pool.
    pub name: String,
    /// How builds are spread over the backends.
    pub policy: String,
    /// Whether a backend takes new builds.
    pub ready: bool,
    /// How many builds run, without the probes of clients.
    pub running: usize,
    /// How many builds wait in the queue.
    pub waiting: usize,
    /// How many builds may wait; 0 if builds do not wait.
    pub max_waiting: usize,
    /// How many builds were placed in each minute of the last hour, the current minute last: by `outcome`, without those
    /// outcomes that did not occur.
    pub placements: BTreeMap<String, Vec<u32>>,
}

/// One source of backends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The pool whose backends the source finds.
    pub pool: String,
    /// The source, as the configuration writes it.
    pub source: String,
    /// How many endpoints the last report has.
    pub endpoints: usize,
    /// When the report was last known to be right.
    pub last_sync: Option<Time>,
    /// Why the source fails, or why it finds no endpoints.
    pub error: Option<String>,
    /// Since when there is this error.
    pub error_since: Option<Time>,
    /// Whether the last report may be out of date, because the source fails.
    pub stale: bool,
}

/// The certificates that the proxy shows on one side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// The pool. What belongs to no pool, such as the certificate of the admin port, has the name of the first pool.
    pub pool: String,
    /// To whom the proxy shows the certificate: `client`, `backend`, `scaler` or `admin`.
    pub side: String,
    /// When the certificate expires.
    pub expires: Time,
}

impl Snapshot {
    /// The same snapshot with its warnings, which follow from everything else in it.
    #[must_use]
    pub fn with_warnings(mut self) -> Self {
        self.warnings = warnings::warnings(&self);
        self
    }

    /// The part of the snapshot that is about the pool `name`, and about the whole proxy.
    #[must_use]
    pub fn of_pool(mut self, name: &str) -> Self {
        self.warnings.retain(|warning| warning.pool.as_deref().is_none_or(|pool| pool == name));
        self.pools.retain(|pool| pool.name == name);
        self.discovery.retain(|source| source.pool == name);
        self.certificates.retain(|certificate| certificate.pool == name);
        self.backends.retain(|backend| backend.pool == name);
        self.builds.retain(|build| build.pool == name);
        self.recent.retain(|ended| ended.build.pool == name);
        self.queue.retain(|build| build.pool == name);
        self
    }
}

#[cfg(test)]
mod tests;

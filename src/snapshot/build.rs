//! The builds that run or wait, as an operator sees them.

use serde::{Deserialize, Serialize};

use super::Time;

/// A build that has been placed, and why it is where it is, in the words of its log record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// The pool of the build.
    pub pool: String,
    /// BuildKit's id of the build.
    pub r#ref: String,
    /// The session of the build, as logs show it.
    pub session: String,
    /// Whether the build is a probe of the client, which builds nothing.
    pub internal: bool,
    /// The address of the client; `None` if it came through a Unix socket.
    pub client: Option<String>,
    /// The name of the client; `None` if it has not shown any.
    pub identity: Option<String>,
    /// The affinity key; empty if there is none.
    pub key: String,
    /// Where the key comes from, or `none`.
    pub key_source: String,
    /// The policy of the pool.
    pub policy: String,
    /// How the backend was found, in one word.
    pub outcome: String,
    /// The backend of the build.
    pub backend: String,
    /// How many backends the key ranks above this one; `None` without a key.
    pub rank: Option<usize>,
    /// How many builds ran on the backend before this one.
    pub load: u32,
    /// How many builds may run on the backend before the key spills; `None` without a limit.
    pub limit: Option<u64>,
    /// The home of the key, if the build is elsewhere.
    pub home: Option<String>,
    /// Why the build is not at its home, in one word.
    pub home_is: Option<String>,
    /// Why the build is on its backend, in a sentence.
    pub why: String,
    /// When the Solve arrived.
    pub arrived: Time,
    /// The time since the Solve arrived, in seconds.
    pub seconds: u64,
    /// The part of that time until the build was placed, in milliseconds.
    pub wait_ms: u64,
    /// How long the build waited for its turn, in milliseconds; `None` if it did not.
    pub queue_wait_ms: Option<u64>,
    /// What the build waited for then, in one word.
    pub queue_cause: Option<String>,
    /// Whether the backend had built the key lately when the build was placed; `None` without a key, or if the policy
    /// remembers none.
    pub warm: Option<bool>,
    /// How many bytes of messages were relayed from the client to the daemon.
    pub bytes_up: u64,
    /// How many bytes of messages were relayed from the daemon to the client.
    pub bytes_down: u64,
}

/// A build that has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndedBuild {
    /// The build as it was at its end.
    #[serde(flatten)]
    pub build: Build,
    /// When the build ended.
    pub ended: Time,
    /// The time from the arrival of the Solve to its end, in milliseconds.
    pub duration_ms: u64,
    /// The gRPC code of the end, by its name.
    pub code: String,
}

impl EndedBuild {
    /// Whether the build succeeded, or its client did not want it any more.
    pub fn is_ok(&self) -> bool {
        matches!(self.code.as_str(), "OK" | "Cancelled")
    }
}

/// A build that waits in the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueuedBuild {
    /// The pool of the build.
    pub pool: String,
    /// The position in the queue of the pool; 1 is the next one.
    pub position: usize,
    /// BuildKit's id of the build.
    pub r#ref: Option<String>,
    /// The address of the client; `None` if it came through a Unix socket.
    pub client: Option<String>,
    /// The name of the client; `None` if it has not shown any.
    pub identity: Option<String>,
    /// The affinity key; empty if there is none.
    pub key: String,
    /// Where the key comes from, or `none`.
    pub key_source: String,
    /// When the wait began.
    pub since: Time,
    /// How long the build has waited, in seconds.
    pub seconds: u64,
    /// What the build waits for, in one word.
    pub cause: String,
    /// What the build waits for, in a sentence.
    pub text: String,
}

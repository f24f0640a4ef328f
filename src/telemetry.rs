//! The log: one subscriber, which writes to standard error and never blocks its callers.

mod queue;
mod record;
mod throttle;

use std::{fmt, fs::File, io, os::fd::AsFd as _, panic, sync::LazyLock, time::Duration};

use prometheus_client::metrics::counter::Counter;
use tracing::error;
use tracing_subscriber::{EnvFilter, fmt as subscriber};

use self::queue::Queue;
pub use self::throttle::Throttle;

/// How long a process that ends waits for its last records to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Text, for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// The least important line that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

/// The number of log records that were dropped.
pub fn dropped_records() -> Counter {
    static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);
    DROPPED.clone()
}

/// The log of this process.
#[derive(Debug)]
pub struct Log(Queue);

impl Log {
    /// Starts logging. The libraries below are heard from at warn only, or in full if trace is asked for: in a
    /// release build that is their debug records, HTTP/2 frames among them. Their own trace records are
    /// compiled out there (Cargo.toml), because even unheard they cost each call a few percent.
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub fn start(format: LogFormat, level: LogLevel) -> io::Result<Self> {
        // Not the standard library's handle: a write that hangs would hold its lock.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let queue = Queue::start(format, stderr)?;
        let filter = match level {
            LogLevel::Trace => EnvFilter::new("trace"),
            level => EnvFilter::new(format!("warn,buildkit_lb={level},hyper=error,h2=error")),
        };
        let builder = subscriber()
            .with_env_filter(filter)
            .with_writer(queue.clone())
            // Otherwise the library prints what it could not write, and panics if that fails, too.
            .log_internal_errors(false);
        // A second call (a test in the same process) keeps the first subscriber.
        let _ = match format {
            LogFormat::Text => builder.with_ansi(false).try_init(),
            LogFormat::Json => builder.json().try_init(),
        };
        // The standard library's own hook blocks if nobody reads standard error.
        panic::set_hook(Box::new(|panic| error!(%panic, "task panicked")));
        Ok(Self(queue))
    }

    /// Writes a line that is not a record.
    pub fn say(&self, line: &str) {
        self.0.push(format!("{line}\n").as_bytes());
    }
}

impl Drop for Log {
    /// Waits until the last records are written, but not for a reader that has stopped.
    fn drop(&mut self) {
        self.0.flush(FLUSH_LIMIT);
    }
}

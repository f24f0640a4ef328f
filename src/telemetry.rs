//! The log: one subscriber, which writes to standard error and never blocks its callers.

mod queue;
mod record;
mod text;
mod throttle;

use std::{fs::File, io, os::fd::AsFd as _, panic, sync::LazyLock, time::Duration};

use prometheus_client::metrics::counter::Counter;
use tracing::error;
use tracing_subscriber::{EnvFilter, fmt as subscriber};

pub use self::throttle::Throttle;
use self::{queue::Queue, text::TextFields};
use crate::label::label_set;

/// How long a process that ends waits for its last records to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

label_set! {
    /// The shape of a log line.
    #[derive(Default, clap::ValueEnum)]
    pub enum LogFormat {
        /// Text, for people.
        #[default]
        Text = "text",
        /// A JSON object on each line.
        Json = "json",
    }
}

label_set! {
    /// The least important records that are logged.
    #[derive(Default, clap::ValueEnum)]
    #[allow(missing_docs, reason = "the names say it")]
    pub enum LogLevel {
        Error = "error",
        Warn = "warn",
        #[default]
        Info = "info",
        Debug = "debug",
        Trace = "trace",
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
            LogFormat::Text => builder.with_ansi(false).fmt_fields(TextFields).try_init(),
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

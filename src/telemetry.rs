//! Logs: one subscriber, to standard error.

use std::fmt;

use serde::Deserialize;
use tracing_subscriber::{EnvFilter, fmt as subscriber};

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// Starts logging. The libraries below are heard from at warn only, or in full if trace is asked for: in a
/// release build that is their debug records, HTTP/2 frames among them. Their own trace records are compiled
/// out there (Cargo.toml), because even unheard they cost each call a few percent.
pub fn init(format: LogFormat, level: LogLevel) {
    let filter = match level {
        LogLevel::Trace => EnvFilter::new("trace"),
        level => EnvFilter::new(format!("warn,buildkit_lb={level},hyper=error,h2=error")),
    };
    let builder = subscriber().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (a test in the same process) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

//! A time of day in a snapshot.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use humantime::{format_duration, format_rfc3339_seconds, parse_rfc3339};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A time of day, written as in RFC 3339 in UTC, with seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(SystemTime);

impl Time {
    /// The time now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// The time that was `seconds` after the beginning of 1970. Times before it count as the beginning.
    pub fn from_unix(seconds: i64) -> Self {
        let seconds = Duration::from_secs(seconds.max(0).cast_unsigned());
        Self(SystemTime::UNIX_EPOCH.checked_add(seconds).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// The time from `earlier` to this time; nothing if `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.duration_since(earlier.0).unwrap_or_default()
    }
}

/// A duration as a person reads it: seconds below an hour, minutes below a day, and hours.
pub fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let coarse = match seconds {
        0..3600 => seconds,
        3600..86_400 => seconds - seconds % 60,
        _ => seconds - seconds % 3600,
    };
    format_duration(Duration::from_secs(coarse)).to_string()
}

impl Default for Time {
    /// The beginning of 1970.
    fn default() -> Self {
        Self(SystemTime::UNIX_EPOCH)
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        Self(time)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        format_rfc3339_seconds(self.0).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_rfc3339(&text).map(Self).map_err(D::Error::custom)
    }
}

//! `cordon`, `uncordon` and `drain`: change which backends of a proxy get builds, and show these backends.

use std::time::Duration;

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{CommandError, Flags, snapshot, views::View};
use crate::admin_client::Ask;

/// The flags of `cordon` and `uncordon`.
#[derive(Debug, clap::Args)]
pub struct Cordon {
    /// Name of the backend, as the proxy knows it.
    name: String,
    #[command(flatten)]
    flags: Flags,
}

/// The flags of `drain`.
#[derive(Debug, clap::Args)]
pub struct Drain {
    /// Name of the backend, as the proxy knows it.
    name: String,
    /// How long to wait for builds, for example 30s, 10m or 1h.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long the backend stays cordoned after the drain, at most 1h.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    lease: Duration,
    #[command(flatten)]
    flags: Flags,
}

impl Cordon {
    /// Cordons the backend, or ends its cordon.
    pub(super) async fn run(&self, cordoned: bool) -> Result<(), CommandError> {
        let method = if cordoned { Method::POST } else { Method::DELETE };
        change(&self.flags, &self.name, method, "cordon", &[], Duration::ZERO).await
    }
}

impl Drain {
    /// Drains the backend.
    pub(super) async fn run(&self) -> Result<(), CommandError> {
        let query = [("timeout", self.timeout), ("lease", self.lease)]
            .map(|(key, duration)| format!("{key}={}ms", duration.as_millis()));
        change(&self.flags, &self.name, Method::POST, "drain", &query, self.timeout).await
    }
}

/// Does `what` to the backend `name`, waits for the proxy's answer for `wait`, and prints the backends of that name.
async fn change(
    flags: &Flags,
    name: &str,
    method: Method,
    what: &str,
    query: &[String],
    wait: Duration,
) -> Result<(), CommandError> {
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pool = flags.pool.as_deref().map(|pool| format!("pool={}", encoded(pool)));
    let query: Vec<_> = query.iter().cloned().chain(pool).collect();
    let path = format!("/backends/{}/{what}?{}", encoded(name), query.join("&"));
    flags.proxy.ask(&Ask { method, path: &path, wait }).await?;
    let mut now = snapshot(&flags.proxy, flags.pool.as_deref()).await?;
    // A backend that discovery no longer names has left when it is drained.
    now.backends.retain(|backend| backend.name == name);
    flags.print(&now, View::Backends)?;
    Ok(())
}

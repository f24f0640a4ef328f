//! Whether the sources of daemons answer.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::Findings;
use crate::{
    address::HostPort,
    discovery::{Discovery, SourceStatus},
};

/// How long a source may take for its first report.
const LIMIT: Duration = Duration::from_secs(10);

/// How often the sources are looked at meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// The address of the DNS server that the configuration names.
pub(super) async fn dns_server(
    server: Option<&HostPort>,
    findings: &mut Findings,
) -> Option<SocketAddr> {
    let server = server?;
    match server.resolve().await {
        Ok(address) => Some(address),
        Err(error) => {
            let text = format!("cannot be looked up: {error}");
            findings.error(
                &format!("DNS server {server}"),
                text,
                "name its address with --dns-server",
            );
            None
        }
    }
}

/// Waits until each source has reported or failed, and notes how.
pub(super) async fn check(discovery: &Discovery, findings: &mut Findings) {
    let began = Instant::now();
    let has_told = |status: &SourceStatus| status.synced.is_some() || status.error.is_some();
    while !discovery.statuses().iter().all(has_told) && began.elapsed() < LIMIT {
        tokio::time::sleep(PAUSE).await;
    }
    for SourceStatus { source, endpoints, synced, error } in discovery.statuses() {
        let subject = format!("source {source}");
        match (error, synced) {
            (Some(error), _) => {
                let advice =
                    "check the name, the namespace, the network and the rights of the proxy";
                findings.error(&subject, error.text, advice);
            }
            (None, Some(_synced)) => findings.ok(&subject, format!("finds {endpoints} daemons")),
            (None, None) => {
                let text = format!("no answer within {LIMIT:?}");
                findings.error(
                    &subject,
                    text,
                    "check the network between the proxy and the server",
                );
            }
        }
    }
}

//! Drains a backend for a caller that is about to stop its daemon, such as the preStop hook of a pod. The caller
//! gets an answer when no build is left.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::http::StatusCode;
use tokio::time::Instant;
use tracing::info;

use crate::{
    address::Address,
    fleet::{Backend, Fleet},
    metrics::{DrainResult, Metrics},
};

/// The timeout of a drain that names none: as long as a long build. A caller has a limit of its own, such as the
/// grace period of a pod.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a backend stays cordoned after a request that is not renewed. This is long enough for a daemon to stop
/// after the answer, or for a caller to reconnect, and short enough for an operator who finds a healthy daemon
/// idle.
const DEFAULT_LEASE: Duration = Duration::from_secs(60);

/// The longest lease. A cordon that ends by itself must do so within an hour, before anybody has to look for it.
const MAX_LEASE: Duration = Duration::from_secs(3600);

/// How often the drain looks for builds. Builds take seconds, so this delays nobody noticeably.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long nothing may be bound before a backend counts as drained. A client reads the record of its build right
/// after the build.
const QUIET: Duration = Duration::from_secs(1);

/// Whether `backend` has one of `addresses`, which are separated by commas. A backend with a host name may have
/// any.
pub(super) fn is_at(backend: &Backend, addresses: &str) -> bool {
    let ip = |text: &str| text.trim().parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    match backend.address() {
        Address::Tcp { host, .. } => {
            ip(host).is_none_or(|own| addresses.split(',').any(|address| ip(address) == Some(own)))
        }
        Address::Unix(_) => true,
    }
}

/// How long a drain and its cordon last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long the drain waits for builds.
    timeout: Duration,
    /// How long the backend stays cordoned afterwards.
    lease: Duration,
}

impl Terms {
    /// Reads the values of `timeout=DURATION` and `lease=DURATION`.
    pub(super) fn read(timeout: Option<&str>, lease: Option<&str>) -> Result<Self, String> {
        let read = |key, text: Option<&str>, default| {
            text.map_or(Ok(default), |text| {
                humantime::parse_duration(text)
                    .map_err(|_odd| format!("`{text}` is not a duration, as in {key}=30m\n"))
            })
        };
        let lease = read("lease", lease, DEFAULT_LEASE)?;
        if lease > MAX_LEASE {
            return Err("a lease is one hour at most: renew it, or cordon the backend\n".to_owned());
        }
        Ok(Self { timeout: read("timeout", timeout, DEFAULT_TIMEOUT)?, lease })
    }
}

/// Cordons `backend` and waits until nothing is bound to it.
///
/// The cordon stays for the lease after the request has ended in any way. The daemon is probably about to stop. If
/// it is not, the cordon ends by itself.
pub(super) async fn drain(
    backend: &Arc<Backend>,
    Terms { timeout, lease }: Terms,
    fleet: &Fleet,
    metrics: &Arc<Metrics>,
) -> (StatusCode, String) {
    let mut count = CountAtEnd { metrics, result: DrainResult::Aborted };
    let _drain = backend.start_drain(lease);
    let name = backend.name();
    info!(backend = name, ?timeout, ?lease, builds = backend.builds(), "backend drain began");
    let left = tokio::time::timeout(timeout, quiet(backend)).await.is_err();
    let builds = backend.builds();
    count.result = if left { DrainResult::Timeout } else { DrainResult::Drained };
    info!(backend = name, result = count.result.label(), builds, "backend drain ended");
    fleet.sweep();
    match left {
        false => (StatusCode::OK, format!("{name} is drained\n")),
        true => (
            StatusCode::GATEWAY_TIMEOUT,
            format!("{name} is not drained within {timeout:?}: builds left: {builds}\n"),
        ),
    }
}

async fn quiet(backend: &Backend) {
    let mut bound = Instant::now();
    // A backend to which nothing is bound now may have had a build a moment ago.
    while bound.elapsed() < QUIET {
        tokio::time::sleep(POLL_INTERVAL).await;
        if backend.is_bound() {
            bound = Instant::now();
        }
    }
}

/// Counts a drain when it ends, in whatever way.
struct CountAtEnd<'a> {
    metrics: &'a Metrics,
    result: DrainResult,
}

impl Drop for CountAtEnd<'_> {
    fn drop(&mut self) {
        self.metrics.backend_drained(self.result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Endpoint;

    fn fleet() -> (Arc<Metrics>, Fleet, Arc<Backend>) {
        let metrics = Arc::new(Metrics::default());
        let fleet = Fleet::new(Arc::clone(&metrics));
        let address = Address::Tcp { host: "10.1.2.3".into(), port: 1 };
        fleet.replace(vec![Endpoint::new("a", address)]);
        let backend = fleet.find("a").expect("there");
        backend.report_healthy();
        (metrics, fleet, backend)
    }

    #[test]
    fn a_daemon_is_told_from_another_of_its_name_by_its_address() {
        let (_metrics, _fleet, backend) = fleet();
        for (addresses, expected) in [
            ("10.1.2.3", true),
            ("fd00::1, ::ffff:10.1.2.3", true),
            ("10.1.2.4,fd00::1", false),
            ("", false),
        ] {
            assert_eq!(is_at(&backend, addresses), expected, "{addresses}");
        }
    }

    #[test]
    fn terms_are_durations_or_refused() {
        let default = Terms { timeout: DEFAULT_TIMEOUT, lease: DEFAULT_LEASE };
        assert_eq!(Terms::read(None, None), Ok(default));
        let own = Terms { timeout: Duration::from_secs(1800), lease: Duration::from_secs(5) };
        assert_eq!(Terms::read(Some("30m"), Some("5s")), Ok(own));
        for wrong in ["", "soon", "-1s"] {
            assert!(Terms::read(Some(wrong), None).is_err(), "{wrong}");
            assert!(Terms::read(None, Some(wrong)).is_err(), "{wrong}");
        }
        assert!(Terms::read(None, Some("2h")).is_err());
    }

    fn terms(timeout: Duration) -> Terms {
        Terms { timeout, lease: DEFAULT_LEASE }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_the_last_binding_or_at_its_timeout() {
        let (metrics, fleet, backend) = fleet();
        let (build, session) = (backend.start_build(), backend.bind());
        let (code, text) = drain(&backend, terms(Duration::from_secs(5)), &fleet, &metrics).await;
        assert_eq!(code, StatusCode::GATEWAY_TIMEOUT);
        assert!(text.contains("builds left: 1"), "{text}");
        assert!(backend.is_cordoned(), "and it stays cordoned");
        let ends = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(build);
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(session);
        };
        let began = Instant::now();
        let hour = terms(Duration::from_secs(3600));
        let ((code, _text), ()) = tokio::join!(drain(&backend, hour, &fleet, &metrics), ends);
        assert_eq!(code, StatusCode::OK);
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(7) && took < Duration::from_secs(8), "{took:?}");
        // A caller that does not wait for the answer.
        let _ = tokio::time::timeout(POLL_INTERVAL, drain(&backend, hour, &fleet, &metrics)).await;
        assert!(backend.is_cordoned());
        let text = metrics.families().render();
        for result in ["timeout", "drained", "aborted"] {
            let line = format!("backend_drains_total{{pool=\"default\",result=\"{result}\"}} 1");
            assert!(text.contains(&line), "{text}");
        }
    }
}

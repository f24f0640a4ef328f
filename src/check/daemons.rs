//! Whether each daemon answers, with which version and workers, and how soon.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::iter};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::Findings;
use crate::{
    error::{chain, first_few},
    fleet::{Backend, Fleet, Version},
    health::ask,
    upstream::Link,
    wire::control::{ListWorkersRequest, control_client::ControlClient},
};

/// How long a daemon may take for all answers. The proxy's own probes have the same limit.
const LIMIT: Duration = Duration::from_secs(5);

/// From when on an answer is slow. A daemon answers from memory, so this is the network or a machine without rest.
const SLOW: Duration = Duration::from_secs(1);

/// The most daemons that are asked at once, so that a thousand of them need no thousand descriptors.
const AT_ONCE: usize = 32;

/// What a daemon told.
struct Told {
    version: Option<String>,
    /// The platforms of the workers, as `linux/amd64`.
    platforms: BTreeSet<String>,
    latency: Duration,
}

/// Asks every daemon of `fleet`, which is that of the pool `pool`.
pub(super) async fn check(pool: &str, fleet: &Fleet, tasks: &TaskTracker, findings: &mut Findings) {
    let backends = fleet.backends();
    let asked = iter(backends.iter().cloned()).map(|backend| async move {
        let told = timeout(LIMIT, question(&backend, tasks)).await;
        let late = || Err(format!("no answer within {LIMIT:?}"));
        (backend, told.unwrap_or_else(|_elapsed| late()))
    });
    let all: Vec<_> = asked.buffered(AT_ONCE).collect().await;
    for (backend, told) in all {
        note(&backend, told, findings);
    }
    if backends.is_empty() {
        findings.warning(
            pool,
            "there is no daemon, so builds wait",
            "start one, or check the sources",
        );
    }
    let versions = fleet.versions();
    if versions.len() > 1 {
        let text = format!("the daemons have different versions: {}", first_few(&versions));
        findings.warning(pool, text, "give all daemons one version");
    }
}

async fn question(backend: &Arc<Backend>, tasks: &TaskTracker) -> Result<Told, String> {
    let link = Link::new(Arc::clone(backend), tasks.clone());
    link.open().await.map_err(|error| chain(&error))?;
    // The connection is open, so this is the time of one question.
    let began = Instant::now();
    let info = ask(link.clone()).await.map_err(|error| chain(&error))?;
    let latency = began.elapsed();
    let version = info.map(|info| info.buildkit_version.unwrap_or_default().version);
    let workers = ControlClient::new(link).list_workers(ListWorkersRequest {}).await;
    let workers = workers.map_err(|status| chain(&status))?.into_inner();
    let platforms = workers.record.into_iter().flat_map(|worker| worker.platforms);
    let platforms = platforms.map(|platform| format!("{}/{}", platform.os, platform.architecture));
    Ok(Told { version, platforms: platforms.collect(), latency })
}

fn note(backend: &Backend, told: Result<Told, String>, findings: &mut Findings) {
    let subject = format!("daemon {}", backend.name());
    let Told { version, platforms, latency } = match told {
        Ok(told) => told,
        Err(cause) => return findings.error(&subject, cause, advice(backend)),
    };
    let version = version.map_or_else(Version::before_info, |text| Version::new(&text));
    let shown = first_few(&platforms);
    let text = format!("{version}, builds for {shown}, answered in {} ms", latency.as_millis());
    backend.set_version(version);
    if platforms.is_empty() {
        findings.error(&subject, "the daemon has no worker", "look at the log of the daemon");
    } else if latency >= SLOW {
        findings.warning(&subject, text, "look at the load of its machine and at the network");
    } else {
        findings.ok(&subject, text);
    }
}

/// What to do about a daemon that does not answer.
fn advice(backend: &Backend) -> &'static str {
    match backend.tls() {
        Some(_tls) => {
            "check that it runs, its address, --backend-tls-dir and --backend-tls-server-name"
        }
        None => "check that it runs, its address, and whether it wants TLS (--backend-tls-dir)",
    }
}

//! Probes backends: brings an ejected one back, and finds one that accepts but does not answer.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;
use tracing::debug;

use crate::{
    error::chain,
    fleet::{Backend, Fault, Fleet},
    upstream::{Link, SharedLinks},
    wire::control::{InfoRequest, control_client::ControlClient},
};

/// How often a backend that is well is probed.
const INTERVAL: Duration = Duration::from_secs(10);

/// How often the prober looks for backends whose time has come.
const TICK: Duration = Duration::from_millis(250);

/// A daemon answers Info from memory; this much means it is stuck or away.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Probes the fleet until cancelled.
pub async fn run(
    fleet: Arc<Fleet>,
    shared: Arc<SharedLinks>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let mut next: HashMap<Arc<str>, Instant> = HashMap::new();
    loop {
        let backends = fleet.backends();
        shared.retain(&backends);
        next.retain(|name, _| backends.iter().any(|backend| backend.name() == &**name));
        let now = Instant::now();
        let due: Vec<_> = backends.iter().filter(|backend| is_due(backend, &next, now)).collect();
        join_all(due.iter().map(|backend| probe(backend, &shared, &tasks))).await;
        for backend in due {
            next.insert(backend.name().into(), Instant::now() + INTERVAL);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
            () = fleet.suspicion() => {}
        }
    }
}

fn is_due(backend: &Backend, next: &HashMap<Arc<str>, Instant>, now: Instant) -> bool {
    let regular = next.get(backend.name()).is_none_or(|at| *at <= now);
    backend.retry_at().map_or(regular, |at| at <= now)
}

async fn probe(backend: &Arc<Backend>, shared: &SharedLinks, tasks: &TaskTracker) {
    // An ejected backend is asked over a new connection: the old one may be what is broken.
    let link = match backend.is_ready() {
        true => shared.link(backend),
        false => Link::new(Arc::clone(backend), tasks.clone()),
    };
    let mut client = ControlClient::new(link);
    let cause = match tokio::time::timeout(TIMEOUT, client.info(InfoRequest {})).await {
        Ok(Ok(info)) => {
            let version = info.into_inner().buildkit_version.unwrap_or_default().version;
            debug!(backend = backend.name(), version, "probe answered");
            return backend.report_healthy();
        }
        // Daemons before v0.11 have no Info; that they say so is life enough.
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            return backend.report_healthy();
        }
        Ok(Err(status)) => chain(&status),
        Err(_elapsed) => format!("no answer to a probe within {TIMEOUT:?}"),
    };
    backend.report_fault(Fault::Probe, &cause, Instant::now());
}

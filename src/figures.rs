//! Reads from the daemons' own metrics how many steps of builds were cached.
//!
//! The proxy chooses daemons for the sake of their cache, but only a daemon knows whether a step was in it. A daemon
//! that serves metrics (`buildkitd --debugaddr`) is asked at intervals. Nothing depends on the answer: it is counted by
//! backend and policy, and shown.

mod fetch;
mod steps;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::fetch::{FetchError, fetch};
use crate::{
    address::HostPort,
    error::chain,
    fleet::{Backend, Fleet, StepCounts},
    metrics::{Metrics, ReadResult},
    outage::Outage,
    policy::PolicyKind,
};

/// The time between two reads, which is shorter than Prometheus usually takes between its own.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long a read may take. A daemon answers from memory, within milliseconds.
const LIMIT: Duration = Duration::from_secs(3);

/// How many daemons are read at once, so that a large fleet takes no more descriptors than this.
const AT_ONCE: usize = 16;

/// Reads the figures of all daemons of `fleet` that serve metrics, until `stop`. `policy` is that of the pool.
pub async fn run(
    fleet: Arc<Fleet>,
    policy: PolicyKind,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut outages: HashMap<Arc<str>, Outage> = HashMap::new();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let found = tokio::select! {
            () = stop.cancelled() => return,
            found = read_all(&fleet) => found,
        };
        outages.retain(|name, _| found.iter().any(|(backend, _)| backend.name() == &**name));
        for (backend, read) in found {
            let outage = outages.entry(backend.shared_name()).or_default();
            note(&backend, policy, &metrics, read, outage);
        }
    }
}

/// What each daemon that serves metrics has answered.
async fn read_all(fleet: &Fleet) -> Vec<(Arc<Backend>, Result<StepCounts, FetchError>)> {
    let backends = fleet.backends();
    let asked: Vec<_> = backends
        .iter()
        .filter_map(|backend| {
            let address = backend.location().metrics.clone()?;
            Some((Arc::clone(backend), address))
        })
        .collect();
    let reads = asked.into_iter().map(|(backend, address)| async move {
        let answer = read(&address).await;
        (backend, answer)
    });
    stream::iter(reads).buffer_unordered(AT_ONCE).collect().await
}

async fn read(address: &HostPort) -> Result<StepCounts, FetchError> {
    let text = timeout(LIMIT, fetch(address)).await.map_err(|_elapsed| FetchError::Timeout)??;
    Ok(steps::count(&text))
}

/// Counts what was read. An outage of one daemon's metrics is told once.
fn note(
    backend: &Backend,
    policy: PolicyKind,
    metrics: &Metrics,
    read: Result<StepCounts, FetchError>,
    outage: &mut Outage,
) {
    let (pool, name) = (metrics.pool(), backend.name());
    match read {
        Ok(seen) => {
            metrics.figures_read(ReadResult::Ok);
            backend.count_steps(seen, policy);
            if outage.over() {
                info!(pool, backend = name, "metrics of a backend are read again");
            }
        }
        Err(error) => {
            metrics.figures_read(ReadResult::Failed);
            if outage.failed("") {
                let error = chain(&error);
                warn!(pool, backend = name, error, "cannot read the metrics of a backend");
            }
        }
    }
}

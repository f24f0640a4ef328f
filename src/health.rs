//! Probes the backends: admits a new one, readmits an ejected one, and finds one that accepts connections but does
//! not answer.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;
use tracing::{debug, info, warn};

use crate::{
    capabilities::{Capabilities, learn},
    error::{ProxyError, chain, first_few},
    fleet::{Backend, Fault, Fleet, Version},
    upstream::{Link, SharedLinks},
    wire::control::{InfoRequest, InfoResponse, control_client::ControlClient},
};

/// The time between two probes of a healthy backend.
const INTERVAL: Duration = Duration::from_secs(10);

/// How often the prober looks for backends that are due for a probe, and for those that can be removed.
const TICK: Duration = Duration::from_millis(250);

/// How long a probe may take. A daemon answers Info from memory, so one that takes longer is stuck or away.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a daemon may take to tell what it can do, which takes milliseconds. Together with the probe, this ends
/// before the next probe is due.
const LEARN_TIMEOUT: Duration = Duration::from_secs(3);

/// Probes the fleet until cancelled.
///
/// Probes run concurrently, so that one that hangs does not delay the first probe of a new daemon.
pub async fn run(
    fleet: Arc<Fleet>,
    shared: Arc<SharedLinks>,
    capabilities: Arc<Capabilities>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let prober = Arc::new(Prober {
        fleet: Arc::clone(&fleet),
        shared: Arc::clone(&shared),
        capabilities,
        tasks,
    });
    let mut probes = FuturesUnordered::new();
    let mut versions = Versions::default();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = probes.next() => {
                fleet.settle();
                continue;
            }
            _ = tick.tick() => {
                fleet.sweep();
                versions.compare(&fleet);
                shared.retain(&fleet);
            }
            () = fleet.suspicion() => {}
        }
        let now = Instant::now();
        for backend in fleet.backends().iter() {
            backend.time_passed(now);
            // The timeout is shorter than the interval, so a probe ends before the next one is due.
            if backend.take_probe(now, INTERVAL) {
                let (prober, backend) = (Arc::clone(&prober), Arc::clone(backend));
                probes.push(async move { prober.probe(&backend).await });
            }
        }
    }
}

/// The versions of the daemons in a fleet, at the last comparison.
#[derive(Debug, Default)]
struct Versions(BTreeSet<Version>);

impl Versions {
    /// Logs that versions differ, or agree again, once for each change.
    fn compare(&mut self, fleet: &Fleet) {
        let versions = fleet.versions();
        if versions == self.0 {
            return;
        }
        let pool = fleet.pool();
        match (self.0.len(), versions.len()) {
            (_, 2..) => {
                let versions = first_few(versions.iter());
                warn!(pool, versions, "versions of backends differ");
            }
            (2.., 1) => info!(pool, versions = first_few(&versions), "versions of backends agree"),
            _ => {}
        }
        self.0 = versions;
    }
}

/// What a probe works with.
struct Prober {
    fleet: Arc<Fleet>,
    shared: Arc<SharedLinks>,
    capabilities: Arc<Capabilities>,
    tasks: TaskTracker,
}

impl Prober {
    async fn probe(&self, backend: &Arc<Backend>) {
        // An ejected backend is probed over a new connection, because the old connection may be what is broken.
        let link = match backend.is_ejected() {
            false => self.shared.for_question(backend),
            true => Link::new(Arc::clone(backend), self.tasks.clone()),
        };
        let cause = match timeout(TIMEOUT, ask(link)).await {
            Ok(Ok(Some(info))) => {
                let version = info.buildkit_version.unwrap_or_default().version;
                debug!(backend = backend.name(), version, "probe answered");
                backend.set_version(Version::new(&version));
                backend.report_healthy();
                return self.learn(backend, &version).await;
            }
            Ok(Ok(None)) => {
                backend.set_version(Version::before_info());
                return backend.report_healthy();
            }
            Ok(Err(ProbeError::Open(ProxyError::Shortage { cause }))) => {
                debug!(backend = backend.name(), cause, "cannot probe backend");
                return backend.report_unprobed(Instant::now());
            }
            Ok(Err(error)) => chain(&error),
            Err(_elapsed) => format!("no answer to a probe within {TIMEOUT:?}"),
        };
        backend.report_fault(Fault::Probe, &cause, Instant::now());
    }

    /// Learns what daemons of this version can do, from the first one that answers.
    async fn learn(&self, backend: &Arc<Backend>, version: &str) {
        // Daemons that name no version may all be different.
        if version.is_empty() {
            return;
        }
        let version = Version::new(version);
        let Some(_turn) = self.capabilities.turn(&version) else { return };
        let link = self.shared.for_question(backend);
        let error = match timeout(LEARN_TIMEOUT, learn(&link, version)).await {
            Ok(Ok(answers)) => {
                let (pool, backend, version) =
                    (self.fleet.pool(), backend.name(), &answers.version);
                info!(pool, backend, %version, "capabilities of a version learnt");
                return self.capabilities.remember(answers, &self.fleet.versions());
            }
            Ok(Err(error)) => chain(&error),
            Err(_elapsed) => format!("no answer within {LEARN_TIMEOUT:?}"),
        };
        // The daemon is asked again after its next probe.
        debug!(backend = backend.name(), error, "backend does not tell what it can do");
    }
}

/// Why a probe got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no connection.
    #[error(transparent)]
    Open(ProxyError),
    /// The daemon answers with an error.
    #[error(transparent)]
    Status(Box<tonic::Status>),
}

/// What the daemon says of itself. `None` if it is too old to know the call.
///
/// # Errors
/// There is no connection, or the daemon answers with an error.
pub async fn ask(link: Link) -> Result<Option<InfoResponse>, ProbeError> {
    link.open().await.map_err(ProbeError::Open)?;
    match ControlClient::new(link).info(InfoRequest {}).await {
        Ok(info) => Ok(Some(info.into_inner())),
        // Daemons before v0.11 have no Info. That one says so shows that it works.
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(ProbeError::Status(Box::new(status))),
    }
}

//! The calls of KEDA and their answers.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{Stream, unfold};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::demand::{DEFAULT_TARGET, Demand};
use crate::{
    metrics::BackendState,
    placement::queue,
    pool::Pool,
    wire::externalscaler::{
        GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
        MetricValue, ScaledObjectRef, external_scaler_server::ExternalScaler,
    },
};

/// The name of the metric. KEDA adds the number of the trigger in front.
const METRIC: &str = "builds";

/// The key of a trigger that names the pool.
const POOL: &str = "pool";

/// The key of a trigger that sets the number of builds for each daemon.
const TARGET: &str = "buildsPerDaemon";

/// How often a stream repeats that the pool is active while builds wait. KEDA may have lost an earlier message, and
/// without a daemon it would ask again only at its polling interval.
const RESEND: Duration = Duration::from_secs(30);

/// How often a stream looks whether the pool has become idle. Nobody waits for that, because KEDA scales to zero by
/// its own polling, minutes later.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Answers the calls of KEDA.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pools: Arc<[Pool]>,
    leaving: CancellationToken,
}

impl Service {
    pub(super) fn new(pools: Arc<[Pool]>, leaving: CancellationToken) -> Self {
        Self { pools, leaving }
    }

    /// The pool that `object` asks about, and the settings of its trigger.
    fn asked(&self, object: Option<ScaledObjectRef>) -> Result<Asked, Status> {
        let metadata = object.unwrap_or_default().scaler_metadata;
        let index = self.index(metadata.get(POOL).map(String::as_str))?;
        Ok(Asked { pools: Arc::clone(&self.pools), index, target: target(&metadata)? })
    }

    fn index(&self, name: Option<&str>) -> Result<usize, Status> {
        let names = || self.pools.iter().map(Pool::name).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => self.pools.iter().position(|pool| pool.name() == name).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "{POOL}: no pool has this name; there are: {}",
                    names()
                ))
            }),
            None if self.pools.len() == 1 => Ok(0),
            None => Err(Status::invalid_argument(format!("{POOL} is needed, one of: {}", names()))),
        }
    }
}

fn target(metadata: &HashMap<String, String>) -> Result<Option<u32>, Status> {
    let Some(text) = metadata.get(TARGET) else { return Ok(None) };
    match text.parse() {
        Ok(target @ 1..=10_000) => Ok(Some(target)),
        _ => Err(Status::invalid_argument(format!("{TARGET} is not a number from 1 to 10000"))),
    }
}

/// A pool that KEDA asks about, and the settings of the trigger.
#[derive(Debug)]
struct Asked {
    pools: Arc<[Pool]>,
    index: usize,
    target: Option<u32>,
}

impl Asked {
    fn pool(&self) -> &Pool {
        &self.pools[self.index]
    }

    fn demand(&self) -> Demand {
        let proxy = &self.pool().proxy;
        let backends = proxy.fleet.backends();
        let stays = |state| !matches!(state, BackendState::Draining | BackendState::Lost);
        let daemons = backends.iter().filter(|backend| stays(backend.state())).count();
        let queue::Demand { running, waiting, slots: _ } = proxy.placement.demand();
        Demand {
            running: running as u64,
            waiting: waiting as u64,
            daemons: daemons as u64,
            target: self.target(),
        }
    }

    fn target(&self) -> u32 {
        let slots = || self.pool().proxy.placement.demand().slots;
        self.target.or_else(|| slots().map(NonZeroU32::get)).unwrap_or(DEFAULT_TARGET)
    }

    /// Whether the pool needs any daemon.
    ///
    /// # Errors
    /// The pool seems to need none, but its daemons are not known yet, so builds may be bound to them.
    fn is_active(&self) -> Result<bool, Status> {
        let pool = self.pool();
        let Demand { running, waiting, .. } = self.demand();
        let bound = || pool.proxy.fleet.backends().iter().any(|backend| backend.is_bound());
        if running + waiting > 0 || pool.proxy.activity.is_recent(Instant::now()) || bound() {
            return Ok(true);
        }
        if !pool.is_synced() {
            return Err(Status::unavailable("the daemons of the pool are not known yet"));
        }
        Ok(false)
    }

    /// The next answer that differs from the `last` one, or the same answer again while builds wait. `None` when
    /// `leaving`.
    async fn next(
        &self,
        last: Option<bool>,
        leaving: &CancellationToken,
    ) -> Option<Result<bool, Status>> {
        let told = Instant::now();
        loop {
            let resumed = self.pool().proxy.activity.resumed();
            let now = match self.is_active() {
                Ok(now) => now,
                Err(status) if last.is_none() => return Some(Err(status)),
                // If a source fails later, what it reported before still counts.
                Err(_unknown) => true,
            };
            let again = now && self.demand().waiting > 0 && told.elapsed() >= RESEND;
            if Some(now) != last || again {
                return Some(Ok(now));
            }
            tokio::select! {
                () = leaving.cancelled() => return None,
                _ = timeout(POLL_INTERVAL, resumed) => {}
            }
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = Answers;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let result = self.asked(Some(request.into_inner()))?.is_active()?;
        Ok(Response::new(IsActiveResponse { result }))
    }

    /// Reports each change, until the proxy leaves.
    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Answers>, Status> {
        let asked = self.asked(Some(request.into_inner()))?;
        let leaving = self.leaving.clone();
        let start = (asked, None, leaving);
        let answers = unfold(start, |(asked, last, leaving)| async move {
            if leaving.is_cancelled() {
                return None;
            }
            let answer = asked.next(last, &leaving).await?;
            let last = answer.as_ref().ok().copied().or(last);
            let answer = answer.map(|result| IsActiveResponse { result });
            if answer.is_err() {
                // The stream ends with this answer.
                return Some((answer, (asked, last, ended())));
            }
            Some((answer, (asked, last, leaving)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let target = self.asked(Some(request.into_inner()))?.target();
        let spec = MetricSpec {
            metric_name: METRIC.to_owned(),
            target_size: target.into(),
            target_size_float: target.into(),
        };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let asked = self.asked(request.into_inner().scaled_object_ref)?;
        // Zero builds is an answer only if the daemons are known.
        asked.is_active()?;
        let builds = u32::try_from(asked.demand().reported()).unwrap_or(u32::MAX);
        let value = MetricValue {
            metric_name: METRIC.to_owned(),
            metric_value: builds.into(),
            metric_value_float: builds.into(),
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}

/// A token that is cancelled already.
fn ended() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

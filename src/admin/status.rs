//! `/status.json`: takes the [`Snapshot`] of all pools.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use axum::{Json, extract::State};

use super::{Admin, access::Reader};
use crate::{
    directory::Waiting,
    discovery::SourceStatus,
    fleet::Backend,
    metrics::{TlsSide, code_name},
    placement::queue::Request,
    policy::Outcome,
    pool::Pool,
    running::{EndedBuild, Ending, RunningBuild},
    snapshot::{self, Certificate, Drain, QueuedBuild, Snapshot, Source, Time},
    telemetry,
};

/// Answers with the whole status.
pub(super) async fn status(_reader: Reader, State(admin): State<Admin>) -> Json<Snapshot> {
    Json(admin.snapshot())
}

impl Admin {
    /// The state of everything at this moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        let clocks = Clocks { day: SystemTime::now(), steady: Instant::now() };
        let draining = self.leaving.is_cancelled();
        let mut snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: clocks.day.into(),
            draining,
            drain: draining.then(|| self.drain()),
            log_records_dropped: telemetry::dropped_records().get(),
            ..Snapshot::default()
        };
        for pool in self.pools.iter() {
            clocks.add(pool, &mut snapshot);
        }
        snapshot.recent.sort_by_key(|ended| Reverse(ended.ended));
        snapshot.with_warnings()
    }

    fn drain(&self) -> Drain {
        let open = |pool: &Pool| pool.proxy.metrics.connections_active.get().max(0).cast_unsigned();
        Drain {
            builds: self.pools.iter().map(Pool::builds).sum(),
            connections: self.pools.iter().map(open).sum(),
        }
    }
}

/// The moment of a snapshot, by both clocks. The proxy notes moments by the steady clock, which no administrator sets.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    day: SystemTime,
    steady: Instant,
}

impl Clocks {
    fn age(&self, moment: Instant) -> Duration {
        self.steady.saturating_duration_since(moment)
    }

    /// The time of day of `moment`.
    fn time(&self, moment: Instant) -> Time {
        self.day.checked_sub(self.age(moment)).unwrap_or(SystemTime::UNIX_EPOCH).into()
    }

    /// Adds one pool to `snapshot`.
    fn add(&self, pool: &Pool, snapshot: &mut Snapshot) {
        let (name, proxy) = (pool.name(), &pool.proxy);
        snapshot.pools.push(pool_status(pool));
        let sources = pool.discovery.statuses();
        snapshot.discovery.extend(sources.into_iter().map(|status| source_status(name, status)));
        snapshot.certificates.extend(certificates(pool));
        let backends = proxy.fleet.backends();
        snapshot.backends.extend(backends.iter().map(|backend| self.backend(pool, backend)));
        let builds = proxy.running.builds();
        snapshot.builds.extend(builds.iter().map(|build| self.build(name, build)));
        let ended = proxy.running.recent();
        snapshot.recent.extend(ended.iter().map(|ended| self.ended(name, ended)));
        let queued = proxy.placement.queued();
        snapshot.queue.extend(queued.iter().map(|queued| self.queued(name, queued)));
    }

    fn backend(&self, pool: &Pool, backend: &Backend) -> snapshot::Backend {
        let location = backend.location();
        let owned = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
        let each = pool.proxy.placement.queue().max_builds;
        let left = |end: Instant| end.saturating_duration_since(self.steady).as_secs();
        snapshot::Backend {
            pool: pool.name().to_owned(),
            name: backend.name().to_owned(),
            address: backend.address().to_string(),
            state: backend.state().label().to_owned(),
            since: backend.since().into(),
            cause: backend.cause(),
            probation_seconds: backend.probation_end().map(left),
            buildkit_version: backend.version().map(|version| version.to_string()),
            builds: backend.builds(),
            slots: each.map(|each| backend.candidate().slots(each)),
            capacity: backend.capacity(),
            zone: owned(&location.zone),
            node: owned(&location.node),
            version: owned(&location.labels.version),
            architecture: owned(&location.labels.architecture),
            steps_cached: backend.steps().map(|steps| steps.cached),
            steps_total: backend.steps().map(|steps| steps.total),
        }
    }

    /// A running build, and why it is where it is, in the words of its log record.
    fn build(&self, pool: &str, build: &RunningBuild) -> snapshot::Build {
        let (home, home_is) = build.home();
        let outcome = build.decision.outcome.label();
        let (bytes_up, bytes_down) = build.bytes();
        snapshot::Build {
            pool: pool.to_owned(),
            r#ref: build.build.clone(),
            session: build.session.clone(),
            internal: build.internal,
            client: build.client.map(|client| client.to_string()),
            identity: build.identity.as_ref().map(ToString::to_string),
            key: build.key().to_owned(),
            key_source: build.key_source().to_owned(),
            policy: build.policy.to_string(),
            outcome: outcome.to_owned(),
            backend: build.backend.name().to_owned(),
            rank: build.decision.rank,
            load: build.decision.load,
            limit: build.decision.limit,
            why: snapshot::why(outcome, home, home_is),
            home: home.map(str::to_owned),
            home_is: home_is.map(str::to_owned),
            arrived: self.time(build.arrived),
            seconds: self.age(build.arrived).as_secs(),
            wait_ms: millis(build.wait),
            queue_wait_ms: build.waited.map(|waited| millis(waited.wait)),
            queue_cause: build.waited.map(|waited| waited.cause.label().to_owned()),
            warm: build.warm,
            bytes_up,
            bytes_down,
        }
    }

    /// A build that has ended.
    fn ended(&self, pool: &str, ended: &EndedBuild) -> snapshot::EndedBuild {
        let Ending { duration, code, bytes_up, bytes_down } = ended.ending;
        let build = self.build(pool, ended);
        snapshot::EndedBuild {
            build: snapshot::Build { seconds: duration.as_secs(), bytes_up, bytes_down, ..build },
            ended: self.time(ended.ended()),
            duration_ms: millis(duration),
            code: code_name(code).to_owned(),
        }
    }

    /// A build that waits in the queue.
    fn queued(&self, pool: &str, (request, waiting): &(Request, Waiting)) -> QueuedBuild {
        let affinity = request.affinity.as_ref();
        QueuedBuild {
            pool: pool.to_owned(),
            position: waiting.position,
            r#ref: request.build.as_ref().map(ToString::to_string),
            client: request.client.map(|client| client.to_string()),
            identity: request.identity().map(ToString::to_string),
            key: affinity.map_or("", |affinity| affinity.key.as_str()).to_owned(),
            key_source: affinity.map_or("none", |affinity| affinity.source).to_owned(),
            since: waiting.since.into(),
            seconds: self.day.duration_since(waiting.since).unwrap_or_default().as_secs(),
            cause: waiting.cause.label().to_owned(),
            text: waiting.cause.to_string(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn pool_status(pool: &Pool) -> snapshot::Pool {
    let placement = &pool.proxy.placement;
    let demand = placement.demand();
    let queue = placement.queue();
    snapshot::Pool {
        name: pool.name().to_owned(),
        policy: placement.policy().kind.to_string(),
        ready: pool.proxy.fleet.is_ready(),
        running: demand.running,
        waiting: demand.waiting,
        max_waiting: if queue.max_wait.is_zero() { 0 } else { queue.max_waiting },
        placements: placements(pool),
    }
}

/// How the builds of the last hour were placed: for each outcome that occurred, the number in each minute.
fn placements(pool: &Pool) -> BTreeMap<String, Vec<u32>> {
    let minutes = pool.proxy.running.placements();
    let of = |outcome| minutes.iter().map(|minute| minute.count(outcome)).collect::<Vec<_>>();
    let occurred = Outcome::ALL.iter().map(|outcome| (outcome.label().to_owned(), of(*outcome)));
    occurred.filter(|(_, minutes)| minutes.iter().any(|count| *count > 0)).collect()
}

fn source_status(pool: &str, status: SourceStatus) -> Source {
    let SourceStatus { source, endpoints, synced, error } = status;
    Source {
        pool: pool.to_owned(),
        source,
        endpoints,
        last_sync: synced.map(Time::from),
        error_since: error.as_ref().map(|error| error.since.into()),
        stale: error.as_ref().is_some_and(|error| error.stale),
        error: error.map(|error| error.text),
    }
}

/// The certificates of each side that has any.
fn certificates(pool: &Pool) -> impl Iterator<Item = Certificate> + '_ {
    TlsSide::ALL.iter().filter_map(|side| {
        let expires = pool.proxy.metrics.certificate_expiry(*side)?;
        Some(Certificate {
            pool: pool.name().to_owned(),
            side: side.label().to_owned(),
            expires: Time::from_unix(expires),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{policy::Obstacle, snapshot::why};

    #[test]
    fn every_placement_is_explained_in_a_sentence_of_its_own() {
        let outcomes = Outcome::ALL.iter().map(|outcome| why(outcome.label(), None, None));
        let obstacles = Obstacle::ALL.iter().map(|is| why("spill", Some("b"), Some(is.label())));
        let mut sentences: Vec<_> = outcomes.chain(obstacles).collect();
        let all = sentences.len();
        for sentence in &sentences {
            assert!(sentence.ends_with('.') && !sentence.contains("outcome"), "{sentence}");
        }
        sentences.sort();
        sentences.dedup();
        assert_eq!(sentences.len(), all, "{sentences:?}");
    }
}

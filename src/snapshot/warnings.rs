//! The one place where a snapshot's warnings are made: sentences about what somebody should look at.

use std::{collections::BTreeSet, time::Duration};

use super::{Backend, Certificate, Pool, Snapshot, Source, Warning, brief};
use crate::error::first_few;

/// How long before its end a certificate is warned of. An authority that renews certificates does so with a third of
/// their life left, and most certificates live 90 days.
pub const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The warnings of `snapshot`, the most urgent first.
pub(super) fn warnings(snapshot: &Snapshot) -> Vec<Warning> {
    let mut warnings = Vec::new();
    warnings.extend(drain(snapshot));
    for pool in &snapshot.pools {
        warnings.extend(without_backend(snapshot, pool));
    }
    warnings.extend(snapshot.backends.iter().filter_map(|backend| doubtful(snapshot, backend)));
    warnings.extend(snapshot.discovery.iter().filter_map(failing));
    warnings.extend(snapshot.certificates.iter().filter_map(|own| expiring(snapshot, own)));
    for pool in &snapshot.pools {
        warnings.extend(full_queue(pool));
        warnings.extend(version_skew(snapshot, pool));
    }
    warnings.extend(dropped_records(snapshot));
    warnings
}

fn of_proxy(kind: &str, text: String) -> Warning {
    Warning { pool: None, kind: kind.to_owned(), text }
}

fn of_pool(pool: &str, kind: &str, text: String) -> Warning {
    Warning { pool: Some(pool.to_owned()), kind: kind.to_owned(), text }
}

fn drain(snapshot: &Snapshot) -> Option<Warning> {
    let drain = snapshot.drain?;
    let text = format!(
        "The proxy drains: it waits for {} builds and {} connections, and ends then.",
        drain.builds, drain.connections
    );
    Some(of_proxy("draining", text))
}

fn without_backend(snapshot: &Snapshot, pool: &Pool) -> Option<Warning> {
    if pool.ready {
        return None;
    }
    let backends = snapshot.backends.iter().filter(|backend| backend.pool == pool.name).count();
    let what = match (backends, pool.max_waiting) {
        (0, 0) => "has no backend, so builds fail".to_owned(),
        (0, _) => format!("has no backend, so {} builds wait for one", pool.waiting),
        (_, 0) => "has no ready backend, so builds fail".to_owned(),
        (_, _) => format!("has no ready backend, so {} builds wait for one", pool.waiting),
    };
    Some(of_pool(&pool.name, "no_ready_backend", format!("Pool {} {what}.", pool.name)))
}

/// A backend that takes no builds, or few, although nobody asked for that.
fn doubtful(snapshot: &Snapshot, backend: &Backend) -> Option<Warning> {
    let kind = match backend.state.as_str() {
        state @ ("unhealthy" | "degraded" | "lost") => state,
        _ => return None,
    };
    let cause = backend.cause.as_deref().map(|cause| format!(": {cause}")).unwrap_or_default();
    let (name, age) = (&backend.name, brief(snapshot.time.since(backend.since)));
    let text = format!("Backend {name} has been {kind} for {age}{cause}.");
    Some(of_pool(&backend.pool, &format!("backend_{kind}"), text))
}

fn failing(source: &Source) -> Option<Warning> {
    let error = source.error.as_ref()?;
    let since = source.error_since.map(|since| format!(" since {since}")).unwrap_or_default();
    let Source { pool, source: name, stale, .. } = source;
    let (kind, what, effect) = match stale {
        true => ("source_failing", "has failed", ", and its backends stay as they are"),
        false => ("source_empty", "has found no backends", ""),
    };
    Some(of_pool(pool, kind, format!("Source {name} {what}{since}{effect}: {error}.")))
}

fn expiring(snapshot: &Snapshot, own: &Certificate) -> Option<Warning> {
    let Certificate { pool, side, expires } = own;
    let left = expires.since(snapshot.time);
    let (kind, what) = match left {
        Duration::ZERO => ("certificate_expired", format!("has expired at {expires}")),
        left if left < EXPIRES_SOON => {
            ("certificate_expires_soon", format!("expires in {}, at {expires}", brief(left)))
        }
        _ => return None,
    };
    let text = format!("The certificate of pool {pool} on the {side} side {what}.");
    Some(of_pool(pool, kind, text))
}

fn full_queue(pool: &Pool) -> Option<Warning> {
    let Pool { name, waiting, max_waiting, .. } = pool;
    let full = *max_waiting > 0 && waiting >= max_waiting;
    let text = || {
        format!(
            "The queue of pool {name} is full: {waiting} builds wait, and the next one is refused."
        )
    };
    full.then(|| of_pool(name, "queue_full", text()))
}

fn version_skew(snapshot: &Snapshot, pool: &Pool) -> Option<Warning> {
    let own = snapshot.backends.iter().filter(|backend| backend.pool == pool.name);
    let versions: BTreeSet<_> = own.filter_map(|own| own.buildkit_version.as_deref()).collect();
    let text = || {
        format!(
            "The daemons of pool {} have different versions: {}.",
            pool.name,
            first_few(&versions)
        )
    };
    (versions.len() > 1).then(|| of_pool(&pool.name, "versions_differ", text()))
}

fn dropped_records(snapshot: &Snapshot) -> Option<Warning> {
    let dropped = snapshot.log_records_dropped;
    let text =
        || format!("{dropped} log records were dropped, because the log was not read in time.");
    (dropped > 0).then(|| of_proxy("log_records_dropped", text()))
}

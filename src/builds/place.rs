//! Decides where a build goes: constraints before the key, the key before the load.

use std::{sync::Arc, time::Instant};

use tracing::warn;

use super::solve::Solve;
use crate::{
    client::Client,
    directory::{Binding, Bound, Claim, Decision, Lease},
    error::ProxyError,
    fleet::{Backend, BuildCount},
    ids::{Key, TraceId},
    policy::{KeyHash, Policy},
    proxy::{LinkKind, Opened, Proxy},
    running::Why,
};

/// A build's place, and how it was found.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) binding: Arc<Binding>,
    pub(super) lease: Lease,
    pub(super) count: BuildCount,
    pub(super) why: Why,
}

/// Joins the binding that the Solve's sessions or companions have, or makes one.
pub(super) async fn solve(
    proxy: &Proxy,
    solve: &Solve,
    trace: Option<TraceId>,
    client: &Client,
) -> Result<Placed, ProxyError> {
    let companions = if proxy.policy.spread_bake_targets && !solve.linked {
        Vec::new()
    } else {
        solve.companions(trace, client.connection)
    };
    let decision = match claim(proxy, &solve.keys(), &companions, !solve.internal).await {
        Ok(decision) => decision,
        Err((binding, lease)) => {
            warn_of_conflict(proxy, solve, &companions, &binding);
            let why = Why::pinned(binding.link.backend());
            let count = binding.link.backend().start_build();
            return Ok(Placed { binding, lease, count, why });
        }
    };
    let recent = || proxy.directory.recent_companion(&companions, Instant::now());
    let preferred = solve.linked.then(recent).flatten().and_then(|name| proxy.fleet.find(&name));
    let key = solve.affinity.as_ref().map(|affinity| KeyHash::new(&affinity.key));
    match proxy.open_link(preferred, &proxy.policy, key, LinkKind::Own).await {
        Ok(Opened { link, count, why }) => {
            let binding = Arc::new(Binding::new(link));
            let lease = decision.bind(&binding);
            Ok(Placed { binding, lease, count, why })
        }
        Err(error) => {
            decision.refuse(&error);
            Err(error)
        }
    }
}

/// Tells of a build that needs what is on two daemons: it can run on one only, and likely fails there.
fn warn_of_conflict(proxy: &Proxy, solve: &Solve, companions: &[Key], binding: &Binding) {
    let keys = solve.keys();
    // Only a linked target needs its companions.
    let needed = keys.iter().chain(companions.iter().filter(|_| solve.linked));
    if let Some((key, elsewhere)) = proxy.directory.elsewhere(needed, binding) {
        proxy.metrics.binding_conflicts.inc();
        warn!(
            pool = proxy.metrics.pool(),
            r#ref = solve.build.as_ref().map(tracing::field::display),
            backend = binding.link.backend().name(),
            key = %key,
            elsewhere = elsewhere.name(),
            "build needs a session of another daemon"
        );
    }
}

/// Binds a Session that no live Solve names: to where its Solve `ended`, else beside its client's
/// builds if there are any.
pub(super) async fn session(
    proxy: &Proxy,
    key: &Key,
    ended: Option<Arc<Backend>>,
    trace: Option<TraceId>,
    client: &Client,
) -> Result<(Bound, Option<Lease>), ProxyError> {
    let companions = match (&ended, trace) {
        (Some(_), _) => Vec::new(),
        (None, Some(trace)) => vec![Key::Trace(trace)],
        (None, None) => vec![Key::Connection(client.connection)],
    };
    let keys = std::slice::from_ref(key);
    let (binding, lease) = match claim(proxy, keys, &companions, true).await {
        Err(joined) => joined,
        Ok(decision) => {
            let policy = proxy.policy.with(Policy::LeastSessions);
            match proxy.open_link(ended, &policy, None, LinkKind::Own).await {
                Ok(Opened { link, .. }) => {
                    let binding = Arc::new(Binding::new(link));
                    let lease = decision.bind(&binding);
                    (binding, lease)
                }
                Err(error) => {
                    decision.refuse(&error);
                    return Err(error);
                }
            }
        }
    };
    Ok((Bound { binding, tally: Arc::default() }, Some(lease)))
}

/// The right to decide, or what others have decided already.
async fn claim(
    proxy: &Proxy,
    keys: &[Key],
    companions: &[Key],
    pin: bool,
) -> Result<Decision, (Arc<Binding>, Lease)> {
    loop {
        match proxy.directory.claim(keys, companions, pin) {
            Claim::Decide(decision) => return Ok(decision),
            Claim::Join(binding, lease) => return Err((binding, lease)),
            // The channel closes when the other's decision is made or abandoned.
            Claim::Wait(mut decision) => while decision.changed().await.is_ok() {},
        }
    }
}

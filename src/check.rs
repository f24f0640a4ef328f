//! `buildkit-lb check`: looks at the live set-up of a configuration, and says what to do about each finding.
//!
//! The check changes nothing. It opens the connections that the proxy would open, and asks what the proxy would ask. Each
//! wait for an answer has a limit of some seconds.

mod certificates;
mod daemons;
mod finding;
mod ports;
mod rights;
mod sources;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::finding::{Finding, Findings, Format, Level};
use crate::{
    config::{self, Config},
    discovery::Discovery,
    error::chain,
    fleet::Fleet,
    kubernetes::Access,
    metrics::Families,
    pool::{Finder, discover, load},
};

/// Checks everything that `config` names.
pub async fn run(config: Config) -> Findings {
    let mut findings = Findings::default();
    let Config { pools, admin_access, process, .. } = config;
    ports::check(&pools, &process, &mut findings).await;
    certificates::check(&pools, &admin_access, &process, &mut findings);
    let kubernetes = Access::default();
    rights::check(&pools, process.pods(), &kubernetes, &mut findings).await;
    let families = Families::new();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let _ended = stop.clone().drop_guard();
    let dns_server = sources::dns_server(process.dns_server.as_ref(), &mut findings).await;
    let pod_details = process.pods().details;
    let finder =
        Finder { dns_server, kubernetes: &kubernetes, pod_details, tasks: &tasks, stop: &stop };
    for pool in pools {
        check_pool(pool, &families, finder, &mut findings).await;
    }
    findings
}

/// Checks the sources and the daemons of one pool.
async fn check_pool(
    pool: config::Pool,
    families: &Arc<Families>,
    finder: Finder<'_>,
    findings: &mut Findings,
) {
    let subject = format!("pool {}", pool.name);
    let client = match load(&pool.tls) {
        Ok((_server, client)) => client,
        Err(error) => {
            let advice = "repair the files of --tls-dir and --backend-tls-dir";
            return findings.error(&subject, error.to_string(), advice);
        }
    };
    let metrics = Arc::new(families.pool(&pool.name));
    let fleet = Arc::new(Fleet::new(Arc::clone(&metrics)).with_tls(client));
    let discovery = Discovery::new(Arc::clone(&fleet), metrics, None);
    if !pool.backend.is_empty() {
        discovery.source(&"backend").found(pool.backend, None);
    }
    match discover(pool.discover, &discovery, finder).await {
        Ok(()) => sources::check(&discovery, findings).await,
        Err(error) => {
            let advice =
                "run the check where the proxy runs, with its service account or KUBECONFIG";
            findings.error(&subject, chain(&error), advice);
        }
    }
    daemons::check(&subject, &fleet, finder.tasks, findings).await;
}

//! KEDA's external scaler: tells KEDA how many builds a pool has, so that it gives the pool daemons.
//!
//! Answers from memory alone. It knows no Kubernetes: which pods there are is KEDA's business.

mod demand;
mod server;
mod service;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{server::Server, service::Service};
use crate::{acceptor::Acceptor, metrics::TlsSide, pool::Pool, tls};

/// Where KEDA connects.
#[derive(Debug)]
pub struct Port {
    /// The bound socket.
    pub acceptor: Acceptor,
    /// What KEDA shakes hands with, if it speaks TLS.
    pub tls: Option<Arc<tls::Server>>,
}

/// Serves the scaler of `pools` on `tasks` until `stop`. When `leaving` is cancelled, its streams end, so that
/// KEDA asks another proxy.
pub fn serve(
    port: Port,
    pools: &Arc<[Pool]>,
    leaving: &CancellationToken,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let service = Service::new(Arc::clone(pools), leaving.clone());
    if let (Some(tls), [pool, ..]) = (&port.tls, &**pools) {
        // It is of no pool; the first one's name is as good as any.
        let metrics = Arc::clone(&pool.proxy.metrics);
        tasks.spawn(Arc::clone(tls).follow(TlsSide::Scaler, metrics, stop.clone()));
    }
    tasks.spawn(Server::new(service, port.tls, tasks.clone(), stop.clone()).run(port.acceptor));
}

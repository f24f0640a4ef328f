//! KEDA's external scaler: tells KEDA how many builds a pool has, so that KEDA gives the pool enough daemons.
//!
//! It answers from memory alone, and does not ask the Kubernetes API. KEDA knows which pods exist.

mod demand;
mod server;
mod service;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{server::Server, service::Service};
use crate::{acceptor::Acceptor, metrics::TlsSide, pool::Pool, tls};

/// The port to which KEDA connects.
#[derive(Debug)]
pub struct Port {
    /// The bound socket.
    pub acceptor: Acceptor,
    /// The certificates of the port, if KEDA speaks TLS.
    pub tls: Option<Arc<tls::Server>>,
}

/// Serves the scaler of `pools` on `tasks` until `stop`. When `leaving` is cancelled, its streams end, so that KEDA
/// asks another proxy.
pub fn serve(
    port: Port,
    pools: &Arc<[Pool]>,
    leaving: &CancellationToken,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let service = Service::new(Arc::clone(pools), leaving.clone());
    if let (Some(tls), [pool, ..]) = (&port.tls, &**pools) {
        // The port belongs to no pool, so its certificates are counted under the first pool's name.
        let metrics = Arc::clone(&pool.proxy.metrics);
        tasks.spawn(Arc::clone(tls).follow(TlsSide::Scaler, metrics, stop.clone()));
    }
    tasks.spawn(Server::new(service, port.tls, tasks.clone(), stop.clone()).run(port.acceptor));
}

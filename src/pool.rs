//! The composition root of one pool: its fleet, what discovers and probes the fleet, and the proxy in front of it.
//!
//! Pools share the process, the admin port and the limit on connections, and nothing else: a build of one pool
//! never reaches a daemon of another.

use std::{net::SocketAddr, sync::Arc};

use hickory_resolver::net::NetError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    annotations, config,
    discovery::{self, Discovery, SourceStatus, Target, dns},
    figures,
    fleet::Fleet,
    health,
    kubernetes::{Access, ClientError},
    metrics::{Families, Metrics, TlsSide},
    networks::Network,
    placement,
    proxy::{Commons, Proxy},
    tls::{self, TlsError},
};

/// Why a pool cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The certificates cannot be used, although the configuration check accepted them.
    #[error("read the certificates of pool {pool}")]
    Tls {
        /// The name of the pool.
        pool: String,
        /// What is wrong with the certificates.
        source: TlsError,
    },
    /// The daemons are found by the Kubernetes API, and the proxy cannot use the API.
    #[error(transparent)]
    Kubernetes(#[from] ClientError),
    /// The daemons are found by DNS, and this machine names no DNS server.
    #[error("read the DNS servers of this machine")]
    Dns(#[from] NetError),
}

/// What all pools of the process share.
#[derive(Debug)]
pub struct Shared<'a> {
    /// The DNS server to use instead of those of this machine.
    pub dns_server: Option<SocketAddr>,
    /// Which labels of daemons' pods are read, and which annotations are written.
    pub pods: config::Pods,
    /// The client of the Kubernetes API.
    pub kubernetes: Access,
    /// The limits that the clients of all pools share.
    pub commons: Commons,
    /// The metrics of all pools.
    pub families: &'a Arc<Families>,
    /// Tracks the tasks of the pools.
    pub tasks: &'a TaskTracker,
    /// Cancelled when these tasks must end.
    pub stop: &'a CancellationToken,
}

impl Shared<'_> {
    fn finder(&self) -> Finder<'_> {
        Finder {
            dns_server: self.dns_server,
            kubernetes: &self.kubernetes,
            pod_details: self.pods.details,
            tasks: self.tasks,
            stop: self.stop,
        }
    }
}

/// A running pool.
#[derive(Debug)]
pub struct Pool {
    /// The state that the streams of all listeners share.
    pub proxy: Arc<Proxy>,
    /// Discovers the daemons.
    pub discovery: Arc<Discovery>,
    /// The certificates for connections of clients. `None` without TLS.
    pub tls: Option<Arc<tls::Server>>,
    /// The networks whose connections begin with a PROXY header.
    pub proxy_protocol: Vec<Network>,
    /// Tracks tasks that still have to write something after the stop. They limit their own time.
    closing: TaskTracker,
}

impl Pool {
    /// Starts all tasks of the pool. The pool does not listen yet.
    ///
    /// # Errors
    /// Certificates cannot be used, or a source of daemons is not available.
    pub async fn start(config: config::Pool, shared: &Shared<'_>) -> Result<Self, PoolError> {
        let &Shared { pods, ref kubernetes, ref commons, families, tasks, stop, .. } = shared;
        let metrics = Arc::new(families.pool(&config.name));
        let broken = |source| PoolError::Tls { pool: config.name.clone(), source };
        let (server, client) = load(&config.tls).map_err(broken)?;
        follow(server.as_ref(), client.as_ref(), &metrics, shared);
        let (policy, warm, queue) = (config.policy(), config.warm(), config.queue());
        let placing = placement::Config { policy, warm, queue };
        let fleet = Fleet::new(Arc::clone(&metrics)).with_probation(config.probation.0);
        let fleet = Arc::new(fleet.with_tls(client));
        let discovery =
            Discovery::new(Arc::clone(&fleet), Arc::clone(&metrics), config.backend_metrics_port);
        if !config.backend.is_empty() {
            discovery.source(&"backend").found(config.backend, None);
        }
        discover(config.discover, &discovery, shared.finder()).await?;
        let closing = TaskTracker::new();
        if pods.annotations.any() {
            let (fleet, metrics) = (Arc::clone(&fleet), Arc::clone(&metrics));
            let (client, stop) = (kubernetes.client().await?, stop.clone());
            closing.spawn(annotations::run(client, fleet, pods.annotations, metrics, stop));
        }
        let (read, counted) = (Arc::clone(&fleet), Arc::clone(&metrics));
        tasks.spawn(figures::run(read, policy.kind, counted, stop.clone()));
        let rules = Arc::new(config.affinity);
        let proxy =
            Proxy::new(Arc::clone(&fleet), metrics, placing, rules, commons.clone(), tasks.clone());
        let (shared, capabilities) = (Arc::clone(&proxy.shared), Arc::clone(&proxy.capabilities));
        let (placement, ended) = (Arc::clone(&proxy.placement), stop.clone());
        tasks.spawn(async move { placement.serve_queue(ended).await });
        tasks.spawn(health::run(fleet, shared, capabilities, tasks.clone(), stop.clone()));
        let proxy = Arc::new(proxy);
        Ok(Self {
            proxy,
            discovery,
            tls: server,
            proxy_protocol: config.proxy_protocol_from,
            closing,
        })
    }

    /// Waits after the stop for the tasks that still have to write something.
    pub async fn close(&self) {
        self.closing.close();
        self.closing.wait().await;
    }

    /// Whether the daemons are known, even if there are none, because a source has reported them.
    pub fn is_synced(&self) -> bool {
        let known = |source: &SourceStatus| source.synced.is_some() || source.endpoints > 0;
        self.discovery.statuses().iter().any(known)
    }

    /// The name of the pool.
    pub fn name(&self) -> &str {
        self.proxy.metrics.pool()
    }

    /// The number of builds that are bound in the pool.
    pub fn builds(&self) -> usize {
        self.proxy.directory.builds().len()
    }
}

/// TLS to clients and TLS to daemons, each if it is configured.
pub type BothSides = (Option<Arc<tls::Server>>, Option<Arc<tls::Client>>);

/// Loads the certificates of both sides.
///
/// # Errors
/// The files cannot be used for TLS.
pub fn load(config: &config::Tls) -> Result<BothSides, TlsError> {
    let clients = config.clients.as_ref();
    let server = clients.map(|side| tls::Server::load(side.files.clone(), side.client_auth));
    let backends = config.backends.as_ref();
    let client =
        backends.map(|side| tls::Client::load(side.files.clone(), side.server_names.clone()));
    Ok((server.transpose()?.map(Arc::new), client.transpose()?.map(Arc::new)))
}

/// Follows the files of both sides.
fn follow(
    server: Option<&Arc<tls::Server>>,
    client: Option<&Arc<tls::Client>>,
    metrics: &Arc<Metrics>,
    shared: &Shared<'_>,
) {
    let stop = || shared.stop.clone();
    if let Some(server) = server {
        let followed = Arc::clone(server).follow(TlsSide::Client, Arc::clone(metrics), stop());
        shared.tasks.spawn(followed);
    }
    if let Some(client) = client {
        shared.tasks.spawn(Arc::clone(client).follow(Arc::clone(metrics), stop()));
    }
}

/// What the sources of daemons need.
#[derive(Debug, Clone, Copy)]
pub struct Finder<'a> {
    /// The DNS server to use instead of those of this machine.
    pub dns_server: Option<SocketAddr>,
    /// The client of the Kubernetes API.
    pub kubernetes: &'a Access,
    /// Whether the labels of daemons' pods are read.
    pub pod_details: bool,
    /// Tracks the tasks.
    pub tasks: &'a TaskTracker,
    /// Cancelled when the tasks must end.
    pub stop: &'a CancellationToken,
}

/// Starts to look for daemons at each of `targets`.
///
/// # Errors
/// There are no credentials for Kubernetes, or this machine names no DNS server.
pub async fn discover(
    targets: Vec<Target>,
    discovery: &Arc<Discovery>,
    finder: Finder<'_>,
) -> Result<(), PoolError> {
    let Finder { dns_server, kubernetes, pod_details, tasks, stop } = finder;
    for target in targets {
        let source = discovery.source(&target);
        let stop = stop.clone();
        match target {
            Target::Kubernetes(service) => {
                let client = kubernetes.client().await?;
                tasks.spawn(discovery::kubernetes::run(client, service, pod_details, source, stop));
            }
            Target::Dns(name) => {
                let resolver = dns::resolver(dns_server)?;
                tasks.spawn(dns::run(resolver, name, source, stop));
            }
        }
    }
    Ok(())
}

//! One pool at work: a fleet, what finds and probes it, and the proxy in front of it.
//!
//! Pools share the process, the admin port and the limit of connections, and nothing else: a build of one
//! never reaches a daemon of another.

use std::{net::SocketAddr, sync::Arc};

use hickory_resolver::net::NetError;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    annotations, config,
    discovery::{self, Discovery, SourceStatus, Target, dns},
    fleet::Fleet,
    health,
    kubernetes::{Access, ClientError},
    metrics::{Families, TlsSide},
    networks::Network,
    placement,
    proxy::{Commons, Proxy},
    tls::{self, TlsError},
};

/// Why a pool cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Its certificates have broken since the configuration was read.
    #[error("read the certificates of pool {pool}")]
    Tls {
        /// The pool.
        pool: String,
        /// Why.
        source: TlsError,
    },
    /// They are to be found by a Kubernetes API that there is no way to.
    #[error(transparent)]
    Kubernetes(#[from] ClientError),
    /// They are to be found by DNS, and the system names no server.
    #[error("read the DNS servers of this machine")]
    Dns(#[from] NetError),
}

/// What all pools of the process start with.
#[derive(Debug)]
pub struct Shared<'a> {
    /// Whom to ask for names, unless the system says.
    pub dns_server: Option<SocketAddr>,
    /// What is asked of and told to the daemons' pods.
    pub pods: config::Pods,
    /// The way to the Kubernetes API.
    pub kubernetes: Access,
    /// What their clients share.
    pub commons: Commons,
    /// Every metric.
    pub families: &'a Arc<Families>,
    /// Where their tasks run.
    pub tasks: &'a TaskTracker,
    /// When these end.
    pub stop: &'a CancellationToken,
}

/// A pool that follows and probes its daemons.
#[derive(Debug)]
pub struct Pool {
    /// What the streams of its listeners share.
    pub proxy: Arc<Proxy>,
    /// What finds its daemons.
    pub discovery: Arc<Discovery>,
    /// What its clients meet, unless they speak without TLS.
    pub tls: Option<Arc<tls::Server>>,
    /// Whose connections begin with a PROXY header.
    pub proxy_protocol: Vec<Network>,
    /// What has a last word to say after the stop, and bounds how long it takes.
    closing: TaskTracker,
}

impl Pool {
    /// Starts all tasks of the pool. It does not listen yet.
    ///
    /// # Errors
    /// A source of daemons cannot be asked.
    pub async fn start(config: config::Pool, shared: &Shared<'_>) -> Result<Self, PoolError> {
        let &Shared { dns_server, pods, ref kubernetes, ref commons, families, tasks, stop } =
            shared;
        let metrics = Arc::new(families.pool(&config.name));
        let broken = |source| PoolError::Tls { pool: config.name.clone(), source };
        let (server, client) = load(&config.tls).map_err(broken)?;
        if let Some(server) = &server {
            tasks.spawn(Arc::clone(server).follow(
                TlsSide::Client,
                Arc::clone(&metrics),
                stop.clone(),
            ));
        }
        if let Some(client) = &client {
            tasks.spawn(Arc::clone(client).follow(Arc::clone(&metrics), stop.clone()));
        }
        let (policy, warm, queue) = (config.policy(), config.warm(), config.queue());
        let placing = placement::Config { policy, warm, queue };
        let fleet = Fleet::new(Arc::clone(&metrics)).with_probation(config.probation.0);
        let fleet = Arc::new(fleet.with_tls(client));
        let discovery = Discovery::new(Arc::clone(&fleet), Arc::clone(&metrics));
        if !config.backend.is_empty() {
            discovery.source(&"backend").found(config.backend, None);
        }
        for target in config.discover {
            let source = discovery.source(&target);
            let stop = stop.clone();
            match target {
                Target::Kubernetes(service) => {
                    let client = kubernetes.client().await?;
                    tasks.spawn(discovery::kubernetes::run(
                        client,
                        service,
                        pods.details,
                        source,
                        stop,
                    ));
                }
                Target::Dns(name) => {
                    let resolver = dns::resolver(dns_server)?;
                    tasks.spawn(dns::run(resolver, name, source, stop));
                }
            }
        }
        let closing = TaskTracker::new();
        if pods.annotations.any() {
            let (fleet, metrics) = (Arc::clone(&fleet), Arc::clone(&metrics));
            let (client, stop) = (kubernetes.client().await?, stop.clone());
            closing.spawn(annotations::run(client, fleet, pods.annotations, metrics, stop));
        }
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

    /// Waits, after the stop, for what has a last word to say.
    pub async fn close(&self) {
        self.closing.close();
        self.closing.wait().await;
    }

    /// Whether its daemons are known, even if there is none: some source has told of them.
    pub fn is_synced(&self) -> bool {
        let known = |source: &SourceStatus| source.synced.is_some() || source.endpoints > 0;
        self.discovery.statuses().iter().any(known)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.proxy.metrics.pool()
    }

    /// Builds that are bound in it.
    pub fn builds(&self) -> usize {
        self.proxy.directory.builds().len()
    }
}

type BothSides = (Option<Arc<tls::Server>>, Option<Arc<tls::Client>>);

/// Reads the certificates of both sides.
fn load(config: &config::Tls) -> Result<BothSides, TlsError> {
    let clients = config.clients.as_ref();
    let server = clients.map(|side| tls::Server::load(side.files.clone(), side.client_auth));
    let backends = config.backends.as_ref();
    let client =
        backends.map(|side| tls::Client::load(side.files.clone(), side.server_names.clone()));
    Ok((server.transpose()?.map(Arc::new), client.transpose()?.map(Arc::new)))
}
